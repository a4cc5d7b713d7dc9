"""Teaching in rounds, over HTTP: what every round leaves, and that it goes on wherever it was stopped."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
from rich.console import Console
from scripted_person import Person

from experiments.asking import labelling, teaching
from experiments.asking.server import serving
from experiments.asking.site import Site
from experiments.harness.errors import UsageError
from jaxpref import dpo, ppo, reward_model, store, tasks
from jaxpref.networks import init_policy

NUM_PAIRS = 4
TASK = tasks.task("Catch-bsuite")
SMALL = teaching.Teach(
    task="Catch-bsuite",
    start="random",
    num_rounds=2,
    num_pairs=NUM_PAIRS,
    repeats=0.25,
    dpo=dpo.Config(num_updates=4, eval_every=2, eval_episodes=1, learning_rate=0.1),
    reward_model=reward_model.Config(num_updates=2),
    ppo=ppo.Config(num_updates=2, num_envs=4, num_steps=8, num_minibatches=2, eval_every=1, eval_episodes=1),
)


def brighter_on_top(left, right):
    """Something that a person sees: which clip has less ink in its last picture."""
    return "left" if left[-1].sum() > right[-1].sum() else "right"


def taught(settings, monkeypatch):
    """(returns, what the person answered) of all rounds."""
    monkeypatch.setattr(teaching.quality, "model_accuracy", lambda *_: [])
    settings.folder.mkdir(exist_ok=True)
    site, answered = Site(TASK, settings.instruction, settings.num_rounds), []

    def judge(left, right):
        answered.append(brighter_on_top(left, right))
        return answered[-1]

    with serving(site, settings.folder, "127.0.0.1", 0) as address:
        thread = threading.Thread(target=Person(address, judge).answer_all)
        thread.start()
        means = teaching.teach(settings, site, teaching.first_policy(settings, TASK), Console(quiet=True))
        thread.join(20)
    return means, answered


def policies_of(settings):
    return [(settings.folder / f"round-{number}" / "policy.npz").read_bytes() for number in (1, 2)]


@pytest.mark.parametrize("method", ["dpo", "rlhf"])
def test_every_round_is_kept_and_goes_on_wherever_it_was_stopped(method, tmp_path, monkeypatch):
    settings = dataclasses.replace(SMALL, method=method, out=tmp_path / "out")
    means, answered = taught(settings, monkeypatch)
    assert len(means) == 3
    assert len(answered) == 2 * (NUM_PAIRS + 1)  # one of each round comes again
    for number in (1, 2):
        folder = settings.folder / f"round-{number}"
        labels = store.load_labels(folder / "labels.jsonl", folder / "pairs.npz", TASK)
        np.testing.assert_array_equal(labels.weight, np.ones(NUM_PAIRS))
    report = (settings.folder / "report.html").read_text()
    assert all(words in report for words in ("the first policy", "after round 2", settings.instruction))
    expected = policies_of(settings)
    assert expected[0] != expected[1]

    assert taught(settings, monkeypatch) == (means, [])  # nothing is asked again
    assert policies_of(settings) == expected

    # Stopped in round 2 after two answers.
    for name in ("policy", "networks"):
        (settings.folder / "round-2" / f"{name}.npz").unlink()
    labels = settings.folder / "round-2" / "labels.jsonl"
    labels.write_bytes(b"".join(labels.read_bytes().splitlines(keepends=True)[:3]))
    again, answered = taught(settings, monkeypatch)
    assert len(answered) == NUM_PAIRS + 1 - 2
    assert policies_of(settings) == expected
    assert again == means


def test_it_starts_from_a_file(tmp_path):
    """A policy of a round, or one of a run: of its first seed and its most pairs."""
    policy = init_policy(jax.random.key(3), TASK)
    store.save_pytree(tmp_path / "policy.npz", policy)
    several = jax.tree.map(lambda leaf: np.stack([np.stack([0 * leaf, leaf]), np.stack([leaf, 0 * leaf])]), policy)
    store.save_pytree(tmp_path / "policies.npz", {"trained_pi2": several, "pi2": several})
    for start in ("policy.npz", "policies.npz:trained_pi2"):
        settings = dataclasses.replace(SMALL, start=str(tmp_path / start))
        found = teaching.first_policy(settings, TASK)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(policy), strict=True):
            np.testing.assert_array_equal(one, other)
    for start in ("no.npz", "policies.npz", "policies.npz:pi3"):
        with pytest.raises(UsageError, match="is neither pi2, random nor a policy of Catch-bsuite"):
            teaching.first_policy(dataclasses.replace(SMALL, start=str(tmp_path / start)), TASK)
    of_catch = dataclasses.replace(SMALL, start=str(tmp_path / "policy.npz"))
    with pytest.raises(UsageError, match="nor a policy of cartpole"):
        teaching.first_policy(of_catch, tasks.cartpole())


def test_rounds_of_other_settings_are_not_mixed(tmp_path):
    labelling.check_same(tmp_path, {"num_pairs": 4, "dpo.beta": 0.1})
    store.save_json(tmp_path / labelling.SETTINGS, {"num_pairs": 4, "dpo.beta": 0.1})
    labelling.check_same(tmp_path, {"num_pairs": 4, "dpo.beta": 0.1})
    with pytest.raises(UsageError, match=r"was made with another --num-pairs, --dpo.beta: name another folder"):
        labelling.check_same(tmp_path, {"num_pairs": 6, "dpo.beta": 1.0})


def test_a_wrong_start_leaves_no_settings_behind(tmp_path, monkeypatch):
    """So the corrected command may use the same folder."""
    monkeypatch.setattr(teaching.devices, "set_up_jax", lambda _: None)
    settings = dataclasses.replace(SMALL, start="no.npz", port=0, out=tmp_path)
    with pytest.raises(UsageError, match=r"--start no.npz is neither pi2, random nor a policy"):
        teaching.run(settings, Console(quiet=True))
    assert not (tmp_path / labelling.SETTINGS).exists()
