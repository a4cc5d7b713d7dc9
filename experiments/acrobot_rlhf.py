"""Acrobot with PPO-RLHF: `python -m experiments.acrobot_rlhf --help`."""

from experiments.reporting.experiment import main

if __name__ == "__main__":
    main("acrobot_rlhf", "acrobot", "rlhf")
