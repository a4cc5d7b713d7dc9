"""From a command line to the settings of a run, with the checks that tyro cannot make."""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Iterator, Sequence
from typing import cast, get_args

import tyro

from experiments.harness import cli
from experiments.harness.errors import UsageError
from experiments.pipeline.settings import MOST, PRESETS, Method, Settings, changes, default_settings, flag

USED = {
    "dpo": {"dpo"},
    "rlhf": {"reward-model", "ppo", "reward", "num-members", "reward-model-epochs"},
    "online-dpo": {"dpo", "online.num-rounds"},
    "online-rlhf": {"reward-model", "ppo", "online"},
}
"""The flags and configs that each method reads. Those that all methods read are not here."""
EXPERTS = {"reinforce": {"reinforce"}, "ppo": {"expert-ppo"}}
"""The config that each kind of experts reads."""


def parse(argv: Sequence[str], script: str, task: str | None = None, method: Method | None = None) -> Settings:
    """Return a script's settings. `task` and `method` are its defaults; without them, the user must choose."""
    chosen = cli.given(argv, "method") or method
    known = cast(Method, chosen if chosen in get_args(Method) else "dpo")
    try:
        preset = PRESETS.get(cli.given(argv, "preset") or "default", default_settings)
        default = preset(cli.given(argv, "task") or task or "cartpole", known)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if task is None:
        default = dataclasses.replace(default, task=tyro.MISSING, method=tyro.MISSING)
    settings = cli.read(Settings, argv, script, "Experts, preferences, training and evaluation on many seeds.", default)
    for problem in problems(settings):
        raise UsageError(problem)
    return settings


def check_unused(settings: Settings) -> None:
    """Raise UsageError for a flag that the method or the experts do not read."""
    readers = (USED, settings.method, settings.method), (EXPERTS, settings.experts, f"--experts {settings.experts}")
    for name in changes(settings, settings.defaults):
        names = {name, name.partition(".")[0]}  # a flag is read if its whole config is
        for used, reader, title in readers:
            read_by_some, read_here = names & set[str]().union(*used.values()), names & used[reader]
            if read_by_some and not read_here:
                raise UsageError(f"--{name} has no effect on {title}")


def problems(settings: Settings) -> Iterator[str]:
    """Yield what is wrong with combinations of flags, and what `cli.read` does not check."""
    for name in ("seeds", "num_pairs", "reference"):
        values = getattr(settings, name)
        if len(set(values)) < len(values):
            yield f"--{flag(name)} needs each value once, got {' '.join(map(str, values))}"
    lowest, highest = settings.return_range or (0.0, 1.0)
    if not -math.inf < lowest < highest < math.inf:
        yield f"--return-range must be LOWEST HIGHEST, got {lowest} {highest}"
    if settings.dpo.eval_episodes < 1:
        yield "--dpo.eval-episodes must be at least 1 for curves of the true return, got 0"
    if max(settings.dpo.batch_size, settings.reward_model.batch_size) > MOST:
        yield f"--dpo.batch-size and --reward-model.batch-size must be at most {MOST:,}"
    pairs_at_once = min(max(sizes) for sizes in settings.size_groups)
    if settings.reward_model.holdout_every > pairs_at_once:
        yield f"--reward-model.holdout-every must be at most the number of pairs, {pairs_at_once}"
    if settings.method.startswith("online"):
        if settings.preferences:
            yield f"--preferences has no effect on {settings.method}, which asks about its own pairs"
        name = "ppo" if settings.method == "online-rlhf" else "dpo"
        trained, rounds = getattr(settings, name), settings.online.num_rounds
        if any(size % rounds for size in settings.num_pairs):
            yield f"--num-pairs must be multiples of --online.num-rounds, {rounds}"
        if trained.num_updates % (rounds * trained.eval_every):
            least = f"--online.num-rounds * --{name}.eval-every, {rounds * trained.eval_every}"
            yield f"--{name}.num-updates must be a multiple of {least}, got {trained.num_updates}"
    if bool(settings.preferences) != bool(settings.pairs):
        yield "--preferences and --pairs, the file that they are about, need each other"
    if settings.processes and settings.process >= settings.processes:
        yield f"--process must be less than --processes, {settings.processes}, got {settings.process}"
    if settings.coordinator and not re.fullmatch(r"\S+:\d{1,5}", settings.coordinator):
        yield f"--coordinator must be HOST:PORT, got {settings.coordinator}"
    if settings.processes != 0 and (settings.processes > 1) != bool(settings.coordinator):
        yield "--processes and --coordinator HOST:PORT, the address of the first process, need each other"
    if settings.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        yield "--tensorboard needs a package that is not installed: pip install 'jaxpref[tensorboard]'"
