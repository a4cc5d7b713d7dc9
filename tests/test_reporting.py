"""What a run writes and prints: summary.json, the table, warnings, figures and arrays, of results made by hand."""

import dataclasses
import io
import itertools
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import scipy.stats
from outcomes import SEEDS, SIZES, TIMING, divergence, outcome_of, settings_of
from rich.console import Console

from experiments.reporting import arrays, figures, summary, table
from jaxpref import plots, store

NAN = np.float32(np.nan)
ALL_ROWS = set(itertools.product(("pi1", "pi2"), SIZES))


def drawn(method="dpo", **changes):
    """(settings, outcome) of random numbers."""
    settings = settings_of(method, **changes)
    return settings, outcome_of(settings, np.random.default_rng(5))


def rows_of(results):
    return {(row["reference"], row["num_pairs"]): row for row in results["rows"]}


def with_row(outcome, place, **changes):
    """The same outcome with one row changed."""
    rows = list(outcome.rows)
    rows[place] = dataclasses.replace(rows[place], **changes)
    return dataclasses.replace(outcome, rows=rows)


def printed(results, width=100):
    file = io.StringIO()
    table.print_report(Console(file=file, width=width), results | {"timing": TIMING}, [Path("a.npz")], Path("out"))
    return file.getvalue()


# --- summary.json -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpo", "rlhf", "online-dpo"])
def test_the_summary_has_the_contracts_keys_and_the_outcomes_numbers(method):
    """The IQM of three seeds cuts none. Accuracies are means over seeds."""
    settings, outcome = drawn(method)
    results = summary.summarise(settings, outcome)
    contract = "experiment task method seeds config versions policies pi1_reached pi2_reached rows diverged not_reached"
    assert set(contract.split()) <= set(results)
    assert results["experiment"] == f"cartpole-{method}"
    assert set(rows_of(results)) == ALL_ROWS
    for row, run in zip(results["rows"], outcome.rows, strict=True):
        np.testing.assert_array_equal(row["policy"]["per_seed"], run.true_return)
        iqm = scipy.stats.trim_mean(run.true_return.astype(np.float64), 0.25)
        np.testing.assert_allclose(row["policy"]["iqm"], iqm, rtol=1e-12)
        low, high = row["policy"]["ci95"]
        assert min(run.true_return) <= low <= row["policy"]["iqm"] <= high <= max(run.true_return)
        found = [row[f"{name}_accuracy"] for name in ("heldout", "label", "length")]
        accuracies = run.quality.return_accuracy, run.quality.label_accuracy, outcome.labels.length_accuracy
        np.testing.assert_allclose(found, np.mean(accuracies, axis=1), rtol=1e-6)
    assert results["pi2_target"] == [95, None, 95]  # JSON has no infinity
    assert results["not_reached"] == {"pi1": [3], "pi2": []}
    store.to_json(results)


def test_what_is_not_known_is_null():
    """No labels, and a seed without a true ranking."""
    settings, outcome = drawn()
    accuracies = {"label_accuracy": np.full(3, NAN), "return_accuracy": np.array([0.5, NAN, 1.0], np.float32)}
    quality = dataclasses.replace(outcome.rows[0].quality, **accuracies)
    row = summary.summarise(settings, with_row(outcome, 0, quality=quality))["rows"][0]
    assert (row["label_accuracy"], row["heldout_accuracy"]) == (None, 0.75)


# --- divergence -------------------------------------------------------------------------------------------------------


def reward_model_diverged(outcome):
    reward = dataclasses.replace(outcome.rows[0].reward, divergence=divergence(3, s1=(2, 1)))
    return with_row(outcome, 0, reward=reward)


def experts_diverged(outcome):
    experts = dataclasses.replace(outcome.experts, divergence=divergence(3, s1=(7, 1)))
    return dataclasses.replace(outcome, experts=experts)


def policy_diverged(outcome):
    return with_row(outcome, 1, divergence=divergence(3, s1=(3, 2)))


def return_diverged(outcome):
    return with_row(outcome, 2, true_return=np.array([1, NAN, 2]))


@pytest.mark.parametrize(
    ("change", "entry", "lacking"),
    [
        (policy_diverged, ("ppo", "pi1", 8, 3, "parameters"), {("pi1", 8)}),
        (return_diverged, ("evaluate", "pi2", 4, None, "return"), {("pi2", 4)}),
        (reward_model_diverged, ("reward model", None, 4, 2, "loss"), {("pi1", 4), ("pi2", 4)}),
        (experts_diverged, ("reinforce", None, None, 7, "loss"), ALL_ROWS),
    ],
)
def test_a_diverged_seed_is_named_once_and_left_out_of_the_rows_that_depend_on_it(change, entry, lacking):
    """The second seed, 3; every other row is over all seeds."""
    settings, outcome = drawn("rlhf")
    results = summary.summarise(settings, change(outcome))
    keys = ("seed", "stage", "reference", "num_pairs", "update", "what")
    assert results["diverged"] == [dict(zip(keys, (3, *entry), strict=True))]
    for key, row in rows_of(results).items():
        assert [value is None for value in row["policy"]["per_seed"]] == [False, key in lacking, False]
    line = table.warnings(results)[-1]
    assert line.startswith(entry[0])
    assert f"3 ({entry[-1]}" in line
    assert re.search(r" 2$", printed(results), re.MULTILINE)


def test_a_row_without_any_seed_is_none_and_everything_is_written(tmp_path):
    settings, outcome = drawn("rlhf")
    outcome = with_row(outcome, 0, divergence=divergence(3, s0=(1, 1), s1=(1, 1), s2=(1, 1)))
    results = summary.summarise(settings, outcome)
    assert results["rows"][0]["policy"] == {"mean": None, "iqm": None, "ci95": [None, None], "per_seed": [None] * 3}
    assert re.search(r"PPO-RLHF +pi1 +4 +none +none +none +none +none +none +0\n", printed(results))
    assert len(figures.draw_all(outcome, results, tmp_path)) == 4


# --- table ------------------------------------------------------------------------------------------------------------


def test_the_report_has_the_summarys_numbers_and_this_runs_seconds():
    settings, outcome = drawn()
    results = summary.summarise(settings, outcome)
    text = printed(results)
    lines = [line.split() for line in text.splitlines()]

    def cells(score):
        low, high = score["ci95"]
        return [f"{score['mean']:.1f}", f"{score['iqm']:.1f}", f"{low:.1f}", "to", f"{high:.1f}"]

    for name, score in results["policies"].items():
        assert [name, *cells(score)] in lines
    for (reference, size), row in rows_of(results).items():
        accuracies = [f"{row[f'{name}_accuracy']:.3f}" for name in ("heldout", "label", "length")]
        assert ["DPO", reference, str(size), *cells(row["policy"]), *accuracies] in lines
    assert "written to out: a.npz" in text
    seconds = "13.4 s in all: 1.7 s imports, 2.5 s compilation, 7.1 s running, 1 of 2 stages were kept\n"
    assert text.endswith(seconds)
    explained = table.accuracies_explained(results)
    assert explained in " ".join(text.split())
    assert explained.startswith("Held-out: share of 200 fresh pairs ranked as their true returns rank them")
    assert f"probabilities reach {outcome.labels.best_accuracy.mean():.3f}" in explained


@pytest.mark.parametrize(
    ("seeds", "name"), [((5,), "one seed"), ((5, 6), "range of 2 seeds"), (SEEDS, "95 % of 3 seeds")]
)
def test_an_interval_says_how_many_seeds_it_is_of(seeds, name):
    """That of two seeds is these two."""
    settings, outcome = drawn(seeds=seeds)
    results = summary.summarise(settings, outcome)
    assert name in printed(results)
    if len(seeds) == 2:
        returns = outcome.rows[0].true_return
        assert results["rows"][0]["policy"]["ci95"] == [min(returns), max(returns)]


def test_the_widest_table_fits_100_columns():
    settings, outcome = drawn("online-rlhf", seeds=tuple(range(100)), num_pairs=(1000,))
    outcome = with_row(outcome, 0, true_return=np.where(np.arange(100) % 2, -500, NAN))
    results = summary.summarise(settings, outcome)
    wide, narrow = ([line.rstrip() for line in printed(results, width).splitlines()] for width in (300, 100))
    row = next(line for line in narrow if line.startswith("online RLHF"))
    assert row in wide  # nothing was folded or cut


@pytest.mark.parametrize(("mean", "expected"), [(0.5, 2), (-9.9, 2), (10.0, 1), (-85.3, 1), (None, 2)])
def test_returns_below_ten_have_two_decimals(mean, expected):
    results = summary.summarise(*drawn())
    scores = [results["policies"]["pi1"], results["policies"]["pi2"], *(row["policy"] for row in results["rows"])]
    for large in scores:
        for score in scores:
            score["mean"] = -1.0
        large["mean"] = mean
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
    ("method", "changes"),
    [
        ("dpo", {}),
        ("dpo", {"reference": ("pi2",), "num_pairs": (10, 50, 200, 1000)}),
        ("rlhf", {"reference": ("pi2",), "num_pairs": (200,)}),
        ("online-rlhf", {"reference": ("pi2",), "seeds": (5,), "num_pairs": (200,)}),
    ],
)
def test_figures_are_drawn_and_no_text_is_cut_off(method, changes, seen, tmp_path):
    settings, outcome = drawn(method, **changes)
    paths = figures.draw_all(outcome, summary.summarise(settings, outcome), tmp_path)
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
    settings, outcome = drawn()
    outcome = with_row(outcome, 3, divergence=divergence(3, s1=(3, 2)))
    results = summary.summarise(settings, outcome)
    figures.draw_all(outcome, results, tmp_path)
    for reference, (_, names, per_seed, ends, centres, colours) in zip(("pi1", "pi2"), seen["policies"], strict=True):
        rows = [rows_of(results)[reference, size]["policy"] for size in SIZES]
        shown = [results["policies"]["pi2"], results["policies"]["pi1"], *rows]
        assert names == ["pi2", "pi1", "4\npairs", "8\npairs"]
        np.testing.assert_array_equal(per_seed, np.array([score["per_seed"] for score in shown], float))
        np.testing.assert_array_equal(ends, [score["ci95"] for score in shown])
        np.testing.assert_array_equal(centres, [score["iqm"] for score in shown])
        assert len(set(colours)) == 4
    curves = [y for _, x, y, *_ in seen["curve"] if np.array_equal(x, [0, 4, 8, 12])]
    expected = [np.column_stack([outcome.returns["pi2"], row.metrics.true_return]) for row in outcome.rows]
    expected[3] = expected[3][[0, 2]]  # without the seed that diverged
    for curve, values in zip(curves, expected, strict=True):
        np.testing.assert_array_equal(curve, values)


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_arrays_have_seeds_then_sizes_in_front(tmp_path):
    """The metrics of a size with fewer updates end in NaN."""
    settings, outcome = drawn("rlhf")
    metrics = outcome.rows[0].metrics
    outcome = with_row(outcome, 0, metrics=dataclasses.replace(metrics, loss=metrics.loss[:, :7]))
    paths = arrays.save_arrays(settings, outcome, tmp_path)
    assert [path.name for path in paths] == ["policies.npz", "metrics.npz", "reward_models.npz"]
    saved = store.load_params(tmp_path / "metrics.npz")
    assert set(saved) == {"reinforce", "reward_model", "trained_pi1", "trained_pi2"}
    loss, padded = saved["trained_pi1"]["loss"], np.full((3, 5), NAN)
    np.testing.assert_array_equal(loss[:, 0], np.concatenate([metrics.loss[:, :7], padded], axis=1))
    np.testing.assert_array_equal(loss[:, 1], outcome.rows[1].metrics.loss)
    np.testing.assert_array_equal(saved["reward_model"]["loss"][:, 1], outcome.rows[1].reward.metrics.loss)
    models = store.load_params(tmp_path / "reward_models.npz")["scale"]
    np.testing.assert_array_equal(models[:, 1], outcome.rows[1].reward.params["scale"])
