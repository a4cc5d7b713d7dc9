"""The structure of the library: which module may use which, what it does not do, and the names that others rely on."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import jaxpref

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"files.export"},
    {"files.store"},
    {"files.labels", "files.schema"},
    {"analysis.render"},
    {"analysis.plots"},
    {"analysis.ranking", "analysis.statistics"},
    {"online"},
    {"reinforce", "dpo", "reward_model", "ppo"},
    {"training"},
    {"preferences"},
    {"annotators"},
    {"losses", "returns"},
    {"fast.packed", "rollout"},
    {"networks"},
    {"tasks"},
    {"gymnax_tasks"},
    {"checks", "distributions", "divergence", "fast.loops", "fast.shuffle"},
    {"types"},
]
"""The house of jaxpref, top floor first: a module imports modules of lower floors only."""

PACKAGE = ROOT / "jaxpref"
SOURCES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
MODULES = {name: path for name, path in SOURCES.items() if path.stem != "__init__"}


def tree_of(path):
    return ast.parse(path.read_text())


def imports(path):
    """Every module that a file imports anywhere, also inside functions: absolute dotted names."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def used_modules(path):
    """The modules of the library that a file imports, or imports names from."""
    found = {name.removeprefix("jaxpref.") for name in imports(path) if name.startswith("jaxpref.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in found}


def calls(path):
    """Every call in a file: (dotted name of what is called, its node)."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]


# --- imports ----------------------------------------------------------------------------------------------------------


def test_every_module_stands_on_one_floor():
    assert sorted(name for floor in FLOORS for name in floor) == sorted(MODULES)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name):
    """So there are no circles, and trainers, which share a floor, never import each other."""
    place = next(i for i, floor in enumerate(FLOORS) if name in floor)
    assert used_modules(MODULES[name]) <= set().union(*FLOORS[place + 1 :])
    assert "jaxpref" not in imports(MODULES[name])


def test_the_library_never_imports_the_experiments_or_the_tests():
    for path in SOURCES.values():
        assert not {name.split(".")[0] for name in imports(path)} & {"experiments", "tests", "helpers"}, path


def test_importing_the_library_loads_neither_matplotlib_nor_gymnax():
    """Both are slow to load; each comes with its first use, and every submodule is an attribute all the same."""
    program = (
        "import sys, jaxpref\n"
        "heavy = {'matplotlib', 'gymnax'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "print(callable(jaxpref.plots.curve), 'matplotlib' in sys.modules)\n"
        "print(jaxpref.cartpole().obs_size, 'gymnax' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True True", "4 True"]


def test_every_module_is_an_attribute_by_its_short_name():
    for name in MODULES.keys() - {"fast.loops", "fast.shuffle"}:
        assert getattr(jaxpref, name.rpartition(".")[2]) is importlib.import_module(f"jaxpref.{name}")
    for name in ("store", "statistics", "packed"):
        assert importlib.import_module(f"jaxpref.{name}") is getattr(jaxpref, name)
    with pytest.raises(AttributeError, match="has no attribute 'plot'"):
        _ = jaxpref.plot


# --- what the library leaves to others --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_library_does_not_print_or_parse_arguments(name):
    names = {called for called, _ in calls(SOURCES[name])}
    assert not names & {"print", "input", "breakpoint", "exit", "sys.exit", "warnings.warn"}
    roots = {imported.split(".")[0] for imported in imports(SOURCES[name])}
    assert not roots & {"argparse", "tyro", "rich", "logging", "click"}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_library_knows_no_folder_of_results(name):
    assert "results/" not in SOURCES[name].read_text()
    strings = [
        node.value
        for node in ast.walk(tree_of(SOURCES[name]))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert "results" not in strings


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_library_uses_no_pickle(name):
    """It imports none, and whatever reads or writes NumPy's files says so."""
    roots = {imported.split(".")[0] for imported in imports(SOURCES[name])}
    assert not roots & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for called, node in calls(SOURCES[name]):
        if called in {"np.load", "np.save", "np.savez", "np.savez_compressed"}:
            allowed = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("allow_pickle")
            assert allowed == "False", f"{name}: {called}"


# --- documentation ----------------------------------------------------------------------------------------------------


def undocumented(body, prefix):
    """Names of public functions, classes and methods without a docstring, and of whatever stands in the classes."""
    missing = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if ast.get_docstring(node) is None:
                missing.append(f"{prefix}.{node.name}")
            if isinstance(node, ast.ClassDef):
                missing += undocumented(node.body, f"{prefix}.{node.name}")
    return missing


def test_every_module_and_every_public_function_and_class_has_a_docstring():
    missing = []
    for name, path in SOURCES.items():
        tree = tree_of(path)
        missing += [] if ast.get_docstring(tree) else [name]
        missing += undocumented(tree.body, name)
    assert missing == []


# --- the contract -----------------------------------------------------------------------------------------------------

CONTRACT = {
    "Trajectory": ["obs", "action", "reward", "next_obs", "mask"],
    "Preferences": ["chosen", "rejected", "weight", "prob"],
    "cartpole": ["horizon"],
    "acrobot": [],
    "init_policy": ["key", "task"],
    "Network": ["module", "params"],
    "apply_policy": ["policy", "obs"],
    "losses.margin": ["chosen_logp", "rejected_logp", "ref_chosen_logp", "ref_rejected_logp"],
    "evaluate": ["task", "params", "key", "num_episodes"],
    "trajectory_log_prob": ["params", "trajectory"],
    "sample_preferences": ["task", "pi1_params", "pi2_params", "key", "num_pairs", "annotator"],
    "losses.dpo": ["chosen_logp", "rejected_logp", "ref_chosen_logp", "ref_rejected_logp", "beta"],
    "losses.bradley_terry": ["chosen_return", "rejected_return"],
    "returns.discounted_returns": ["reward", "gamma"],
    "returns.gae": ["reward", "value", "next_value", "terminated", "done", "gamma", "gae_lambda"],
    "reinforce.train": ["task", "config", "key"],
    "dpo.train": ["task", "config", "key", "preferences", "init_params", "ref_params"],
    "reward_model.train": ["task", "config", "key", "preferences"],
    "ppo.train": ["task", "config", "key", "init_params", "ref_params", "reward_params"],
}


def find(dotted):
    found = jaxpref
    for name in dotted.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("name", CONTRACT)
def test_a_function_of_the_contract_has_its_parameters_in_order(name):
    """Further ones may follow, if they have defaults."""
    parameters = list(inspect.signature(find(name)).parameters.values())
    assert [parameter.name for parameter in parameters[: len(CONTRACT[name])]] == CONTRACT[name]
    for parameter in parameters[len(CONTRACT[name]) :]:
        assert parameter.default is not inspect.Parameter.empty


def test_only_horizon_and_annotator_have_defaults_in_the_contract():
    optional = {
        (name, parameter)
        for name, names in CONTRACT.items()
        for parameter in names
        if inspect.signature(find(name)).parameters[parameter].default is not inspect.Parameter.empty
    }
    assert optional == {("cartpole", "horizon"), ("sample_preferences", "annotator")}


@pytest.mark.parametrize("name", ["reinforce", "dpo", "reward_model", "ppo"])
def test_a_config_is_frozen_and_needs_no_argument(name):
    config = find(name).Config()
    with pytest.raises(AttributeError, match="cannot assign to field"):
        config.num_updates = 3


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("reinforce", {"pi1", "pi2", "pi1_reached", "pi2_reached"}),
        ("dpo", {"params", "metrics"}),
        ("reward_model", {"params", "metrics"}),
        ("ppo", {"params", "metrics"}),
    ],
)
def test_a_result_has_the_fields_of_the_contract(name, fields):
    assert fields <= set(inspect.signature(find(name).Result).parameters)


def test_tasks_are_found_by_name():
    assert set(jaxpref.TASKS) == {"cartpole", "acrobot"}
    for name, make in jaxpref.TASKS.items():
        assert make().name == name == jaxpref.task(name).name
