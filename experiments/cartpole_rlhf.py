"""CartPole with PPO-RLHF: `python -m experiments.cartpole_rlhf --help`."""

from experiments.reporting.experiment import main

if __name__ == "__main__":
    main("cartpole_rlhf", "cartpole", "rlhf")
