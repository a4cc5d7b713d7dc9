"""Arms, claims, the page of evidence and the sweep: what is compared with what, what is kept, what is written."""

import dataclasses
import functools
import io
import json
import re
import types

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import constant_policy
from rich.console import Console

import jaxpref
from experiments import arms, checkpoints, claims, evidence, pipeline, python, stages, sweep
from experiments.command import UsageError
from experiments.progress import Progress
from jaxpref import annotators, dpo, ranking, statistics
from jaxpref.types import Preferences

QUIET = Console(quiet=True)


def result_of(returns, **others):
    """An arm's results with these returns; everything else is NaN unless it is given."""
    returns = np.asarray(returns, np.float64)
    nothing = np.full(returns.shape, np.nan)
    quality = ranking.Quality(*[others.pop(name, nothing) for name in ranking.Quality.__dataclass_fields__])
    fields = {name: others.get(name, nothing) for name in arms.Result.__dataclass_fields__}
    return arms.Result(**fields | {"true_return": returns, "quality": quality})


# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["cartpole", "acrobot"])
def test_every_claim_speaks_of_arms_that_exist(task):
    known = claims.arms(task)
    for claim in claims.CLAIMS:
        named = {*claim.arms, *(name for pair in claim.comparisons for name in (pair.arm, pair.baseline))}
        assert named <= known.keys()
        assert len(set(claim.arms)) == len(claim.arms)
        assert {pair.expectation for pair in claim.comparisons} <= {"above", "not below", "no gain"}
        assert set(claim.columns) <= evidence.COLUMNS.keys()


def test_every_arm_is_shown_by_a_claim_and_no_two_are_the_same():
    table = claims.arms("cartpole")
    shown = {name for claim in claims.CLAIMS for name in claim.arms}
    assert shown == table.keys()
    assert len({repr(arm) for arm in table.values()}) == len(table)


def test_an_arms_name_says_what_it_is():
    table = claims.arms("acrobot")
    assert table["dpo"] == arms.Arm("dpo")
    assert table["rlhf-pi1-zero"].reference == "pi1"
    assert table["rlhf-pi1-zero"].reward == "zero"
    assert table["dpo-50"].num_pairs == 50
    assert table["dpo-mistakes-20%-ipo"].hyper.annotator.mistake_prob == 0.2
    assert table["dpo-mistakes-20%-ipo"].hyper.dpo.loss == "ipo"
    assert table["dpo-mistakes-20%-robust"].hyper.dpo.label_smoothing == 0.2
    assert table["rlhf-pi1-original-zero"].hyper.ppo.kl_penalty == "loss"
    assert table["rlhf-pi1-original-zero"].hyper.ppo.kl_coef == 10


@pytest.mark.parametrize(
    ("expectation", "low", "high", "expected"),
    [
        ("above", 1, 2, "yes"),
        ("above", -1, 2, "not shown"),
        ("above", 0, 2, "not shown"),
        ("above", -2, -1, "NO, below"),
        ("not below", -1, 2, "no difference shown"),
        ("not below", -2, -1, "NO, below"),
        ("not below", 1, 2, "yes, even above"),
        ("no gain", -1, 2, "yes"),
        ("no gain", -2, -1, "yes, even a loss"),
        ("no gain", 1, 2, "NO, a gain"),
    ],
)
def test_the_verdict_follows_from_the_interval(expectation, low, high, expected):
    assert evidence.verdict(expectation, low, high) == expected


def test_a_comparison_is_paired_by_seed():
    """The arm is better by 1 on every seed of widely different scores: the interval is (1, 1) all the same."""
    scores = np.arange(0, 800, 100.0)
    table = {"one": result_of(scores + 1), "other": result_of(scores)}
    entry = evidence.compare(table, claims.Comparison("one", "above", "other"))
    assert entry["difference"] == 1
    assert entry["ci95"] == [1, 1]
    assert entry["seeds_improved"] == 1
    assert entry["probability_of_improvement"] == pytest.approx((28 + 8) / 64)  # Mann-Whitney's U / 64 by hand
    assert entry["verdict"] == "yes"


def test_what_a_control_explains_is_its_share_of_the_gain():
    table = {
        "pi2": result_of([10.0, 10, 10]),
        "rlhf-pi1": result_of([30.0, 30, 30]),
        "rlhf-pi1-zero": result_of([25.0, 25, 25]),
    }
    assert evidence.explained(table, "rlhf-pi1-zero") == pytest.approx((0.75, 0.75, 0.75))
    assert evidence.explained(table, "rlhf-pi1") is None
    assert evidence._share((0.75, 0.5, 1.0)) == "75 % (50 to 100)"
    assert evidence._share(statistics.explained_share(np.ones(3), np.ones(3), np.ones(3))) == "? % (? to ?)"


def test_a_seed_that_one_arm_lost_is_lost_to_all():
    seeds, flags = (5, 6, 7, 8), np.array([0.0, 1, 0, 0])
    table = {"one": result_of([1.0, 2, 3, 4]), "other": result_of([5.0, 6, 7, 8], diverged=flags)}
    assert evidence.diverged(table, seeds) == {"other": [6]}
    kept = evidence.without(table, seeds, [6])
    np.testing.assert_array_equal(kept["one"].true_return, [1, 3, 4])
    np.testing.assert_array_equal(kept["other"].true_return, [5, 7, 8])
    summary = {"diverged": {"cartpole": {}, "acrobot": {"other": [6]}}}
    assert evidence.warnings(summary) == ["Acrobot: other diverged on seed 6, left out of all arms"]
    with pytest.raises(UsageError, match="no seed on which no arm diverged"):
        evidence.without(table, seeds, seeds)


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, summary, page) of the whole command, on made-up results."""
    folder = tmp_path_factory.mktemp("evidence")
    rng = np.random.default_rng(0)

    def made_up(task, table, seeds, folder, progress):
        astray = {"dpo": np.arange(len(seeds)) == 3} if task.name == "acrobot" else {}
        return {
            name: result_of(
                rng.normal(150, 5, len(seeds)),
                kl=rng.random(len(seeds)),
                diverged=1.0 * astray.get(name, np.zeros(len(seeds))),
            )
            for name in table
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms, "run", made_up)
        patch.setattr(stages, "set_up_jax", lambda devices: None)
        patch.setattr(
            "sys.argv", ["evidence", "--num-seeds", "8", "--claims", "gain", "controls", "--out", str(folder)]
        )
        with pytest.raises(SystemExit) as exit:
            evidence.main()
        assert exit.value.code == 3
    return folder, json.loads((folder / "summary.json").read_text()), (folder / "evidence.md").read_text()


def test_the_page_shows_the_numbers_of_the_summary(written):
    _, summary, page = written
    for name in ("gain", "controls"):
        claim = next(claim for claim in claims.CLAIMS if claim.name == name)
        assert f"## {claim.title}" in page
        for task in ("cartpole", "acrobot"):
            for entry in summary["claims"][name][task]:
                low, high = entry["ci95"]
                assert f"| {entry['difference']:+.1f} | {low:+.1f} to {high:+.1f} |" in page
            for arm in claim.arms:
                entry = summary["arms"][task][arm]
                assert f"| {arm} | {entry['iqm']:.1f} |" in page
                assert entry["mean"] == pytest.approx(np.mean(entry["per_seed"]))


def test_the_page_names_what_contradicts_and_how_to_reproduce_it(written):
    _, summary, page = written
    verdicts = [
        entry["verdict"] for tasks in summary["claims"].values() for entries in tasks.values() for entry in entries
    ]
    contradicted = sum(verdict.startswith("NO") for verdict in verdicts)
    assert f"Of {len(verdicts)} comparisons {contradicted} contradict" in page
    assert len(re.findall(r"^- .* was expected ", page, re.MULTILINE)) == contradicted
    assert f"`{python()} -m experiments.evidence --claims controls --num-seeds 8`" in page


def test_a_diverged_seed_is_named_and_left_out(written):
    _, summary, page = written
    assert summary["diverged"] == {"cartpole": {}, "acrobot": {"dpo": [3]}}
    assert "**Acrobot: dpo diverged on seed 3, left out of all arms**" in page
    for task, num_left in (("cartpole", 8), ("acrobot", 7)):
        assert {len(entry["per_seed"]) for entry in summary["arms"][task].values()} == {num_left}


def test_every_figure_on_the_page_is_there(written):
    folder, _, page = written
    shown = re.findall(r"\]\((.*?)\)", page)
    assert shown == ["gain.png", "profiles.png", "controls.png"]
    for name in shown:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_tables_are_rectangular(written):
    _, _, page = written
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"claims": ("gains",)}, "--claims: unknown gains; known are gain, controls"),
        ({"claims": ()}, "need at least one"),
        ({"num_seeds": 0}, "--num-seeds must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_examined_is_named(flags, message, tmp_path):
    with pytest.raises(UsageError, match=re.escape(message)):
        evidence.check(evidence.Settings(out=tmp_path, **flags))


# --- arms -------------------------------------------------------------------------------------------------------------


def test_results_are_kept_exactly_and_nan_is_null(tmp_path):
    rng = np.random.default_rng(1)
    result = result_of(rng.random(5), kl=rng.random(5), accuracy=rng.random(5))
    path = tmp_path / "deep" / "arm.json"
    arms.save(path, {"a": 1}, result)
    assert "NaN" not in path.read_text()
    jax.tree.map(np.testing.assert_array_equal, arms.load(path, {"a": 1}), result)


def test_results_of_something_else_are_not_used(tmp_path):
    path, task = tmp_path / "arm.json", jaxpref.cartpole()
    spec = arms.specification(task, arms.Arm("dpo"), (1, 2))
    arms.save(path, spec, result_of([1.0, 2.0]))
    assert arms.load(path, json.loads(json.dumps(spec))) is not None
    smaller_beta = arms.Hyperparameters(dpo=dpo.Config(beta=0.05))
    for other in (
        arms.specification(jaxpref.acrobot(), arms.Arm("dpo"), (1, 2)),
        arms.specification(task, arms.Arm("dpo"), (1, 3)),
        arms.specification(task, arms.Arm("dpo", hyper=smaller_beta), (1, 2)),
        spec | {"code": "another"},
        spec | {"versions": {}},
    ):
        assert arms.load(path, other) is None
    assert arms.load(tmp_path / "missing.json", spec) is None


@pytest.mark.parametrize("damage", ["truncated", "changed", "foreign"])
def test_an_arm_whose_file_was_damaged_is_run_again_and_the_file_named(tmp_path, monkeypatch, damage):
    task, arm, printed = jaxpref.cartpole(), arms.Arm("pi1"), io.StringIO()
    path = tmp_path / "1-2" / "good.json"
    arms.save(path, arms.specification(task, arm, (1, 2)), result_of([1.0, 2.0]))
    whole = path.read_text()
    path.write_text({"truncated": whole[:-40], "changed": whole.replace("2.0", "3.0"), "foreign": "{}"}[damage])
    with pytest.raises(checkpoints.Damaged):
        arms.load(path, arms.specification(task, arm, (1, 2)))
    monkeypatch.setattr(arms, "Runner", lambda *_: lambda arm: result_of([1.0, 2.0]))
    arms.run(task, {"good": arm}, (1, 2), tmp_path, Progress(Console(file=printed, width=300)))
    assert printed.getvalue().startswith(f"warning: {path} ")
    assert path.read_text() == whole


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(folder, arms, table): four seeds in batches of two."""
    folder = tmp_path_factory.mktemp("arms")
    table = {"pi1": arms.Arm("pi1"), "pi2": arms.Arm("pi2"), "again": arms.Arm("pi2-again")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms, "BATCH", 2)
        with Progress(QUIET, folder, unit="arms") as progress:
            arms.plan(jaxpref.cartpole(), table, (5, 6, 7, 8), progress)
            results = arms.run(jaxpref.cartpole(), table, (5, 6, 7, 8), folder, progress)
    return folder, table, results


def test_arms_of_all_batches_come_in_the_order_of_the_seeds(ran):
    folder, table, results = ran
    assert results.keys() == table.keys()
    assert results["pi1"].true_return.shape == (4,)
    kept = json.loads((folder / "7-8" / "pi1.json").read_text())
    assert kept["specification"]["seeds"] == [7, 8]
    assert kept["results"]["true_return"] == results["pi1"].true_return[2:].tolist()


def test_every_arm_of_every_batch_is_logged_with_its_mean_return(ran):
    folder, table, results = ran
    start, *rows, end = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    titles = [f"cartpole {name}, seeds {batch}" for batch in ("5-6", "7-8") for name in table]
    assert [(row["event"], row["stage"]) for row in rows] == [("arm", title) for title in titles]
    assert rows[3]["mean_return"] == pytest.approx(results["pi1"].true_return[2:].mean())
    assert (start["event"], end["error"]) == ("start", None)


def test_a_policy_is_no_distance_from_itself_and_has_no_scores(ran):
    _, _, results = ran
    np.testing.assert_allclose(results["pi2"].kl, 0, atol=1e-5)
    assert np.isnan(results["pi2"].quality.accuracy).all()
    assert np.all(results["pi1"].true_return > results["pi2"].true_return)
    assert np.all(results["again"].true_return != results["pi2"].true_return)


def test_what_is_done_is_not_done_again(ran, monkeypatch):
    folder, table, results = ran

    def fail(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(arms, "BATCH", 2)
    monkeypatch.setattr(arms, "Runner", fail)
    progress = Progress(QUIET, unit="arms")
    arms.plan(jaxpref.cartpole(), table, (5, 6, 7, 8), progress)
    again = arms.run(jaxpref.cartpole(), table, (5, 6, 7, 8), folder, progress)
    assert progress.seconds_left() == 0
    jax.tree.map(np.testing.assert_array_equal, again, results)
    with pytest.raises(AssertionError, match="trained again"):
        arms.run(jaxpref.cartpole(), table, (5, 6, 7, 9), folder, Progress(QUIET))


def test_of_a_pool_the_first_pairs_count(monkeypatch):
    """Arms of one pool share what was sampled; another pool is sampled anew."""
    sampled = []

    def sample(self, name, function, static, shared, *args, lanes):
        sampled.append(static)
        return Preferences(None, None, np.ones((2, *static), np.float32), None)

    monkeypatch.setattr(arms.Runner, "__init__", lambda self: None)
    monkeypatch.setattr(arms.Runner, "_map", sample)
    runner = arms.Runner()
    runner._kept, runner.pi = {}, {}
    some = runner._pairs(arms.Arm("dpo", num_pairs=3, pool=5))
    np.testing.assert_array_equal(some.weight, [[1, 1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(runner._pairs(arms.Arm("rlhf", num_pairs=5, pool=5)).weight, np.ones((2, 5)))
    assert sampled == [(5,)]
    np.testing.assert_array_equal(runner._pairs(arms.Arm("dpo", num_pairs=4)).weight, np.ones((2, 4)))
    assert sampled == [(5,), (4,)]


def test_a_random_reward_is_not_zero_and_a_zero_reward_is():
    task, seed = jaxpref.acrobot(), np.uint32(4)
    obs, action = jax.random.normal(jax.random.key(0), (20, 6)), jax.numpy.zeros(20, int)
    assert not np.any(jaxpref.apply_reward(arms.zero_reward(task, None, seed), obs, action))
    rewards = jaxpref.apply_reward(arms.random_reward(task, None, seed), obs, action)
    assert np.std(rewards) > 0.1


# --- the sweep --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(optimised, tmp_path_factory):
    """(settings, summary, experts): a small grid of DPO on CartPole."""
    folder, timer, task = tmp_path_factory.mktemp("sweep"), stages.Stages(QUIET), jaxpref.cartpole()
    settings = sweep.Settings(
        num_seeds=2, num_pairs=(4, 8), temperatures=(0.005, 0.5), beta=(0.1, 1.0), out=folder, methods=("dpo",)
    )
    sweep.sweep(settings, task, "dpo", timer, QUIET)
    train = functools.partial(pipeline.train_experts, task)
    experts = timer.run("experts", train, jaxpref.reinforce.Config(), np.arange(2, dtype=np.uint32), detail=task.name)
    return settings, json.loads((folder / "cartpole-dpo" / "summary.json").read_text()), experts


def test_the_sweep_has_an_axis_for_everything_it_varies(swept):
    settings, summary, _ = swept
    assert summary["axes"] == ["seed", "temperature", "num_pairs", "beta"]
    assert summary["temperature"] == [1.0, 100.0]
    for values in summary["runs"].values():
        assert np.shape(values) == (2, 2, 2, 2)
    for name in ("heat_map.png", "over_optimisation.png"):
        assert (settings.out / "cartpole-dpo" / name).read_bytes().startswith(b"\x89PNG")


def test_the_stronger_the_pull_the_nearer_the_policy_stays(swept):
    kl = np.array(swept[1]["runs"]["kl"])
    assert np.all(kl >= 0)
    assert np.all(kl[..., 1] < kl[..., 0])


def test_the_heat_maps_rows_are_strengths_and_its_columns_sizes():
    """Two temperatures, three sizes, four strengths; a cell says 100 times its temperature's place, and so on."""
    returns = np.broadcast_to(
        np.arange(2)[:, None, None] * 100 + np.arange(3)[:, None] * 10 + np.arange(4), (5, 2, 3, 4)
    )
    runs = sweep.Run(returns, returns, returns)
    settings = sweep.Settings(num_pairs=(5, 6, 7), temperatures=(0.1, 0.2))
    figure = sweep.draw_heat_maps("title", settings, (0.1, 0.2, 0.3, 0.4), "beta", runs)
    for place, axes in enumerate(figure.axes[:2]):
        cells = {tuple(text.get_position()): text.get_text() for text in axes.texts}
        assert cells == {
            (size, strength): str(100 * place + 10 * size + strength) for size in range(3) for strength in range(4)
        }
        assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "6", "7"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0.1", "0.2", "0.3", "0.4"]
    plt.close(figure)


def test_a_run_that_diverged_is_left_out_of_its_cell_and_named(tmp_path, monkeypatch):
    """Seed 1 of three diverged in one cell, where the IQM is that of the others; all of them did in another one."""
    returns = np.arange(3.0)[:, None, None, None] + np.zeros((3, 1, 2, 2))
    returns[1, 0, 0, 1] = np.nan
    returns[:, 0, 1, 0] = np.nan
    runs, printed = sweep.Run(returns, returns, returns), io.StringIO()
    np.testing.assert_array_equal(sweep.iqm_of_known(returns), [[[1, 1], [np.nan, 1]]])
    timer = stages.Stages(QUIET)
    monkeypatch.setattr(
        timer, "run", lambda name, *_, **__: runs if name == "sweep" else types.SimpleNamespace(pi1=0, pi2=0)
    )
    settings = sweep.Settings(num_seeds=3, num_pairs=(4, 8), temperatures=(0.005,), beta=(0.1, 1.0), out=tmp_path)
    assert not sweep.sweep(settings, jaxpref.cartpole(), "dpo", timer, Console(file=printed, width=300))
    assert "4 of 12 runs diverged and are left out, the first of them seed 0, temperature 1, 8 pairs, beta 0.1" in (
        printed.getvalue()
    )
    assert "with 8 pairs the best beta is 1 (IQM 1.0)" in printed.getvalue()
    kept = json.loads((tmp_path / "cartpole-dpo" / "summary.json").read_text())["runs"]["true_return"]
    assert kept[1] == [[[1, None], [None, 1]]]


def test_parameters_beyond_the_limit_make_a_run_nan():
    task, seed = jaxpref.cartpole(horizon=5), np.uint32(1)
    sound = constant_policy(task, [0.5, 0.5])
    astray = jax.tree.map(lambda leaf: leaf + 2000, sound)

    @jax.jit
    def end(params, reward_params):
        return sweep.end_of(task, seed, params, sound, lambda played: played.reward.sum(-1), reward_params)

    for params, reward_params, expected in ((sound, sound, True), (astray, sound, False), (sound, astray, False)):
        assert all(np.isfinite(value) == expected for value in vars(end(params, reward_params)).values())


def test_a_cell_of_the_sweep_is_a_run_of_its_own(swept):
    """Seed 1, temperature 100, 8 pairs, beta 1, without any vmap."""
    task, seed = jaxpref.cartpole(), np.uint32(1)
    pi1, pi2 = (jax.tree.map(lambda leaf: leaf[1], getattr(swept[2], name)) for name in ("pi1", "pi2"))

    @jax.jit
    def alone(pi1, pi2):
        pairs = arms.ask(task, 8, annotators.Config(temperature=100.0), seed, pi1, pi2)
        return sweep.dpo_run(task, seed, pi2, pairs, 1.0)

    run = alone(pi1, pi2)
    for name, value in vars(run).items():
        assert np.array(swept[1]["runs"][name])[1, 1, 1, 1] == pytest.approx(float(value), rel=0.02, abs=0.02)


def test_a_sweep_keeps_what_sweeps_of_other_tasks_have_done(tmp_path, monkeypatch, capsys):
    """Each sweep is a stage that doubles a number: cartpole, then acrobot, then both at once."""

    def double(settings, task, method, timer, console):
        timer.run("sweep", lambda factor, number: factor * number, 2.0, np.arange(3.0), detail=f"{task.name} {method}")
        console.print(f"{task.name} {method}")
        return True

    monkeypatch.setattr(sweep, "sweep", double)
    monkeypatch.setattr(stages, "set_up_jax", lambda devices: None)
    for tasks in (["cartpole"], ["acrobot"], ["cartpole", "acrobot"]):
        monkeypatch.setattr("sys.argv", ["sweep", "--methods", "dpo", "--out", str(tmp_path), "--tasks", *tasks])
        sweep.main()
    log = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    rows = [(row["stage"], row["reused"]) for row in log if row["event"] == "sweep"]
    fresh, kept = ([(f"{task} dpo", reused) for task in ("cartpole", "acrobot")] for reused in (False, True))
    assert rows == fresh + kept
    assert sorted(path.name for path in (tmp_path / "stages" / "1").iterdir()) == [
        f"sweep-{task}-dpo.{suffix}" for task in ("acrobot", "cartpole") for suffix in ("json", "npz")
    ]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "in all" not in line] == [
        "cartpole dpo",
        "acrobot dpo",
        "cartpole dpo",
        "acrobot dpo",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"beta": ()}, "--beta needs at least one value"),
        ({"kl_coef": (-1.0,)}, "--kl-coef must be at least 0, got -1.0"),
        ({"num_pairs": (0, 5)}, "--num-pairs must be at least 1, got 0"),
        ({"num_seeds": 0}, "--num-seeds must be at least 1"),
    ],
)
def test_a_grid_that_cannot_be_run_is_named(flags, message, tmp_path):
    with pytest.raises(UsageError, match=re.escape(message)):
        sweep.check(dataclasses.replace(sweep.Settings(out=tmp_path), **flags))
