"""What the study is run with: every number of it that is not a property of the library."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from tyro.conf import Fixed, Suppress

from jaxpref import annotators, dpo, ppo, reinforce, reward_model

TaskName = Literal["cartpole", "acrobot"]
"""The study's tasks. An experiment may also name any gymnax environment with discrete actions."""
NetworkName = Literal["mlp", "conv"]
Method = Literal["dpo", "rlhf"]
Policy = Literal["pi1", "pi2"]
Preset = Literal["default", "original"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """One experiment: a task, a method, and everything that can be changed about them."""

    task: Suppress[Fixed[str]]
    method: Suppress[Fixed[Method]]
    out: Path
    """Folder that the results are written to; made if it is missing."""
    seeds: tuple[int, ...] = (35, 42, 100)
    """Every seed is a study of its own, from its experts to its evaluation."""
    num_pairs: tuple[int, ...] = (10, 50, 200, 1000)
    """Sizes of the preference dataset; the smaller ones are the first pairs of the largest."""
    reference: tuple[Policy, ...] = ("pi1", "pi2")
    """Policy that DPO's log-ratios and PPO's KL penalty refer to: pi1 as in the original study; pi2, the initial
    policy, is the standard setting in which preferences alone carry the information."""
    preset: Preset = "default"
    """Where the defaults of all other flags come from: "original" has the original study's settings."""
    horizon: int | None = None
    """Steps after which an episode is cut off; None: the task's own time limit."""
    pi1_target: float | None = None
    """Mean return at which REINFORCE keeps pi1, the good policy; None: the task's own, or 90 % of the way from the
    first to the best return of a training run."""
    pi2_target: float | None = None
    """Mean return at which it keeps pi2, the less good one; None: the task's own, or half of that way."""
    return_range: tuple[float, float] | None = None
    """Lowest and highest return of an episode, the unit of the annotator's thresholds; None: the task's own."""
    network: NetworkName = "mlp"
    """"mlp": one hidden layer on flat observations; "conv": a convolution before it, for images."""
    num_heldout: int = 200
    """Fresh pairs that held-out accuracy is measured on."""
    eval_episodes: int = 100
    """Episodes that each final policy is evaluated on."""
    save_preferences: bool = False
    """Also write the preference datasets, one file per seed."""
    fresh: bool = False
    """Compute everything again, whatever an earlier run with the same settings has left in the folder."""
    strict: bool = False
    """Stop at a file that was damaged since it was written; without it, the file is named and made again."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard event files; needs `pip install jaxpref[tensorboard]`."""
    devices: int = 0
    """CPU devices that seeds are spread over; 0: one for each core. Without effect where there is an accelerator."""
    batch_seeds: int = 0
    """Seeds held in memory at once, the others wait their turn; 0: as many as fit."""
    processes: int = 1
    """Processes that share the seeds, each started with the same flags but for --process; 0: as the launcher says
    (Slurm, Open MPI). The first one writes the results. Stages are kept, so that a run can go on where it stopped, by
    a process that is alone."""
    process: int = 0
    """Which of them this one is, from 0; with --coordinator."""
    coordinator: str = ""
    """HOST:PORT of the first process; with --processes."""
    annotator: annotators.Config = dataclasses.field(default_factory=annotators.Config)
    reinforce: reinforce.Config = dataclasses.field(default_factory=reinforce.Config)
    dpo: dpo.Config = dataclasses.field(default_factory=dpo.Config)
    reward_model: reward_model.Config = dataclasses.field(default_factory=reward_model.Config)
    reward_model_epochs: int = 0
    """Passes over the pairs, in place of reward_model.num_updates; 0: off."""
    ppo: ppo.Config = dataclasses.field(default_factory=ppo.Config)

    def __post_init__(self):
        for name in ("seeds", "num_pairs", "reference"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"--{flag(name)} needs at least one value")
            if len(set(values)) < len(values):
                raise ValueError(f"--{flag(name)} names a value twice: {' '.join(map(str, values))}")
        if min(self.num_pairs) < 1:
            raise ValueError(f"--num-pairs must be at least 1, got {min(self.num_pairs)}")
        if min(self.seeds) < 0 or max(self.seeds) >= 2**32:
            raise ValueError(f"--seeds must lie between 0 and 2**32 - 1, got {' '.join(map(str, self.seeds))}")
        for name in ("num_heldout", "eval_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{flag(name)} must be at least 1, got {getattr(self, name)}")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"--horizon must be at least 1, got {self.horizon}")
        for name in ("pi1_target", "pi2_target", "return_range"):
            value = getattr(self, name)
            if value is not None and not np.isfinite(value).all():
                raise ValueError(f"--{flag(name)} must be finite, got {' '.join(map(str, np.ravel(value)))}")
        if self.return_range is not None and not self.return_range[0] < self.return_range[1]:
            raise ValueError(
                f"--return-range must be LOWEST HIGHEST, got {self.return_range[0]} {self.return_range[1]}"
            )
        if self.dpo.eval_episodes < 1:
            raise ValueError("--dpo.eval-episodes must be at least 1 for curves of the true return, got 0")
        for name in ("devices", "reward_model_epochs", "batch_seeds", "processes", "process"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{flag(name)} must not be negative, got {getattr(self, name)}")
        sizes = {
            "num-pairs": max(self.num_pairs),
            "num-heldout": self.num_heldout,
            "eval-episodes": self.eval_episodes,
            "dpo.batch-size": self.dpo.batch_size,
            "reward-model.batch-size": self.reward_model.batch_size,
        }
        for name, size in sizes.items():
            if size > MOST:
                raise ValueError(f"--{name} must be at most {MOST:,}, got {size}")
        if self.devices > MOST_DEVICES:
            raise ValueError(f"--devices must be at most {MOST_DEVICES:,}, got {self.devices}")
        if self.coordinator and not re.fullmatch(r"\S+:\d{1,5}", self.coordinator):
            raise ValueError(f"--coordinator must be HOST:PORT, got {self.coordinator}")
        if self.coordinator and self.processes == 1:
            raise ValueError("--coordinator needs --processes, how many share the seeds")
        pairs_at_once = max(self.num_pairs) if self.shares_program else min(self.num_pairs)
        if self.method == "rlhf" and self.reward_model.holdout_every > pairs_at_once:
            raise ValueError(
                f"--reward-model.holdout-every must be at most the number of pairs, {pairs_at_once}, got "
                f"{self.reward_model.holdout_every}"
            )
        if self.processes > 1 and not self.coordinator:
            raise ValueError("--processes needs --coordinator HOST:PORT, the address of the first process")
        if self.processes and self.process >= self.processes:
            raise ValueError(f"--process counts from 0 to --processes - 1 = {self.processes - 1}, got {self.process}")

    @property
    def experiment(self) -> str:
        """Its name: that of its make target and of its folder of results."""
        return f"{self.task}-{self.method}"

    @property
    def shares_program(self) -> bool:
        """Whether one program trains on all sizes of dataset.

        What works in epochs or full batches does not: its cost is each dataset's own.
        """
        return self.reward_model_epochs == 0 if self.method == "rlhf" else self.dpo.batch_size > 0


MOST, MOST_DEVICES = 10**6, 1024
"""More pairs, episodes or devices are a slip of the finger, and would take all memory before they fail."""


def flag(name: str) -> str:
    """A setting's name on the command line."""
    return name.replace("_", "-")


def default_settings(task: str, method: Method) -> Settings:
    """The library's own defaults: one set of numbers for all tasks, but for a few of gymnax's.

    MountainCar: a random policy's episodes all return the same, so REINFORCE is shown the way by the task's potential;
    and DPO is held to the reference more tightly, at beta 0.1 it drifts off to where the flag is never reached.
    Catch: half of the pairs are ties that say nothing, so both methods are held more tightly; and all episodes last
    equally long, so the reward model has its kernels alone to rank them by, and a decay of 10 keeps these too small.
    MinAtar: images take REINFORCE more episodes and smaller steps; and datasets hold whole episodes of them, whose own
    limit of 1000 steps would need five times the memory.
    """
    settings = Settings(task, method, Path("results") / f"{task}-{method}")
    if task == "MountainCar-v0":
        return dataclasses.replace(settings, reinforce=reinforce.Config(shape_reward=True), dpo=dpo.Config(beta=0.5))
    if task == "Catch-bsuite":
        return dataclasses.replace(
            settings,
            dpo=dpo.Config(beta=0.5),
            reward_model=reward_model.Config(weight_decay=1.0),
            ppo=ppo.Config(kl_coef=0.5),
        )
    if task.endswith("-MinAtar"):
        experts = reinforce.Config(num_updates=1500, episodes_per_update=16, learning_rate=3e-3)
        return dataclasses.replace(settings, horizon=200, reinforce=experts)
    return settings


def original_settings(task: str, method: Method) -> Settings:
    """The original study's settings, on this code; README.md lists what differs all the same.

    Raises ValueError for a task that was not in it.
    """
    if task not in get_args(TaskName):
        raise ValueError(f"--preset original is of {' and '.join(get_args(TaskName))}, not of {task}")
    num_episodes = {"cartpole": 1200, "acrobot": 3000}[task]
    return Settings(
        task,
        method,
        Path("results") / f"{task}-{method}-original",
        preset="original",
        reference=("pi1",),
        reinforce=reinforce.Config(
            num_updates=num_episodes,
            episodes_per_update=1,
            baseline="handmade",
            normalise_advantage=False,
            shape_reward=task == "acrobot",
            score_shaping=task == "acrobot",
            learning_rate=3e-3,
            ent_coef=0.0,
            policy_scale=1.0,
        ),
        dpo=dpo.Config(
            num_updates={"cartpole": 300, "acrobot": 120}[task],
            batch_size=0,
            eval_every={"cartpole": 30, "acrobot": 12}[task],
            learning_rate=1e-2,
            loss="sigmoid",
            beta={"cartpole": 0.5, "acrobot": 5.0}[task],
        ),
        reward_model=reward_model.Config(batch_size=1, learning_rate=1e-2, weight_decay=0.0),
        reward_model_epochs=50,
        ppo=ppo.Config(
            num_updates=100,
            num_envs=10,
            num_steps=200,
            num_epochs=4,
            num_minibatches=31,  # of 64 steps
            eval_every=10,
            kl_penalty="loss",
            learning_rate=3e-4,
            gamma=0.98,
            gae_lambda=0.8,
            clip_eps=0.2,
            vf_coef=0.5,
            ent_coef=0.01,
            kl_coef=10.0,
            max_grad_norm=0.5,
        ),
    )


PRESETS = {"default": default_settings, "original": original_settings}


def from_config(config: dict[str, Any]) -> Settings:
    """The settings that `dataclasses.asdict` made `config` from, also after a journey through JSON.

    What it leaves out has its default. Raises ValueError where it names a setting that there is not.
    """

    def rebuild(default: Any, value: Any) -> Any:
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            unknown = value.keys() - {field.name for field in dataclasses.fields(default)}
            if unknown:
                raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
            rebuilt = {name: rebuild(getattr(default, name), part) for name, part in value.items()}
            return dataclasses.replace(default, **rebuilt)
        if isinstance(default, Path):
            return Path(value)
        return tuple(value) if isinstance(value, list) else value

    return rebuild(default_settings(config["task"], config["method"]), config)


def changes(settings: Settings, default: Settings) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, as (value, default) by their names on the command line, as in `dpo.learning-rate`."""

    def walk(one: Any, other: Any, prefix: str) -> dict[str, tuple[Any, Any]]:
        found: dict[str, tuple[Any, Any]] = {}
        for field in dataclasses.fields(one):
            name, value, usual = flag(prefix + field.name), getattr(one, field.name), getattr(other, field.name)
            if dataclasses.is_dataclass(value):
                found |= walk(value, usual, f"{name}.")
            elif value != usual:
                found[name] = value, usual
        return found

    return walk(settings, default, "")


def to_flags(settings: Settings) -> list[str]:
    """The words of the shortest command line of `experiments.run` that means these settings."""
    words = [f"--task={settings.task}", f"--method={settings.method}"]
    if settings.preset != "default":
        words.append(f"--preset={settings.preset}")
    for name, (value, _) in changes(settings, PRESETS[settings.preset](settings.task, settings.method)).items():
        if isinstance(value, bool):
            group, _, last = name.rpartition(".")
            words.append(f"--{name}" if value else f"--{group}{'.' if group else ''}no-{last}")
        elif isinstance(value, tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    return words
