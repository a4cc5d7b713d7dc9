"""report.html: its numbers are those of summary.json, it needs nothing but itself, and a browser shows it.

The results are made by hand, with policies that never trained; tests/test_experiments.py has pages of real runs.
"""

import base64
import dataclasses
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import jaxpref
from experiments import ROOT, animations, command, page, python, report
from experiments.pipeline import keys_of
from experiments.settings import changes, default_settings, from_config, to_flags
from jaxpref import store
from jaxpref.types import Trajectory

SIZES, SEEDS = (4, 8), (7, 3, 11)
HOSTILE = "<script>alert('out')</script> & \"quoted\" {{ 7 * 7 }}"
FIGURE_NAMES = ["zebra", "loss", "<img src=x onerror=alert(1)>", "policies"]


# --- results made by hand ---------------------------------------------------------------------------------------------


def score(rng):
    """A policy's entry in summary.json."""
    return report.score(rng.normal(scale=100, size=len(SEEDS)))


def summary_of(settings, rng):
    rows = [
        {
            "num_pairs": size,
            "init": "pi2",
            "reference": reference,
            "policy": score(rng),
            "heldout_accuracy": rng.random(),
        }
        for reference in settings.reference
        for size in settings.num_pairs
    ]
    return {
        "experiment": settings.experiment,
        "task": settings.task,
        "method": settings.method,
        "seeds": list(settings.seeds),
        "config": json.loads(json.dumps(dataclasses.asdict(settings) | {"out": str(settings.out)})),
        "versions": report.versions(),
        "policies": {"pi1": score(rng), "pi2": score(rng)},
        "pi1_reached": [True, False, True],
        "pi2_reached": [True] * 3,
        "not_reached": {"pi1": [3], "pi2": []},
        "diverged": [],
        "rows": rows,
        "timing": {
            "import_s": 1.7039,
            "compile_s": 2.5,
            "run_s": 7.25,
            "total_s": 13.398,
            "stages": {"reinforce": {"compile_s": 1.0, "run_s": 0.123}, "dpo": {"compile_s": 1.5, "run_s": 7.127}},
        },
        "peak_memory_gib": 1.25,
    }


@pytest.fixture(scope="module")
def policies():
    """Random ones, each of its own, with the leading axes of policies.npz; the last seed's are not numbers."""
    task, rng = jaxpref.cartpole(), np.random.default_rng(5)
    shapes = jax.eval_shape(jaxpref.init_policy, jax.random.key(0), task)

    def draw(*axes):
        return jax.tree.map(lambda leaf: rng.normal(size=(*axes, *leaf.shape)).astype(np.float32), shapes)

    num_seeds = len(SEEDS)
    trained = {f"trained_{reference}": draw(num_seeds, len(SIZES)) for reference in ("pi1", "pi2")}
    return {"pi1": draw(num_seeds), "pi2": draw(num_seeds)} | trained


@pytest.fixture(scope="module")
def settings():
    words = f"--seeds {' '.join(map(str, SEEDS))} --num-pairs 4 8 --dpo.beta 0.3 --eval-episodes 4".split()
    return command.parse([*words, f"--out={HOSTILE}"], "cartpole", "dpo")


@pytest.fixture(scope="module")
def summary(settings):
    return summary_of(settings, np.random.default_rng(6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, policies, summary):
    """A folder of results with its page."""
    path = tmp_path_factory.mktemp("page") / "<b>results"
    path.mkdir()
    store.save_json(path / "summary.json", summary)
    store.save_pytree(path / "policies.npz", policies)
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


def leaves(tree, path=""):
    """Every number, and every None, of a JSON tree by its path."""
    if isinstance(tree, dict):
        return {
            k: v for name, part in tree.items() for k, v in leaves(part, f"{path}.{name}" if path else name).items()
        }
    if isinstance(tree, list):
        return {k: v for i, part in enumerate(tree) for k, v in leaves(part, f"{path}.{i}").items()}
    return {path: tree}


def image(uri):
    kind, data = re.fullmatch(r"data:image/(gif|png);base64,([A-Za-z0-9+/=]+)", uri).groups()
    opened = Image.open(io.BytesIO(base64.b64decode(data)))
    assert opened.format == kind.upper()
    return opened


# --- numbers ----------------------------------------------------------------------------------------------------------


def shown_numbers(summary):
    """The paths of everything that a page has to show."""
    wanted = ("policies.", "rows.", "timing.")
    return {
        path: value
        for path, value in leaves(summary).items()
        if path.startswith(wanted) and not path.endswith((".num_pairs", ".init", ".reference"))
    }


def test_every_number_is_there_with_all_its_digits(folder, summary):
    """Scores, intervals, every seed's return, held-out accuracies, seconds."""
    numbers, expected = read(folder).numbers, shown_numbers(summary)
    assert {path for path, _, _ in numbers} == set(expected)
    for path, value, _ in numbers:
        assert json.loads(value) == expected[path], path


def test_what_is_read_is_the_number_rounded(folder):
    for path, value, text in read(folder).numbers:
        digits = len(text.partition(".")[2])
        assert digits == (3 if "accuracy" in path else 2 if "timing" in path else 1)
        np.testing.assert_allclose(float(text.replace("−", "-")), float(value), atol=0.5001 * 10**-digits)


def test_a_number_that_there_is_not_is_none(settings, tmp_path, summary):
    """A row of which every seed diverged has no mean, and an interval of one seed none either."""
    lacking = json.loads(json.dumps(summary))
    row = lacking["rows"][3]
    row["policy"] |= {"mean": None, "iqm": None, "ci95": None, "per_seed": [None] * 3}
    row["heldout_accuracy"] = None
    page.write(tmp_path, lacking, [])
    numbers = {path: (value, text) for path, value, text in read(tmp_path).numbers}
    for name in (
        "policy.mean",
        "policy.iqm",
        "policy.ci95.0",
        "policy.ci95.1",
        "policy.per_seed.2",
        "heldout_accuracy",
    ):
        assert numbers[f"rows.3.{name}"] == ("null", "none")
    assert "on 0 of 0" in " ".join(read(tmp_path).texts)


def test_the_first_sentence_is_about_the_most_pairs_and_pi2(folder, summary):
    """Row 3: reference pi2, 8 pairs. Its wins over pi1 are counted seed by seed."""
    text = " ".join("".join(read(folder).texts).split())
    trained, pi1 = summary["rows"][3]["policy"]["per_seed"], summary["policies"]["pi1"]["per_seed"]
    wins = sum(one > other for one, other in zip(trained, pi1, strict=True))
    iqm = f"{summary['rows'][3]['policy']['iqm']:.{report.decimals(summary)}f}".replace("-", "−")
    assert "On 8 pairs, reference pi2, DPO takes the return from" in text
    assert f"(pi2) to {iqm} (IQM of 3 seeds," in text
    assert f"more than the same seed’s pi1 on {wins} of 3." in text


def test_without_reference_pi2_the_first_sentence_is_about_pi1():
    rows = [{"reference": "pi1", "num_pairs": size, "policy": {"per_seed": [2.0, 0.0]}} for size in (50, 10)]
    found = page.headline({"rows": rows, "policies": {"pi1": {"per_seed": [1.0, 1.0]}}})
    assert (found["path"], found["wins"], found["num_seeds"]) == ("rows.0.policy", 1, 2)


def test_warnings_are_those_of_the_terminal(folder, summary):
    assert report.warnings(summary) == ["pi1 never reached its target return for 1 of 3 seeds: 3"]
    assert report.warnings(summary)[0] in read(folder).texts


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
    assert policy.startswith("default-src 'none'")


def test_hostile_names_are_text(folder):
    """The folder in the settings and in the command, and a figure's file name as its caption."""
    texts = read(folder).texts
    assert HOSTILE in texts
    assert FIGURE_NAMES[2] in texts
    assert any(shlex.quote(f"--out={HOSTILE}") in text for text in texts)


def test_every_picture_is_whole_and_has_an_alternative_text(folder):
    pictures = read(folder).all("img")
    assert len(pictures) == 2 * 4 + len(FIGURE_NAMES)
    for attributes in pictures:
        assert len(attributes["alt"]) > 4
        image(attributes["src"]).load()


def test_known_figures_come_first_in_their_order(folder):
    """Each has a width of its own."""
    widths = [image(attributes["src"]).width for attributes in read(folder).all("img") if "class" not in attributes]
    in_order = ["policies", "loss", "<img src=x onerror=alert(1)>", "zebra"]
    assert widths == [20 + FIGURE_NAMES.index(name) for name in in_order]


# --- settings and command ---------------------------------------------------------------------------------------------


def test_makes_own_python_is_called_by_its_path(monkeypatch):
    """From the checkout, where commands are typed."""
    monkeypatch.setattr(sys, "prefix", str(ROOT / ".venv"))
    assert python() == ".venv/bin/python"
    monkeypatch.setattr(sys, "prefix", "/usr")
    assert python() == "python"


def test_the_command_on_the_page_means_the_settings_of_the_run(folder, settings):
    (line,) = (text for text in read(folder).texts if "-m experiments.run" in text)
    words = shlex.split(line)
    assert words[:3] == [python(), "-m", "experiments.run"]
    assert command.parse(words[3:]) == settings


def test_all_settings_are_listed_and_the_changed_ones_twice(folder, settings):
    text = "".join(read(folder).texts)
    differing, everything = text[text.index("What differs") :].split("All settings")
    changed = changes(settings, default_settings("cartpole", "dpo"))
    assert set(changed) == {"seeds", "num-pairs", "dpo.beta", "eval-episodes", "out"}
    for name in page.flat(dataclasses.asdict(settings)):
        assert everything.count(f"\n{name}") >= 1, name
        assert (f"\n{name}" in differing) == (name in changed), name
    assert "\ndpo.beta0.30.1\n" in differing  # name, value and default, in cells of their own


WORDS = st.lists(
    st.sampled_from(
        [
            "--preset=original",
            "--seeds 5 4294967295 0",
            "--num-pairs 7",
            "--reference pi2 pi1",
            "--out=-dash",
            "--out='a b; $(c) \"d\" \\'",
            "--save-preferences",
            "--dpo.beta=1",
            "--dpo.learning-rate=3e-7",
            "--dpo.loss=ipo",
            "--reinforce.no-normalise-advantage",
            "--reinforce.normalise-advantage",
            "--reinforce.shape-reward",
            "--ppo.no-reset-value",
            "--ppo.kl-penalty=loss",
            "--reward-model.batch-size=5",
            "--reward-model-epochs=2",
            "--processes=2 --process=1 --coordinator=host:9",
        ]
    ),
    max_size=5,
    unique=True,
)


@hypothesis.settings(max_examples=25, deadline=None)
@given(WORDS, st.sampled_from(["cartpole", "acrobot"]), st.sampled_from(["dpo", "rlhf"]))
def test_settings_go_to_json_and_to_flags_and_come_back(flags, task, method):
    settings = command.parse(shlex.split(" ".join(flags)), task, method)
    assert command.parse(shlex.split(shlex.join(to_flags(settings)))) == settings
    config = dataclasses.asdict(settings) | {"out": str(settings.out)}
    assert from_config(json.loads(json.dumps(config))) == settings


def test_the_defaults_need_no_flag_and_a_preset_only_its_own():
    assert to_flags(command.parse([], "acrobot", "rlhf")) == ["--task=acrobot", "--method=rlhf"]
    original = command.parse(["--preset", "original"], "cartpole", "dpo")
    assert to_flags(original) == ["--task=cartpole", "--method=dpo", "--preset=original"]


def test_a_setting_that_there_is_not_is_named():
    config = dataclasses.asdict(default_settings("cartpole", "dpo"))
    with pytest.raises(ValueError, match="unknown settings: temperature"):
        from_config(config | {"dpo": config["dpo"] | {"temperature": 1.0}})


# --- animations -------------------------------------------------------------------------------------------------------


def gifs(folder):
    return [image(attributes["src"]) for attributes in read(folder).all("img") if attributes.get("class") == "moving"]


def seconds(gif):
    """How long one repetition takes."""
    total = 0
    for place in range(gif.n_frames):
        gif.seek(place)
        total += gif.info["duration"]
    return total / 1000


def test_an_animation_shows_the_first_episode_of_the_first_seeds_evaluation(folder, policies, summary):
    """Of pi2, pi1, and the policies trained on 8 pairs, which stand second of two sizes."""
    task = jaxpref.cartpole()
    played = animations.animate(task, summary, folder)
    assert [animation.path for animation in played] == [
        "policies.pi2",
        "policies.pi1",
        "rows.1.policy",
        "rows.3.policy",
    ]
    places = [("pi2", 0), ("pi1", 0), ("trained_pi1", (0, 1)), ("trained_pi2", (0, 1))]
    shown = [jax.tree.map(lambda leaf, place=place: leaf[place], policies[name]) for name, place in places]
    evaluate = jax.jit(jaxpref.evaluate, static_argnums=3)
    key = keys_of(np.uint32(SEEDS[0])).evaluate
    assert [animation.total for animation in played] == [float(evaluate(task, params, key, 4)[0]) for params in shown]


def test_all_begin_with_the_same_picture_and_repeat_together(folder, policies, summary):
    """The initial state is the same. A step of CartPole is 0.02 s; 1.2 s more for the end."""
    played, moving = animations.animate(jaxpref.cartpole(), summary, folder), gifs(folder)
    first = [np.asarray(gif.convert("RGB")).astype(int) for gif in moving]
    assert all(np.abs(other - first[0]).max() < 40 for other in first)
    longest = max(animation.total for animation in played)
    np.testing.assert_allclose([seconds(gif) for gif in moving], 0.02 * longest + 1.2, atol=0.03)
    assert len({animation.total for animation in played}) > 1  # or this would say nothing


def test_equal_policies_draw_equal_noise(tmp_path, policies, summary):
    store.save_pytree(tmp_path / "policies.npz", policies | {"pi1": policies["pi2"]})
    pi2, pi1, *_ = animations.animate(jaxpref.cartpole(), summary, tmp_path)
    assert pi2._replace(path="") == pi1._replace(path="")


def test_an_observation_of_no_axis_is_drawn_as_one_number():
    """FrozenLake shows the number of its field, and nothing else."""
    task = jaxpref.task("FrozenLake-misc", horizon=3)
    assert task.obs_shape == ()
    obs, steps = np.zeros((3, 1), np.float32), np.zeros(3, np.float32)
    played = animations._animation(task, "policies.pi2", Trajectory(obs, steps, steps, obs, np.ones(3, bool)), 3)
    assert played.gif.startswith(b"GIF")


def test_a_policy_that_is_not_made_of_numbers_does_not_play(tmp_path, policies, summary):
    ruined = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), policies["trained_pi1"])
    store.save_pytree(tmp_path / "policies.npz", policies | {"trained_pi1": ruined})
    played = animations.animate(jaxpref.cartpole(), summary, tmp_path)
    assert [animation.path for animation in played] == ["policies.pi2", "policies.pi1", "rows.3.policy"]
    page.write(tmp_path, summary, played)
    assert len(read(tmp_path).all("img")) == 2 * 3


# --- written anew -----------------------------------------------------------------------------------------------------


@pytest.fixture
def results(folder, tmp_path, monkeypatch):
    """A copy of the folder below `results`, which is where the program looks; JAX is set up already."""
    shutil.copytree(folder, tmp_path / "results" / "cartpole-dpo")
    (tmp_path / "results" / "evidence").mkdir()
    store.save_json(tmp_path / "results" / "evidence" / "summary.json", {"claims": []})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.stages.set_up_jax", lambda num_cpu_devices: None)
    return tmp_path / "results"


def test_pages_are_written_anew_in_every_folder_of_an_experiment(results, folder, capsys):
    """The same files give the same bytes; what another program has left is let alone."""
    (results / "cartpole-dpo" / "report.html").unlink()
    page.main([])
    assert capsys.readouterr().out.split() == ["results/cartpole-dpo/report.html"]
    assert (results / "cartpole-dpo" / "report.html").read_bytes() == (folder / "report.html").read_bytes()
    assert not (results / "evidence" / "report.html").exists()


def truncate(folder):
    data = (folder / "policies.npz").read_bytes()
    (folder / "policies.npz").write_bytes(data[: len(data) // 2])


def exchange(folder):
    """Policies of another task in place of these."""
    shapes = jax.eval_shape(jaxpref.init_policy, jax.random.key(0), jaxpref.acrobot())
    params = jax.tree.map(lambda leaf: np.zeros((3, *leaf.shape), np.float32), shapes)
    store.save_pytree(
        folder / "policies.npz", {"pi1": params, "pi2": params, "trained_pi1": params, "trained_pi2": params}
    )


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "summary.json").unlink(), "summary.json"),
        (lambda folder: (folder / "summary.json").write_text("{"), "cartpole-dpo"),
        (lambda folder: (folder / "summary.json").write_text("{}"), "config"),
        (lambda folder: (folder / "policies.npz").unlink(), "policies.npz"),
        (truncate, "policies.npz"),
        (exchange, "policy/bias"),
    ],
)
def test_a_folder_without_results_is_named_and_its_page_stays(results, capsys, damage, named):
    target = results / "cartpole-dpo"
    damage(target)
    before = (target / "report.html").read_bytes()
    with pytest.raises(SystemExit) as exit:
        page.main([str(target)])
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {target}")
    assert named in line
    assert (target / "report.html").read_bytes() == before


def test_a_flag_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as exit:
        page.main(["--seeds", "3"])
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: unknown flag --seeds: folders are all that can be given\n"


def test_a_folder_whose_name_is_not_unicode_has_its_page(settings, summary, tmp_path):
    page.write(tmp_path, summary | {"experiment": "\udcff"}, [])
    assert "&#56575;" in (tmp_path / "report.html").read_text()


def test_without_results_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        page.main([])
    assert "run an experiment first" in capsys.readouterr().err


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
"""A page around the page: it may look inside, and the inner one keeps its policy against scripts."""


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
def test_a_browser_shows_all_of_it_on_a_phone_without_complaint(folder, summary, tmp_path):
    (tmp_path / "probe.html").write_text(PROBE.replace("PAGE", (folder / "report.html").as_uri()))
    arguments = [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "probe.html").as_uri()]
    done = subprocess.run([BROWSER, *FLAGS, *arguments], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    seen = json.loads("".join(Reader(done.stdout).texts))
    assert seen["width"] <= 390  # what is wider scrolls in a box of its own
    assert seen["scripts"] == 0
    assert len(seen["pictures"]) == 2 * 4 + len(FIGURE_NAMES)
    assert min(seen["pictures"]) > 0
    assert {path for path, _, _ in seen["numbers"]} == set(shown_numbers(summary))
    for path, value, text in seen["numbers"]:
        assert json.loads(value) == leaves(summary)[path], path
        assert text
