"""The page for labelling, in a browser: keys, mouse, undo, two tabs, a phone, a server that is killed."""

import json
import re
import shutil
import signal
from collections import Counter

import jax
import numpy as np
import pytest
from test_asking import TASK, free_port, start_program, write_pairs

from experiments.asking.server import serving
from experiments.asking.site import Site
from jaxpref import store

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
NUM_PAIRS = 30
KEYS = {"ArrowLeft": "left", "ArrowRight": "right", "ArrowUp": "tie", "ArrowDown": "skip"}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def program(tmp_path):
    """(pairs, address, port, process in a list) of a running program."""
    pairs, port = write_pairs(tmp_path / "pairs.npz", NUM_PAIRS), free_port()
    process, address = start_program(pairs, port)
    running = [process]
    yield pairs, address, port, running
    running[0].kill()
    running[0].communicate()


def open_page(context, address, said):
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#asking[data-question]")
    return page


def question(page):
    return page.get_attribute("#asking", "data-question")


def and_next(page, act):
    """Do something, wait until another question is on the screen, and return the one before."""
    before = question(page)
    act()
    page.wait_for_function("id => document.getElementById('asking').dataset.question !== id", arg=before)
    return before


def answers_in(pairs):
    lines = [json.loads(line) for line in pairs.with_name("labels.jsonl").read_text().splitlines()[1:]]
    return [line for line in lines if not line["note"].get("undo")]


def test_a_person_labels_thirty_pairs(browser, program):
    """Keys and mouse, undo, the page loaded again, another tab, and the server killed in between."""
    pairs, address, port, running = program
    said, context = [], browser.new_context(viewport={"width": 1000, "height": 800})
    page = open_page(context, address, said)
    expected = []
    for key in [*KEYS, "ArrowLeft", "ArrowRight"]:
        and_next(page, lambda key=key: page.keyboard.press(key))
        expected.append(KEYS[key])
    for button, choice in (("← A is better", "left"), ("B is better →", "right"), ("↑ same", "tie")):
        and_next(page, page.get_by_role("button", name=button).click)
        expected.append(choice)
    assert len(answers_in(pairs)) == len(expected) == 9

    last = and_next(page, lambda: page.keyboard.press("ArrowLeft"))
    and_next(page, lambda: page.keyboard.press("u"))
    assert question(page) == last  # it is asked again
    page.reload()
    page.wait_for_selector("#asking[data-question]")
    assert question(page) == last
    and_next(page, lambda: page.keyboard.press("ArrowRight"))
    expected += ["left", "right"]

    other = open_page(context, address, said)
    assert question(other) != question(page)
    copy = context.new_page()  # as a browser copies a tab: with its storage
    copy.add_init_script(f"sessionStorage.setItem('page', {json.dumps(page.evaluate('sessionStorage.page'))})")
    copy.goto(address)
    copy.wait_for_selector("#asking[data-question]")
    assert len({question(each) for each in (page, other, copy)}) == 3

    running[0].send_signal(signal.SIGKILL)
    running[0].communicate()
    before = question(page)
    page.keyboard.press("ArrowUp")
    page.get_by_text("No connection").wait_for()
    assert question(page) == before
    running[0], _ = start_program(pairs, port)
    page.wait_for_function("id => document.getElementById('asking').dataset.question !== id", arg=before)
    expected.append("tie")

    sides = {"left": ("first", "second"), "right": ("second", "first")}
    found = [(line["choice"], line["note"]["left"]) for line in answers_in(pairs)]
    for (choice, left), pressed in zip(found, expected, strict=True):
        assert choice == (sides[pressed][left != "first"] if pressed in sides else pressed)
    for _ in range(NUM_PAIRS):
        for tab in (page, other, copy):
            tab.keyboard.press("ArrowLeft")
            tab.wait_for_timeout(20)
    page.get_by_text("Everything is answered").wait_for()
    asked = Counter((line["pair"], line["note"]["repeat"]) for line in answers_in(pairs))
    assert sorted(asked.values()) == [1] * (NUM_PAIRS + 3 - 1) + [2]  # three came again, one was taken back
    assert not [words for words in said if "ERR_CONNECTION_REFUSED" not in words]
    context.close()


def test_the_page_on_a_phone_in_the_dark_with_the_keyboard_alone(browser, program):
    """Nothing is wider than the screen, every control has a name, and tab and space reach all of them."""
    said, context = (
        [],
        browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark", reduced_motion="reduce"),
    )
    page = open_page(context, program[1], said)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    tree = page.locator("main").aria_snapshot()
    names = re.findall(r"- '?button \"([^\"]+)\"", tree)
    assert [name.split()[0] for name in names] == ["←", "B", "↑", "↓", "u", "space", "p", "−", "+", "?"]
    assert len(re.findall(r"- img \"Clip [AB], [\d.]+ seconds of the task\"", tree)) == 2
    assert 'progressbar "How much is done"' in tree
    assert "button\n" not in tree  # one without a name
    picture = "document.getElementById('left').toDataURL()"
    still = page.evaluate(picture)
    page.wait_for_timeout(500)
    assert page.evaluate(picture) == still  # until the person asks for it
    page.keyboard.press("Space")
    page.wait_for_function(f"still => {picture} !== still", arg=still)
    for _ in range(2):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "pick-right"
    and_next(page, lambda: page.keyboard.press("Enter"))
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Help").is_visible()
    page.get_by_label("Your name").fill("Ana")
    page.keyboard.press("Escape")
    and_next(page, lambda: page.keyboard.press("ArrowDown"))
    assert [(line["choice"], line["note"]["person"]) for line in answers_in(program[0])][1] == ("skip", "Ana")
    assert not said
    context.close()


def test_a_round_of_teaching_shows_its_progress_and_what_it_has_changed(browser, tmp_path):
    """Two rounds of two pairs: questions, training, before and after, questions, and the end."""
    site, said = Site(TASK, "Lean to the left", rounds=2), []
    files = [
        (write_pairs(tmp_path / f"{number}.npz", 2, seed=number), tmp_path / f"{number}.jsonl") for number in (1, 2)
    ]
    episodes = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), store.load_pairs(files[0][0])[0]) for i in (0, 1)]
    context = browser.new_context()
    with serving(site, tmp_path, "127.0.0.1", 0) as address:
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        page.get_by_text("Getting ready").wait_for()
        for number in (1, 2):
            site.status["round"] = number
            site.ask(*files[number - 1])
            if number == 2:
                page.get_by_text("This is what the answers have changed").wait_for()
                assert page.locator("figcaption").all_inner_texts() == ["Before the last round", "After it"]
                assert page.locator("#pick-left, #tie, #undo").evaluate_all(
                    "all => all.every(one => !one.checkVisibility())"
                )
                page.keyboard.press("ArrowLeft")  # means nothing here
                page.keyboard.press("u")
                page.keyboard.press("ArrowRight")
            page.get_by_text(f"Round {number} of 2. 0 answered, 2 left").wait_for()
            page.wait_for_selector("#pick-left")
            and_next(page, lambda: page.keyboard.press("ArrowLeft"))
            page.keyboard.press("Enter")  # of no button: means nothing
            page.keyboard.press("ArrowDown")
            page.get_by_text("2 answered, 0 left").wait_for()
            assert site.answered.wait(5)
            site.progress("Learning from 2 pairs", 5.0)
            page.get_by_text("Learning from 2 pairs").wait_for()
            assert page.locator("#asking").is_hidden()
            page.keyboard.press("u")  # the training has begun
            site.show(*episodes)
        site.status["phase"] = "done"
        page.get_by_role("button", name="continue").click()
        page.get_by_text("Everything is answered").wait_for()
    assert not said
    assert [len(labels.read_text().splitlines()) for _, labels in files] == [3, 3]
    context.close()
