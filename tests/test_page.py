"""report.html: its numbers are those of summary.json, it needs nothing but itself, and a browser shows it.

The results are made from random numbers, with policies that never trained.
"""

import base64
import dataclasses
import functools
import html
import io
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
from jax.tree_util import keystr, tree_flatten_with_path
from outcomes import SEEDS, SIZES, TIMING, outcome_of, settings_of
from PIL import Image

import jaxpref
from experiments import python
from experiments.pipeline import functions
from experiments.reporting import animations, experiment, page, summary, table
from jaxpref import dpo, store
from jaxpref.types import Trajectory

HOSTILE = "<script>alert('out')</script> & \"quoted\" {{ 7 * 7 }}"
FIGURE_NAMES = ["zebra", "loss", "<img src=x onerror=alert(1)>", "policies"]
SETTINGS = settings_of(out=Path(HOSTILE), dpo=dpo.Config(beta=0.3), eval_episodes=4)


KEYS = functions.with_keys(lambda config, keys: keys, None, np.uint32(SEEDS[0]))


@jax.jit
def play(policies):
    """The episodes of policies [2 + R * P] that are shown of them."""
    setup = functions.Setup(jaxpref.cartpole(), SIZES, references=(0, 1))
    played = jax.vmap(lambda policy: jaxpref.rollout.episodes(setup.task, policy, KEYS.evaluate, 2))(policies)
    return functions.first_episodes(setup, policies, played)


def with_episodes(outcome):
    """The outcome with the episodes of its first seed's policies."""
    policies = outcome.experts.pi1, outcome.experts.pi2, *[row.params for row in outcome.rows]
    stacked = jax.tree.map(lambda *leaves: np.stack([leaf[0] for leaf in leaves]), *policies)
    return dataclasses.replace(outcome, shown=jax.tree.map(lambda leaf: np.asarray(leaf)[None], play(stacked)))


@pytest.fixture(scope="module")
def outcome():
    return with_episodes(outcome_of(SETTINGS, np.random.default_rng(5)))


@pytest.fixture(scope="module")
def results(outcome):
    """A summary as it comes back from JSON."""
    return json.loads(json.dumps(summary.summarise(SETTINGS, outcome) | {"timing": TIMING}, allow_nan=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, outcome, results):
    """A folder of results with its page."""
    path = tmp_path_factory.mktemp("page") / "<b>results"
    path.mkdir()
    store.save_json(path / "summary.json", results)
    experiment.save_arrays(SETTINGS, outcome, path)
    for place, name in enumerate(FIGURE_NAMES):
        Image.new("RGB", (20 + place, 10)).save(path / f"{name}.png")
    page.rewrite(path)
    return path


# --- reading a page ---------------------------------------------------------------------------------------------------


def read(folder):
    """The page as a tree, and its text. Every element is closed, except those that are never closed in HTML."""
    text = re.sub(r"<((meta|link|img|br)\b[^>]*)>", r"<\1/>", (folder / "report.html").read_text())
    tree = ElementTree.fromstring(text)
    return tree, " ".join("".join(tree.find("body").itertext()).split())


def numbers_of(tree):
    return [(each.get("data-path"), each.get("data-value"), each.text) for each in tree.iter("span")]


def image(uri):
    kind, data = re.fullmatch(r"data:image/(gif|png);base64,([A-Za-z0-9+/=]+)", uri).groups()
    opened = Image.open(io.BytesIO(base64.b64decode(data)))
    opened.load()
    assert opened.format == kind.upper()
    return opened


# --- numbers and words ------------------------------------------------------------------------------------------------


def check_numbers(numbers, results):
    """Scores, intervals, every seed's return, accuracies, seconds: all digits in an attribute, and read rounded."""
    paths, _ = tree_flatten_with_path({name: results[name] for name in ("policies", "rows", "timing")})
    named = {keystr(path, simple=True, separator="."): value for path, value in paths}
    other = (".num_pairs", ".init", ".reference", ".kept")
    assert {path for path, _, _ in numbers} == {path for path in named if not path.endswith(other)}
    for path, value, text in numbers:
        assert json.loads(value) == named[path], path
        digits = len(text.partition(".")[2])
        assert digits == (3 if "accuracy" in path else 2 if "timing" in path else 1)
        np.testing.assert_allclose(float(text.replace("−", "-")), float(value), atol=0.5001 * 10**-digits)


def test_every_number_is_there(folder, results):
    check_numbers(numbers_of(read(folder)[0]), results)


def test_a_number_that_does_not_exist_is_none(tmp_path, results):
    """Every seed of a row diverged, and nothing has labels."""
    row = results["rows"][3] | {"heldout_accuracy": None, "label_accuracy": None}
    row["policy"] = {"mean": None, "iqm": None, "ci95": [None, None], "per_seed": [None] * 3}
    page.write(tmp_path, results | {"rows": [*results["rows"][:3], row], "best_accuracy": None}, [])
    tree, text = read(tmp_path)
    numbers = {path: found for path, *found in numbers_of(tree)}
    for name in ("policy.mean", "policy.iqm", "policy.ci95.0", "policy.per_seed.2", "label_accuracy"):
        assert numbers[f"rows.3.{name}"] == ["null", "none"]
    assert "on 0 of 0" in text


def test_the_first_sentence_is_about_the_most_pairs_and_pi2(folder, results):
    """Row 3: reference pi2, 8 pairs. Its wins over pi1 are counted seed by seed. Without pi2, row 1 is the one."""
    trained, pi1 = results["rows"][3]["policy"]["per_seed"], results["policies"]["pi1"]["per_seed"]
    wins = sum(one > other for one, other in zip(trained, pi1, strict=True))
    iqm = f"{results['rows'][3]['policy']['iqm']:.1f}".replace("-", "−")
    _, text = read(folder)
    assert "On 8 pairs, reference pi2, DPO takes the return from" in text
    assert f"(pi2) to {iqm} (IQM; 95 % of 3 seeds:" in text
    assert f"the same seed’s pi1 on {wins} of 3." in text
    assert page.headline(results | {"rows": results["rows"][:2]})["best"]["path"] == "rows.1.policy"


def test_warnings_and_explanations_are_those_of_the_terminal(folder, results):
    never_reached = "pi1 never reached its target return for 1 of 3 seeds: 3"
    guesses = (
        f"{results['equal_return_share']:.0%} of the held-out pairs have two equal returns: their labels are guesses"
    )
    assert table.warnings(results) == [never_reached, guesses]
    assert table.warnings(results | {"equal_return_share": 0.5}) == [never_reached]
    tree, text = read(folder)
    assert [item.text for item in tree.iter("li")] == table.warnings(results)
    assert table.accuracies_explained(results) in text


def test_an_online_method_has_its_name_and_a_name_that_is_not_unicode_has_its_page(tmp_path):
    settings = settings_of("online-rlhf", reference=("pi2",), seeds=(5,))
    results = summary.summarise(settings, outcome_of(settings, np.random.default_rng(2)))
    page.write(tmp_path, results | {"timing": TIMING, "experiment": "\udcff"}, [])
    text = (tmp_path / "report.html").read_text()
    assert "On 8 pairs, reference pi2, online RLHF takes the return" in text
    assert "&#56575;" in text


# --- the page itself --------------------------------------------------------------------------------------------------


def test_it_needs_no_other_file_and_no_script(folder):
    tree, _ = read(folder)
    for element in tree.iter():
        assert element.tag != "script"
        assert not [name for name in element.attrib if name.startswith("on")], element.tag
        assert all(element.get(name, "data:").startswith("data:") for name in ("src", "href"))
    assert "url(" not in (folder / "report.html").read_text()
    (policy,) = (meta.get("content") for meta in tree.iter("meta") if meta.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_hostile_names_are_text(folder):
    """The folder in the settings and in the command, and a figure's file name as its caption."""
    tree, _ = read(folder)
    assert HOSTILE in [cell.text for cell in tree.iter("td")]
    assert FIGURE_NAMES[2] in [caption.text for caption in tree.iter("figcaption")]
    assert shlex.quote(f"--out={HOSTILE}") in tree.find(".//pre").text


def test_every_picture_is_whole_and_known_figures_come_first(folder):
    """Each figure has a width of its own."""
    pictures = list(read(folder)[0].iter("img"))
    assert len(pictures) == 2 * 4 + len(FIGURE_NAMES)
    assert all(len(picture.get("alt")) > 4 for picture in pictures)
    widths = [image(picture.get("src")).width for picture in pictures]
    in_order = ["policies", "loss", "<img src=x onerror=alert(1)>", "zebra"]
    assert widths[-4:] == [20 + FIGURE_NAMES.index(name) for name in in_order]


def test_all_settings_are_listed_and_the_changed_ones_twice(folder, results):
    tree, _ = read(folder)
    differing, everything = (
        {row[0].text: [cell.text for cell in row[1:]] for row in tree.findall(f".//*[@aria-label='{label}']//tbody/tr")}
        for label in ("Changed settings", "All settings")
    )
    assert set(differing) == {"seeds", "num-pairs", "dpo.beta", "eval-episodes", "out"}
    assert differing["dpo.beta"] == ["0.3", "0.03"]
    assert set(everything) == set(page.flat(SETTINGS))
    assert everything["dpo.beta"] == ["0.3"]
    assert tree.find(".//pre").text.startswith(f"{python()} -m experiments.run --task=cartpole")


# --- animations -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played(outcome, results):
    return animations.animate(jaxpref.cartpole(), outcome.shown, results)


def frames(gif):
    """(pictures, milliseconds of each)."""
    opened, found = Image.open(io.BytesIO(gif)), []
    for place in range(opened.n_frames):
        opened.seek(place)
        found.append((np.asarray(opened.convert("RGB")).astype(int), opened.info["duration"]))
    return zip(*found, strict=True)


def test_an_animation_shows_the_first_episode_of_the_first_seeds_evaluation(played, outcome):
    """Of pi2, pi1, and the policies trained on 8 pairs, which are second of two sizes."""
    assert [each.path for each in played] == ["policies.pi2", "policies.pi1", "rows.1.policy", "rows.3.policy"]
    evaluate = jax.jit(functools.partial(jaxpref.evaluate, num_episodes=SETTINGS.eval_episodes))
    shown = outcome.experts.pi2, outcome.experts.pi1, outcome.rows[1].params, outcome.rows[3].params
    first = jax.tree.map(lambda leaf: leaf[0], shown)
    returns = [float(evaluate(jaxpref.cartpole(), policy, KEYS.evaluate)[0]) for policy in first]
    assert [each.total for each in played] == returns
    assert len(set(returns)) > 1  # or the next test would say nothing


def test_all_begin_with_the_same_picture_and_repeat_together(played):
    """A step of CartPole is 0.02 s; the end takes 1.2 s more."""
    longest = max(each.total for each in played)
    (first, *_), _ = frames(played[0].gif)
    for each in played:
        pictures, milliseconds = frames(each.gif)
        assert np.abs(pictures[0] - first).max() < 40
        np.testing.assert_allclose(sum(milliseconds) / 1000, 0.02 * longest + 1.2, atol=0.03)


def test_equal_policies_play_equally_and_one_that_is_not_finite_does_not_play(outcome, results):
    ruined = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), outcome.rows[1].params)
    rows = [outcome.rows[0], dataclasses.replace(outcome.rows[1], params=ruined), *outcome.rows[2:]]
    experts = dataclasses.replace(outcome.experts, pi1=outcome.experts.pi2)
    changed = with_episodes(dataclasses.replace(outcome, rows=rows, experts=experts))
    pi2, pi1, trained = animations.animate(jaxpref.cartpole(), changed.shown, results)
    assert pi2._replace(path="") == pi1._replace(path="")
    assert trained.path == "rows.3.policy"


def test_an_observation_of_no_axis_is_drawn_as_one_number():
    """FrozenLake shows the number of its field, and nothing else."""
    task = jaxpref.task("FrozenLake-misc", horizon=3)
    assert task.obs_shape == ()
    obs, steps = np.zeros((3, 1), np.float32), np.zeros(3, np.float32)
    drawn = animations.animation(task, "policies.pi2", Trajectory(obs, steps, steps, obs, np.ones(3, bool)), 3)
    assert drawn.gif.startswith(b"GIF")


# --- written again ----------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(folder, tmp_path, monkeypatch):
    """A copy of the folder in `results`, where the program looks for it."""
    shutil.copytree(folder, tmp_path / "results" / "cartpole-dpo")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results" / "cartpole-dpo"


def test_pages_are_written_again_in_every_folder_of_an_experiment(finished, folder, capsys):
    """The same files give the same bytes. Folders of other programs stay as they are."""
    (finished / "report.html").unlink()
    (finished.parent / "evidence").mkdir()
    store.save_json(finished.parent / "evidence" / "summary.json", {"claims": []})
    page.main([])
    assert capsys.readouterr().out.split() == ["results/cartpole-dpo/report.html"]
    assert (finished / "report.html").read_bytes() == (folder / "report.html").read_bytes()
    assert not (finished.parent / "evidence" / "report.html").exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_an_array(path):
    store.save_pytree(path, {"obs": store.load_params(path)["obs"]})


@pytest.mark.parametrize(
    ("name", "damage", "named"),
    [
        ("summary.json", Path.unlink, "summary.json"),
        ("summary.json", lambda path: path.write_text("{"), "cartpole-dpo"),
        ("summary.json", lambda path: path.write_text("{}"), "config"),
        ("episodes.npz", truncate, "episodes.npz"),
        ("episodes.npz", lose_an_array, "action"),
    ],
)
def test_a_folder_without_results_is_named_and_its_page_stays(finished, capsys, name, damage, named):
    damage(finished / name)
    before = (finished / "report.html").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        page.main([str(finished)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {finished}")
    assert named in line
    assert (finished / "report.html").read_bytes() == before


def test_a_flag_and_a_missing_folder_of_results_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for argv, words in ((["--seeds", "3"], "unrecognized arguments: --seeds"), ([], "run an experiment first")):
        with pytest.raises(SystemExit, match="2"):
            page.main(argv)
        assert words in capsys.readouterr().err


# --- in a browser -----------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = shlex.split(
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --allow-file-access-from-files --enable-logging=stderr --dump-dom"
)
PROBE = """<!doctype html><body><iframe src="PAGE" style="width: 390px; height: 800px; border: 0"></iframe><script>
window.onload = () => {
  const inner = document.querySelector("iframe").contentDocument;
  inner.querySelectorAll("details").forEach(details => details.open = true);
  document.body.textContent = JSON.stringify({
    width: inner.documentElement.scrollWidth,
    pictures: [...inner.images].map(image => image.naturalWidth),
    numbers: [...inner.querySelectorAll("[data-path]")].map(
      number => [number.dataset.path, number.dataset.value, number.innerText]),
    scripts: inner.scripts.length,
  });
};
</script></body>"""
"""A page around the page. It may look inside; the inner page keeps its policy against scripts."""


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
def test_a_browser_shows_all_of_it_on_a_phone_without_complaint(folder, results, tmp_path):
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.replace("PAGE", (folder / "report.html").as_uri()))
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    seen = json.loads(html.unescape(re.search("<body>(.*)</body>", done.stdout, re.DOTALL)[1]))
    assert seen["width"] <= 390  # what is wider scrolls in a box of its own
    assert seen["scripts"] == 0
    assert len(seen["pictures"]) == 2 * 4 + len(FIGURE_NAMES)
    assert min(seen["pictures"]) > 0
    check_numbers(seen["numbers"], results)
