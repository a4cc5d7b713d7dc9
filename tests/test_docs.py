"""The pages under docs/: what they print is what the code prints, and what they say of the library is what it is."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import traceback
import zipfile
from pathlib import Path

import griffe
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import api_reference  # noqa: E402
import code_blocks  # noqa: E402

PACKAGE = api_reference.load()
MODULES = PACKAGE.modules
FUNCTIONS = {
    f"{module.name}.{name}": member
    for module in MODULES.values()
    for name, member in api_reference.described(module).items()
    if isinstance(member, griffe.Function)
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?")


# --- pages whose code runs --------------------------------------------------------------------------------------------


def same_output(one, other):
    """Equal words and whole numbers; other numbers to 0.1 %, and to two units of the fourth decimal.

    Another machine rounds differently; a different episode, label or formula is much further off.
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
        ("loss 0.6931  steps 12", True),
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


@pytest.mark.parametrize("name", ["tutorial.md"])
def test_a_page_shows_what_its_code_prints(name):
    path = ROOT / "docs" / name
    for block, printed in code_blocks.run(path.read_text(), path):
        assert same_output(block.output, printed), f"{path}:{block.line + 1}: `make docs` mends it:\n{printed}"


PAGE = """# Title
```python
a = 2
```
Prose.
```python
print(a)
```

```text
3
```
```sh
not Python
```
```python
print(a + 1)
```
"""


def test_blocks_share_a_namespace_and_their_outputs_are_written_below_them():
    printed = [(block.line, block.output, text) for block, text in code_blocks.run(PAGE, Path("page.md"))]
    assert printed == [(2, "", ""), (6, "3\n", "2\n"), (16, "", "3\n")]
    written = code_blocks.with_outputs(PAGE, Path("page.md"))
    assert written == PAGE.replace("3\n```", "2\n```") + "\n```text\n3\n```\n"
    assert code_blocks.with_outputs(written, Path("page.md")) == written


def test_an_error_in_a_block_names_the_line_of_the_page():
    with pytest.raises(ZeroDivisionError) as error:
        list(code_blocks.run("Text\n\n```python\nx = 1\nx / 0\n```\n", Path("page.md")))
    frame = traceback.extract_tb(error.tb)[-1]
    assert (frame.filename, frame.lineno) == ("page.md", 5)


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(page):
    """GitHub's anchors of the headings of a page."""
    seen = {}
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
        yield f"{slug}-{seen[slug]}" if seen[slug] else slug


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_and_headings_lead_somewhere(path):
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        file, _, anchor = target.partition("#")
        if not file.startswith(("http:", "https:")):
            page = path.parent / file if file else path
            assert page.exists(), f"{target}: no such file"
            assert not anchor or anchor in anchors(page.read_text()), f"{target}: no such heading"


# --- the API reference ------------------------------------------------------------------------------------------------


def test_the_api_reference_says_what_the_docstrings_say():
    """`make docs` writes it anew."""
    stored = {path.name: path.read_text() for path in api_reference.PAGES.glob("*.md")}
    assert stored == {name: f"{page}\n" for name, page in api_reference.pages(PACKAGE).items()}


def test_every_public_function_is_in_the_reference_with_its_signature_and_docstring():
    """Looked for in the pages with Python's own parser, not with the one that wrote them."""
    for path in (ROOT / "jaxpref").glob("[!_]*.py"):
        page = (api_reference.PAGES / f"{path.stem}.md").read_text()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                section = page.split(f"## {node.name}\n", 1)[1].split("\n## ", 1)[0]
                assert all(f"{argument.arg}: " in section for argument in node.args.args), node.name
                assert ast.get_docstring(node).splitlines()[0].split("`")[0] in section, node.name


def test_lines_of_a_docstring_that_name_parameters_become_a_list():
    paragraph = "low, high: ends of the scale,\n    both included.\nsmooth: width.\nReturns: nothing."
    fields, rest = api_reference.split_fields(paragraph, {"low", "high", "smooth"})
    assert fields == {"low, high": "ends of the scale, both included.", "smooth": "width."}
    assert rest == "Returns: nothing."


# --- what a docstring and a signature say -----------------------------------------------------------------------------

DTYPES = {"Array", "Bool", "Float", "Int", "Key", "Num", "Shaped", "UInt"}
ARRAYS = {"Array", "jax.Array", "np.ndarray"}
OF_ANY_SHAPE = {"Callable", "dict", "Mapping"}
"""Functions of arrays, and arrays by name, whatever shapes the caller has."""


def function_node(function):
    node = ast.parse(api_reference.griffe_source(function)).body[0]
    assert isinstance(node, ast.FunctionDef)
    return node


def bare_arrays(annotation):
    """Array types in an annotation that have no shape beside them, as `Float[Array, "N"]` has."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in DTYPES | OF_ANY_SHAPE:
        return []
    if ast.unparse(annotation) in ARRAYS:
        return [ast.unparse(annotation)]
    return [name for child in ast.iter_child_nodes(annotation) for name in bare_arrays(child)]


def annotations(function):
    """Those of the arguments and of the result; None where there is none."""
    node = function_node(function)
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return {argument.arg: argument.annotation for argument in arguments} | {"return": node.returns}


def test_arrays_without_a_shape_are_found():
    hints = ["Array", "tuple[int, np.ndarray]", "Float[Array, 'N']", "tuple[int, Int[Array, '']]", "dict[str, Array]"]
    bare = [bare_arrays(ast.parse(hint, mode="eval").body) for hint in hints]
    assert bare == [["Array"], ["np.ndarray"], [], [], []]


def test_every_public_function_says_the_types_and_shapes_of_what_it_takes_and_gives():
    places = [(name, place, hint) for name, of in FUNCTIONS.items() for place, hint in annotations(of).items()]
    assert [(name, place) for name, place, hint in places if hint is None] == []
    assert [(name, place) for name, place, hint in places if bare_arrays(hint)] == []


def raised(function, seen=()):
    """Names of the errors that a function raises, itself or in a private function of its module."""
    node = function_node(function)
    raises = [each.exc for each in ast.walk(node) if isinstance(each, ast.Raise)]
    errors = {ast.unparse(error.func) for error in raises if isinstance(error, ast.Call)}
    called = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
    helpers = function.module.members
    for name in called - set(seen):
        if name.startswith("_") and isinstance(helpers.get(name), griffe.Function):
            errors |= raised(helpers[name], (*seen, name))
    return {str(helpers[error].returns) if error in helpers else error for error in errors}


RAISING = {name: sorted(raised(function)) for name, function in FUNCTIONS.items() if raised(function)}


def test_raised_errors_are_found():
    assert RAISING["preferences.split"] == ["ValueError"]
    assert RAISING["statistics.iqm"] == ["ValueError"]
    assert "statistics.profile_band" in RAISING  # in a helper of a helper
    assert "losses.dpo" not in RAISING


@pytest.mark.parametrize("name", sorted(RAISING))
def test_a_docstring_says_what_errors_are_raised(name):
    docstring = FUNCTIONS[name].docstring.value
    assert "Errors as" in docstring or [error for error in RAISING[name] if error not in docstring] == []


@pytest.mark.parametrize("name", sorted(name for name, module in MODULES.items() if "Config" in module.members))
def test_every_setting_of_a_config_has_a_text_of_its_own(name):
    fields = [field for field in MODULES[name]["Config"].members.values() if isinstance(field, griffe.Attribute)]
    assert fields
    assert [field.name for field in fields if not field.docstring] == []


# --- the package ------------------------------------------------------------------------------------------------------


def test_the_changelog_has_a_section_for_the_version():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert PROJECT["version"] in headings[:2]  # behind what is not released yet


def packages_of(folder):
    """Packages, by the names of their projects, that the modules of a folder import."""
    nodes = [node for path in (ROOT / folder).glob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
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
    elsewhere = {"markupsafe", "rejax", "tensorboardX"}  # jinja2's own, a benchmark's peer, an extra of its own
    assert beside - elsewhere == named_in(extras["experiments"])
    assert named_in(extras["tensorboard"]) == {"tensorboardX"}


def test_the_wheel_holds_the_modules_the_marker_of_types_and_nothing_else(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "jaxpref", tmp_path / "jaxpref", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import setuptools.build_meta as backend; backend.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert files == {f"jaxpref/{path.name}" for path in (ROOT / "jaxpref").glob("*.py")} | {"jaxpref/py.typed"}
    assert wheel.name == f"jaxpref-{PROJECT['version']}-py3-none-any.whl"
