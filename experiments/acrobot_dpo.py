"""Acrobot with DPO: `python -m experiments.acrobot_dpo --help`."""

from experiments.command import main

if __name__ == "__main__":
    main("acrobot", "dpo")
