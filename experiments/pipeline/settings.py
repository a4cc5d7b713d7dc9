"""The settings of a run: every number of the study that is not a property of the library."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

from flax.traverse_util import flatten_dict

from jaxpref import annotators, dpo, expert_ppo, online, ppo, reinforce, reward_model
from jaxpref.checks import setting

StudyTask = Literal["cartpole", "acrobot"]
"""The study's own tasks. A run may also have any gymnax environment."""
Method = Literal["dpo", "rlhf", "online-dpo", "online-rlhf"]
Policy = Literal["pi1", "pi2"]
Preset = Literal["default", "original"]


MOST = 10**6
"""Most pairs, members or episodes. More are a typing error, and would fill the memory before they fail."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run of the pipeline: a task, a method, and everything that can be changed about them."""

    task: str
    """cartpole, acrobot, or any gymnax id."""
    method: Method
    """How a policy is trained on preferences; the online methods play their pairs while they train."""
    out: Path
    """Folder for the results; made if it is missing."""
    seeds: tuple[int, ...] = setting((35, 42, 100), low=0, high=2**32 - 1)
    """Each seed is a study of its own, from its experts to its evaluation."""
    num_pairs: tuple[int, ...] = setting((10, 50, 200, 1000), low=1, high=MOST)
    """Sizes of the preference dataset; a smaller one is the beginning of the largest."""
    reference: tuple[Policy, ...] = ("pi1", "pi2")
    """Policy of DPO's log-ratios and PPO's KL penalty. pi1: as in the original. pi2: the initial policy, so that
    only the preferences say what is better."""
    preset: Preset = "default"
    """Defaults of all other flags: "original" has the original study's settings."""
    horizon: int | None = setting(None, low=1)
    """Steps after which an episode is cut off; None: the task's own time limit."""
    fixed_horizon: bool = False
    """Let all episodes go on to the horizon: after their end the state stays as it is, and the reward is 0."""
    preferences: str = ""
    """Train on people's answers, a file of JSON lines. Held-out pairs still have the annotator's."""
    pairs: str = ""
    """The file of pairs that the answers are about; with --preferences."""
    segment: int | None = setting(None, low=1)
    """Compare clips of this many steps, each from a random place of its episode; None: whole episodes."""
    experts: Literal["reinforce", "ppo"] = "reinforce"
    """What trains pi1 and pi2 on the true reward: REINFORCE, as in the original study, or PPO."""
    pi1_target: float | None = setting(None)
    """Mean return at which training keeps pi1, the good policy; None: the task's own, or 90 % of the way from the
    first to the best return of a training run."""
    pi2_target: float | None = setting(None)
    """Mean return at which it keeps pi2, the less good policy; None: the task's own, or half of that way."""
    return_range: tuple[float, float] | None = None
    """Lowest and highest return of an episode, the unit of the annotator's thresholds; None: the task's own."""
    network: Literal["mlp", "conv"] = "mlp"
    """"mlp": one hidden layer on flat observations; "conv": a convolution before it, for images."""
    reward: Literal["learned", "bias", "plus", "minus", "zero", "random", "true"] = "learned"
    """What PPO maximises. All but "learned" are controls. "bias" is a reward model that has nothing but its bias. The
    others ignore the preferences: "plus" is +1 for each step, "minus" is -1."""
    num_members: int = setting(1, low=1, high=MOST)
    """Reward models in PPO's ensemble."""
    num_heldout: int = setting(200, low=1, high=MOST)
    """Fresh pairs that accuracies are measured on."""
    eval_episodes: int = setting(100, low=1, high=MOST)
    """Episodes that each final policy is evaluated on."""
    save_preferences: bool = False
    """Also write the preference datasets, one file for each seed."""
    fresh: bool = False
    """Compute every stage again, also those in the memo."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard event files; needs `pip install jaxpref[tensorboard]`."""
    devices: int = setting(0, low=0, high=1024)
    """CPU devices that seeds are spread over; 0: one for each core. Without effect on an accelerator."""
    batch_seeds: int = setting(0, low=0)
    """Seeds in memory at the same time; 0: as many as fit."""
    processes: int = setting(1, low=0)
    """Processes that share the seeds, each started with the same flags except --process; 0: as the launcher says
    (Slurm, Open MPI). The first one writes the results."""
    process: int = setting(0, low=0)
    """Number of this process, from 0; with --coordinator."""
    coordinator: str = ""
    """HOST:PORT of the first process; with --processes."""
    annotator: annotators.Config = dataclasses.field(default_factory=annotators.Config)
    reinforce: reinforce.Config = dataclasses.field(default_factory=reinforce.Config)
    expert_ppo: ppo.Config = expert_ppo.DEFAULTS
    dpo: dpo.Config = dataclasses.field(default_factory=dpo.Config)
    reward_model: reward_model.Config = dataclasses.field(default_factory=reward_model.Config)
    reward_model_epochs: int = setting(0, low=0, high=MOST)
    """Passes over the pairs, in place of reward_model.num_updates; 0: off."""
    ppo: ppo.Config = dataclasses.field(default_factory=ppo.Config)
    online: online.Config = dataclasses.field(default_factory=online.Config)

    @property
    def experiment(self) -> str:
        """Name of the make target and of the folder of results."""
        return f"{self.task}-{self.method}"

    @property
    def defaults(self) -> Settings:
        """The settings that these started from."""
        return PRESETS[self.preset](self.task, self.method)

    @property
    def trainer(self) -> str:
        """Name of the stage that trains policies."""
        return "ppo" if self.method == "rlhf" else self.method

    @property
    def expert_stage(self) -> str:
        """Name of the stage that trains pi1 and pi2."""
        return "reinforce" if self.experts == "reinforce" else "expert ppo"

    @property
    def expert_config(self) -> reinforce.Config | ppo.Config:
        """Return the config of that stage."""
        return self.reinforce if self.experts == "reinforce" else self.expert_ppo

    @property
    def size_groups(self) -> list[tuple[int, ...]]:
        """Dataset sizes that one program trains on. In epochs, full batches and rounds each size has its own cost."""
        shared = {"dpo": self.dpo.batch_size > 0, "rlhf": self.reward_model_epochs == 0}
        return [self.num_pairs] if shared.get(self.method) else [(size,) for size in self.num_pairs]

    def reward_model_config(self, num_pairs: int) -> reward_model.Config:
        """Return the reward model's config, with epochs turned into updates."""
        if self.reward_model_epochs == 0:
            return self.reward_model
        num_updates = self.reward_model_epochs * num_pairs // (self.reward_model.batch_size or num_pairs)
        return dataclasses.replace(self.reward_model, num_updates=max(1, num_updates))


def default_settings(task: str, method: Method) -> Settings:
    """The library's own defaults: one set of numbers for all tasks. Only the study's tasks have its experts."""
    experts: Any = "reinforce" if task in get_args(StudyTask) else "ppo"
    return Settings(task, method, Path("results") / f"{task}-{method}", experts=experts)


def original_settings(task: str, method: Method) -> Settings:
    """The original study's settings on this code; docs/original.md lists what differs all the same.

    Raises ValueError for a task or a method that the original study did not have.
    """
    if task not in get_args(StudyTask) or method not in ("dpo", "rlhf"):
        raise ValueError(f"--preset original has no {task} with {method}: it has cartpole and acrobot, dpo and rlhf")
    acrobot = task == "acrobot"
    return Settings(
        task,
        method,
        Path("results") / f"{task}-{method}-original",
        preset="original",
        reference=("pi1",),
        reinforce=reinforce.Config(
            num_updates=3000 if acrobot else 1200,  # of one episode each
            episodes_per_update=1,
            baseline="handmade",
            normalise_advantage=False,
            shape_reward=acrobot,
            score_shaping=acrobot,
            learning_rate=3e-3,
            ent_coef=0.0,
            policy_scale=1.0,
        ),
        dpo=dpo.Config(
            num_updates=120 if acrobot else 300,
            batch_size=0,
            eval_every=12 if acrobot else 30,
            learning_rate=1e-2,
            loss="sigmoid",
            beta=5.0 if acrobot else 0.5,
        ),
        reward_model=reward_model.Config(
            num_folds=0,
            use_next_obs=False,
            normalise_obs=False,
            batch_size=1,
            learning_rate=1e-2,
            weight_decay=0.0,
        ),
        reward_model_epochs=50,
        ppo=original_ppo(),
    )


def original_ppo() -> ppo.Config:
    """The original study's PPO: 100 updates of 2000 steps, KL to the reference in the loss."""
    return ppo.Config(
        num_updates=100,
        num_envs=10,
        num_steps=200,
        num_epochs=4,
        num_minibatches=31,  # of 64 steps
        eval_every=10,
        kl_penalty="loss",
        reset_value=False,
        learning_rate=3e-4,
        gamma=0.98,
        gae_lambda=0.8,
        clip_eps=0.2,
        vf_coef=0.5,
        ent_coef=0.01,
        kl_coef=10.0,
        max_grad_norm=0.5,
    )


PRESETS = {"default": default_settings, "original": original_settings}


def flag(name: str) -> str:
    """Return a setting's name on the command line."""
    return name.replace("_", "-")


def from_config(config: dict[str, Any]) -> Settings:
    """Return the settings that `dataclasses.asdict` made `config` from, also when it has passed through JSON.

    What `config` leaves out has its default. Raises TypeError or AttributeError for a setting that does not exist.
    """
    default = default_settings(config["task"], config["method"])
    values: dict[str, Any] = {"out": default.out} | config
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = dataclasses.replace(getattr(default, name), **value)
        elif isinstance(value, list):
            values[name] = tuple(value)
    return dataclasses.replace(default, **values | {"out": Path(values["out"])})


def flat(settings: Any) -> dict[str, Any]:
    """Return every setting by its flag, as in `dpo.learning-rate`."""
    return {flag(name): value for name, value in flatten_dict(dataclasses.asdict(settings), sep=".").items()}


def changes(settings: Settings, default: Settings) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, as (value, default), by their flags."""
    usual = flat(default)
    return {name: (value, usual[name]) for name, value in flat(settings).items() if value != usual[name]}


def to_flags(settings: Settings) -> list[str]:
    """Return the words of the shortest command line of `experiments.run` for these settings."""
    words = [f"--task={settings.task}", f"--method={settings.method}"]
    if settings.preset != "default":
        words.append(f"--preset={settings.preset}")
    for name, (value, _) in changes(settings, settings.defaults).items():
        if isinstance(value, bool):
            *group, last = name.split(".")
            words.append("--" + (name if value else ".".join([*group, f"no-{last}"])))
        elif isinstance(value, tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    return words
