"""What a run writes and prints: summary.json, the table, warnings, figures and arrays, of results made by hand."""

import dataclasses
import io
import json
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import scipy.stats
from outcomes import SEEDS, TIMING, divergence, outcome_of, settings_of
from rich.console import Console

from experiments.reporting import experiment, figures, summary, table
from jaxpref import plots, store

NAN = np.float32(np.nan)
ALL_ROWS = [("pi1", 4), ("pi1", 8), ("pi2", 4), ("pi2", 8)]


def changed(tree, path, value):
    """The same tree with another value at a path, as in `rows.0.quality.label_accuracy`."""
    name, _, rest = path.partition(".")
    if isinstance(tree, list):
        return [changed(part, rest, value) if place == int(name) else part for place, part in enumerate(tree)]
    return dataclasses.replace(tree, **{name: changed(getattr(tree, name), rest, value) if rest else value})


def made(method="dpo", at=(), **changes):
    """(settings, outcome, summary) of random numbers; `at`: (path, value) of what is different in the outcome."""
    settings = settings_of(method, **changes)
    outcome = outcome_of(settings, np.random.default_rng(5))
    for path, value in at:
        outcome = changed(outcome, path, value)
    return settings, outcome, summary.summarise(settings, outcome)


def printed(results, width=100):
    file = io.StringIO()
    table.print_report(Console(file=file, width=width), results | {"timing": TIMING}, [Path("a.npz")], Path("out"))
    return file.getvalue()


# --- summary.json -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpo", "rlhf", "online-dpo"])
def test_the_summary_has_the_contracts_keys_and_the_outcomes_numbers(method):
    """The IQM of three seeds cuts none. Accuracies are means over seeds."""
    _, outcome, results = made(method)
    contract = "experiment task method seeds config versions policies pi1_reached pi2_reached rows diverged not_reached"
    assert set(contract.split()) <= set(results)
    assert results["experiment"] == f"cartpole-{method}"
    assert [(row["reference"], row["num_pairs"]) for row in results["rows"]] == ALL_ROWS
    for row, run in zip(results["rows"], outcome.rows, strict=True):
        np.testing.assert_array_equal(row["policy"]["per_seed"], run.true_return)
        iqm = scipy.stats.trim_mean(run.true_return.astype(np.float64), 0.25)
        np.testing.assert_allclose(row["policy"]["iqm"], iqm, rtol=1e-12)
        low, high = row["policy"]["ci95"]
        assert min(run.true_return) <= low <= row["policy"]["iqm"] <= high <= max(run.true_return)
        found = [row[f"{name}_accuracy"] for name in ("heldout", "label", "length")]
        accuracies = run.quality.return_accuracy, run.quality.label_accuracy, outcome.labels["length_accuracy"]
        np.testing.assert_allclose(found, np.mean(accuracies, axis=1), rtol=1e-6)
    assert results["pi2_target"] == [95, None, 95]  # JSON has no infinity
    assert results["not_reached"] == {"pi1": [3], "pi2": []}
    json.dumps(results, allow_nan=False)


def test_what_is_not_known_is_null():
    """No labels, and a seed without a true ranking."""
    accuracies = {"label_accuracy": np.full(3, NAN), "return_accuracy": np.array([0.5, NAN, 1.0], np.float32)}
    _, _, results = made(at=[(f"rows.0.quality.{name}", values) for name, values in accuracies.items()])
    row = results["rows"][0]
    assert (row["label_accuracy"], row["heldout_accuracy"]) == (None, 0.75)


def test_a_seed_that_is_worse_than_at_the_start_or_has_no_reward_is_named():
    """Worse by more than two standard errors of the difference. With errors of 3 and 4 it is 5, so 10 is the limit."""
    settings, outcome, _ = made("rlhf")
    same, error = {"pi2": np.full(3, 100.0)}, {"pi2": np.full(3, 3.0)}
    returns = [np.full(3, 100.0)] * 3 + [np.array([91, 89, 100.0])]
    rows = [
        dataclasses.replace(row, true_return=of_row, true_return_error=np.full(3, 4.0))
        for row, of_row in zip(outcome.rows, returns, strict=True)
    ]
    rows[2] = dataclasses.replace(rows[2], learned_return=np.array([0.0, -1.0, 0.0]))
    changed = {"returns": outcome.returns | same, "errors": outcome.errors | error, "rows": rows}
    results = summary.summarise(settings, dataclasses.replace(outcome, **changed))
    assert [row["failed"] for row in results["rows"]] == [[], [], [], [3]]
    assert [row["no_reward"] for row in results["rows"]] == [[], [], [SEEDS[0], SEEDS[2]], []]
    lines = table.warnings(results)
    assert "PPO-RLHF, 8 pairs, reference pi2: 1 of 3 seeds ended below their pi2: 3" in lines
    assert f"PPO-RLHF, 4 pairs, reference pi2: 2 of 3 seeds had a reward of 0: {SEEDS[0]} {SEEDS[2]}" in lines


# --- divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "entry", "lacking"),
    [
        ("rows.1.divergence", divergence(3, s1=(3, 2)), ("ppo", "pi1", 8, 3, "parameters"), ALL_ROWS[1:2]),
        ("rows.2.true_return", np.array([1, NAN, 2]), ("evaluate", "pi2", 4, None, "return"), ALL_ROWS[2:3]),
        ("reward_models.0.divergence", divergence(3, s1=(2, 1)), ("reward model", None, 4, 2, "loss"), ALL_ROWS[::2]),
        ("experts.divergence", divergence(3, s1=(7, 1)), ("reinforce", None, None, 7, "loss"), ALL_ROWS),
    ],
)
def test_a_diverged_seed_is_named_once_and_left_out_of_the_rows_that_depend_on_it(path, value, entry, lacking):
    """The second seed, 3; every other row is over all seeds."""
    _, _, results = made("rlhf", [(path, value)])
    keys = ("seed", "stage", "reference", "num_pairs", "update", "what")
    assert results["diverged"] == [dict(zip(keys, (3, *entry), strict=True))]
    for key, row in zip(ALL_ROWS, results["rows"], strict=True):
        assert [value is None for value in row["policy"]["per_seed"]] == [False, key in lacking, False]
    line = table.warnings(results)[-1]
    assert line.startswith(entry[0])
    assert f"3 ({entry[-1]}" in line
    assert re.search(r" 2$", printed(results), re.MULTILINE)


def test_a_row_without_any_seed_is_none_and_everything_is_written(tmp_path):
    _, outcome, results = made("rlhf", [("rows.0.divergence", divergence(3, s0=(1, 1), s1=(1, 1), s2=(1, 1)))])
    assert results["rows"][0]["policy"] == {"mean": None, "iqm": None, "ci95": [None, None], "per_seed": [None] * 3}
    assert re.search(r"PPO-RLHF +pi1 +4 +none +none +none +none +none +none +0\n", printed(results))
    assert len(figures.draw_all(outcome, results, tmp_path)) == 4


# --- table ------------------------------------------------------------------------------------------------------------


def test_the_report_has_the_summarys_numbers_and_this_runs_seconds():
    _, outcome, results = made()
    text = printed(results)
    lines = [line.split() for line in text.splitlines()]

    def cells(score):
        low, high = score["ci95"]
        return [f"{score['mean']:.1f}", f"{score['iqm']:.1f}", f"{low:.1f}", "to", f"{high:.1f}"]

    for name, score in results["policies"].items():
        assert [name, *cells(score)] in lines
    for row in results["rows"]:
        accuracies = [f"{row[f'{name}_accuracy']:.3f}" for name in ("heldout", "label", "length")]
        assert ["DPO", row["reference"], str(row["num_pairs"]), *cells(row["policy"]), *accuracies] in lines
    assert "written to out: a.npz" in text
    assert text.endswith("1.7 s imports, 2.5 s compilation, 7.1 s running, 1 of 2 stages were kept\n")
    assert "\n13.4 s in all: " in text
    explained = table.accuracies_explained(results)
    assert explained in " ".join(text.split())
    assert explained.startswith("Held-out: share of 200 fresh pairs ranked as their true returns rank them")
    assert f"probabilities reach {outcome.labels['best_accuracy'].mean():.3f}" in explained


@pytest.mark.parametrize("seeds", [(5,), (5, 6), SEEDS])
def test_an_interval_says_how_many_seeds_it_is_of(seeds):
    """That of two seeds is these two."""
    _, outcome, results = made(seeds=seeds)
    assert ("one seed", "range of 2 seeds", "95 % of 3 seeds")[len(seeds) - 1] in printed(results)
    if len(seeds) == 2:
        assert results["rows"][0]["policy"]["ci95"] == sorted(outcome.rows[0].true_return)


def test_the_widest_table_fits_100_columns():
    returns = np.where(np.arange(100) % 2, -500, NAN)
    _, _, results = made("online-rlhf", [("rows.0.true_return", returns)], seeds=(*range(100),), num_pairs=(1000,))
    wide, narrow = (re.findall(r"^online RLHF.*\S", printed(results, width), re.MULTILINE) for width in (300, 100))
    assert wide[-1] == narrow[-1]  # nothing was folded or cut


def test_returns_below_ten_have_two_decimals():
    _, _, results = made()
    scores = [*results["policies"].values(), *(row["policy"] for row in results["rows"])]
    for score in scores:
        score["mean"] = -1.0
    for score in scores:
        for mean, expected in ((0.5, 2), (-85.3, 1), (10.0, 1), (None, 2), (-9.9, 2)):
            score["mean"] = mean
            assert table.decimals(results) == expected


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch):
    """Every saved figure, and the arguments of every `plots.policies` and `plots.curve`."""
    found = {"save": [], "policies": [], "curve": []}

    def spy(module, name):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: found[name].append(args) or function(*args))

    spy(figures, "save")
    spy(plots, "policies")
    spy(plots, "curve")
    return found


@pytest.mark.parametrize(
    ("method", "references", "seeds", "sizes"),
    [
        ("dpo", ("pi1", "pi2"), SEEDS, (4, 8)),
        ("dpo", ("pi2",), SEEDS, (10, 50, 200, 1000)),
        ("rlhf", ("pi2",), SEEDS, (200,)),
        ("online-rlhf", ("pi2",), (5,), (200,)),
    ],
)
def test_figures_are_drawn_and_no_text_is_cut_off(method, references, seeds, sizes, seen, tmp_path):
    _, outcome, results = made(method, reference=references, seeds=seeds, num_pairs=sizes)
    paths = figures.draw_all(outcome, results, tmp_path)
    assert [path.stem for path in paths] == ["policies", "returns", "loss", "margins" if method == "dpo" else "kl"]
    for figure, path in seen["save"]:
        figure.draw_without_rendering()
        width, height = figure.bbox.size
        for artist in [figure._suptitle, *figure.legends, *figure.axes]:
            box = artist.get_tightbbox()
            assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -1, (path.stem, artist)
        drawn_share = (matplotlib.image.imread(path)[..., :3] < 0.9).any(-1).mean()
        assert 0.005 < drawn_share < 0.5  # neither blank nor black


def test_the_figures_show_the_outcomes_numbers(seen, tmp_path):
    """pi2, pi1, then the sizes; curves begin at pi2. Of 12 updates there is an evaluation after each third."""
    _, outcome, results = made(at=[("rows.3.divergence", divergence(3, s1=(3, 2)))])
    figures.draw_all(outcome, results, tmp_path)
    experts = [results["policies"]["pi2"], results["policies"]["pi1"]]
    for place, (_, names, per_seed, ends, centres, colours) in enumerate(seen["policies"]):
        shown = [*experts, *(row["policy"] for row in results["rows"][2 * place : 2 * place + 2])]
        assert names == ["pi2", "pi1", "4\npairs", "8\npairs"]
        for key, values in (("per_seed", per_seed), ("ci95", ends), ("iqm", centres)):
            np.testing.assert_array_equal(values, np.array([score[key] for score in shown], float))
        assert len(set(colours)) == 4
    assert place == 1
    curves = [y for _, x, y, *_ in seen["curve"] if np.array_equal(x, [0, 4, 8, 12])]
    expected = [np.column_stack([outcome.returns["pi2"], row.metrics.true_return]) for row in outcome.rows]
    expected[3] = expected[3][[0, 2]]  # without the seed that diverged
    for curve, values in zip(curves, expected, strict=True):
        np.testing.assert_array_equal(curve, values)


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_arrays_have_seeds_then_sizes_in_front(tmp_path):
    """The metrics of a size with fewer updates end in NaN."""
    short = np.ones((3, 7), np.float32)
    settings, outcome, _ = made("rlhf", [("rows.0.metrics.loss", short)])
    paths = experiment.save_arrays(settings, outcome, tmp_path)
    assert [path.name for path in paths] == ["policies.npz", "metrics.npz", "reward_models.npz"]
    saved = store.load_params(tmp_path / "metrics.npz")
    assert set(saved) == {"reinforce", "reward_model", "trained_pi1", "trained_pi2"}
    loss = saved["trained_pi1"]["loss"]
    np.testing.assert_array_equal(loss[:, 0], np.concatenate([short, np.full((3, 5), NAN)], axis=1))
    np.testing.assert_array_equal(loss[:, 1], outcome.rows[1].metrics.loss)
    np.testing.assert_array_equal(saved["reward_model"]["loss"][:, 1], outcome.reward_models[1].metrics.loss)
    models = store.load_params(tmp_path / "reward_models.npz")["scale"]
    np.testing.assert_array_equal(models[:, 1], outcome.reward_models[1].params["scale"])
