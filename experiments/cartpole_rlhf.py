"""CartPole with a reward model and PPO: `python -m experiments.cartpole_rlhf --help`."""

from experiments.command import main

if __name__ == "__main__":
    main("cartpole", "rlhf")
