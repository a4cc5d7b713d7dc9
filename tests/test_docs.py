"""The pages, the API reference and the package: their code runs, their links lead somewhere, their shapes are named."""

import ast
import contextlib
import copy
import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import griffe
import jax
import numpy as np
import pytest
from outcomes import TIMING, outcome_of, settings_of
from rich.console import Console
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

import jaxpref
from experiments.harness.progress import Progress, bar_on
from experiments.reporting import experiment
from jaxpref import store

ROOT = Path(__file__).parents[1]
for folder in ("docs", "examples"):
    sys.path.insert(0, str(ROOT / folder))

import docstrings  # noqa: E402
import three_seeds  # noqa: E402

PACKAGE = griffe.load("jaxpref", search_paths=[ROOT])
FUNCTIONS = {
    of.path: of
    for of in docstrings.objects(PACKAGE)
    if of.is_function and of.parent.is_module and not of.name.startswith("_")
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?")


# --- pages whose code runs --------------------------------------------------------------------------------------------


def same_output(one, other):
    """Equal words and whole numbers; other numbers to 0.1 %, and to two units of the fourth decimal.

    Another machine rounds differently. A different episode, label or formula is much further away.
    """
    if NUMBER.sub("0", one).split() != NUMBER.sub("0", other).split():
        return False
    return all(
        a == b if a.isdigit() else np.isclose(float(a), float(b), rtol=1e-3, atol=2e-4)
        for a, b in zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    )


@pytest.mark.parametrize(
    ("printed", "same"),
    [
        ("loss  0.6933 steps 12", True),
        ("loss 0.6951 steps 12", False),
        ("loss 0.6931 steps 13", False),
        ("loss -0.6931 steps 12", False),
        ("cost 0.6931 steps 12", False),
        ("loss 0.6931", False),
    ],
)
def test_outputs_are_compared_to_rounding(printed, same):
    assert same_output("loss 0.6931 steps 12", printed) == same


def run_block(example):
    """Run a Python block in the namespace of its page, and keep what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        PythonEvaluator()(example)
    example.namespace["printed"] = printed.getvalue()


def compare_output(example):
    """A text block shows what the Python block before it printed."""
    printed = example.namespace["printed"]
    assert same_output(example.parsed, printed), f"{example.path}:{example.line}: the code prints\n{printed}"


PAGES_WITH_CODE = Sybil([CodeBlockParser("python", run_block), CodeBlockParser("text", compare_output), SkipParser()])


def run_page(path):
    for example in PAGES_WITH_CODE.parse(path):
        example.evaluate()


@pytest.mark.parametrize("name", ["tutorial", "recipes"])
def test_the_code_of_a_page_runs_and_prints_what_the_page_shows(name):
    run_page(ROOT / "docs" / f"{name}.md")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of results with a finished run of DPO: (its parent, its folder, its outcome)."""
    place = tmp_path_factory.mktemp("run")
    settings = settings_of("dpo", out=place / "results" / "cartpole-dpo")
    outcome = outcome_of(settings, np.random.default_rng(5))
    settings.out.mkdir(parents=True)
    with Progress(bar_on(Console(quiet=True)), settings.out) as progress:
        progress.begin(1, 1, np.asarray(settings.seeds))
        progress.done("dpo", 3, 12, 1.0, compile_s=1.0, run_s=1.0, kept=False)
        progress.log("dpo", outcome.rows[0].metrics, num_pairs=4, reference="pi1")
    experiment.write(settings, jaxpref.cartpole(), outcome, copy.deepcopy(TIMING), Console(quiet=True))
    return place, settings.out, outcome


def test_the_page_about_results_loads_and_exports_the_policy_that_it_names(results, monkeypatch):
    """The first seed's, trained with the last reference on the largest dataset."""
    place, _, outcome = results
    monkeypatch.chdir(place)
    page = PAGES_WITH_CODE.parse(ROOT / "docs" / "results.md")
    for example in page.examples():
        example.evaluate()
    row = outcome.rows[-1]
    shown = page.namespace["row"]
    assert (shown["num_pairs"], shown["reference"]) == (row.num_pairs, row.reference)
    assert page.namespace["printed"].endswith(f"in the summary {row.true_return[0]:.1f}\n")
    exported = jaxpref.export.load_policy(place / "policy.safetensors", jaxpref.cartpole())
    jax.tree.map(np.testing.assert_array_equal, exported.params, jax.tree.map(lambda leaf: leaf[0], row.params.params))


def test_the_page_about_results_names_every_file_key_and_metric(results):
    _, folder, _ = results
    named = re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "results.md").read_text())
    named = {name.removeprefix("rows[].") for name in named}
    summary = store.load_json(folder / "summary.json")
    row, timing = summary["rows"][0], summary["timing"]
    for table in (summary, row, row["policy"], timing, timing["stages"]["dpo"]):
        assert table.keys() <= named
    assert {path.name for path in folder.iterdir()} <= named
    for metrics in store.load_params(folder / "metrics.npz").values():
        assert metrics.keys() <= named
    for name in ("progress.jsonl", "metrics.jsonl"):
        for line in (folder / name).read_text().splitlines():
            assert json.loads(line).keys() <= named, name


def test_a_page_that_shows_something_else_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\na = 2\n```\n\n```python\nprint(a)\n```\n\n```text\n2\n```\n")
    run_page(page)
    page.write_text(page.read_text().replace("text\n2", "text\n3"))
    with pytest.raises(AssertionError, match=r"page.md:9: the code prints\s+2"):
        run_page(page)


def test_readme_shows_the_code_of_the_example():
    code = (ROOT / "examples" / "three_seeds.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    assert all(block in code for block in blocks)


def test_the_example_trains_three_policies_at_once(capsys):
    returns = np.asarray(three_seeds.main(horizon=30, num_updates=30))
    lines = capsys.readouterr().out.splitlines()
    np.testing.assert_allclose(
        [[float(word) for word in line.split()[:4]] for line in lines[1:]],
        np.column_stack([[35, 42, 100], returns]),
        atol=0.06,
    )
    assert (returns[:, 0] > returns[:, 1]).all()  # pi1 is the better expert
    assert (returns <= 30).all()


# --- links of the pages that are not part of the site -----------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_to_files(path):
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if not target.startswith("http")]
    assert [target for target in targets if not (ROOT / target).exists()] == []


# --- the site ---------------------------------------------------------------------------------------------------------


def test_defects_fail_the_build(tmp_path):
    """A broken link, a broken anchor, a missing docstring: with the command of the Makefile, on a copy."""
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for folder in ("docs", "jaxpref"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "docs" / "index.md").open("a") as page, (tmp_path / "jaxpref" / "returns.py").open("a") as module:
        page.write("[broken](nowhere.md) [broken](scale.md#nowhere)\n")
        module.write("def undescribed(): ...\n")
    command = re.search(r"\$\(BIN\)/(mkdocs .*)", (ROOT / "Makefile").read_text())[1].split()
    done = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    for defect in ("nowhere.md", "scale.md#nowhere", "jaxpref.returns.undescribed has no docstring"):
        assert defect in done.stderr
    assert "Aborted with 3 warnings" in done.stdout


def test_a_missing_docstring_is_found(tmp_path):
    (tmp_path / "house.py").write_text(
        '"""A module."""\nclass Config:\n    """Settings."""\n    told: int = 1\n    """Said."""\n    untold: int = 2\n'
        "    @property\n    def shown(self): ...\n"
        "def _private(): ...\ndef public(): ...\n"
    )
    package = griffe.load("house", search_paths=[tmp_path])
    assert list(docstrings.undocumented(package)) == ["house.Config.untold", "house.Config.shown", "house.public"]


def test_everything_public_has_a_docstring():
    assert list(docstrings.undocumented(PACKAGE)) == []


def test_lines_of_a_docstring_that_name_fields_become_a_section():
    function = PACKAGE["gymnax_tasks.from_gymnax"]
    text = "Do.\n\nenv:      first,\n    and more.\nname, horizon:  both.\n\nNote: not a field."
    assert docstrings.with_sections(function, text) == (
        "Do.\n\n\nArgs:\n    env: first,\n        and more.\n    name: both.\n    horizon: both.\n\nNote: not a field."
    )


# --- shapes in signatures ---------------------------------------------------------------------------------------------

DTYPES = {"Array", "Bool", "Float", "Int", "Key", "Num", "Shaped", "UInt"}
ARRAYS = {"Array", "jax.Array", "np.ndarray"}
OF_ANY_SHAPE = {"Callable", "dict", "Mapping"}
"""Functions of arrays, and arrays by name, whatever shapes the caller has."""


def bare_arrays(annotation):
    """Array types in an annotation that have no shape beside them, as `Float[Array, "N"]` has."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in DTYPES | OF_ANY_SHAPE:
        return []
    if ast.unparse(annotation) in ARRAYS:
        return [ast.unparse(annotation)]
    return [name for child in ast.iter_child_nodes(annotation) for name in bare_arrays(child)]


def test_arrays_without_a_shape_are_found():
    hints = ["Array", "tuple[int, np.ndarray]", "Float[Array, 'N']", "tuple[int, Int[Array, '']]", "dict[str, Array]"]
    bare = [bare_arrays(ast.parse(hint, mode="eval").body) for hint in hints]
    assert bare == [["Array"], ["np.ndarray"], [], [], []]


def test_every_public_function_has_types_and_shapes():
    hints = [(path, p.name, p.annotation) for path, of in FUNCTIONS.items() for p in of.parameters]
    hints += [(path, "return", of.returns) for path, of in FUNCTIONS.items()]
    assert [(path, name) for path, name, hint in hints if hint is None] == []
    # The task decides the shape of an action: a number or a vector.
    parsed = [(path, name, ast.parse(str(hint), mode="eval").body) for path, name, hint in hints if name != "action"]
    assert [(path, name) for path, name, hint in parsed if bare_arrays(hint)] == []


# --- the package ------------------------------------------------------------------------------------------------------


def test_the_changelog_has_a_section_for_the_version():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert PROJECT["version"] in headings[:2]  # after what is not released yet


def packages_of(folder):
    """Packages, by the names of their projects, that the modules of a folder import."""
    nodes = [node for path in (ROOT / folder).rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    names = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    roots = {name.partition(".")[0] for name in names} - {"__future__"} - sys.stdlib_module_names
    return {{"PIL": "pillow"}.get(root, root.replace("_", "-")) for root in roots}


def named_in(requirements):
    return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}


def test_the_wheel_requires_what_the_library_imports_and_an_extra_what_the_experiments_do():
    required, extras = named_in(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    assert packages_of("jaxpref") - {"jaxpref"} == required - {"six"}  # gymnax imports it
    beside = packages_of("experiments") - required - {"jaxpref", "experiments"}
    elsewhere = {"markupsafe", "tensorboardX"}  # jinja2's own, an extra of its own
    peers = {
        "rejax",
        "imitation",
        "stable-baselines3",
        "seals",
        "gymnasium",
        "torch",
    }  # in the benchmarks' other environments
    assert beside - elsewhere - peers == named_in(extras["experiments"]) | named_in(extras["label"])
    assert named_in(extras["tensorboard"]) == {"tensorboardX"}


def test_the_wheel_holds_the_modules_the_marker_of_types_and_nothing_else(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "jaxpref", tmp_path / "jaxpref", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import setuptools.build_meta as backend; backend.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "jaxpref").rglob("*.py")}
    assert files == modules | {"jaxpref/py.typed"}
    assert wheel.name == f"jaxpref-{PROJECT['version']}-py3-none-any.whl"
