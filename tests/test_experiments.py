"""Whole experiments: what they leave, and that it is what the stages say, recomputed in plain loops from the files."""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import numpy_policy, numpy_reward
from rich.console import Console

import jaxpref
from experiments.asking import labelling
from experiments.harness import folder
from experiments.harness.errors import UsageError
from experiments.harness.memo import Memo
from experiments.pipeline import functions, pipeline, recorded
from experiments.pipeline.command import parse
from experiments.pipeline.functions import Keys
from experiments.pipeline.results import Policies
from experiments.pipeline.settings import from_config
from experiments.reporting import experiment, page
from jaxpref import dpo, preferences, store
from jaxpref.divergence import Divergence
from jaxpref.networks import ActorCritic, Network, RewardModel

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
    "--reward-model.num-updates 6 --reward-model.num-folds 0 --reward-model.batch-size 4 "
    "--ppo.num-updates 2 --ppo.eval-every 1 --ppo.num-envs 2 --ppo.num-steps 16 --ppo.num-epochs 1 "
    "--ppo.num-minibatches 2 --ppo.eval-episodes 2 --ppo.learning-rate 0.03"
)


def keys_of(seed):
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


# --- running ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Run:
    """What an experiment left behind."""

    folder: Path
    summary: dict
    printed: str

    def load(self, name):
        return store.load_params(self.folder / name)

    def pairs(self, seed):
        """NumPy arrays: JAX would compile a program for every slice of another length."""
        return jax.tree.map(np.asarray, store.load_preferences(self.folder / f"preferences_seed{seed}.npz"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder for compiled programs and finished stages, in place of the project's own; JAX's settings come back."""
    place, before = tmp_path_factory.mktemp("cache"), jax.config.jax_enable_compilation_cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "Memo", functools.partial(Memo, place))
        patch.setenv("COLUMNS", "160")
        yield place
    jax.config.update("jax_enable_compilation_cache", before)


def flags_of(method, seeds):
    return ["--seeds", *map(str, seeds), *SHARED_FLAGS, *{"dpo": DPO_FLAGS, "rlhf": RLHF_FLAGS}[method]]


def run_into(out, method, seeds, *more):
    """Run an experiment in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        experiment.main("run", "cartpole", method, [*flags_of(method, seeds), *more, "--out", str(out)])
    return Run(out, json.loads((out / "summary.json").read_text()), printed.getvalue())


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    """(method, seeds, more flags) -> Run."""

    def run_once(method, seeds, *more):
        return run_into(tmp_path_factory.mktemp(method) / "made" / "on the way", method, seeds, *more)

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
    return Network(ActorCritic(2), jax.tree.map(lambda leaf: leaf[place], arrays[name]["params"]))


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
        for name in ("heldout_accuracy", "label_accuracy", "length_accuracy"):
            assert type(row[name]) is float
            assert 0 <= row[name] <= 1
        assert row["length_accuracy"] == 1  # on CartPole the return is the length


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
    assert set(timing["stages"]) == {"reinforce", "preferences", "evaluate"} | names
    for name in ("compile_s", "run_s"):
        np.testing.assert_allclose(timing[name], sum(stage[name] for stage in timing["stages"].values()), rtol=1e-9)
    for name in names | {"evaluate"}:
        assert timing["stages"][name]["kept"] == 0
        assert min(timing["stages"][name]["compile_s"], timing["stages"][name]["run_s"]) > 0
    assert timing["total_s"] > timing["run_s"]


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
        returns = evaluate(jaxpref.cartpole(), params, keys_of(seed).evaluate, EVAL_EPISODES)
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


def test_both_methods_have_the_same_experts_and_pairs_which_were_made_once(dpo_run, rlhf_run):
    assert dpo_run.summary["policies"] == rlhf_run.summary["policies"]
    kept = [
        {name: stage["kept"] for name, stage in run.summary["timing"]["stages"].items()} for run in (dpo_run, rlhf_run)
    ]
    assert sorted([each["reinforce"], each["preferences"]] for each in kept) == [[0, 0], [1, 1]]
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
        alone = train(keys_of(seed).train, pairs, init_params, ref_params).params
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
    """Observations, actions and next observations of the i-th episode."""
    steps = jax.tree.map(lambda leaf: np.asarray(leaf[i, : int(trajectory.mask[i].sum())]), trajectory)
    return np.float64(steps.obs), steps.action, np.float64(steps.next_obs)


def test_heldout_accuracy_of_dpo_is_that_of_its_log_ratios(dpo_run):
    arrays = dpo_run.load("policies.npz")
    for (ref, size), row in rows_of(dpo_run.summary).items():
        accuracies = []
        for place, seed in enumerate(SEEDS):
            trained = policy_of(arrays, f"trained_{ref}", place, SIZES.index(size))
            reference = policy_of(arrays, ref, place)

            def log_ratio(trajectory, i, trained=trained, reference=reference):
                obs, action, _ = steps_of(trajectory, i)
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
            run = place, SIZES.index(size)
            params = jax.tree.map(lambda leaf, run=run: leaf[run], models["params"])
            learned_return = functools.partial(numpy_return, Network(RewardModel(2, use_next_obs=True), params))
            accuracies.append(ranked_right(rlhf_run.pairs(seed), learned_return))
        np.testing.assert_allclose(row["heldout_accuracy"], np.mean(accuracies), rtol=1e-6)


def test_ppo_starts_from_pi2_and_its_reference_is_what_it_is_said_to_be(rlhf_run):
    """KL(pi2 || ref) in the first rollout: 0 with pi2, above with pi1 where that is another policy."""
    metrics = rlhf_run.load("metrics.npz")
    np.testing.assert_allclose(metrics["trained_pi2"]["kl"][:, :, 0], 0, atol=1e-6)
    kl = metrics["trained_pi1"]["kl"][:, :, 0]
    assert (kl[[0, 2]] > 1e-3).all()
    np.testing.assert_allclose(kl[1], 0, atol=1e-6)


# --- people's answers -------------------------------------------------------------------------------------------------


def test_an_experiment_trains_on_peoples_answers(run, dpo_run, tmp_path):
    """The pairs that seed 3 was trained on, and a person who answers as its annotator did: the same policies. Without
    --num-pairs, all answered pairs count: one is skipped here."""
    pairs = dpo_run.pairs(3)
    sides = [jax.tree.map(lambda leaf: leaf[: max(SIZES)], side) for side in (pairs.chosen, pairs.rejected)]
    store.save_pairs(tmp_path / "pairs.npz", *sides)
    lines = [json.dumps({"pair": pair, "choice": "first"}) for pair in range(max(SIZES))]
    labels = tmp_path / "labels.jsonl"
    labels.write_text("\n".join(lines))
    words = ["--preferences", str(labels), "--pairs", str(tmp_path / "pairs.npz")]
    again = run("dpo", (3,), *words)
    for name in ("trained_pi1", "trained_pi2"):
        before = policy_of(dpo_run.load("policies.npz"), name, 0)
        for one, other in zip(
            jax.tree.leaves(before), jax.tree.leaves(policy_of(again.load("policies.npz"), name, 0)), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    labels.write_text("\n".join([*lines, '{"pair": 2, "choice": "skip"}']))
    settings = from_config(again.summary["config"] | {"num_pairs": [10, 50, 200, 1000]})
    task = jaxpref.cartpole()
    assert recorded.with_sizes(settings, task).num_pairs == (max(SIZES) - 1,)
    with pytest.raises(ValueError, match="--num-pairs must be at most 7, the number of answers in"):
        recorded.with_sizes(dataclasses.replace(settings, num_pairs=(8,)), task)
    with pytest.raises(ValueError, match=r"pairs.npz has trajectories of 200 steps, more than the 25 of the held-out"):
        recorded.with_sizes(dataclasses.replace(settings, segment=25), task)
    labels.unlink()
    assert page.rewrite(again.folder).exists()  # the run's page does not need the answers


def test_pairs_of_a_run_are_played_once_and_the_report_prints_what_people_answered(dpo_run, tmp_path, capsys):
    """By pi1 and pi2 of the run's first seed, in clips; the same command goes on with the same pairs."""
    settings = labelling.Label(run=dpo_run.folder, num_pairs=3, segment=7, out=tmp_path)
    task, pairs, pi2 = labelling._of_run(settings)
    for one, other in zip(
        jax.tree.leaves(pi2), jax.tree.leaves(policy_of(dpo_run.load("policies.npz"), "pi2", 0)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    first, second = store.load_pairs(pairs, task)
    assert first.obs.shape == second.obs.shape == (3, 7, 4)
    content = pairs.read_bytes()
    labelling._of_run(settings)
    assert pairs.read_bytes() == content
    with pytest.raises(UsageError, match="was made with another --num-pairs, --segment"):
        labelling._of_run(dataclasses.replace(settings, num_pairs=4, segment=8))
    (tmp_path / "labels.jsonl").write_text('{"pair": 1, "choice": "tie"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelling.devices, "set_up_jax", lambda _: None)
        labelling.run(dataclasses.replace(settings, report=True), Console())
    printed = " ".join(capsys.readouterr().out.split())
    assert "pairs: 1; people: somebody" in printed
    assert "1 of 1 answers; 95 %: 0.21 to 1.00" in printed  # ties
    assert "needs 10 answers" in (tmp_path / "report.html").read_text()


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


def results_of(folder):
    """What an experiment left, file by file: bytes, and the summary without what it says about this very run."""
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("timing", "peak_memory_gib"):
        del summary[name]
    del summary["config"]["out"]
    files = [path for path in folder.iterdir() if path.suffix in (".npz", ".png") or path.name == "metrics.jsonl"]
    return {path.name: path.read_bytes() for path in files} | {"summary.json": summary}


def program(cache, out, method, *flags, stages=None):
    """An experiment as a program of its own, not started yet: its words, and options for `subprocess`."""
    words = [sys.executable, "-m", f"experiments.cartpole_{method}", *flags, "--out", str(out)]
    return words, {"cwd": ROOT, "env": os.environ | {"JAXPREF_STAGES": str(stages or cache)}}


def test_a_run_that_is_killed_ends_with_the_same_bytes_when_it_is_started_again(dpo_run, cache, tmp_path):
    """Killed at some moment after one or three stages are kept; `torture.py` kills more often."""
    out, rng = tmp_path / "out", np.random.default_rng()
    stages = tmp_path / "stages"  # with compiled programs and no results
    shutil.copytree(cache, stages, ignore=shutil.ignore_patterns("*.stage"))
    words, options = program(cache, out, "dpo", *flags_of("dpo", SEEDS), stages=stages)
    num_kept, delay = rng.choice([1, 3]), rng.uniform(0, 0.3)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, **options) as process:
        while process.poll() is None and len(list(stages.glob("*.stage"))) < num_kept:
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
    (out / "progress.jsonl").unlink()
    done = subprocess.run(words, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    assert re.search("reinforce .* kept", done.stdout)
    assert "warning: /" not in done.stdout
    assert "\x1b" not in done.stdout
    killed, undisturbed = results_of(out), results_of(dpo_run.folder)
    assert killed.keys() == undisturbed.keys()
    for name in killed:
        assert killed[name] == undisturbed[name], (name, num_kept, delay)
    named = {*killed, "report.html"}
    assert {path.name for path in out.iterdir()} == named | {".lock", "progress.jsonl"}
    assert all(name in done.stdout for name in named)


def test_a_finished_run_again_computes_nothing_and_leaves_the_same_bytes(dpo_run):
    before = results_of(dpo_run.folder)
    again = run_into(dpo_run.folder, "dpo", SEEDS)
    stages = again.summary["timing"]["stages"].values()
    assert all(stage["kept"] == 1 and stage["run_s"] == 0 for stage in stages)
    assert results_of(dpo_run.folder) == before


def test_a_diverged_seed_is_named_and_earlier_results_of_other_settings_are_set_aside(dpo_run, tmp_path, capsys):
    """A learning rate of 1e4 into the folder of a finished run: the exit code is 3, and nothing is lost."""
    out = tmp_path / "results"
    shutil.copytree(dpo_run.folder, out)
    words = [*flags_of("dpo", SEEDS), "--dpo.learning-rate", "1e4", "--out", str(out)]
    with pytest.raises(SystemExit) as exit:
        experiment.main("run", "cartpole", "dpo", words)
    assert exit.value.code == 3
    printed = capsys.readouterr().out
    assert results_of(tmp_path / "results.1") == results_of(dpo_run.folder)
    assert re.search(r"\(dpo.learning-rate\) are now in", printed)
    summary = json.loads((out / "summary.json").read_text())
    assert {(entry["stage"], entry["seed"]) for entry in summary["diverged"]} == {("dpo", seed) for seed in SEEDS}
    assert all(row["policy"]["per_seed"] == [None] * 3 for row in summary["rows"])
    assert summary["policies"] == dpo_run.summary["policies"]


def test_a_folder_that_another_run_writes_into_is_refused_untouched(cache, tmp_path, capsys):
    (tmp_path / "summary.json").write_bytes(b"precious")
    with folder.locked(tmp_path), pytest.raises(SystemExit) as exit:
        experiment.main("run", "cartpole", "dpo", ["--devices", "2", "--out", str(tmp_path)])
    assert exit.value.code == 2
    assert f"process {os.getpid()} is writing into this folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "summary.json"]
    assert (tmp_path / "summary.json").read_bytes() == b"precious"


def test_what_the_task_refuses_leaves_no_folder(cache, tmp_path, capsys):
    with pytest.raises(SystemExit):
        experiment.main("run", "cartpole", "dpo", ["--network", "conv", "--devices", "2", "--out", str(tmp_path / "x")])
    assert capsys.readouterr().err.startswith("error: --network conv needs images")
    assert not (tmp_path / "x").exists()


EXPERT_FLAGS = shlex.split(
    "--expert-ppo.num-updates 3 --expert-ppo.num-envs 4 --expert-ppo.num-steps 20 --expert-ppo.num-epochs 2 "
    "--expert-ppo.num-minibatches 2 --expert-ppo.eval-episodes 4 --expert-ppo.learning-rate 0.01"
)


def test_a_task_of_continuous_actions_runs_by_its_name(cache, tmp_path):
    """Pendulum, cut off after 20 steps, from experts by PPO to the evaluation of policies trained by DPO."""
    sizes = f"--seeds 3 8 --horizon 20 --num-pairs 4 --num-heldout {NUM_HELDOUT} --eval-episodes {EVAL_EPISODES}"
    words = shlex.split(f"{sizes} --devices 2 --save-preferences --reference pi2") + EXPERT_FLAGS + DPO_FLAGS
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        experiment.main("run", "Pendulum-v1", "dpo", [*words, "--out", str(tmp_path)])
    done = Run(tmp_path, json.loads((tmp_path / "summary.json").read_text()), printed.getvalue())
    assert set(done.summary["timing"]["stages"]) == {"expert ppo", "preferences", "dpo", "evaluate"}
    assert done.load("metrics.npz")["expert_ppo"]["score"].shape == (2, 3)
    arrays, task = done.load("policies.npz"), jaxpref.task("Pendulum-v1", 20)
    module = jaxpref.init_policy(jax.random.key(0), task).module
    for place, seed in enumerate((3, 8)):
        pairs = done.pairs(seed)
        assert (pairs.chosen.action.dtype, pairs.chosen.action.shape) == (np.float32, (4 + NUM_HELDOUT, 20, 1))
        assert pairs.chosen.mask.all()
        for name, score in (
            ("pi2", done.summary["policies"]["pi2"]),
            ("trained_pi2", done.summary["rows"][0]["policy"]),
        ):
            at = (place, 0) if name == "trained_pi2" else (place,)
            policy = Network(module, jax.tree.map(lambda leaf, at=at: leaf[at], arrays[name]["params"]))
            played = evaluate(task, policy, keys_of(seed).evaluate, EVAL_EPISODES).mean()
            np.testing.assert_allclose(played, score["per_seed"][place], rtol=1e-3)
    # Before the first update the policy is the reference: the smoothed loss is ln 2.
    metrics = done.load("metrics.npz")["trained_pi2"]
    np.testing.assert_allclose(metrics["loss"][:, 0, 0], np.log(2), rtol=1e-4)
    assert len(np.unique(arrays["trained_pi2"]["params"]["log_std"])) == 2  # it is trained, too


@pytest.fixture(scope="module")
def inputs(dpo_run):
    """One seed's keys, experts and pairs to train on."""
    task, config = jaxpref.cartpole(), jaxpref.reinforce.Config(num_updates=16)
    experts = jax.eval_shape(functools.partial(functions.train_experts, task, config), keys_of(3))
    train, _ = jaxpref.preferences.split(dpo_run.pairs(3), NUM_HELDOUT)
    return task, keys_of(3), experts, train


@pytest.mark.parametrize(
    ("kind", "scale", "bias"), [("zero", 0, 0), ("random", 1, 0), ("plus", 0, 1), ("minus", 0, -1)]
)
def test_a_control_reward_is_constant_or_random(inputs, kind, scale, bias):
    """A fresh head is zero, and a drawn one is standard normal: its 64 weights have a mean square near 1."""
    task, keys, _, _ = inputs
    setup, config = functions.Setup(task, SIZES, reward=kind), jaxpref.reward_model.Config()
    fitted = functions.control_reward(setup, config, keys)
    head = np.asarray(fitted.params.params["reward"]["kernel"])
    assert head.shape == (2, 64, 1)
    np.testing.assert_allclose(np.mean(head**2), scale, atol=0.6)
    np.testing.assert_array_equal(fitted.params.params["reward"]["bias"], np.full((2, 1), bias))
    assert fitted.metrics is None


def test_a_reward_model_that_is_a_bias_learns_which_length_is_preferred(inputs):
    """The longer episode of each pair is the preferred one on CartPole: the reward is the same positive number."""
    task, keys, _, pairs = inputs
    setup = functions.Setup(task, SIZES, reward="bias")
    config = jaxpref.reward_model.Config(num_updates=20, num_folds=0)
    fitted = jax.jit(functools.partial(functions.fit_rewards, setup, config))(keys, pairs)
    assert (np.asarray(fitted.params.params["reward"]["kernel"]) == 0).all()
    assert (np.asarray(fitted.params.params["reward"]["bias"]) > 0).all()
    steps = jnp.zeros((3, 7, 4)), jnp.zeros((3, 7), jnp.int32)
    one = jax.tree.map(lambda leaf: leaf[0], fitted.params)
    np.testing.assert_array_equal(
        jaxpref.apply_reward(one, *steps), jnp.broadcast_to(one.params["reward"]["bias"], (3, 7))
    )


def test_online_rounds_and_ensembles_have_the_shapes_of_the_other_methods(inputs):
    """Traced, not run: [P] on the first axis, and the metrics of all rounds in one row."""
    task, keys, experts, pairs = inputs
    reference, online = jnp.int32(1), jaxpref.online.Config(num_rounds=2)
    configs = jaxpref.annotators.Config(), online, jaxpref.reward_model.Config(), jaxpref.ppo.Config(num_updates=12)
    train = functools.partial(functions.train_online, functions.Setup(task, (4,)))
    rlhf = jax.eval_shape(train, configs, keys, experts, reference)
    assert rlhf.metrics.loss.shape == (1, 12)
    assert rlhf.divergence.update.shape == (1,)
    assert rlhf.reward_params.params["reward"]["bias"].shape == (1, 3, 1)
    direct = jax.eval_shape(train, (*configs[:2], jaxpref.dpo.Config()), keys, experts, reference)
    assert direct.metrics.loss.shape == (1, 150)
    fit = functools.partial(
        functions.fit_rewards, functions.Setup(task, SIZES, num_members=3), jaxpref.reward_model.Config()
    )
    fitted = jax.eval_shape(fit, keys, pairs)
    assert fitted.params.params["reward"]["bias"].shape == (2, 3, 1)
    assert fitted.metrics.loss.shape == (2, 100)


def test_the_updates_of_all_rounds_are_counted_together(monkeypatch, inputs):
    """Three rounds of five updates: the second diverges in its fourth, the ninth of all."""
    task, keys, *_ = inputs
    policy = jaxpref.init_policy(jax.random.key(0), task)
    rows, divergence = jnp.zeros((3, 5)), Divergence(jnp.array([0, 4, 1]), jnp.array([0, 2, 1]))
    result = jaxpref.online.Result(policy, jaxpref.dpo.Metrics(*[rows] * 6), divergence, None, rows)
    monkeypatch.setattr(jaxpref.online, "train_dpo", lambda *_: result)
    configs = jaxpref.annotators.Config(), jaxpref.online.Config(num_rounds=3), jaxpref.dpo.Config()
    trained = functions.train_online(functions.Setup(task, (4,)), configs, keys, Policies(policy, policy), jnp.int32(1))
    assert (trained.divergence.update.item(), trained.divergence.what.item()) == (9, 2)
    assert trained.metrics.loss.shape == (1, 15)


# --- many processes, many batches -------------------------------------------------------------------------------------


def test_two_processes_give_the_results_of_one(dpo_run, cache, tmp_path):
    """Five seeds are three for each process, one of them twice; the first process writes, the other says nothing."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    seeds, out = (3, 8, 5, 2, 9), tmp_path / "shared"
    words, options = program(cache, out, "dpo", *flags_of("dpo", seeds))
    words += ["--coordinator", address, "--processes", "2", "--process"]
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*words, str(number)], **options) for number in (0, 1)]
    printed = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert "CartPole, DPO" in printed[0][0]
    # Threads of Gloo, which connects the processes, write at the same time: a line may begin in the middle of another.
    of_gloo = r"\[Gloo\]|Rank|is connected to|peer ranks|Expected number of connected|is|[\d\s.:]"
    assert re.sub(of_gloo, "", printed[1][0]) == ""
    summary = store.load_json(out / "summary.json")
    assert summary["seeds"] == list(seeds)
    assert_same_results(dpo_run.summary, SEEDS, summary, seeds)
    assert all(len(score["per_seed"]) == 5 for score in scores_of(summary).values())


def test_batches_of_seeds_give_the_results_of_one_batch(run, dpo_run):
    """Five seeds in batches of three: the second is filled up, and what fills it is dropped. Only seed 3 is shown."""
    batches = run("dpo", (3, 8, 5, 2, 9), "--batch-seeds", "3")
    assert_same_results(dpo_run.summary, SEEDS, batches.summary, (3, 8, 5, 2, 9))
    assert "batch 2 of 2, 3 seeds" in batches.printed
    shown, expected = batches.load("episodes.npz"), dpo_run.load("episodes.npz")
    np.testing.assert_array_equal(shown["obs"], expected["obs"])


def test_a_batch_holds_a_gigabyte_of_pairs():
    """CartPole, 200 + 200 pairs: 800 trajectories of 200 steps of 11 words are 7.04 MB, and 1 GB holds 142 of them."""
    for line, expected in (("--num-pairs 10 200", 142), ("--num-pairs 1000000", 1)):
        settings = parse(shlex.split(line), "run", "cartpole", "dpo")
        assert pipeline.seeds_that_fit(settings, jaxpref.cartpole()) == expected
