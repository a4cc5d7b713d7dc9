"""CartPole with DPO: `python -m experiments.cartpole_dpo --help`."""

from experiments.reporting.experiment import main

if __name__ == "__main__":
    main("cartpole_dpo", "cartpole", "dpo")
