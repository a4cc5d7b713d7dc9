"""The command line, from flags to files: tiny runs of whole experiments, and every mistake that a user can make.

One run per method, on two CPU devices. A few updates are enough for two of the three seeds to reach the target of
pi2, while pi1's stays out of reach. Compiled programs are kept in a folder of these tests alone.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
import scipy.stats
from helpers import numpy_policy, numpy_reward
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

import jaxpref
from experiments import checkpoints, command, pipeline, report, stages, study
from jaxpref import dpo, preferences, store

pytestmark = pytest.mark.usefixtures("optimised")  # the programs that it starts are
ROOT = Path(__file__).parents[1]

SEEDS, SIZES, REFERENCES = (3, 8, 5), (4, 8), ("pi1", "pi2")
NUM_HELDOUT, EVAL_EPISODES = 8, 4
SHARED_FLAGS = shlex.split(
    f"--num-pairs 4 8 --num-heldout {NUM_HELDOUT} --eval-episodes {EVAL_EPISODES} --devices 2 --save-preferences "
    "--reinforce.num-updates 16 --reinforce.episodes-per-update 4 --reinforce.score-window 8 "
    "--reinforce.learning-rate 0.05"
)
DPO_FLAGS = shlex.split(
    "--dpo.num-updates 6 --dpo.eval-every 3 --dpo.eval-episodes 2 --dpo.batch-size 8 --dpo.beta 0.3"
)
RLHF_FLAGS = shlex.split(
    "--reward-model.num-updates 6 --reward-model.batch-size 4 --ppo.num-updates 2 --ppo.eval-every 1 "
    "--ppo.num-envs 2 --ppo.num-steps 16 --ppo.num-epochs 1 --ppo.num-minibatches 2 --ppo.eval-episodes 2 "
    "--ppo.learning-rate 0.03"
)


# --- running ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Run:
    """What an experiment left behind, and what it called."""

    folder: Path
    summary: dict
    printed: str
    bars: list  # arguments of every jaxpref.plots.policies
    curves: list  # arguments of every jaxpref.plots.curve

    def load(self, name):
        return store.load_params(self.folder / name)

    def pairs(self, seed):
        return store.load_preferences(self.folder / f"preferences_seed{seed}.npz")


def recorded(function, into):
    @functools.wraps(function)
    def call(axes, *args):
        into.append(args)
        return function(axes, *args)

    return call


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where compiled programs are kept, instead of the project's own folder; JAX's settings come back afterwards."""
    folder = tmp_path_factory.mktemp("cache")
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    compilation_cache.reset_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "CACHE", folder)
        patch.setenv("COLUMNS", "160")
        yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    """(method, seeds, more flags) -> Run."""

    def run_once(method, seeds, *more):
        folder = tmp_path_factory.mktemp(method) / "made" / "on the way"
        flags = [*SHARED_FLAGS, *{"dpo": DPO_FLAGS, "rlhf": RLHF_FLAGS}[method], *more]
        printed, bars, curves = io.StringIO(), [], []
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setattr(jaxpref.plots, "policies", recorded(jaxpref.plots.policies, bars))
            patch.setattr(jaxpref.plots, "curve", recorded(jaxpref.plots.curve, curves))
            command.main("cartpole", method, ["--seeds", *map(str, seeds), *flags, "--out", str(folder)])
        summary = json.loads((folder / "summary.json").read_text())
        return Run(folder, summary, printed.getvalue(), bars, curves)

    return run_once


@pytest.fixture(scope="module")
def dpo_run(run):
    return run("dpo", SEEDS)


@pytest.fixture(scope="module")
def rlhf_run(run):
    return run("rlhf", SEEDS)


@pytest.fixture(params=["dpo", "rlhf"])
def either(request):
    """Each method's run in turn."""
    return request.getfixturevalue(f"{request.param}_run")


def rows_of(summary):
    """Rows by (reference, number of pairs); each is there once."""
    rows = {(row["reference"], row["num_pairs"]): row for row in summary["rows"]}
    assert len(rows) == len(summary["rows"])
    return rows


def scores_of(summary):
    """Every P of a summary, by name."""
    return summary["policies"] | {key: row["policy"] for key, row in rows_of(summary).items()}


def policy_of(arrays, name, *place):
    """One policy out of policies.npz: leading axes are seeds and, for trained ones, sizes."""
    return jax.tree.map(lambda leaf: leaf[place], arrays[name])


# --- summary.json -----------------------------------------------------------------------------------------------------


def test_the_summary_has_the_keys_and_types_of_the_contract(either):
    summary = either.summary
    assert {"experiment", "task", "method", "seeds", "config", "versions", "policies"} <= set(summary)
    assert {"pi1_reached", "pi2_reached", "rows", "timing"} <= set(summary)
    method = summary["method"]
    assert (summary["task"], summary["experiment"]) == ("cartpole", f"cartpole-{method}")
    assert summary["seeds"] == list(SEEDS)
    for name in ("pi1_reached", "pi2_reached"):
        assert [type(reached) for reached in summary[name]] == [bool] * 3
    assert (summary["pi1_target"], summary["pi2_target"]) == ([190] * 3, [95] * 3)
    assert set(summary["policies"]) == {"pi1", "pi2"}
    assert summary["versions"]["jax"] == jax.__version__
    assert summary["versions"]["numpy"] == np.__version__
    assert set(rows_of(summary)) == set(itertools.product(REFERENCES, SIZES))
    for row in summary["rows"]:
        assert row["init"] == "pi2"
        assert type(row["num_pairs"]) is int
        assert type(row["heldout_accuracy"]) is float
        assert 0 <= row["heldout_accuracy"] <= 1


def test_the_summary_has_the_settings_it_was_run_with(dpo_run):
    config = dpo_run.summary["config"]
    assert config["seeds"] == list(SEEDS)
    assert config["num_pairs"] == [4, 8]
    assert (config["num_heldout"], config["eval_episodes"]) == (8, 4)
    assert config["dpo"]["beta"] == 0.3
    assert config["reinforce"]["learning_rate"] == 0.05
    assert config["out"] == str(dpo_run.folder)


def test_scores_are_statistics_of_their_seeds(either):
    """The IQM of three seeds cuts none; the interval lies among them."""
    for score in scores_of(either.summary).values():
        assert set(score) == {"mean", "iqm", "ci95", "per_seed"}
        per_seed = score["per_seed"]
        assert len(per_seed) == len(SEEDS)
        np.testing.assert_allclose(score["mean"], np.mean(per_seed), rtol=1e-12)
        np.testing.assert_allclose(score["iqm"], scipy.stats.trim_mean(per_seed, 0.25), rtol=1e-12)
        low, high = score["ci95"]
        assert min(per_seed) <= low <= score["iqm"] <= high <= max(per_seed)
        # Returns of CartPole are whole numbers from 1 to 200; these are means of four.
        np.testing.assert_array_equal(np.array(per_seed) * EVAL_EPISODES % 1, 0)
        assert 1 <= min(per_seed) <= max(per_seed) <= 200


def test_seconds_add_up(either):
    timing = either.summary["timing"]
    names = {"dpo": {"dpo"}, "rlhf": {"reward model", "ppo"}}[either.summary["method"]]
    assert set(timing) == {"import_s", "compile_s", "run_s", "total_s", "stages"}
    assert set(timing["stages"]) == {"reinforce", "preferences", "evaluate"} | names
    for stage in timing["stages"].values():
        assert set(stage) == {"compile_s", "run_s", "reused"}
        assert stage["reused"] is False
        assert min(stage["compile_s"], stage["run_s"]) > 0
    for name in ("compile_s", "run_s"):
        np.testing.assert_allclose(timing[name], sum(stage[name] for stage in timing["stages"].values()), rtol=1e-9)
    assert timing["import_s"] >= 0
    assert timing["total_s"] > timing["compile_s"] + timing["run_s"]


def test_a_seed_reached_its_target_if_its_score_ever_did(either):
    """Scores are in metrics.npz. Some seeds do and some do not, or this would say nothing."""
    best = np.nanmax(either.load("metrics.npz")["reinforce"]["score"], axis=1)
    assert either.summary["pi2_reached"] == (best >= 95).tolist() == [True, False, True]
    assert either.summary["pi1_reached"] == (best >= 190).tolist() == [False, False, False]


def test_seeds_without_an_expert_are_named(either):
    """In the summary, and in a line under the table."""
    assert either.summary["not_reached"] == {"pi1": [3, 8, 5], "pi2": [8]}
    named = [line for line in either.printed.splitlines() if "never reached" in line]
    assert len(named) == 2
    assert named[0].startswith("warning: pi1")
    assert named[0].endswith("3 of 3 seeds: 3 8 5")
    assert named[1].startswith("warning: pi2")
    assert named[1].endswith("1 of 3 seeds: 8")


def test_the_printed_table_has_the_summarys_numbers(either):
    """A line for each policy: mean, IQM, interval and, if it was trained, held-out accuracy."""
    lines = [line.split() for line in either.printed.splitlines()]
    for key, score in scores_of(either.summary).items():
        low, high = score["ci95"]
        numbers = [f"{score['mean']:.1f}", f"{score['iqm']:.1f}", f"{low:.1f}", "to", f"{high:.1f}"]
        if isinstance(key, str):
            assert [key, *numbers] in lines
        else:
            reference, size = key
            label = {"dpo": "DPO", "rlhf": "PPO-RLHF"}[either.summary["method"]]
            accuracy = rows_of(either.summary)[key]["heldout_accuracy"]
            assert [label, reference, str(size), *numbers, f"{accuracy:.3f}"] in lines


@pytest.mark.parametrize(("mean", "expected"), [(0.5, 2), (-9.9, 2), (10.0, 1), (-85.3, 1), (None, 2)])
def test_returns_below_ten_are_shown_with_two_decimals(mean, expected):
    small = {"mean": -1.0}
    assert report.decimals({"policies": {"pi1": small}, "rows": [{"policy": {"mean": mean}}]}) == expected
    assert report.decimals({"policies": {"pi1": {"mean": mean}}, "rows": [{"policy": small}]}) == expected


def test_the_page_has_the_summarys_numbers_and_four_policies_at_play(either):
    """Its name stands among the files that were written; the rest of the page is tests/test_page.py's."""
    text = (either.folder / "report.html").read_text()
    numbers = re.findall(r'data-path="([^"]+)" data-value="([^"]+)"', text)
    assert {f"rows.{i}.policy.iqm" for i in range(4)} | {"timing.total_s"} <= {path for path, _ in numbers}
    for path, value in numbers:
        found = either.summary
        for part in path.split("."):
            found = found[int(part)] if isinstance(found, list) else found[part]
        assert json.loads(value) == found, path
    assert text.count("data:image/gif") == 4
    assert re.search(r"written to .*report\.html", either.printed)


# --- arrays -----------------------------------------------------------------------------------------------------------


evaluate = jax.jit(jaxpref.evaluate, static_argnums=3)


def test_policies_on_disk_play_what_the_summary_says(either):
    """Each seed evaluates all its policies with one key of its own. Another program rounds otherwise, and a pole that
    is falling makes much of little: now and then an episode is a step or two longer. Most means are the very same."""
    arrays, scores = either.load("policies.npz"), scores_of(either.summary)
    saved = {"pi1": ("pi1",), "pi2": ("pi2",)}
    saved |= {(ref, size): (f"trained_{ref}", n) for ref, (n, size) in itertools.product(REFERENCES, enumerate(SIZES))}
    played, said = [], []
    for (name, (array, *size)), (place, seed) in itertools.product(saved.items(), enumerate(SEEDS)):
        params = policy_of(arrays, array, place, *size)
        returns = evaluate(jaxpref.cartpole(), params, pipeline.keys_of(seed).evaluate, EVAL_EPISODES)
        played.append(float(returns.mean()))
        said.append(scores[name]["per_seed"][place])
    assert len(set(said)) > 6
    np.testing.assert_allclose(played, said, rtol=0.03)
    assert np.isclose(played, said, rtol=1e-6).sum() >= 9


def test_every_trained_policy_is_its_own(either):
    """No two seeds, sizes or references ended at the same weights, except where pi1 is pi2."""
    arrays = either.load("policies.npz")
    kernels = {}
    for (s, seed), (n, size), ref in itertools.product(enumerate(SEEDS), enumerate(SIZES), REFERENCES):
        if seed != 8 or ref == "pi2":  # seed 8 reached neither target: its pi1 and pi2 are one policy
            kernels[seed, size, ref] = arrays[f"trained_{ref}"]["params"]["torso"]["kernel"][s, n].tobytes()
    assert len(set(kernels.values())) == len(kernels) == 10


def test_preferences_on_disk_are_the_training_and_the_heldout_pairs(dpo_run):
    for seed in SEEDS:
        pairs = dpo_run.pairs(seed)
        assert pairs.chosen.obs.shape == (max(SIZES) + NUM_HELDOUT, 200, 4)
        gap = pairs.chosen.reward.sum(-1) - pairs.rejected.reward.sum(-1)
        np.testing.assert_allclose(pairs.prob, 1 / (1 + np.exp(-gap)), rtol=1e-4)


def test_both_methods_have_the_same_experts_and_the_same_pairs(dpo_run, rlhf_run):
    assert dpo_run.summary["policies"] == rlhf_run.summary["policies"]
    for seed in SEEDS:
        for one, other in zip(jax.tree.leaves(dpo_run.pairs(seed)), jax.tree.leaves(rlhf_run.pairs(seed)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_dpo_starts_from_pi2_and_its_reference_is_what_it_is_said_to_be(dpo_run):
    """Before the first update the policy is pi2: with itself as the reference every log-ratio is 0 and the smoothed
    loss is ln 2, for every seed and size; with pi1 it is not, where pi1 is another policy."""
    metrics = dpo_run.load("metrics.npz")
    np.testing.assert_allclose(metrics["trained_pi2"]["loss"][:, :, 0], np.log(2), rtol=1e-4)
    away = np.abs(metrics["trained_pi1"]["loss"][:, :, 0] - np.log(2))
    assert (away[[0, 2]] > 1e-3).all()  # seeds 2 and 8
    assert (away[1] < 1e-4).all()  # seed 3, whose pi1 is its pi2


def test_dpo_trained_on_the_first_pairs_of_its_seed_with_its_reference(dpo_run):
    """Each of the 12 policies, trained again alone from the files: no seed, size or reference was mixed up."""
    arrays, task = dpo_run.load("policies.npz"), jaxpref.cartpole()
    config = dpo.Config(num_updates=6, eval_every=3, eval_episodes=2, batch_size=8, beta=0.3)
    train = jax.jit(functools.partial(dpo.train, task, config))
    for (place, seed), (n, size), ref in itertools.product(enumerate(SEEDS), enumerate(SIZES), REFERENCES):
        pairs = preferences.prefix(preferences.take(dpo_run.pairs(seed), slice(max(SIZES))), size)
        init_params, ref_params = policy_of(arrays, "pi2", place), policy_of(arrays, ref, place)
        alone = train(pipeline.keys_of(seed).train, pairs, init_params, ref_params).params
        together = policy_of(arrays, f"trained_{ref}", place, n)
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4, err_msg=f"{seed} {size} {ref}")


def ranked_right(pairs, score):
    """Share of the held-out pairs that `score` ranks as their returns do, in a plain loop; equal returns left out."""
    right = []
    for i in range(max(SIZES), max(SIZES) + NUM_HELDOUT):
        gap = pairs.chosen.reward[i].sum() - pairs.rejected.reward[i].sum()
        if gap != 0:
            right.append((score(pairs.chosen, i) > score(pairs.rejected, i)) == (gap > 0))
    return np.mean(right)


def steps_of(trajectory, i):
    """Observations and actions of the i-th episode."""
    length = int(trajectory.mask[i].sum())
    return np.float64(trajectory.obs[i, :length]), np.asarray(trajectory.action[i, :length])


def test_heldout_accuracy_of_dpo_is_that_of_its_log_ratios(dpo_run):
    arrays = dpo_run.load("policies.npz")
    for (ref, size), row in rows_of(dpo_run.summary).items():
        accuracies = []
        for place, seed in enumerate(SEEDS):
            trained = policy_of(arrays, f"trained_{ref}", place, SIZES.index(size))
            reference = policy_of(arrays, ref, place)

            def log_ratio(trajectory, i, trained=trained, reference=reference):
                obs, action = steps_of(trajectory, i)
                steps = np.arange(len(action))
                ratio = numpy_policy(trained, obs)[0] - numpy_policy(reference, obs)[0]
                return ratio[steps, action].sum()

            accuracies.append(ranked_right(dpo_run.pairs(seed), log_ratio))
        np.testing.assert_allclose(row["heldout_accuracy"], np.mean(accuracies), rtol=1e-6)


def numpy_return(params, trajectory, i):
    """What a reward model gives the i-th episode."""
    return numpy_reward(params, *steps_of(trajectory, i)).sum()


def test_heldout_accuracy_of_rlhf_is_that_of_its_reward_models(rlhf_run):
    """One model for every seed and size, whatever PPO's reference."""
    models = rlhf_run.load("reward_models.npz")
    for (_, size), row in rows_of(rlhf_run.summary).items():
        accuracies = []
        for place, seed in enumerate(SEEDS):
            params = policy_of({"model": models}, "model", place, SIZES.index(size))
            learned_return = functools.partial(numpy_return, params)
            accuracies.append(ranked_right(rlhf_run.pairs(seed), learned_return))
        np.testing.assert_allclose(row["heldout_accuracy"], np.mean(accuracies), rtol=1e-6)


def test_ppo_starts_from_pi2_and_its_reference_is_what_it_is_said_to_be(rlhf_run):
    """KL(pi2 || ref) in the first rollout: 0 with pi2, above with pi1 where that is another policy."""
    metrics = rlhf_run.load("metrics.npz")
    np.testing.assert_allclose(metrics["trained_pi2"]["kl"][:, :, 0], 0, atol=1e-6)
    kl = metrics["trained_pi1"]["kl"][:, :, 0]
    assert (kl[[0, 2]] > 1e-3).all()
    np.testing.assert_allclose(kl[1], 0, atol=1e-6)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_are_images_of_a_sensible_size(either):
    extra = {"dpo": "margins", "rlhf": "kl"}[either.summary["method"]]
    paths = sorted(either.folder.glob("*.png"))
    assert [path.stem for path in paths] == sorted(["policies", "returns", "loss", extra])
    for path in paths:
        image = matplotlib.image.imread(path)
        height, width, _ = image.shape
        assert 400 <= height <= 2500
        assert 1000 <= width <= 4000
        drawn = (image[..., :3] < 0.9).any(-1).mean()
        assert 0.005 < drawn < 0.5  # neither blank nor black


def test_the_figure_of_policies_shows_the_summarys_numbers(either):
    """One panel for each reference: pi2, pi1, then the sizes."""
    scores = scores_of(either.summary)
    assert len(either.bars) == 2
    for reference, (names, per_seed, intervals, centres, colours) in zip(REFERENCES, either.bars, strict=True):
        shown = [scores[key] for key in ("pi2", "pi1", (reference, 4), (reference, 8))]
        assert [name.split()[0] for name in names] == ["pi2", "pi1", "4", "8"]
        np.testing.assert_array_equal(per_seed, [score["per_seed"] for score in shown])
        np.testing.assert_array_equal(intervals, [score["ci95"] for score in shown])
        np.testing.assert_array_equal(centres, [score["iqm"] for score in shown])
        assert len(set(colours)) == 4


def test_return_curves_begin_at_pi2_and_go_through_the_evaluations(dpo_run):
    """Of 6 updates with an evaluation after each third: at 0, 3 and 6."""
    metrics = dpo_run.load("metrics.npz")
    pi2 = np.array(dpo_run.summary["policies"]["pi2"]["per_seed"])
    expected = {
        (ref, f"{size} pairs"): np.column_stack([pi2, metrics[f"trained_{ref}"]["true_return"][:, n]])
        for ref, (n, size) in itertools.product(REFERENCES, enumerate(SIZES))
    }
    drawn = [(y, label) for x, y, label, *_ in dpo_run.curves if np.array_equal(x, [0, 3, 6])]
    assert len(drawn) == len(expected)
    for (y, label), ((_, expected_label), values) in zip(drawn, expected.items(), strict=True):
        assert label == expected_label
        np.testing.assert_allclose(y, values, rtol=1e-6)


# --- the same again ---------------------------------------------------------------------------------------------------


def assert_same_results(one, seeds, other, other_seeds):
    """Every return of the seeds that two summaries share, in whatever order they ran."""
    one, other = scores_of(one), scores_of(other)
    assert set(one) == set(other)
    for name in one:
        for seed in set(seeds) & set(other_seeds):
            np.testing.assert_allclose(
                one[name]["per_seed"][seeds.index(seed)],
                other[name]["per_seed"][other_seeds.index(seed)],
                rtol=1e-6,
                err_msg=f"{name} of seed {seed}",
            )


def test_a_seeds_numbers_do_not_depend_on_the_other_seeds_nor_on_their_order(run, rlhf_run):
    """Seeds 3 and 5 again, in other places, beside another one."""
    again = run("rlhf", (5, 2, 3))
    assert_same_results(rlhf_run.summary, SEEDS, again.summary, (5, 2, 3))
    for seed, name in itertools.product((3, 5), ("pi1", "pi2", "trained_pi1", "trained_pi2")):
        before = policy_of(rlhf_run.load("policies.npz"), name, SEEDS.index(seed))
        after = policy_of(again.load("policies.npz"), name, (5, 2, 3).index(seed))
        for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_program_of_its_own_gives_the_same_results_and_says_where_they_are(dpo_run, cache, tmp_path):
    """As `python -m experiments.cartpole_dpo`, except for where compiled programs are kept; seeds in another order."""
    program = (
        "import pathlib, sys\n"
        "from experiments import command, stages\n"
        "stages.CACHE = pathlib.Path(sys.argv.pop(1))\n"
        "command.main('cartpole', 'dpo')\n"
    )
    flags = ["--seeds", "5", "3", "8", *SHARED_FLAGS, *DPO_FLAGS, "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", program, str(cache), *flags], cwd=ROOT, capture_output=True, text=True, check=True
    )
    summary = store.load_json(tmp_path / "summary.json")
    assert_same_results(dpo_run.summary, SEEDS, summary, (5, 3, 8))
    timing = summary["timing"]
    assert timing["import_s"] > 0
    assert timing["total_s"] > timing["import_s"] + timing["compile_s"] + timing["run_s"]
    named = {
        *(f"{name}.png" for name in ("policies", "returns", "loss", "margins")),
        *(f"preferences_seed{seed}.npz" for seed in SEEDS),
        *("summary.json", "policies.npz", "metrics.npz", "metrics.jsonl", "report.html"),
    }
    assert {path.name for path in tmp_path.iterdir()} == named | {".lock", "manifest.json", "progress.jsonl", "stages"}
    for name in named:
        assert name in done.stdout
    assert "\x1b" not in done.stdout


RESULTS_PAGE = (ROOT / "docs" / "results.md").read_text()


def test_the_page_about_results_names_every_file_key_and_array(either):
    told = {name.removeprefix("rows[].") for name in re.findall(r"`([^`\n]+)`", RESULTS_PAGE)}
    for path in either.folder.iterdir():
        name = re.sub(r"(?<=seed)\d+", "<seed>", path.name)
        assert {name, f"{name}/"} & told, name
    summary = either.summary
    row, timing = summary["rows"][0], summary["timing"]
    for table in (summary, row, row["policy"], timing, timing["stages"]["evaluate"]):
        assert table.keys() <= told
    for metrics in store.load_params(either.folder / "metrics.npz").values():
        assert metrics.keys() <= told
    for name in ("progress.jsonl", "metrics.jsonl"):
        for line in (either.folder / name).read_text().splitlines():
            assert json.loads(line).keys() <= told, name


def test_the_example_of_the_page_about_results_loads_the_policy_that_it_names(dpo_run, tmp_path, monkeypatch):
    """On a run of three seeds: what it exports is the first seed's, trained on the last reference and size."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "cartpole-dpo").symlink_to(dpo_run.folder)
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", RESULTS_PAGE, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "docs/results.md", "exec"), {})
    assert re.fullmatch(r"mean return \d+\.\d, in the summary \d+\.\d\n", printed.getvalue())
    assert float(printed.getvalue().split()[-1]) == pytest.approx(
        rows_of(dpo_run.summary)["pi2", 8]["policy"]["per_seed"][0], abs=0.05
    )
    exported = jaxpref.export.load_policy(tmp_path / "policy.safetensors", jaxpref.cartpole())
    with np.load(dpo_run.folder / "policies.npz") as policies:
        for name, leaf in store.named_leaves(exported).items():
            np.testing.assert_array_equal(leaf, policies[f"trained_pi2/{name}"][0, 1])


# --- stopped and started again ----------------------------------------------------------------------------------------


def results_of(folder):
    """What an experiment left, file by file: bytes, and the summary without what it says about this very run."""
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("timing", "peak_memory_gib"):
        del summary[name]
    del summary["config"]["out"]
    files = [path for path in folder.iterdir() if path.suffix in (".npz", ".png") or path.name == "metrics.jsonl"]
    return {path.name: path.read_bytes() for path in files} | {"summary.json": summary}


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(dpo_run, cache, tmp_path):
    """Killed after the first stage and, started again, after the third; at some moment or other behind that."""
    program = (
        "import pathlib, sys\n"
        "from experiments import command, stages\n"
        "stages.CACHE = pathlib.Path(sys.argv.pop(1))\n"
        "command.main('cartpole', 'dpo')\n"
    )
    flags = ["--seeds", *map(str, SEEDS), *SHARED_FLAGS, *DPO_FLAGS, "--out", str(tmp_path)]
    words = [sys.executable, "-c", program, str(cache), *flags]
    delays = np.random.default_rng().uniform(0, 0.3, 2)
    for stages_done, delay in zip((1, 3), delays, strict=True):
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            log = tmp_path / "progress.jsonl"
            while process.poll() is None and not (log.exists() and log.read_text().count('"stage"') >= 2 * stages_done):
                time.sleep(0.01)
            time.sleep(delay)
            process.kill()
        log.unlink()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search("reinforce .* kept", done.stdout)
    assert "warning: /" not in done.stdout
    killed, undisturbed = results_of(tmp_path), results_of(dpo_run.folder)
    assert killed.keys() == undisturbed.keys()
    for name in killed:
        assert killed[name] == undisturbed[name], (name, delays)


def test_a_finished_run_is_not_run_again_and_a_damaged_file_of_it_is_named_and_made_again(dpo_run, monkeypatch):
    """First nothing may be computed at all. Then one bit of policies.npz flips: it is made again of what was kept."""
    folder, before = dpo_run.folder, results_of(dpo_run.folder)
    argv = ["--seeds", *map(str, SEEDS), *SHARED_FLAGS, *DPO_FLAGS, "--out", str(folder)]

    def again(*more):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            command.main("cartpole", "dpo", [*argv, *more])
        return printed.getvalue()

    with monkeypatch.context() as patch:
        patch.setattr(stages.Stages, "run", None)
        printed = again()
        assert "nothing was run" in printed
        assert re.search(r"DPO +pi2 +8 ", printed)

        content = bytearray((folder / "policies.npz").read_bytes())
        content[1000] ^= 4
        (folder / "policies.npz").write_bytes(content)
        with pytest.raises(SystemExit) as exit:
            again("--strict")
        assert exit.value.code == 2
    summary = store.load_json(folder / "summary.json")
    printed = again()
    assert f"warning: {folder / 'policies.npz'} does not have the checksum" in printed
    assert results_of(folder) == before
    timing = store.load_json(folder / "summary.json")["timing"]["stages"]
    assert all(stage["reused"] for stage in timing.values())
    assert timing["dpo"]["run_s"] == summary["timing"]["stages"]["dpo"]["run_s"]


def test_a_folder_that_another_run_writes_into_is_refused_untouched(cache, tmp_path, capsys):
    (tmp_path / "summary.json").write_bytes(b"precious")
    with checkpoints.locked(tmp_path):
        line = complaint(capsys, lambda: command.main("cartpole", "dpo", ["--devices", "2", "--out", str(tmp_path)]))
    assert f"process {os.getpid()} is writing into this folder" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "summary.json"]
    assert (tmp_path / "summary.json").read_bytes() == b"precious"


def test_tensorboard_without_its_package_is_refused(refused, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = refused("--tensorboard")
    assert "pip install 'jaxpref[tensorboard]'" in line


# --- many processes, many batches -------------------------------------------------------------------------------------


def test_two_processes_give_the_results_of_one(dpo_run, cache, tmp_path):
    """Five seeds are three for each process, one of them twice; the first process writes, the other says nothing."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    seeds, out = (3, 8, 5, 2, 9), tmp_path / "shared"
    words = [sys.executable, "-m", "experiments.cartpole_dpo", "--seeds", *map(str, seeds), *SHARED_FLAGS, *DPO_FLAGS]
    words += ["--out", str(out), "--coordinator", address, "--processes", "2", "--process"]
    start = functools.partial(
        subprocess.Popen,
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes = [start([*words, str(number)]) for number in (0, 1)]
    printed = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert "CartPole DPO, 5 seeds" in printed[0][0]
    assert "seeds" not in printed[1][0]
    summary = store.load_json(out / "summary.json")
    assert summary["seeds"] == list(seeds)
    assert_same_results(dpo_run.summary, SEEDS, summary, seeds)
    assert all(len(score["per_seed"]) == 5 for score in scores_of(summary).values())


def test_batches_of_seeds_give_the_results_of_one_batch(run, dpo_run):
    """Five seeds in batches of three: the second is filled up, and what fills it is dropped."""
    batches = run("dpo", (3, 8, 5, 2, 9), "--batch-seeds", "3")
    assert_same_results(dpo_run.summary, SEEDS, batches.summary, (3, 8, 5, 2, 9))
    alone = run("dpo", (2, 9, 3))
    assert_same_results(alone.summary, (2, 9, 3), batches.summary, (3, 8, 5, 2, 9))


def test_a_batch_holds_a_gigabyte_of_pairs():
    """CartPole, 200 + 200 pairs: 800 trajectories of 200 steps of 11 words are 7.04 MB, and 1 GB holds 142 of them."""
    settings = parse("--num-pairs 10 200")
    assert pipeline.batch_seeds(settings, jaxpref.cartpole()) == 142
    assert pipeline.batch_seeds(parse("--num-pairs 1000000"), jaxpref.cartpole()) == 1


@pytest.mark.parametrize(
    ("num_seeds", "num_processes", "expected"),
    [(4, 2, [[0, 1], [2, 3]]), (5, 2, [[0, 1, 2], [3, 4, 0]]), (2, 3, [[0], [1], [0]]), (3, 1, [[0, 1, 2]])],
)
def test_shares_of_seeds_hand_worked(num_seeds, num_processes, expected):
    seeds = np.arange(num_seeds, dtype=np.uint32)
    shares = [stages.share(seeds, num_processes, number) for number in range(num_processes)]
    assert [share.tolist() for share in shares] == expected
    np.testing.assert_array_equal(np.concatenate(shares)[:num_seeds], seeds)


# --- many runs in one program -----------------------------------------------------------------------------------------


def affine(shared, x, tree):
    """A trivial run: a scalar, and a tree with axes of its own."""
    return shared * x + 1, {"y": x * tree["y"].sum(), "z": tree["z"][::-1]}


@pytest.mark.parametrize("num_runs", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_runs_in_lanes_on_devices_are_a_plain_loop(num_runs, lanes):
    rng = np.random.default_rng(num_runs)
    x = rng.normal(size=num_runs).astype(np.float32)
    tree = {
        "y": rng.normal(size=(num_runs, 3)).astype(np.float32),
        "z": rng.integers(9, size=(num_runs, 4)).astype(np.int32),
    }
    runner = stages.Stages(Console(quiet=True))
    first, second = runner.run("affine", affine, 3.0, x, tree, lanes=lanes)
    for i in range(num_runs):
        np.testing.assert_allclose(first[i], 3 * x[i] + 1, rtol=1e-6)
        np.testing.assert_allclose(second["y"][i], x[i] * tree["y"][i].sum(), rtol=1e-5)
        np.testing.assert_array_equal(second["z"][i], tree["z"][i][::-1])
    assert first.shape == (num_runs,)


@pytest.mark.parametrize(("num_runs", "lanes"), [(1, 1), (2, 1), (4, 1), (4, 2), (12, 3), (6, 64)])
def test_over_runs_is_a_plain_loop(num_runs, lanes):
    x = np.arange(float(num_runs), dtype=np.float32)
    result = jax.jit(stages.over_runs(lambda shared, x: shared - x**2, num_runs, lanes))(jnp.float32(7), (x,))
    np.testing.assert_allclose(result, [7 - i**2 for i in range(num_runs)], rtol=1e-6)


@pytest.mark.parametrize(
    ("num_runs", "lanes", "expected"),
    [
        (1, 64, 1),  # one device is enough
        (2, 64, 2),
        (3, 64, 4),
        (4, 2, 4),
        (5, 2, 8),  # three on a device are two lanes, twice
        (5, 1, 6),
        (7, 3, 12),
        (12, 3, 12),
    ],
)
def test_padded_size_hand_worked(num_runs, lanes, expected):
    assert jax.device_count() == 2
    assert stages.padded_size(num_runs, lanes) == expected


def test_a_stage_run_again_is_not_compiled_again():
    """Tracing runs the Python function: once for one shape, whatever the numbers."""
    traces = []

    def traced(shared, x):
        traces.append(x.shape)
        return shared + x

    runner = stages.Stages(Console(quiet=True))
    for shared in (1.0, 2.0):
        np.testing.assert_array_equal(runner.run("stage", traced, shared, np.zeros(3, np.float32)), [shared] * 3)
    assert len(traces) == 1
    assert list(runner.times) == ["stage"]


# --- flags ------------------------------------------------------------------------------------------------------------


def parse(line, task="cartpole", method="dpo"):
    return command.parse(line.split(), task, method)


def test_the_defaults_are_the_contracts():
    for task, method in itertools.product(("cartpole", "acrobot"), ("dpo", "rlhf")):
        settings = parse("", task, method)
        assert (settings.task, settings.method) == (task, method)
        assert settings.seeds == (35, 42, 100)
        assert settings.num_pairs == (10, 50, 200, 1000)
        assert settings.reference == ("pi1", "pi2")
        assert settings.out == Path("results") / f"{task}-{method}"
        # The library's own settings, one set for both tasks.
        for name in ("reinforce", "dpo", "reward_model", "ppo"):
            assert getattr(settings, name) == getattr(jaxpref, name).Config()


@pytest.mark.parametrize(
    ("flags", "path", "value"),
    [
        ("--dpo.beta 0.3", "dpo.beta", 0.3),
        ("--dpo.learning-rate 1e-4", "dpo.learning_rate", 1e-4),
        ("--seeds 1 2", "seeds", (1, 2)),
        ("--seeds 4294967295", "seeds", (4294967295,)),
        ("--num-pairs 200", "num_pairs", (200,)),
        ("--reference pi2", "reference", ("pi2",)),
        ("--out some/where", "out", Path("some/where")),
        ("--annotator.temperature 10", "annotator.temperature", 10.0),
        ("--num-heldout 7", "num_heldout", 7),
        ("--eval-episodes 8", "eval_episodes", 8),
        ("--save-preferences", "save_preferences", True),
        ("--devices 1", "devices", 1),
        ("--reinforce.num-updates 9", "reinforce.num_updates", 9),
        ("--reinforce.baseline handmade", "reinforce.baseline", "handmade"),
        ("--reward-model.batch-size 5", "reward_model.batch_size", 5),
        ("--reward-model-epochs 2", "reward_model_epochs", 2),
        ("--ppo.kl-penalty loss", "ppo.kl_penalty", "loss"),
        ("--ppo.clip-eps 0.1", "ppo.clip_eps", 0.1),
    ],
)
def test_a_flag_changes_what_it_names_and_nothing_else(flags, path, value):
    def flatten(settings):
        flat = {}
        for name, content in dataclasses.asdict(settings).items():
            flat |= {f"{name}.{k}": v for k, v in content.items()} if isinstance(content, dict) else {name: content}
        return flat

    before, after = flatten(parse("")), flatten(parse(flags))
    assert before[path] != value
    assert after == before | {path: value}


def test_the_original_preset_has_the_originals_numbers():
    for task, method in itertools.product(("cartpole", "acrobot"), ("dpo", "rlhf")):
        settings, acrobot = parse("--preset original", task, method), task == "acrobot"
        assert settings.reference == ("pi1",)
        assert settings.annotator.temperature == 1
        expert = settings.reinforce
        assert expert.num_updates == (3000 if acrobot else 1200)
        assert (expert.episodes_per_update, expert.score_window) == (1, 50)
        assert (expert.learning_rate, expert.gamma) == (3e-3, 0.99)
        assert expert.score_shaping == acrobot
        assert (expert.baseline, expert.shape_reward, expert.normalise_advantage) == ("handmade", acrobot, False)
        assert (expert.ent_coef, expert.policy_scale) == (0, 1)
        direct = settings.dpo
        assert (direct.batch_size, direct.learning_rate, direct.loss) == (0, 1e-2, "sigmoid")
        assert (direct.beta, direct.num_updates) == ((5, 120) if acrobot else (0.5, 300))
        model = settings.reward_model
        assert (model.batch_size, model.learning_rate, settings.reward_model_epochs) == (1, 1e-2, 50)
        rlhf = settings.ppo
        assert (rlhf.num_updates, rlhf.num_epochs, rlhf.num_envs * rlhf.num_steps) == (100, 4, 2000)
        assert rlhf.num_envs * rlhf.num_steps // rlhf.num_minibatches == 64
        assert (rlhf.learning_rate, rlhf.gamma, rlhf.gae_lambda, rlhf.clip_eps) == (3e-4, 0.98, 0.8, 0.2)
        assert (rlhf.vf_coef, rlhf.ent_coef, rlhf.max_grad_norm) == (0.5, 0.01, 0.5)
        assert (rlhf.kl_penalty, rlhf.kl_coef) == ("loss", 10)


def test_flags_change_a_presets_numbers_wherever_they_stand():
    for line in ("--preset original --dpo.beta 0.2", "--dpo.beta 0.2 --preset original"):
        settings = parse(line)
        assert (settings.dpo.beta, settings.dpo.learning_rate) == (0.2, 1e-2)
    assert parse("--preset original").out != parse("").out


def test_task_and_method_are_flags_of_the_script_that_names_neither():
    settings = command.parse(shlex.split("--task acrobot --seeds 3 --method rlhf --preset original"))
    assert (settings.experiment, settings.seeds) == ("acrobot-rlhf", (3,))
    assert settings == parse("--seeds 3 --preset original", "acrobot", "rlhf")


def test_the_studys_folder_is_the_parent_of_its_experiments():
    four = ["cartpole-dpo", "cartpole-rlhf", "acrobot-dpo", "acrobot-rlhf"]
    studies = study.parse(shlex.split("--seeds 5 --out some/where"))
    assert [settings.out for settings in studies] == [Path("some/where") / name for name in four]
    assert [settings.experiment for settings in studies] == four
    assert {settings.seeds for settings in studies} == {(5,)}
    assert [settings.out for settings in study.parse([])] == [Path("results") / name for name in four]


# --- mistakes ---------------------------------------------------------------------------------------------------------


def complaint(capsys, call):
    """The one line on stderr of what exits with code 2."""
    with pytest.raises(SystemExit) as exit:
        call()
    out, err = capsys.readouterr()
    assert exit.value.code == 2
    assert out == ""
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    return err


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Flags -> the line that refuses them. Nothing of an earlier run is touched, and JAX is not even set up."""

    def never(*_):
        raise AssertionError("went on")

    monkeypatch.setattr(stages, "set_up_jax", never)

    def run(*flags, task="cartpole", method="dpo", out=True):
        folder = tmp_path / "earlier"
        folder.mkdir(exist_ok=True)
        (folder / "summary.json").write_bytes(b'{"precious": true}\n')
        argv = [*(("--out", str(folder)) if out else ()), *flags]
        line = complaint(capsys, lambda: command.main(task, method, argv))
        assert [path.name for path in folder.iterdir()] == ["summary.json"]
        assert (folder / "summary.json").read_bytes() == b'{"precious": true}\n'
        return line

    return run


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--preset best", ["--preset", "best", "original"]),
        ("--preset", ["--preset"]),
        ("--bogus 3", ["--bogus"]),
        ("--dpo.bta 0.3", ["--dpo.bta", "--dpo.beta"]),
        ("stray", ["stray"]),
        ("--num-pairs 0", ["--num-pairs", "0"]),
        ("--num-pairs 10 -5", ["--num-pairs", "-5"]),
        ("--num-pairs", ["--num-pairs"]),
        ("--num-pairs 8 4 8", ["--num-pairs", "twice"]),
        ("--num-pairs 1e3", ["--num-pairs", "1e3"]),
        ("--seeds", ["--seeds"]),
        ("--seeds 1 2 1", ["--seeds", "twice"]),
        ("--seeds one", ["--seeds", "one"]),
        ("--seeds 1.5", ["--seeds", "1.5"]),
        ("--seeds -1", ["--seeds", "-1"]),
        ("--seeds 4294967296", ["--seeds", "4294967296"]),
        ("--reference pi3", ["--reference", "pi3", "pi1", "pi2"]),
        ("--reference", ["--reference"]),
        ("--num-heldout 0", ["--num-heldout", "0"]),
        ("--eval-episodes 0", ["--eval-episodes", "0"]),
        ("--annotator.temperature -1", ["--annotator.temperature", "-1"]),
        ("--annotator.temperature nan", ["--annotator.temperature", "nan"]),
        ("--devices -1", ["--devices", "-1"]),
        ("--reward-model-epochs -1", ["--reward-model-epochs", "-1"]),
        ("--batch-seeds -1", ["--batch-seeds", "-1"]),
        ("--processes 2", ["--processes", "--coordinator"]),
        ("--processes 2 --coordinator localhost:1 --process 2", ["--process", "0", "1", "2"]),
        ("--dpo.beta", ["--dpo.beta"]),
        ("--dpo.beta high", ["--dpo.beta", "high"]),
        ("--return-range 5", ["--return-range must be two numbers, got ['5']"]),
        ("--return-range 0 inf", ["--return-range must be finite, got 0.0 inf"]),
        ("--horizon 2.5", ["--horizon must be a whole number, got ['2.5']"]),
        ("--pi1-target high", ["--pi1-target must be a number, got ['high']"]),
        ("--pi1-target nan", ["--pi1-target must be finite, got nan"]),
        ("--dpo.num-updates 7", ["--dpo.num-updates", "7", "15"]),
        ("--dpo.batch-size -1", ["--dpo.batch-size", "-1"]),
        ("--reinforce.num-updates 0", ["--reinforce.num-updates", "0"]),
        ("--reinforce.baseline none", ["--reinforce.baseline", "none", "handmade"]),
        ("--reward-model.num-updates 0", ["--reward-model.num-updates", "0"]),
        ("--ppo.kl-penalty none", ["--ppo.kl-penalty", "none", "loss"]),
        ("--ppo.num-minibatches 9999", ["ppo", "9999", "minibatches"]),
        ("--dpo.eval-episodes 0", ["--dpo.eval-episodes", "0"]),
        ("--dpo.beta nan", ["--dpo.beta", "nan"]),
        ("--dpo.label-smoothing 0.7", ["--dpo.label-smoothing", "0.5", "0.7"]),
        ("--reinforce.gamma 2", ["--reinforce.gamma", "1", "2"]),
        ("--task acrobot", ["--task", "acrobot"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag_and_exit_code_2(refused, flags, names):
    line = refused(*flags.split())
    assert line.startswith("error: ")
    assert not re.search("--- |Value error|options U|│", line)  # nothing is left of the parser's frame and its title
    for name in names:
        assert name in line


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("", ["--task", "cartpole", "acrobot"]),
        ("--task pong --method dpo", ["--task", "pong", "cartpole", "acrobot"]),
        ("--task cartpole", ["--method", "dpo", "rlhf"]),
        ("--task cartpole --method sft", ["--method", "sft", "dpo", "rlhf"]),
    ],
)
def test_an_unknown_task_or_method_is_refused_by_naming_the_known_ones(refused, flags, names):
    line = refused(*flags.split(), task=None, method=None)
    for name in names:
        assert name in line


@pytest.mark.parametrize("there", [False, True])
def test_what_only_the_task_itself_can_refuse_leaves_no_new_folder(tmp_path, capsys, monkeypatch, there):
    """Horizons of Catch are known once gymnax has made it; a folder that was there before stays."""
    monkeypatch.setattr(stages, "set_up_jax", lambda devices: None)
    folder = tmp_path / "made for nothing"
    if there:
        folder.mkdir()
    flags = ["--task", "Catch-bsuite", "--method", "dpo", "--network", "conv", "--out", str(folder)]
    monkeypatch.setattr(pipeline.networks, "ConvActorCritic", mock.Mock(side_effect=ValueError("too small")))
    assert "too small" in complaint(capsys, lambda: command.main(None, None, flags))
    assert folder.exists() == there


@pytest.mark.parametrize(
    ("task", "horizon", "targets", "return_range"),
    [
        ("cartpole", 50, (47.5, 23.75), (0, 50)),
        ("acrobot", 500, (-150, -250), (-500, 0)),
        ("acrobot", 100, (None, None), (-100, 0)),
        ("MountainCar-v0", 300, (None, None), (-300, 0)),
        ("Catch-bsuite", 12, (None, None), (-1, 1)),
        ("Breakout-MinAtar", 30, (None, None), None),
    ],
)
def test_targets_and_range_are_those_of_the_horizon(task, horizon, targets, return_range):
    made = pipeline.task_of(parse(f"--horizon {horizon}", task))
    assert made.horizon == horizon
    assert ((made.pi1_target, made.pi2_target), made.return_range) == (targets, return_range)
    assert pipeline.task_of(parse(f"--horizon {horizon} --return-range 1 2", task)).return_range == (1, 2)


def test_one_target_that_is_given_must_fit_the_tasks_other_one():
    with pytest.raises(ValueError, match=r"--pi1-target must be above --pi2-target, got 50\.0 and 95"):
        pipeline.task_of(parse("--pi1-target 50"))


@pytest.mark.parametrize("name", ["stages", "progress.jsonl", ".lock", "manifest.json"])
def test_what_cannot_be_written_is_named(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(stages, "set_up_jax", lambda devices: None)
    if name == "stages":
        (tmp_path / name).write_text("")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(SystemExit, match="2"):
        command.main("cartpole", "dpo", ["--out", str(tmp_path)])
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / name}")


def test_a_reader_who_leaves_is_no_error():
    """As in `--help | head -1`."""
    words = [sys.executable, "-m", "experiments.run", "--help"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait(timeout=60) == 1
        assert process.stderr.read() == b""


def test_the_help_breaks_lines_where_the_terminal_does():
    """Line breaks of a docstring in the code are none; --task and --method are not flags of an experiment."""
    words = [sys.executable, "-m", "experiments.cartpole_dpo", "--help"]
    environ = os.environ | {"COLUMNS": "80"}  # a wide terminal gets the groups of flags side by side
    text = subprocess.run(
        words, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, timeout=60, check=True
    ).stdout
    flowing = re.sub(r"[│\s]+", " ", text)
    assert "pi2, the initial policy, is the standard setting in which preferences alone" in flowing
    assert "--task" not in text
    lines = [line.strip("│ ") for line in text.splitlines()]
    assert "initial" not in lines


@pytest.mark.parametrize("below", [".", "inside"])
def test_a_folder_that_is_a_file_is_refused_and_the_file_stays(refused, tmp_path, below):
    (tmp_path / "file").write_bytes(b"mine")
    line = refused("--out", str(tmp_path / "file" / below), out=False)
    assert "--out" in line
    assert str(tmp_path / "file") in line
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_folder_without_write_permission_is_refused(refused, tmp_path, monkeypatch):
    """For root every folder is writable: the answer of `os.access` is what differs."""
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: "locked" not in str(path))
    line = refused("--out", str(tmp_path / "locked"), out=False)
    assert "--out" in line
    assert "permission" in line
    assert list((tmp_path / "locked").iterdir()) == []


@pytest.mark.parametrize("flags", ["--out", "--seeds 0 0", "--bogus"])
def test_a_mistake_in_the_study_is_one_line_before_anything_runs(capsys, monkeypatch, flags):
    monkeypatch.setattr(sys, "argv", ["study", *flags.split()])
    assert flags.split()[0] in complaint(capsys, study.main)


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_shows_every_flag_with_its_default_and_exits_with_0(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit:
        command.main("acrobot", "rlhf", ["--help"])
    out, err = capsys.readouterr()
    assert (exit.value.code, err) == (0, "")
    text = " ".join(out.replace("│", " ").split())
    for flag in ("--out", "--seeds", "--num-pairs", "--reference", "--preset", "--save-preferences", "--ppo.kl-coef"):
        assert flag in text
    for default in ("(default: 35 42 100)", "(default: 10 50 200 1000)", "(default: results/acrobot-rlhf)"):
        assert default in text


def test_help_shows_the_presets_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit:
        command.main("acrobot", "dpo", ["--preset", "original", "--help"])
    assert exit.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--dpo.beta FLOAT" in text
    assert "per nat. (default: 5.0)" in text


@pytest.mark.parametrize("experiment", ["acrobot-dpo", "acrobot-rlhf", "cartpole-dpo", "cartpole-rlhf"])
def test_every_script_is_its_own_experiment(capsys, monkeypatch, experiment):
    """As `python -m` runs it: its help names it, and its folder of results."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module(f"experiments.{experiment.replace('-', '_')}", run_name="__main__")
    assert exit.value.code == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f" {experiment}. " in out
    assert f"(default: results/{experiment})" in out


def test_a_wrong_flag_of_a_script_is_one_line_on_stderr(tmp_path):
    words = [sys.executable, "-m", "experiments.run", "--task", "acrobot", "--method", "dpo", "--seeds", "none"]
    done = subprocess.run([*words, "--out", str(tmp_path / "new")], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "--seeds" in done.stderr
    assert not (tmp_path / "new").exists()
