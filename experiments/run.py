"""Any task with any method: `python -m experiments.run --task acrobot --method dpo --help`."""

from experiments.reporting.experiment import main

if __name__ == "__main__":
    main("run")
