"""Acrobot with a reward model and PPO: `python -m experiments.acrobot_rlhf --help`."""

from experiments.command import main

if __name__ == "__main__":
    main("acrobot", "rlhf")
