"""The structure of both packages: which module may use which, sizes, words, and the names that others rely on."""

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jaxpref

ROOT = Path(__file__).parents[1]
FLOORS = (
    "files.export > files.store > files.labels files.schema > analysis.render > analysis.plots > "
    "analysis.ranking analysis.statistics > expert_ppo online rlhf > reinforce dpo reward_model ppo > "
    "experts training > preferences > annotators > losses returns > fast.packed rollout > networks > tasks > "
    "gymnax_tasks > checks distributions divergence fast.keys fast.loops fast.perceptron fast.physics fast.shuffle > "
    "fast.dense types"
)
"""The house of jaxpref, top floor first: a module imports modules of lower floors only."""
ROOMS = "scripts > claims benchmarks asking > reporting > pipeline > harness"
"""The house of experiments: a module imports modules of its own room and of lower floors only."""


def modules_of(package):
    """{dotted name of a module: its file}. The package itself is its `__init__`."""
    paths = (ROOT / package).rglob("*.py")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


LIBRARY, EXPERIMENTS = modules_of("jaxpref"), modules_of("experiments")
BOTH = LIBRARY | EXPERIMENTS


@functools.cache
def nodes_of(path):
    return list(ast.walk(ast.parse(path.read_text())))


@functools.cache
def imports(path):
    """Every module that a file imports anywhere, also inside functions: absolute dotted names."""
    names = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def used_modules(path, package):
    """The modules of a package that a file imports, or imports names from, except the package itself."""
    found = {name for name in imports(path) if name.startswith(f"{package}.")}
    return {name if name in BOTH else name.rpartition(".")[0] for name in found} - {package}


def floors_of(house):
    """{name: number of its floor}, the top floor first."""
    return {name: number for number, floor in enumerate(house.split(" > ")) for name in floor.split()}


def test_imports_of_the_library_point_down():
    """So there are no circles, and trainers, which share a floor, never import each other."""
    floor_of = {f"jaxpref.{name}": floor for name, floor in floors_of(FLOORS).items()}
    assert set(floor_of) == {name for name, path in LIBRARY.items() if path.stem != "__init__"}
    for name, floor in floor_of.items():
        upward = {used for used in used_modules(LIBRARY[name], "jaxpref") if floor_of[used] <= floor}
        assert not upward, f"{name} imports {upward}"
        assert not {used.split(".")[0] for used in imports(LIBRARY[name])} & {"experiments", "tests", "helpers"}, name
        assert "jaxpref" not in imports(LIBRARY[name]), name


def test_imports_of_the_experiments_point_down_from_room_to_room():
    floor_of, rooms = floors_of(ROOMS), {}
    for name, path in EXPERIMENTS.items():
        if path.stem != "__init__":
            rooms[name] = path.parent.name if path.parent.name != "experiments" else "scripts"
    assert set(rooms.values()) == set(floor_of)
    for name, room in rooms.items():
        for used in used_modules(EXPERIMENTS[name], "experiments"):
            same_room = rooms[used] == room != "scripts"
            assert same_room or floor_of[rooms[used]] > floor_of[room], f"{name} imports {used}"


def test_modules_of_the_experiments_do_not_import_each_other_in_circles():
    TopologicalSorter({name: used_modules(path, "experiments") for name, path in EXPERIMENTS.items()}).prepare()


def test_importing_the_library_loads_neither_matplotlib_nor_gymnax():
    """Both are slow to load; each comes with its first use, and every submodule is an attribute all the same."""
    program = (
        "import sys, jaxpref\n"
        "print(sorted({'matplotlib', 'gymnax'} & set(sys.modules)))\n"
        "print(callable(jaxpref.plots.curve), 'matplotlib' in sys.modules)\n"
        "print(jaxpref.cartpole().obs_size, 'gymnax' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True True", "4 True"]


def test_every_module_is_an_attribute_by_its_short_name():
    for name, path in LIBRARY.items():
        if path.stem not in ("__init__", "dense", "keys", "loops", "perceptron", "physics", "shuffle"):
            assert getattr(jaxpref, path.stem) is importlib.import_module(name)
    for name in ("store", "statistics", "packed"):
        assert importlib.import_module(f"jaxpref.{name}") is getattr(jaxpref, name)
    with pytest.raises(AttributeError, match="has no attribute 'plot'"):
        _ = jaxpref.plot


def test_the_library_does_not_print_parse_arguments_or_know_a_folder_of_results():
    for path in LIBRARY.values():
        calls = {ast.unparse(node.func) for node in nodes_of(path) if isinstance(node, ast.Call)}
        assert not calls & {"print", "input", "breakpoint", "exit", "sys.exit", "warnings.warn"}, path
        roots = {imported.split(".")[0] for imported in imports(path)}
        assert not roots & {"argparse", "tyro", "rich", "logging", "click"}, path
        assert not re.search(r"results/|[\"']results[\"']", path.read_text()), path


def test_nothing_uses_pickle():
    """No module imports it but the one that keeps compiled programs, and what reads or writes NumPy's files says so."""
    for name, path in BOTH.items():
        if name == "experiments.harness.programs":
            continue
        roots = {imported.split(".")[0] for imported in imports(path)}
        assert not roots & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, path
        calls = [ast.unparse(node) for node in nodes_of(path) if isinstance(node, ast.Call)]
        for call in calls:
            if call.startswith(("np.load(", "np.save(", "np.savez")):
                assert "allow_pickle=False" in call, f"{path}: {call}"


def test_files_and_functions_are_short():
    too_long = {}
    for name, path in BOTH.items():
        most = 60 if path.parent.name == "experiments" else 300
        sizes = {name: len(path.read_text().splitlines()) - most}
        functions = [node for node in nodes_of(path) if isinstance(node, ast.FunctionDef)]
        sizes |= {f"{name}.{node.name}": node.end_lineno - node.lineno + 1 - 45 for node in functions}
        too_long |= {key: excess for key, excess in sizes.items() if excess > 0}
    assert too_long == {}


def test_words_are_plain():
    for path in [*BOTH.values(), *(ROOT / "examples").glob("*.py")]:
        assert not re.search(r"\b(astray|told|but for|of one's own)\b", path.read_text(), re.IGNORECASE), path


CONTRACT = {
    "Trajectory": "obs action reward next_obs mask",
    "Preferences": "chosen rejected weight prob",
    "cartpole": "horizon=",
    "acrobot": "",
    "init_policy": "key task",
    "Network": "module params",
    "apply_policy": "policy obs",
    "losses.margin": "chosen_logp rejected_logp ref_chosen_logp ref_rejected_logp",
    "evaluate": "task params key num_episodes",
    "trajectory_log_prob": "params trajectory",
    "sample_preferences": "task pi1_params pi2_params key num_pairs annotator= segment=",
    "losses.dpo": "chosen_logp rejected_logp ref_chosen_logp ref_rejected_logp beta",
    "losses.bradley_terry": "chosen_return rejected_return",
    "returns.discounted_returns": "reward gamma",
    "returns.gae": "reward value next_value terminated done gamma gae_lambda",
    "reinforce.train": "task config key",
    "dpo.train": "task config key preferences init_params ref_params",
    "reward_model.train": "task config key preferences",
    "rlhf.train": "task reward_config ppo_config key preferences init_params ref_params num_members=",
    "ppo.train": "task config key init_params ref_params reward_params",
}


@pytest.mark.parametrize("name", CONTRACT)
def test_a_function_of_the_contract_has_its_parameters_in_order(name):
    """Those with "=" have defaults. Further ones may follow, if they have defaults."""
    parameters = inspect.signature(functools.reduce(getattr, name.split("."), jaxpref)).parameters.values()
    found = [each.name + ("" if each.default is inspect.Parameter.empty else "=") for each in parameters]
    expected = CONTRACT[name].split()
    assert found[: len(expected)] == expected
    assert all(each.endswith("=") for each in found[len(expected) :])
