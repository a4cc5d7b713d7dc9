"""The command line: flags to settings, one clear line for what is wrong with them, and the run itself."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import importlib.util
import io
import itertools
import os
import re
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

import docstring_parser
import tyro
from rich.console import Console
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from experiments import INTERRUPTED, START
from experiments.settings import PRESETS, Method, Settings, flag
from jaxpref import annotators, tasks
from jaxpref.dpo import Loss
from jaxpref.tasks import Task
from jaxpref.types import Scalar

REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def _scalar_flag(type_info: Any) -> PrimitiveConstructorSpec | None:
    """A config's float may be a traced array in the library; on the command line it is a number."""
    if type_info.type != Scalar:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda words: float(words[0]),
        is_instance=lambda value: isinstance(value, int | float),
        str_from_instance=lambda value: [str(value)],
    )


@REGISTRY.primitive_rule
def _loss_flag(type_info: Any) -> PrimitiveConstructorSpec | None:
    """A loss may be a function in the library; on the command line it is a name."""
    if type_info.type != Loss:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [str(value)],
    )


@REGISTRY.struct_rule
def _flags_of_a_dataclass(info: StructTypeInfo) -> StructConstructorSpec | None:
    """As tyro's own rule, but for the help, in which a docstring's line breaks in the code are none on the terminal."""
    if not dataclasses.is_dataclass(info.type):
        return None
    texts = {param.arg_name: param.description or "" for param in docstring_parser.parse_from_object(info.type).params}
    hints = get_type_hints(info.type, include_extras=True)

    def spec(field: dataclasses.Field) -> StructFieldSpec:
        default = getattr(info.default, field.name, field.default)
        if default is dataclasses.MISSING:
            default = field.default_factory() if callable(field.default_factory) else tyro.MISSING
        return StructFieldSpec(field.name, hints[field.name], default, " ".join(texts.get(field.name, "").split()))

    return StructConstructorSpec(info.type, tuple(map(spec, dataclasses.fields(info.type))))


Chosen = TypeVar("Chosen")

CHOOSE = (
    "An example: --task, one of the study's or any gymnax id with discrete actions, and --method, dpo or rlhf, choose "
    "the experiment; both are needed."
)
DIVERGED = 3
"""Exit code of a run that is complete, but for seeds that diverged."""


class UsageError(Exception):
    """Something that the user can put right: its message is one line."""


def parse(argv: Sequence[str], task: str | None = None, method: str | None = None) -> Settings:
    """Settings from the command line. `--preset` chooses the defaults that the other flags change; so do `--task`
    and `--method`, which belong to the command line only where the script does not name them.

    Raises UsageError for whatever is wrong with it.
    """
    hint = "The flags are the same in every experiment."
    chosen, rest = take_flags(argv, "task", "method")
    for name, given in vars(chosen).items():
        if given is not None and task is not None:
            raise UsageError(f"--{name} {given} belongs to experiments.run: this is {task}-{method}, and nothing else")
    if task is None:
        task, method = chosen.task, chosen.method
        if task is None and method is None and {"-h", "--help"} & set(rest):
            task, method, hint = "cartpole", "dpo", f"{CHOOSE} {hint}"
    preset = take_flags(rest, "preset")[0].preset or "default"
    known_tasks = (*tasks.TASKS, *tasks.GYMNAX)
    if task is not None and task not in known_tasks:
        raise UsageError(f"--task: {tasks.unknown(task)}")
    for name, value, known in (
        ("--task", task, known_tasks),
        ("--method", method, get_args(Method)),
        ("--preset", preset, tuple(PRESETS)),
    ):
        if value is None:
            raise UsageError(f"{name} is missing: it must be one of {', '.join(known)}")
        if value not in known:
            raise UsageError(f"unknown {name} {value!r}: it must be one of {', '.join(known)}")
    try:
        default = PRESETS[preset](cast(str, task), cast(Method, method))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return read(Settings, rest, f"{default.experiment}. {hint}", default)


def read(settings: type[Chosen], argv: Sequence[str], description: str, default: Any = tyro.MISSING_NONPROP) -> Chosen:
    """Settings of a script, a dataclass, from its flags. Raises UsageError for whatever is wrong with them."""
    for before, word in itertools.pairwise(["", *argv]):
        if word == "" or (word.startswith("--") and word.endswith("=")):  # as of a variable that is not set
            raise UsageError(f"{word.rstrip('=') or before or 'the first word'} is empty: a value is wanted")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                settings,
                args=argv,
                default=default,
                registry=REGISTRY,
                prog=f"python -m experiments.{Path(sys.argv[0]).stem}",
                description=description,
            )
    except SystemExit as exit:
        if exit.code in (0, None):
            raise
        message = one_line(complaint.getvalue())
        unknown = message.startswith("Unrecognized options: ")
        raise UsageError(with_suggestion(message, flags_of(settings)) if unknown else message) from exit


def flags_of(settings: Any, prefix: str = "--") -> list[str]:
    """Every flag of a dataclass of settings; those of the configs in it as `--config.flag`."""
    names = []
    for name, hint in get_type_hints(settings).items():
        if dataclasses.is_dataclass(hint):
            names += flags_of(hint, f"{prefix}{flag(name)}.")
        else:
            names.append(prefix + flag(name))
    return names


def with_suggestion(message: str, known: Iterable[str]) -> str:
    """An error about an unknown flag, with the known ones that it resembles."""
    unknown = next((word.rstrip(",") for word in message.split() if word.startswith("-")), "")
    similar = difflib.get_close_matches(unknown.lower().replace("_", "-").partition("=")[0], known, n=2, cutoff=0.7)
    message = message.partition("; perhaps")[0]
    return f"{message}; perhaps {' or '.join(similar)} is meant" if similar else f"{message}; --help lists the flags"


def take_flags(argv: Sequence[str], *names: str) -> tuple[argparse.Namespace, list[str]]:
    """The values of some flags, None where they are not given, and the other words. Raises UsageError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        parser.add_argument(f"--{name}")
    try:
        return parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from error


REWORDED = {
    r": no type matching \{None\}\|\{FLOAT FLOAT\} could be .*? from (\[.*?\])\..*": r" must be two numbers, got \1",
    r": no type matching \{None\}\|INT could be .*? from (\[.*?\])\..*": r" must be a whole number, got \1",
    r": no type matching \{None\}\|FLOAT could be .*? from (\[.*?\])\..*": r" must be a number, got \1",
    r"Could not find valid parse for arguments: \[(.*?)\]": r"cannot read \1 as numbers",
    r"invalid literal for int\(\) with base 10: ": "must be a whole number, got ",
    r"could not convert string to float: ": "must be a number, got ",
    r"Missing value for argument '(.*)'\. Expected .*": r"\1 needs a value",
    r"must be a multiple of (\w+)_every,": r"must be a multiple of \1-every,",
}
"""What the parser says in a programmer's words."""


def one_line(boxed: str) -> str:
    """The message in a framed error text of tyro's, without frame, colours and help text."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    # The frame is one of dashes, with the title above it, where the terminal has no more than ASCII.
    framed = re.split("\n?.*[-─]{4,}.*\n?", text, maxsplit=1)[-1].splitlines()
    lines = [line.strip("│| ") for line in framed if not re.search("[-─]{4,}", line)]
    message = " ".join(lines).partition("Argument helptext:")[0].partition("For full helptext")[0]
    message = re.sub(r"\s+", " ", message.replace("─", "")).strip()
    # A config speaks of itself as the library's user knows it; here its fields are flags.
    message = re.sub(r"(\w+?)s?\.Config: (\w+)", lambda match: flag(f"--{match[1]}.{match[2]}"), message)
    message = re.sub(r"^Error parsing [\w-]+: (?=--)|^Error parsing ", "", message)
    for pattern, words in REWORDED.items():
        message = re.sub(pattern, words, message)
    message, similar, suggestions = message.partition(" Perhaps you meant:")
    return message + (f"; perhaps {' or '.join(re.findall(r'--[a-z0-9.-]+', suggestions))} is meant" if similar else "")


def check_folder(folder: Path) -> None:
    """Make `folder`, and raise UsageError unless files can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot make this folder: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"--out {folder}: no permission to write into this folder")


def run(settings: Settings, console: Console, start: float) -> bool:
    """Run one experiment, write its results and print its report. `start`: when it began.

    What an earlier run of it has finished is not computed again. Returns whether every seed's training went well. Of
    several processes the first one writes, prints and knows it.
    """
    # Imported here, so that --help and a wrong flag answer at once.
    from experiments import animations, checkpoints, page, pipeline, report, stages
    from experiments.progress import Progress
    from jaxpref import store

    task = make_task(settings)
    import_s = time.perf_counter() - start
    console.print(f"[bold]{settings.experiment}[/bold], seeds {' '.join(map(str, settings.seeds))}", highlight=False)
    keeps, of = settings.processes == 1, checkpoints.of_run(settings, report.versions())
    if keeps and not settings.fresh:
        paths = checkpoints.finished(settings.out, of, console, settings.strict)
        if paths is not None:
            summary = store.load_json(settings.out / "summary.json")
            report.print_report(console, summary, paths, settings.out)
            line = "nothing was run: these are whole, and of the same settings, versions and code; see --fresh"
            console.print(line, highlight=False, soft_wrap=True)
            return not summary["diverged"]
    kept = None
    if keeps:
        kept = checkpoints.Checkpoints(settings.out, of["versions"], console, settings.strict, settings.fresh)
    if stages.is_first():
        checkpoints.unseal_results(settings.out)
    folder = settings.out if stages.is_first() else None
    with kept or contextlib.nullcontext(), Progress(console, folder, settings.tensorboard) as progress:
        timer = stages.Stages(console, kept, progress)
        outcome = pipeline.run(settings, task, timer)
    if not stages.is_first():
        return True
    summary = report.summarise(settings, outcome)
    paths = report.save_arrays(settings, outcome, settings.out)
    paths += report.figures(settings, outcome, summary, settings.out)
    played = animations.animate(task, summary, settings.out)
    summary["timing"] = {
        "import_s": import_s,
        "compile_s": sum(stage.compile_s for stage in timer.times.values()),
        "run_s": sum(stage.run_s for stage in timer.times.values()),
        "total_s": time.perf_counter() - start,
        "stages": {name: dataclasses.asdict(stage) for name, stage in timer.times.items()},
    }
    summary["peak_memory_gib"] = peak_memory_gib()
    store.save_json(settings.out / "summary.json", summary)
    paths = [settings.out / "summary.json", *paths, settings.out / "metrics.jsonl"]
    paths.append(page.write(settings.out, summary, played))
    if kept is not None:
        kept.tidy()
    checkpoints.seal_results(settings.out, of, paths)
    report.print_report(console, summary, paths, settings.out)
    return not summary["diverged"]


def make_task(settings: Settings) -> Task:
    """The task of an experiment. Raises UsageError if there is none such, or if it lacks what the settings need."""
    from experiments import pipeline

    try:
        task = pipeline.task_of(settings)
        annotators.teacher_of(task, settings.annotator)
    except ValueError as error:
        raise UsageError(
            re.sub(r"^\w+_threshold", lambda match: flag(f"--annotator.{match[0]}"), str(error))
        ) from error
    return task


def peak_memory_gib() -> float:
    """The most memory that this process has held so far, in GiB; on an accelerator, the host's share of it."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main(task: str | None = None, method: str | None = None, argv: Sequence[str] | None = None) -> None:
    """One experiment as a program."""
    with exit_codes():
        settings = parse(sys.argv[1:] if argv is None else argv, task, method)
        with set_up([settings]) as console:
            all_well = run(settings, console, START)
        if not all_well:
            raise SystemExit(DIVERGED)


@contextlib.contextmanager
def set_up(studies: Sequence[Settings]) -> Iterator[Console]:
    """Make the folders, prepare JAX before its first use, and hold the folders while the body prints to the console."""
    first = studies[0]
    if first.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UsageError("--tensorboard needs a package that is not installed: pip install 'jaxpref[tensorboard]'")
    made = [settings.out for settings in studies if not settings.out.exists()]
    if first.process == 0:
        for settings in studies:
            check_folder(settings.out)
    from experiments import checkpoints, stages

    stages.set_up_jax(first.devices)
    if first.processes != 1:
        try:
            stages.join_processes(first.coordinator, first.processes, first.process)
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"--processes: cannot join the others: {str(error).splitlines()[0]}") from error
    with contextlib.ExitStack() as held:
        if stages.is_first():
            for settings in studies:
                held.enter_context(checkpoints.locked(settings.out))
        try:
            yield Console(quiet=not stages.is_first())
        except UsageError:
            for folder in made if stages.is_first() else []:
                checkpoints.remove_unused(folder)
            raise


NOTHING_KEPT = "interrupted: the same command begins anew"
"""Of programs that measure."""


@contextlib.contextmanager
def exit_codes(interrupted: str = INTERRUPTED) -> Iterator[None]:
    """What the user can put right is one line and exit code 2, so is too little memory; an interruption is 130.

    `interrupted`: what it says then, about what is left of the run.
    """
    try:
        yield
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read what is printed, as in `--help | head`, has gone. Nothing is wrong with that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print("error: not enough memory: fewer --num-pairs or --batch-seeds, for instance, need less", file=sys.stderr)
        raise SystemExit(2) from None
