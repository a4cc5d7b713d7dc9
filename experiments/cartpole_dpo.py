"""CartPole with DPO: `python -m experiments.cartpole_dpo --help`."""

from experiments.command import main

if __name__ == "__main__":
    main("cartpole", "dpo")
