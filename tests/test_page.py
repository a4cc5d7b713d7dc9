"""report.html: its numbers are those of summary.json, it needs nothing but itself, and a browser shows it.

The results are made from random numbers, with policies that never trained.
"""

import base64
import dataclasses
import io
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from outcomes import SEEDS, SIZES, TIMING, outcome_of, settings_of
from PIL import Image

import jaxpref
from experiments import python
from experiments.pipeline.settings import changes, default_settings, flag
from experiments.reporting import animations, arrays, page, summary, table
from jaxpref import dpo, store
from jaxpref.types import Trajectory

HOSTILE = "<script>alert('out')</script> & \"quoted\" {{ 7 * 7 }}"
FIGURE_NAMES = ["zebra", "loss", "<img src=x onerror=alert(1)>", "policies"]


@pytest.fixture(scope="module")
def settings():
    return settings_of(out=Path(HOSTILE), dpo=dpo.Config(beta=0.3), eval_episodes=4)


@pytest.fixture(scope="module")
def outcome(settings):
    return outcome_of(settings, np.random.default_rng(5))


@pytest.fixture(scope="module")
def results(settings, outcome):
    """A summary as it comes back from JSON."""
    made = summary.summarise(settings, outcome) | {"timing": TIMING}
    return json.loads(store.to_json(made))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, settings, outcome, results):
    """A folder of results with its page."""
    path = tmp_path_factory.mktemp("page") / "<b>results"
    path.mkdir()
    store.save_json(path / "summary.json", results)
    arrays.save_arrays(settings, outcome, path)
    for place, name in enumerate(FIGURE_NAMES):
        Image.new("RGB", (20 + place, 10)).save(path / f"{name}.png")
    page.rewrite(path)
    return path


# --- reading a page ---------------------------------------------------------------------------------------------------

VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Elements with their attributes, and what the elements with `data-path` say."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.numbers, self.texts, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []  # every element is closed

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        tag, attributes = self._open[-1] if self._open else ("", {})
        if "data-path" in attributes:
            self.numbers.append((attributes["data-path"], attributes["data-value"], data))
        if tag != "style":
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def read(folder):
    return Reader((folder / "report.html").read_text())


def text_of(folder):
    return " ".join("".join(read(folder).texts).split())


def leaves(tree, path=""):
    """Every number, and every None, of a JSON tree by its path."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if parts is None:
        return {path: tree}
    return {key: x for name, part in parts for key, x in leaves(part, f"{path}.{name}" if path else str(name)).items()}


def shown_numbers(results):
    """The paths of everything that a page has to show."""
    wanted, other = ("policies.", "rows.", "timing."), (".num_pairs", ".init", ".reference", ".kept")
    return {
        path: value for path, value in leaves(results).items() if path.startswith(wanted) and not path.endswith(other)
    }


def image(uri):
    kind, data = re.fullmatch(r"data:image/(gif|png);base64,([A-Za-z0-9+/=]+)", uri).groups()
    opened = Image.open(io.BytesIO(base64.b64decode(data)))
    assert opened.format == kind.upper()
    return opened


# --- numbers and words ------------------------------------------------------------------------------------------------


def test_every_number_is_there_with_all_its_digits_and_is_read_rounded(folder, results):
    """Scores, intervals, every seed's return, accuracies, seconds."""
    numbers, expected = read(folder).numbers, shown_numbers(results)
    assert {path for path, _, _ in numbers} == set(expected)
    for path, value, text in numbers:
        assert json.loads(value) == expected[path], path
        digits = len(text.partition(".")[2])
        assert digits == (3 if "accuracy" in path else 2 if "timing" in path else 1)
        np.testing.assert_allclose(float(text.replace("−", "-")), float(value), atol=0.5001 * 10**-digits)


def test_a_number_that_does_not_exist_is_none(tmp_path, results):
    """Every seed of a row diverged, and nothing has labels."""
    lacking = json.loads(json.dumps(results))
    row = lacking["rows"][3]
    row["policy"] = {"mean": None, "iqm": None, "ci95": [None, None], "per_seed": [None] * 3}
    row["heldout_accuracy"] = row["label_accuracy"] = lacking["best_accuracy"] = None
    page.write(tmp_path, lacking, [])
    numbers = {path: (value, text) for path, value, text in read(tmp_path).numbers}
    for name in ("policy.mean", "policy.iqm", "policy.ci95.0", "policy.per_seed.2", "label_accuracy"):
        assert numbers[f"rows.3.{name}"] == ("null", "none")
    assert "on 0 of 0" in text_of(tmp_path)


def test_the_first_sentence_is_about_the_most_pairs_and_pi2(folder, results):
    """Row 3: reference pi2, 8 pairs. Its wins over pi1 are counted seed by seed."""
    trained, pi1 = results["rows"][3]["policy"]["per_seed"], results["policies"]["pi1"]["per_seed"]
    wins = sum(one > other for one, other in zip(trained, pi1, strict=True))
    iqm = f"{results['rows'][3]['policy']['iqm']:.1f}".replace("-", "−")
    text = text_of(folder)
    assert "On 8 pairs, reference pi2, DPO takes the return from" in text
    assert f"(pi2) to {iqm} (IQM; 95 % of 3 seeds:" in text
    assert f"the same seed’s pi1 on {wins} of 3." in text


def test_without_reference_pi2_the_first_sentence_is_about_pi1(results):
    """Rows 0 and 1."""
    found = page.headline(results | {"rows": results["rows"][:2]})
    assert found["best"]["path"] == "rows.1.policy"


def test_warnings_and_explanations_are_those_of_the_terminal(folder, results):
    assert table.warnings(results) == ["pi1 never reached its target return for 1 of 3 seeds: 3"]
    assert table.warnings(results)[0] in read(folder).texts
    assert table.accuracies_explained(results) in text_of(folder)


def test_an_online_method_has_its_name(tmp_path):
    settings = settings_of("online-rlhf", reference=("pi2",), seeds=(5,))
    outcome = outcome_of(settings, np.random.default_rng(2))
    page.write(tmp_path, summary.summarise(settings, outcome) | {"timing": TIMING}, [])
    assert "On 8 pairs, reference pi2, online RLHF takes the return" in text_of(tmp_path)


# --- the page itself --------------------------------------------------------------------------------------------------


def test_it_needs_no_other_file_and_no_script(folder):
    reader = read(folder)
    assert "script" not in {tag for tag, _ in reader.elements}
    for tag, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in (folder / "report.html").read_text()
    (policy,) = (tag["content"] for tag in reader.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_hostile_names_are_text(folder):
    """The folder in the settings and in the command, and a figure's file name as its caption."""
    texts = read(folder).texts
    assert HOSTILE in texts
    assert FIGURE_NAMES[2] in texts
    assert any(shlex.quote(f"--out={HOSTILE}") in text for text in texts)


def test_every_picture_is_whole_and_known_figures_come_first(folder):
    """Each figure has a width of its own."""
    pictures = read(folder).all("img")
    assert len(pictures) == 2 * 4 + len(FIGURE_NAMES)
    for attributes in pictures:
        assert len(attributes["alt"]) > 4
        image(attributes["src"]).load()
    widths = [image(attributes["src"]).width for attributes in pictures if "class" not in attributes]
    in_order = ["policies", "loss", "<img src=x onerror=alert(1)>", "zebra"]
    assert widths == [20 + FIGURE_NAMES.index(name) for name in in_order]


def test_all_settings_are_listed_and_the_changed_ones_twice(folder, settings):
    text = "".join(read(folder).texts)
    differing, everything = text[text.index("What differs") :].split("All settings")
    changed = changes(settings, default_settings("cartpole", "dpo"))
    assert set(changed) == {"seeds", "num-pairs", "dpo.beta", "eval-episodes", "out"}
    assert set(changed) <= set(page.flat(dataclasses.asdict(settings)))
    for name in page.flat(dataclasses.asdict(settings)):
        assert f"\n{name}" in everything, name
        assert (f"\n{name}" in differing) == (name in changed), name
    assert "\ndpo.beta0.30.1\n" in differing  # name, value and default, in cells of their own
    assert f"{python()} -m experiments.run --task=cartpole" in text
    assert flag("eval_episodes") in changed


# --- animations -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policies(outcome):
    return arrays.policies(outcome)


@pytest.fixture(scope="module")
def played(policies, results):
    return animations.animate(jaxpref.cartpole(), policies, results)


def seconds(gif):
    """How long one repetition takes."""
    total, opened = 0, Image.open(io.BytesIO(gif))
    for place in range(opened.n_frames):
        opened.seek(place)
        total += opened.info["duration"]
    return total / 1000


def test_an_animation_shows_the_first_episode_of_the_first_seeds_evaluation(played, policies, settings):
    """Of pi2, pi1, and the policies trained on 8 pairs, which are second of two sizes."""
    task, num_sizes = jaxpref.cartpole(), len(SIZES)
    assert [each.path for each in played] == ["policies.pi2", "policies.pi1", "rows.1.policy", "rows.3.policy"]
    places = [("pi2", 0), ("pi1", 0), ("trained_pi1", (0, num_sizes - 1)), ("trained_pi2", (0, num_sizes - 1))]
    key = animations.with_keys(lambda config, keys: keys.evaluate, None, np.uint32(SEEDS[0]))
    evaluate = jax.jit(jaxpref.evaluate, static_argnums=3)
    shown = [jax.tree.map(lambda leaf, place=place: leaf[place], policies[name]) for name, place in places]
    returns = [float(evaluate(task, policy, key, settings.eval_episodes)[0]) for policy in shown]
    assert [each.total for each in played] == returns
    assert len(set(returns)) > 1  # or the next test would say nothing


def test_all_begin_with_the_same_picture_and_repeat_together(played):
    """A step of CartPole is 0.02 s; the end takes 1.2 s more."""
    first = [np.asarray(Image.open(io.BytesIO(each.gif)).convert("RGB")).astype(int) for each in played]
    assert all(np.abs(other - first[0]).max() < 40 for other in first)
    longest = max(each.total for each in played)
    np.testing.assert_allclose([seconds(each.gif) for each in played], 0.02 * longest + 1.2, atol=0.03)


def test_equal_policies_play_equally_and_one_that_is_not_finite_does_not_play(policies, results):
    ruined = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), policies["trained_pi1"])
    changed = policies | {"pi1": policies["pi2"], "trained_pi1": ruined}
    pi2, pi1, trained = animations.animate(jaxpref.cartpole(), changed, results)
    assert pi2._replace(path="") == pi1._replace(path="")
    assert trained.path == "rows.3.policy"


def test_an_observation_of_no_axis_is_drawn_as_one_number():
    """FrozenLake shows the number of its field, and nothing else."""
    task = jaxpref.task("FrozenLake-misc", horizon=3)
    assert task.obs_shape == ()
    obs, steps = np.zeros((3, 1), np.float32), np.zeros(3, np.float32)
    drawn = animations._animation(task, "policies.pi2", Trajectory(obs, steps, steps, obs, np.ones(3, bool)), 3)
    assert drawn.gif.startswith(b"GIF")


# --- written again ----------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(folder, tmp_path, monkeypatch):
    """A copy of the folder in `results`, where the program looks for it. JAX is set up already."""
    shutil.copytree(folder, tmp_path / "results" / "cartpole-dpo")
    (tmp_path / "results" / "evidence").mkdir()
    store.save_json(tmp_path / "results" / "evidence" / "summary.json", {"claims": []})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.harness.devices.set_up_jax", lambda num_cpu_devices: None)
    return tmp_path / "results" / "cartpole-dpo"


def test_pages_are_written_again_in_every_folder_of_an_experiment(finished, folder, capsys):
    """The same files give the same bytes. Folders of other programs stay as they are."""
    (finished / "report.html").unlink()
    page.main([])
    assert capsys.readouterr().out.split() == ["results/cartpole-dpo/report.html"]
    assert (finished / "report.html").read_bytes() == (folder / "report.html").read_bytes()
    assert not (finished.parent / "evidence" / "report.html").exists()


def truncate(folder):
    data = (folder / "policies.npz").read_bytes()
    (folder / "policies.npz").write_bytes(data[: len(data) // 2])


def lose_a_layer(folder):
    policies = store.load_params(folder / "policies.npz")
    store.save_pytree(folder / "policies.npz", {"pi1": policies["pi1"]})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "summary.json").unlink(), "summary.json"),
        (lambda folder: (folder / "summary.json").write_text("{"), "cartpole-dpo"),
        (lambda folder: (folder / "summary.json").write_text("{}"), "config"),
        (truncate, "policies.npz"),
        (lose_a_layer, "pi2"),
    ],
)
def test_a_folder_without_results_is_named_and_its_page_stays(finished, capsys, damage, named):
    damage(finished)
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


def test_a_folder_whose_name_is_not_unicode_has_its_page(results, tmp_path):
    page.write(tmp_path, results | {"experiment": "\udcff"}, [])
    assert "&#56575;" in (tmp_path / "report.html").read_text()


# --- in a browser -----------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = shlex.split(
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --allow-file-access-from-files --enable-logging=stderr"
)
PROBE = """<!doctype html><body><iframe src="PAGE" style="width: 390px; height: 800px; border: 0"></iframe><script>
window.onload = () => {
  const inner = document.querySelector("iframe").contentDocument;
  inner.querySelectorAll("details").forEach(details => details.open = true);
  const seen = {
    width: inner.documentElement.scrollWidth,
    pictures: [...inner.images].map(image => image.naturalWidth),
    numbers: [...inner.querySelectorAll("[data-path]")].map(
      number => [number.dataset.path, number.dataset.value, number.innerText]),
    scripts: inner.scripts.length,
  };
  document.body.textContent = JSON.stringify(seen);
};
</script></body>"""
"""A page around the page. It may look inside; the inner page keeps its policy against scripts."""


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
def test_a_browser_shows_all_of_it_on_a_phone_without_complaint(folder, results, tmp_path):
    (tmp_path / "probe.html").write_text(PROBE.replace("PAGE", (folder / "report.html").as_uri()))
    arguments = [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "probe.html").as_uri()]
    done = subprocess.run([BROWSER, *FLAGS, *arguments], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    seen = json.loads("".join(Reader(done.stdout).texts))
    assert seen["width"] <= 390  # what is wider scrolls in a box of its own
    assert seen["scripts"] == 0
    assert len(seen["pictures"]) == 2 * 4 + len(FIGURE_NAMES)
    assert min(seen["pictures"]) > 0
    assert {path for path, _, _ in seen["numbers"]} == set(shown_numbers(results))
    for path, value, text in seen["numbers"]:
        assert json.loads(value) == leaves(results)[path], path
        assert text
