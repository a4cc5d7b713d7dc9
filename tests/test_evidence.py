"""Arms, claims, verdicts, the page of the evidence, and the sweep: what is compared with what, and what is written."""

import dataclasses
import json
import re
import types
from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import evidence, python, sweep
from experiments.claims import arms, claims, grid, heat_maps, page, running, verdicts
from experiments.harness import memo
from experiments.harness.errors import UsageError
from experiments.harness.progress import Progress
from experiments.pipeline import functions, pipeline
from jaxpref import statistics
from jaxpref.analysis import ranking
from jaxpref.divergence import Divergence

QUIET = Progress(Console(quiet=True))


def made_up_outcome(settings, returns, lost=()):
    """An outcome whose policies return these numbers, [S, P]. On seeds at the places in `lost` training diverged."""
    num_seeds = len(settings.seeds)
    returns, zeros = np.asarray(returns, np.float64), np.zeros(num_seeds)
    sound = Divergence(np.zeros(num_seeds, int), np.zeros(num_seeds, int))
    diverged = Divergence(np.isin(np.arange(num_seeds), list(lost)).astype(int), np.ones(num_seeds, int))
    quality = ranking.Quality(*[jnp.asarray(zeros + 0.1 * place, jnp.float32) for place in range(5)])
    rows = [
        pipeline.Row(
            "pi2", size, None, None, diverged, None, quality, zeros + size, returns[:, place], zeros, zeros + 3
        )
        for place, size in enumerate(settings.num_pairs)
    ]
    experts = types.SimpleNamespace(divergence=sound)
    labels = functions.Labels(zeros + 0.6, zeros + 0.7, zeros + 0.8)
    returns = {"pi1": zeros + 190, "pi2": zeros + 95}
    return pipeline.Outcome(experts, returns, zeros + 2.5, rows, labels, None)


def result_of(returns, **others):
    """An arm's results with these returns; everything else is NaN unless it is given."""
    returns = np.asarray(returns, np.float64)
    unknown = np.full(returns.shape, np.nan)
    quality = ranking.Quality(*[jnp.asarray(unknown, jnp.float32)] * 5)
    fields = {field.name: unknown for field in dataclasses.fields(arms.Result)}
    return arms.Result(**fields | {"quality": quality, "diverged": unknown > 0, "true_return": returns} | others)


# --- arms and claims --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["cartpole", "acrobot"])
def test_every_arm_is_shown_and_every_claim_speaks_of_arms_that_exist(task):
    known = arms.arms(task)
    assert {name for claim in claims.CLAIMS for name in claim.arms} == known.keys()
    assert len({repr(arm) for arm in known.values()}) == len(known)
    for claim in claims.CLAIMS:
        assert claims.arms_of([claim], task).keys() >= set(claim.arms)
        assert {pair.arm for pair in claim.comparisons} | {pair.baseline for pair in claim.comparisons} <= known.keys()
        assert len(set(claim.arms)) == len(claim.arms)
        assert {pair.expectation for pair in claim.comparisons} <= {"above", "not below", "no gain"}
        assert set(claim.columns) <= page.COLUMNS.keys()
    assert tuple(claim.name for claim in claims.CLAIMS) == get_args(claims.ClaimName)


def test_an_arms_name_says_what_it_is():
    table = arms.arms("acrobot")
    assert {
        (arm.settings.reference, arm.settings.num_heldout, arm.settings.eval_episodes) for arm in table.values()
    } == {
        (("pi1",), 200, 100),
        (("pi2",), 200, 100),
    }
    assert table["rlhf-pi1-zero"].settings.reference == ("pi1",)
    assert table["rlhf-pi1-zero"].settings.reward == "zero"
    assert (table["dpo-50"].num_pairs, table["dpo-50"].settings) == (50, table["dpo-1000"].settings)
    noisy = table["dpo-mistakes-20%-robust"].settings
    assert (noisy.annotator.mistake_prob, noisy.dpo.loss, noisy.dpo.label_smoothing) == (0.2, "robust", 0.2)
    original = table["rlhf-pi1-original-ppo-zero"].settings
    assert (original.ppo.kl_penalty, original.ppo.kl_coef, original.reward) == ("loss", 10, "zero")
    assert table["pi2-again"].settings.evaluation == 1
    assert table["rlhf-mistakes-20%-ensemble"].settings.num_members == 3


def test_an_arm_takes_its_own_policy_and_dataset_size_from_the_outcome():
    arm = arms.arms("cartpole")["dpo-50"]
    arm = dataclasses.replace(arm, settings=dataclasses.replace(arm.settings, seeds=(4, 5, 6)))
    outcome = made_up_outcome(arm.settings, np.arange(9).reshape(3, 3), lost=[1])
    result = arms.result_of(arm, outcome)
    np.testing.assert_array_equal(result.true_return, [1, 4, 7])
    np.testing.assert_array_equal(result.score_per_step, 50)
    np.testing.assert_array_equal(result.diverged, [False, True, False])
    np.testing.assert_array_equal((result.label_entropy[0], result.best_accuracy[0], result.kl[0]), (0.6, 0.7, 3))
    experts = arms.result_of(dataclasses.replace(arm, policy="pi2"), outcome)
    np.testing.assert_array_equal(experts.true_return, 95)
    np.testing.assert_array_equal(experts.kl, 0)
    assert np.isnan(experts.quality.return_accuracy).all()
    assert not experts.diverged.any()


# --- verdicts ---------------------------------------------------------------------------------------------------------


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
    assert verdicts.verdict(expectation, low, high) == expected


def test_a_comparison_is_paired_by_seed():
    """The arm is better by 1 on every seed. The scores differ widely, and still the interval is (1, 1)."""
    scores = np.arange(0, 800, 100.0)
    table = {"one": result_of(scores + 1), "other": result_of(scores)}
    entry = verdicts.compare(table, claims.Comparison("one", "above", "other"))
    assert (entry["difference"], entry["ci95"], entry["seeds_improved"], entry["verdict"]) == (1, [1, 1], 1, "yes")
    assert entry["probability_of_improvement"] == pytest.approx((28 + 8) / 64)  # Mann-Whitney's U / 64 by hand


def test_what_a_control_explains_is_its_share_of_the_gain():
    returns = {"pi2": 10.0, "rlhf-pi1": 30.0, "rlhf-pi1-zero": 25.0}
    table = {name: result_of([value] * 3) for name, value in returns.items()}
    assert verdicts.explained(table, "rlhf-pi1-zero") == pytest.approx((0.75, 0.75, 0.75))
    assert verdicts.explained(table, "rlhf-pi1") is None
    assert page.COLUMNS["explained"][1](table, "rlhf-pi1-zero", {}) == "75 % (75 to 75)"
    table["rlhf-pi1"] = table["rlhf-pi1-zero"] = table["pi2"]
    assert np.isnan(statistics.explained_share(np.ones(3), np.ones(3), np.ones(3))).all()
    assert page.COLUMNS["explained"][1](table, "rlhf-pi1-zero", {}) == "? % (? to ?)"


def test_a_seed_that_one_arm_lost_is_left_out_of_all():
    seeds, lost = (5, 6, 7, 8), np.array([False, True, False, False])
    table = {"one": result_of([1.0, 2, 3, 4]), "other": result_of([5.0, 6, 7, 8], diverged=lost)}
    assert verdicts.diverged(table, seeds) == {"other": [6]}
    remaining = verdicts.without(table, seeds, [6])
    np.testing.assert_array_equal(remaining["one"].true_return, [1, 3, 4])
    np.testing.assert_array_equal(remaining["other"].true_return, [5, 7, 8])
    with pytest.raises(UsageError, match="nothing can be compared"):
        verdicts.without(table, seeds, seeds)


# --- the program ------------------------------------------------------------------------------------------------------


def run_program(module, words, folder, outcome_of):
    """Run a script's main with made-up outcomes; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run", outcome_of)
        patch.setattr(running, "set_up_jax", lambda devices: None)
        patch.setattr(memo, "FOLDER", folder / "memo")
        patch.setattr("sys.argv", ["program", *words, "--out", str(folder)])
        try:
            module.main()
        except SystemExit as end:
            return end.code
    return 0


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, summary, page) of the evidence on 22 seeds, in two batches: seed 3 of plain DPO on Acrobot is lost."""
    folder, rng = tmp_path_factory.mktemp("evidence"), np.random.default_rng(0)

    def outcome_of(settings, task, stages):
        plain = task.name == "acrobot" and settings == dataclasses.replace(
            arms.arms("acrobot")["dpo"].settings, seeds=settings.seeds
        )
        returns = rng.normal(150, 5, (len(settings.seeds), len(settings.num_pairs)))
        return made_up_outcome(settings, returns, [3] if plain and 3 in settings.seeds else [])

    words = ["--num-seeds", "22", "--claims", "gain", "controls"]
    assert run_program(evidence, words, folder, outcome_of) == 3
    return folder, json.loads((folder / "summary.json").read_text()), (folder / "evidence.md").read_text()


def test_the_page_shows_the_numbers_of_the_summary(written):
    _, summary, text = written
    for claim in claims.named(("gain", "controls")):
        assert f"## {claim.title}" in text
        assert f"`{python()} -m experiments.evidence --claims {claim.name} --num-seeds 22`" in text
        for task in ("cartpole", "acrobot"):
            for entry in summary["claims"][claim.name][task]:
                low, high = entry["ci95"]
                assert f"| {entry['difference']:+.1f} | {low:+.1f} to {high:+.1f} |" in text
            for arm in claim.arms:
                entry = summary["arms"][task][arm]
                assert f"| {arm} | {entry['iqm']:.1f} |" in text
                assert entry["mean"] == pytest.approx(np.mean(entry["per_seed"]))
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_page_names_what_contradicts(written):
    _, summary, text = written
    entries = [entry for tasks in summary["claims"].values() for found in tasks.values() for entry in found]
    contradicting = sum(entry["verdict"].startswith("NO") for entry in entries)
    assert f"Of {len(entries)} comparisons {contradicting} contradict" in text
    assert len(re.findall(r"^- .* was expected ", text, re.MULTILINE)) == contradicting > 0


def test_a_diverged_seed_is_named_and_left_out(written):
    _, summary, text = written
    assert summary["diverged"] == {"cartpole": {}, "acrobot": {"dpo": [3]}}
    assert "**Acrobot: dpo diverged on seed 3, left out of all arms**" in text
    for task, num_left in (("cartpole", 22), ("acrobot", 21)):
        assert {len(entry["per_seed"]) for entry in summary["arms"][task].values()} == {num_left}


def test_figures_and_a_line_for_every_run_are_there(written):
    folder, summary, text = written
    shown = re.findall(r"\]\((.*?)\)", text)
    assert shown == ["gain.png", "profiles.png", "controls.png"]
    for name in shown:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    titles = [row["stage"] for row in rows if row["event"] == "stage"]
    assert "acrobot pi1, pi2, seeds 0-19" in titles
    named = [name for title in titles for name in title.split(" ", 1)[1].split(", seeds")[0].split(", ")]
    assert sorted(named) == sorted([*summary["arms"]["cartpole"]] * 4)  # two tasks, two batches


@pytest.mark.parametrize("words", [["--num-seeds", "0"], ["--claims"]])
def test_what_cannot_be_examined_is_named(words, tmp_path):
    with pytest.raises(UsageError, match="--num-seeds must be at least 1; --claims"):
        run_program(evidence, words, tmp_path, None)


def test_an_accuracy_stands_beside_the_ceiling_of_the_same_accuracy():
    claim = next(claim for claim in claims.CLAIMS if claim.name == "annotators")
    place = claim.columns.index("best")
    assert claim.columns[place - 1] == "label_accuracy"
    assert [page.COLUMNS[name][0] for name in claim.columns[place - 1 : place + 1]] == [
        "accuracy on labels",
        "best possible on labels",
    ]


# --- the sweep --------------------------------------------------------------------------------------------------------

SWEEP = grid.Sweep(("cartpole",), ("dpo",), 3, (5, 6, 7), (0.005, 0.5), (0.1, 0.2, 0.3, 0.4))


def return_of(settings):
    """100 for the second temperature, 10 for each size, 1 for each strength."""
    place = 100 * (settings.annotator.temperature > 50) + SWEEP.beta.index(settings.dpo.beta)
    return np.tile(place + 10.0 * np.arange(3), (3, 1))


def test_every_point_of_a_grid_stands_in_its_place():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run", lambda settings, task, stages: made_up_outcome(settings, return_of(settings)))
        runs = grid.run(grid.Grid(SWEEP, "cartpole", "dpo"), running.Stages(memo.Memo(None)), QUIET)
    expected = np.arange(2)[:, None, None] * 100 + np.arange(3)[:, None] * 10 + np.arange(4)
    np.testing.assert_array_equal(runs.true_return, np.broadcast_to(expected, (3, 2, 3, 4)))
    figure = heat_maps.draw_heat_maps(grid.Grid(SWEEP, "cartpole", "dpo"), runs)
    for place, axes in enumerate(figure.axes[:2]):
        cells = {tuple(text.get_position()): text.get_text() for text in axes.texts}
        assert cells == {(size, row): str(100 * place + 10 * size + row) for size in range(3) for row in range(4)}
        assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "6", "7"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0.1", "0.2", "0.3", "0.4"]


def test_a_point_of_rlhf_pulls_with_kl_coef():
    point = grid.Grid(SWEEP, "acrobot", "rlhf")
    settings = point.settings(point.temperatures[1], 3.0)
    assert (settings.ppo.kl_coef, settings.annotator.temperature, settings.reference) == (3.0, 250.0, ("pi2",))
    assert point.strengths == SWEEP.kl_coef


def test_a_run_that_diverged_is_left_out_of_its_cell_and_named(tmp_path, capsys):
    def outcome_of(settings, task, stages):
        lost = [1] if settings.dpo.beta == 0.2 and settings.annotator.temperature < 50 else []
        return made_up_outcome(settings, np.arange(3.0)[:, None] + np.zeros((3, 2)), lost)

    words = "--tasks cartpole --methods dpo --num-seeds 3 --num-pairs 4 8 --temperatures 0.005 0.5 --beta 0.1 0.2"
    assert run_program(sweep, words.split(), tmp_path, outcome_of) == 3
    folder = tmp_path / "cartpole-dpo"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["axes"] == ["seed", "temperature", "num_pairs", "beta"]
    assert (summary["temperature"], summary["beta"]) == ([1.0, 100.0], [0.1, 0.2])
    assert summary["runs"]["true_return"][1] == [[[1, None], [1, None]], [[1, 1], [1, 1]]]
    assert summary["runs"]["learned_return"][0] == np.zeros((2, 2, 2)).tolist()
    np.testing.assert_array_equal(grid.iqm_of_known(np.array([[0.0], [np.nan], [2.0]])), [1.0])
    assert np.isnan(grid.iqm_of_known(np.full((3, 1), np.nan))).all()
    for name in ("heat_map.png", "over_optimisation.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of 24 runs diverged and are left out. The first is seed 1, temperature 1, 4 pairs, beta 0.2" in printed
    assert "with 8 pairs the best beta is 0.1 (IQM 1.0)" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"beta": ()}, "--beta needs finite numbers of at least 0, got none"),
        ({"kl_coef": (-1.0,)}, "--kl-coef needs finite numbers of at least 0, got -1.0"),
        ({"temperatures": (np.inf,)}, "--temperatures needs finite numbers of at least 0, got inf"),
        ({"num_pairs": (0, 5)}, "--num-pairs needs finite numbers of at least 1, got 0 5"),
        ({"num_seeds": 0}, "--num-seeds must be at least 1"),
    ],
)
def test_a_grid_that_cannot_run_is_named(flags, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        dataclasses.replace(SWEEP, **flags).check()
