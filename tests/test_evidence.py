"""Arms, claims, verdicts, the page of the evidence, and the sweep: what is compared with what, and what is written."""

import dataclasses
import functools
import itertools
import json
import re
from typing import get_args

import numpy as np
import pytest
from outcomes import divergence, outcome_of

from experiments import evidence, python, sweep
from experiments.claims import arms, claims, grid, page
from experiments.harness import devices
from experiments.harness.errors import UsageError
from experiments.pipeline import pipeline


def with_returns(settings, returns, lost=()):
    """An outcome whose policies return these numbers, [S, P]. On seeds at the places in `lost` training diverged."""
    outcome = outcome_of(settings, np.random.default_rng(0))
    diverged = divergence(len(settings.seeds), **{f"s{place}": (1, 1) for place in lost})
    pairs = zip(outcome.rows, np.asarray(returns, float).T, strict=True)
    rows = [dataclasses.replace(row, true_return=column, divergence=diverged) for row, column in pairs]
    return dataclasses.replace(outcome, rows=rows)


def table_of(**returns):
    return {name.replace("_", "-"): {"true_return": np.asarray(values, float)} for name, values in returns.items()}


@pytest.mark.parametrize("task", arms.TASKS)
def test_no_two_arms_are_the_same(task):
    """So every part of an arm's name has its meaning: a wrong word would change nothing."""
    names = {name for claim in claims.CLAIMS.values() if task in claim.tasks for name in claim.arms}
    assert len({repr(arms.arm(task, name)) for name in names}) == len(names)


@pytest.mark.parametrize("task", arms.TASKS)
def test_nothing_is_compared_twice(task):
    of_task = [claim for claim in claims.CLAIMS.values() if task in claim.tasks]
    found = [(entry["arm"], entry["baseline"]) for claim in of_task for entry in claim.comparisons]
    assert len(set(found)) == len(found)
    assert not {*found} & {pair[::-1] for pair in found}


def test_every_claim_speaks_of_arms_that_it_shows():
    for claim in claims.CLAIMS.values():
        assert len(set(claim.arms)) == len(claim.arms)
        assert {pair[which] for pair in claim.comparisons for which in ("arm", "baseline")} <= {*claim.arms, "pi2"}
        assert {pair["expectation"] for pair in claim.comparisons} <= page.EXPECTATIONS.keys()
        assert set(claim.columns.split()) <= page.COLUMNS.keys()
        # A ceiling stands beside the value that it is the ceiling of.
        assert ("best_accuracy" in claim.columns) == ("label_accuracy best_accuracy" in claim.columns)
    assert tuple(claims.CLAIMS) == get_args(claims.ClaimName)
    assert all(claim.tasks for claim in claims.CLAIMS.values())


def test_braces_hold_alternatives():
    claim = claims.Claim("", "", (), "pi2 {a|b}{|-1}", "{a|b-1} not below pi2, a above b", "")
    assert claim.arms == ["pi2", "a", "a-1", "b", "b-1"]
    assert [pair["arm"] for pair in claim.comparisons] == ["a", "b-1", "a"]
    assert claim.comparisons[1] == {"arm": "b-1", "expectation": "not below", "baseline": "pi2"}


def test_an_arms_name_says_what_it_is():
    def settings(name):
        return arms.arm("acrobot", name).settings

    plain = settings("dpo")
    assert (plain.reference, plain.num_pairs, plain.num_heldout, plain.eval_episodes) == (("pi2",), (200,), 200, 100)
    assert settings("pi1") == plain
    assert arms.arm("acrobot", "dpo-50") == (dataclasses.replace(plain, num_pairs=(50,)), 50)
    assert arms.arm("catch", "dpo").settings.task == "Catch-bsuite"
    assert arms.arm("cartpole-fixed", "dpo").settings == dataclasses.replace(
        plain, task="cartpole", fixed_horizon=True, out=arms.arm("cartpole", "dpo").settings.out
    )
    other = arms.arm("acrobot", "pi2-original-experts")
    assert (other.policy, other.settings.reinforce.baseline, other.settings.reinforce.shape_reward) == (
        "pi2",
        "handmade",
        True,
    )
    long = settings("dpo-conservative-long-10")
    assert (long.num_pairs, long.dpo.loss, long.dpo.num_updates) == ((10,), "conservative", 600)
    noisy = settings("dpo-mistakes-20%-robust")
    assert (noisy.annotator.mistake_prob, noisy.dpo.loss, noisy.dpo.label_smoothing) == (0.2, "robust", 0.2)
    original = settings("rlhf-pi1-original-ppo-zero")
    assert (original.reference, original.ppo.kl_penalty, original.reward) == (("pi1",), "loss", "zero")
    assert settings("rlhf-ensemble").num_members == 3
    assert arms.arm("pendulum", "dpo-hesitant").settings.annotator.temperature == 160
    online = settings("online-rlhf")
    assert (online.method, online.reward_model.num_updates) == ("online-rlhf", 50)


def test_an_arm_takes_its_own_policy_and_dataset_size_from_the_outcome():
    settings = dataclasses.replace(arms.arm("cartpole", "rlhf").settings, seeds=(4, 5, 6), num_pairs=(10, 50, 1000))
    outcome = with_returns(settings, np.arange(9).reshape(3, 3), lost=[1])
    found = arms.numbers(settings, outcome, 50)
    np.testing.assert_array_equal(found["true_return"], [1, np.nan, 7])
    np.testing.assert_array_equal(found["label_accuracy"][[0, 2]], outcome.rows[1].quality.label_accuracy[[0, 2]])
    for policy, kl in {"pi1": outcome.pi1_kl, "pi2": [0, 0, 0]}.items():
        expert = arms.numbers(settings, outcome, policy)
        np.testing.assert_array_equal(expert["true_return"], outcome.returns[policy])
        np.testing.assert_allclose(expert["kl"], kl)
        assert np.isnan(expert["heldout_accuracy"]).all()


@pytest.mark.parametrize(
    ("expectation", "verdicts"),
    [
        ("above", ["NO", "NO", "not shown", "yes", "yes"]),
        ("not below", ["NO", "yes", "yes", "yes", "yes"]),
        ("no gain", ["yes", "yes", "yes", "yes", "NO"]),
    ],
)
def test_a_verdict_allows_for_the_margin(expectation, verdicts):
    """The arm differs by the same number on all seeds. The margin is 2."""
    scores, found = np.arange(0, 800, 100.0), []
    for difference in (-3, -1, 0, 1, 3):
        entry = {"arm": "one", "expectation": expectation, "baseline": "other"}
        found.append(page.compare(table_of(one=scores + difference, other=scores), entry, 2.0))
        page.judge(found[-1:])
    assert [entry["verdict"] for entry in found] == verdicts


def test_verdicts_are_corrected_for_the_number_of_comparisons_of_a_claim():
    """0.01 alone is below 0.025. Beside three others Holm makes 0.03 of 0.01, and 0.02 of 0.005."""
    entries = [{"p_for": 0.01, "p_against": 1.0}]
    page.judge(entries)
    assert (entries[0]["verdict"], entries[0]["p_corrected"]) == ("yes", 0.01)
    entries = [{"p_for": p, "p_against": 1.0} for p in (0.01, 0.04, 0.03, 0.005)]
    page.judge(entries)
    assert [entry["verdict"] for entry in entries] == ["not shown"] * 3 + ["yes"]
    against = [{"p_for": 1.0, "p_against": p} for p in (0.01, 0.04, 0.03, 0.005)]
    page.judge(against)
    assert [entry["verdict"] for entry in against] == ["not shown"] * 3 + ["NO"]


def test_a_comparison_is_paired_by_seed():
    """The arm is better by 1 on every seed. The scores differ widely, and still the interval is (1, 1)."""
    scores = np.arange(0, 800, 100.0)
    table = table_of(one=scores + 1, other=scores)
    entry = page.compare(table, {"arm": "one", "expectation": "above", "baseline": "other"}, 0.0)
    assert (entry["difference"], entry["ci95"], entry["seeds_improved"]) == (1, [1, 1], 1)
    assert entry["probability_of_improvement"] == pytest.approx((28 + 8) / 64)  # Mann-Whitney's U / 64 by hand


def test_what_a_control_explains_is_its_share_of_the_gain():
    table = table_of(pi2=[10.0] * 3, rlhf_pi1=[30.0] * 3, rlhf_pi1_zero=[25.0] * 3)
    assert page.explained(table, "rlhf-pi1-zero") == "75 % (75 to 75)"
    table |= table_of(rlhf_10=[20.0] * 3, rlhf_bias_10=[15.0] * 3)
    assert page.explained(table, "rlhf-bias-10") == "50 % (50 to 50)"
    assert page.explained(table, "rlhf-pi1") is None
    table["rlhf-pi1"] = table["rlhf-pi1-zero"] = table["pi2"]
    assert page.explained(table, "rlhf-pi1-zero") == "? % (? to ?)"


def test_arms_without_a_common_seed_cannot_be_compared():
    table = table_of(one=[np.nan, 1], other=[1, np.nan])
    with pytest.raises(UsageError, match="nothing can be compared"):
        page.summarise({"cartpole": table}, range(2), {})


def run_program(module, words, folder, run):
    """Run a script's main with made-up outcomes; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "start", lambda settings, task, stages: lambda: run("", settings))
        patch.setattr(devices, "set_up_jax", lambda number: None)
        patch.setattr(page, "BOOTSTRAP", {"num_resamples": 2000})
        patch.setattr("sys.argv", ["program", *words.split(), "--out", str(folder)])
        with pytest.raises(SystemExit) as end:
            module.main()
    return end.value.code


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, summary, page) of the evidence on 22 seeds, in two batches: seed 3 of dpo-coin on Acrobot is lost."""
    folder, rng = tmp_path_factory.mktemp("evidence"), np.random.default_rng(0)

    def run(title, settings):
        # Whole numbers, and the seed in the decimals.
        returns = rng.normal(150, 5, (len(settings.seeds), 1)).round() + np.array(settings.seeds)[:, None] / 100
        returns += 20 * (settings.reward == "zero")  # so that an expectation is rejected
        lost = settings == dataclasses.replace(arms.arm("acrobot", "dpo-coin").settings, seeds=tuple(range(20)))
        return with_returns(settings, returns, [3] if lost else [])

    assert run_program(evidence, "--num-seeds 22 --claims gain controls --tasks cartpole acrobot", folder, run) == 3
    return folder, json.loads((folder / "summary.json").read_text()), (folder / "evidence.md").read_text()


def test_the_page_shows_the_numbers_of_the_summary(written):
    _, summary, text = written
    for name in ("gain", "controls"):
        claim = claims.CLAIMS[name]
        assert f"## {claim.title}\n\n{claim.text}\n" in text
        assert f"`{python()} -m experiments.evidence --claims {name} --num-seeds 22`" in text
        for task in ("cartpole", "acrobot"):
            for entry in summary["claims"][name][task]:
                low, high = entry["ci95"]
                assert f"{entry['baseline']} | {entry['difference']:+.4g} | {low:+.4g} to {high:+.4g} |" in text
            for arm in claim.arms:
                entry = summary["arms"][task][arm]
                assert f"| {arm} | {entry['iqm']:.4g} |" in text
                assert entry["mean"] == pytest.approx(np.mean(entry["per_seed"]))
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    entries = [entry for tasks in summary["claims"].values() for found in tasks.values() for entry in found]
    borne_out, rejected = (sum(entry["verdict"] == verdict for entry in entries) for verdict in ("yes", "NO"))
    assert f"Of {len(entries)} comparisons {borne_out} are borne out, {rejected} are rejected, and" in text
    assert len(re.findall(r"^- .*: expected was .* to .*\)$", text, re.MULTILINE)) == rejected > 0


def test_the_first_table_counts_the_verdicts_of_each_task(written):
    _, summary, text = written
    title = claims.CLAIMS["controls"].title
    (row,) = re.findall(rf"^\| {re.escape(title)} \|(.*)\|$", text, re.MULTILINE)
    for cell, task in zip(row.split("|"), ("cartpole", "acrobot"), strict=True):
        verdicts = [entry["verdict"] for entry in summary["claims"]["controls"][task]]
        rejected = f", **{verdicts.count('NO')} NO**" if "NO" in verdicts else ""
        assert cell.strip() == f"{verdicts.count('yes')} of {len(verdicts)}{rejected}"


def test_a_diverged_seed_is_named_and_left_out_of_all_arms(written):
    _, summary, text = written
    assert summary["diverged"] == {"cartpole": {}, "acrobot": {"dpo-coin": [3]}}
    assert "**Acrobot: dpo-coin diverged on seed 3, left out of all arms**" in text
    for task, left in (("cartpole", [*range(22)]), ("acrobot", [0, 1, 2, *range(4, 22)])):
        trained = [entry for name, entry in summary["arms"][task].items() if not name.startswith("pi")]
        assert all((np.round(np.multiply(entry["per_seed"], 100)) % 100 == left).all() for entry in trained)


def test_figures_and_a_line_for_every_run_are_there(written):
    folder, summary, text = written
    assert re.findall(r"\]\((.*?)\)", text) == ["gain.png", "profiles.png", "controls.png"]
    assert {path.name for path in folder.glob("*.png")} == {"gain.png", "profiles.png", "controls.png"}
    progress = (folder / "progress.jsonl").read_text()
    titles = re.findall(r'"stage": "(?:acrobot|cartpole) (.*?), seeds (?:0-19|20-21)"', progress)
    named = [name for title in titles for name in title.split(", ")]
    assert sorted(named) == sorted([*summary["arms"]["cartpole"]] * 4)  # two tasks, two batches


def test_profiles_are_of_the_studys_tasks_or_of_those_that_are_there(written):
    entries = written[1]["arms"]["cartpole"]
    for tasks, titles in (
        (("cartpole", "pendulum"), ["CartPole"]),
        (("pendulum", "catch"), ["Pendulum", "Catch"]),
    ):
        figure = page.draw_profiles(dict.fromkeys(tasks, entries))
        assert [axes.get_title() for axes in figure.axes] == titles


SWEEP = grid.Sweep(("cartpole",), ("dpo",), 3, (5, 6, 7), (0.005, 0.5), (0.1, 0.2, 0.3, 0.4))


@pytest.mark.parametrize(("method", "strengths"), [("dpo", SWEEP.beta), ("rlhf", SWEEP.kl_coef)])
def test_every_point_of_a_grid_stands_in_its_place(method, strengths):
    """The return is 100 for the second temperature, 10 for each size, 1 for each strength."""

    def run(title, settings):
        strength = settings.dpo.beta if method == "dpo" else settings.ppo.kl_coef
        place = 100 * (settings.annotator.temperature > 50) + strengths.index(strength)
        return with_returns(settings, np.tile(place + 10.0 * np.arange(3), (3, 1)))

    summary = grid.run_grid(SWEEP, "cartpole", method, functools.partial(itertools.starmap, run))
    num_rows = len(strengths)
    expected = np.arange(2)[:, None, None] * 100 + np.arange(3)[:, None] * 10 + np.arange(num_rows)
    np.testing.assert_array_equal(summary["runs"]["true_return"], np.broadcast_to(expected, (3, 2, 3, num_rows)))
    figure = grid.draw_heat_maps(summary, SWEEP.temperatures, "")
    for place, axes in enumerate(figure.axes[:2]):
        cells = {tuple(text.get_position()): text.get_text() for text in axes.texts}
        assert cells == {(x, y): str(100 * place + 10 * x + y) for x, y in np.ndindex(3, num_rows)}
        assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "6", "7"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [f"{value:g}" for value in strengths]


def test_a_run_that_diverged_is_left_out_of_its_cell_and_named(tmp_path, capsys):
    def run(title, settings):
        lost = [1] if settings.dpo.beta == 0.2 and settings.annotator.temperature < 50 else []
        return with_returns(settings, np.arange(3.0)[:, None] + np.zeros((3, 2)), lost)

    words = "--tasks cartpole --methods dpo --num-seeds 3 --num-pairs 4 8 --temperatures 0.005 0.5 --beta 0.1 0.2"
    assert run_program(sweep, words, tmp_path, run) == 3
    folder = tmp_path / "cartpole-dpo"
    summary, axes = json.loads((folder / "summary.json").read_text()), ["seed", "temperature", "num_pairs", "beta"]
    assert (summary["axes"], summary["temperature"], summary["beta"]) == (axes, [1.0, 100.0], [0.1, 0.2])
    assert summary["runs"]["true_return"][1] == [[[1, None], [1, None]], [[1, 1], [1, 1]]]
    np.testing.assert_array_equal(
        grid.iqm_of_known(np.array([[0, np.nan], [np.nan, np.nan], [2, np.nan]])), [1, np.nan]
    )
    assert {path.name for path in folder.glob("*.png")} == {"heat_map.png", "over_optimisation.png"}
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of 24 runs diverged and are left out; seeds 1" in printed
    assert "with 8 pairs the best beta is 0.1 (IQM 1.0)" in printed
