"""Acrobot with DPO: `python -m experiments.acrobot_dpo --help`."""

from experiments.reporting.experiment import main

if __name__ == "__main__":
    main("acrobot_dpo", "acrobot", "dpo")
