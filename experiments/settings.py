"""What the study is run with: every number of it that is not a property of the library."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

from tyro.conf import Fixed

from jaxpref import annotators, dpo, ppo, reinforce, reward_model

TaskName = Literal["cartpole", "acrobot"]
Method = Literal["dpo", "rlhf"]
Policy = Literal["pi1", "pi2"]
Preset = Literal["default", "original"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """One experiment: a task, a method, and everything that can be changed about them."""

    task: Fixed[TaskName]
    method: Fixed[Method]
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
    num_heldout: int = 200
    """Fresh pairs that held-out accuracy is measured on."""
    eval_episodes: int = 100
    """Episodes that each final policy is evaluated on."""
    save_preferences: bool = False
    """Also write the preference datasets, one file per seed."""
    devices: int = 0
    """CPU devices that seeds are spread over; 0: one for each core. Without effect where there is an accelerator."""
    batch_seeds: int = 0
    """Seeds held in memory at once, the others wait their turn; 0: as many as fit."""
    processes: int = 1
    """Processes that share the seeds, each started with the same flags but for --process; 0: as the launcher says
    (Slurm, Open MPI). The first one writes the results."""
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


def default_settings(task: TaskName, method: Method) -> Settings:
    """The library's own defaults: one set of numbers for both tasks."""
    return Settings(task, method, Path("results") / f"{task}-{method}")


def original_settings(task: TaskName, method: Method) -> Settings:
    """The original study's settings, on this code; README.md lists what differs all the same."""
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
