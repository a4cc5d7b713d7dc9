"""Any task with any method: `python -m experiments.run --task acrobot --method dpo --help`."""

from experiments.command import main

if __name__ == "__main__":
    main()
