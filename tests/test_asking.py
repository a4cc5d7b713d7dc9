"""Asking people: which pair is next, what the file of answers holds, whom the server lets in, what the report says."""

import dataclasses
import http.client
import io
import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
from pathlib import Path
from urllib.parse import urlsplit

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_trajectories
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scripted_person import Person
from starlette.requests import Request

from experiments.asking import answers, quality, server
from experiments.asking.clips import COLUMNS, Clips
from experiments.asking.site import Site
from jaxpref import store, tasks
from jaxpref.annotators import Label
from jaxpref.files.labels import read_labels
from jaxpref.preferences import apply_labels
from jaxpref.types import Task

ROOT = Path(__file__).parents[1]
HORIZON = 6
TASK = tasks.offline(obs_size=3, num_actions=2, horizon=HORIZON)


def write_pairs(path, num_pairs, seed=0):
    """Pairs of random episodes; pair i's clips have lengths that depend on i."""
    rng = np.random.default_rng(seed)
    sides = [random_trajectories(rng, rng.integers(1, HORIZON + 1, num_pairs), HORIZON, obs_size=3) for _ in range(2)]
    store.save_pairs(path, *sides)
    return path


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path / "pairs.npz", 20)


def ask(pairs, repeats=0.0, num_pairs=20):
    return answers.Questions(pairs, num_pairs, pairs.with_name("labels.jsonl"), repeats)


def lines_of(pairs):
    return [json.loads(line) for line in pairs.with_name("labels.jsonl").read_text().splitlines()]


# --- questions and the file -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.text("0123456789abcdef", min_size=64, max_size=64))
def test_each_pair_is_asked_once_and_some_again_with_sides_exchanged(num_pairs, repeats, sha256):
    questions = answers.questions_of(num_pairs, sha256, repeats)
    order = list(questions)
    assert sorted(pair for pair, repeat in order if not repeat) == list(range(num_pairs))
    again = [pair for pair, repeat in order if repeat]
    assert len(again) == len(set(again)) == round(repeats * num_pairs)
    for pair in again:
        assert order.index((pair, False)) < order.index((pair, True))
        assert {questions[pair, False].left, questions[pair, True].left} == {"first", "second"}
    assert len({question.id for question in questions.values()}) == len(order)
    assert questions == answers.questions_of(num_pairs, sha256, repeats)  # the same after a restart


def test_sides_are_exchanged_at_random():
    """Of 2000 pairs, half have the first one on the left."""
    questions = answers.questions_of(2000, "0123456789abcdef" * 4, 0.0)
    share = np.mean([question.left == "first" for question in questions.values()])
    assert abs(share - 0.5) < 0.06  # 5 sigma


def test_an_answer_is_a_line_that_the_library_reads(pairs):
    """Left of a pair whose second one is on the left is "second"."""
    asked = ask(pairs)
    (first,) = asked.give("page")[:1]
    asked.answer(first.id, "left", 1.25, "Ana", "page")
    other = next(question for question in asked.all.values() if question.left != first.left)
    asked.answer(other.id, "left", 2, "Ana", "page")
    head, *rest = lines_of(pairs)
    assert list(head) == ["pairs"]
    assert [(line["pair"], line["choice"]) for line in rest] == [(first.pair, first.left), (other.pair, other.left)]
    note = rest[0]["note"]
    assert (note["seconds"], note["person"], note["left"], note["repeat"]) == (1.25, "Ana", first.left, False)
    labels = store.load_labels(pairs.with_name("labels.jsonl"), pairs)
    np.testing.assert_array_equal(np.flatnonzero(labels.weight), sorted([first.pair, other.pair]))


def test_two_pages_never_have_the_same_pair_within_two_minutes(pairs, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(answers.time, "time", lambda: now[0])
    asked = ask(pairs, repeats=1.0)
    one = asked.give("one")
    others = {each.pair for number in range(5) for each in asked.give(f"other {number}")}
    assert len(one) == answers.HELD
    assert len(others) == 5 * answers.HELD
    assert not {question.pair for question in one} & others
    assert asked.give("one") == one  # the page was loaded again
    asked.answer(one[0].id, "left", 1, "", "one")
    for page in ("other 0", "third"):
        assert not {question.pair for question in one} & {question.pair for question in asked.give(page)}
    assert asked.give("one")[:2] == one[1:]
    now[0] += answers.LEASE_S + 1
    assert {question.pair for question in one} & {question.pair for question in asked.give("fourth")}
    assert not {question.pair for question in asked.give("one")} & {one[1].pair, one[2].pair}


def test_a_page_gets_new_questions_in_place_of_answered_ones_in_the_order_of_the_plan(pairs):
    """Repetitions come where they were planned, at least five questions later."""
    asked = ask(pairs, repeats=0.5)
    seen = []
    while held := asked.give("page"):
        seen.append(held[0])
        asked.answer(held[0].id, "tie", 1, "", "page")
        assert len(held) <= answers.HELD
        assert held[0] not in asked.give("page")
    assert len(seen) == len(set(seen)) == 30 == asked.num_answered
    places = {(question.pair, question.repeat): place for place, question in enumerate(seen)}
    assert min(place - places[pair, False] for (pair, repeat), place in places.items() if repeat) > answers.LATER - 2


def test_undo_takes_back_the_last_answer_of_the_page_and_asks_it_again(pairs):
    asked = ask(pairs, repeats=1.0)
    questions = list(asked.all.values())
    first, again = asked.all[questions[0].pair, False], asked.all[questions[0].pair, True]
    asked.answer(first.id, "left", 1, "", "page")
    asked.answer(again.id, "left", 1, "", "page")  # the other trajectory
    asked.answer(questions[1].id, "tie", 1, "", "other")
    assert asked.last("page") == again
    for _ in range(2):  # a request that is sent again takes nothing else back
        asked.undo(again.id, "page")
    assert lines_of(pairs)[-1]["choice"] == first.left  # what counted before
    assert again in asked.give("page")
    assert asked.last("page") == first
    asked.undo(first.id, "page")
    assert lines_of(pairs)[-1]["choice"] == "skip"
    assert asked.last("page") is None
    asked.undo(questions[1].id, "page")  # another page's
    restarted = ask(pairs, repeats=1.0)
    assert restarted.answers == asked.answers
    assert list(restarted.answers) == [(questions[1].pair, False)]
    assert len(lines_of(pairs)) == 1 + 3 + 2


def test_the_same_answer_again_is_one_line_and_another_one_a_second(pairs):
    """A page whose connection broke does not know whether its answer arrived."""
    asked = ask(pairs)
    (question,) = asked.give("page")[:1]
    for choice in ("left", "left", "right"):
        asked.answer(question.id, choice, 1, "", "page")
    assert [line["choice"] == question.left for line in lines_of(pairs)[1:]] == [True, False]
    with pytest.raises(KeyError):
        asked.answer("unknown", "left", 1, "", "page")


def test_a_line_that_a_crash_cut_off_is_removed_and_a_whole_one_is_kept(pairs):
    labels = pairs.with_name("labels.jsonl")
    asked = ask(pairs)
    for question in asked.give("page")[:2]:
        asked.answer(question.id, "left", 1, "", "page")
    whole = labels.read_bytes()
    for cut in range(whole.rindex(b"\n", 0, -1) + 2, len(whole) - 1):
        labels.write_bytes(whole[:cut])
        assert len(ask(pairs).answers) == 1
        assert labels.read_bytes() == whole[: whole.rindex(b"\n", 0, -1) + 1]
    labels.write_bytes(whole[:-1])  # only the end of the line is missing
    assert len(ask(pairs).answers) == 2
    assert labels.read_bytes() == whole


def test_an_answer_that_cannot_be_written_leaves_no_part_of_a_line(pairs):
    """The system allows 40 bytes more, and writes as many."""
    asked = ask(pairs)
    (question,) = asked.give("page")[:1]
    before = pairs.with_name("labels.jsonl").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, hard))
    try:
        with pytest.raises(OSError, match=r"No space|too large"):
            asked.answer(question.id, "left", 1, "", "page")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert pairs.with_name("labels.jsonl").read_bytes() == before
    asked.answer(question.id, "right", 1, "", "page")
    assert ask(pairs).answers == asked.answers


def test_answers_to_other_pairs_are_refused(pairs, tmp_path):
    ask(pairs)
    write_pairs(pairs, 20, seed=1)
    with pytest.raises(ValueError, match="these are answers to other pairs"):
        ask(pairs)


# --- clips ------------------------------------------------------------------------------------------------------------


def test_a_clip_has_every_stride_th_picture_and_the_last_one(pairs):
    """Six steps of the offline task: seven pictures, in rows of ten; both sides in one scale."""
    first, second = store.load_pairs(pairs)
    long = int(np.argmax(first.mask.sum(-1)))
    both = tuple(type(first)(*(np.asarray(leaf[long]) for leaf in vars(side).values())) for side in (first, second))
    clips = Clips(TASK, both)
    described = clips.describe()
    assert described["frames"] == [int(side.mask.sum()) + 1 for side in both]
    assert (described["speed"], described["columns"]) == (1, COLUMNS)
    assert described["seconds_per_frame"] == pytest.approx(0.1)
    assert [picture[:8] for picture in clips.draw()] == [b"\x89PNG\r\n\x1a\n"] * 2


def test_clips_of_images_and_of_a_task_with_its_own_drawing():
    """Two steps are three pictures in a row of ten: images of 2 x 3 are enlarged to 106 x 159, drawings stay 4 x 5."""
    rng = np.random.default_rng(0)
    one = jax.tree.map(lambda leaf: np.asarray(leaf[0]), random_trajectories(rng, [2], HORIZON, obs_size=12))
    image = Task("other", None, None, HORIZON, obs_size=12, num_actions=2, obs_shape=(2, 3, 2))
    drawn = dataclasses.replace(image, draw=lambda obs: np.full((4, 5, 3), 7, np.uint8))
    for task, size in ((image, (1590, 106)), (drawn, (50, 4))):
        clips = Clips(task, (one, one))
        assert clips.describe()["frames"] == [3, 3]
        assert [Image.open(io.BytesIO(picture)).size for picture in clips.draw()] == [size] * 2


# --- the server -------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(pairs, tmp_path):
    """(address, site) of a server that asks about 20 pairs."""
    site = Site(TASK, "Which one?")
    site.ask(pairs, pairs.with_name("labels.jsonl"))
    with server.serving(site, tmp_path, "127.0.0.1", 0) as address:
        yield address, site


def send(address, method="POST", path="/answer", body=b"", **headers):
    """The status of a request with exactly these headers."""
    parts = urlsplit(address)
    token = parts.query.removeprefix("token=")
    own = {"Host": parts.netloc, "Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    own |= {"Content-Length": str(len(body))} if body is not None else {}
    own |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in own.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    reply = connection.getresponse()
    reply.read()
    connection.close()
    return reply


ANSWER = {"page": "p", "question": "q", "choice": "left", "seconds": 1, "person": ""}
HOSTILE = {
    "no token": {"Authorization": None},
    "another token": {"Authorization": "Bearer guess"},
    "a token of another kind": {"Authorization": "Basic guess"},
    "a token that is no ASCII": {"Authorization": "Bearer \xff\xfe"},
    "another host": {"Host": "evil.example"},
    "no host": {"Host": ""},
    "a host that is no host": {"Host": "[::1"},
    "another machine's address": {"Host": "10.0.0.1:80"},
    "another origin": {"Origin": "http://evil.example"},
    "another port's origin": {"Origin": "http://127.0.0.1:1"},
    "no origin at all": {"Origin": "null"},
    "a form": {"Content-Type": "application/x-www-form-urlencoded"},
    "plain text": {"Content-Type": "text/plain"},
    "no type": {"Content-Type": None},
    "a huge body": {"body": json.dumps(ANSWER | {"person": "x" * 10_000_000}).encode()},
    "a body just too large": {"body": json.dumps(ANSWER).encode().ljust(4097)},
    "a length that lies": {"body": b"{}", "Content-Length": "4097"},
    "a length that is no number": {"body": b"", "Content-Length": "-1"},
    "no JSON": {"body": b"left"},
    "nothing": {"body": b""},
    "JSON that was cut off": {"body": json.dumps(ANSWER).encode()[:-1]},
    "deep JSON": {"body": b"[" * 4000},
    "no UTF-8": {"body": b"\xff\xfe{}"},
    "a list": {"body": b"[]"},
    "a number": {"body": b"1"},
    "null": {"body": b"null"},
    "an unknown question": {"body": ANSWER},
    "a path as a question": {"body": ANSWER | {"question": "../../etc/passwd"}},
    "a number as a question": {"body": ANSWER | {"question": 3}},
    "an unknown choice": {"body": ANSWER | {"choice": "first"}},
    "a choice that is a list": {"body": ANSWER | {"choice": ["left"]}},
    "negative seconds": {"body": ANSWER | {"seconds": -1}},
    "seconds that are no number": {"body": ANSWER | {"seconds": float("nan")}},
    "endless seconds": {"body": ANSWER | {"seconds": float("inf")}},
    "seconds that are true": {"body": ANSWER | {"seconds": True}},
    "a page with a newline": {"body": ANSWER | {"page": "p\n"}},
    "a long name": {"body": ANSWER | {"person": "x" * 61}},
    "half a character as a name": {"body": ANSWER | {"person": "\ud800"}},
    "an origin that is no address": {"Origin": "http://[::1"},
    "a field too many": {"body": ANSWER | {"weight": 1e9}},
    "a field too few": {"body": {"page": "p"}},
    "another method": {"method": "PUT"},
    "a deletion": {"method": "DELETE"},
    "an answer by GET": {"method": "GET"},
    "another path": {"path": "/labels.jsonl"},
    "a file": {"path": "/../../etc/passwd", "method": "GET"},
    "a clip outside": {"path": "/clip/..%2f..%2fetc/passwd", "method": "GET"},
    "a comparison that is not there": {"path": "/clip/shown-1/left", "method": "GET"},
    "a side that is not there": {"path": "/clip/QUESTION/middle", "method": "GET"},
    "the page without a token": {"path": "/", "method": "GET"},
    "the page with another token": {"path": "/?token=guess", "method": "GET"},
}


def test_hostile_requests_are_refused_and_nothing_is_written(served, pairs):
    address, site = served
    before = pairs.with_name("labels.jsonl").read_bytes()
    question = next(iter(site.questions.all.values())).id
    for name, request in HOSTILE.items():
        request = {"body": json.dumps(ANSWER | {"question": question}).encode()} | request
        request["body"] = json.dumps(request["body"]).encode() if isinstance(request["body"], dict) else request["body"]
        if "path" in request:
            request["path"] = request["path"].replace("QUESTION", question)
        try:
            status = send(address, **request).status
        except (ConnectionError, http.client.BadStatusLine):  # refused before all of it was read
            status = 400
        assert 400 <= status < 500, (name, status)
        assert pairs.with_name("labels.jsonl").read_bytes() == before, name
    assert {path.name for path in pairs.parent.iterdir()} == {"pairs.npz", "labels.jsonl", ".token"}
    body = json.dumps(ANSWER | {"question": question}).encode()
    assert send(address, body=body).status == 200  # the request that all of them are like
    assert len(pairs.with_name("labels.jsonl").read_bytes()) > len(before)


def test_the_page_needs_nothing_from_elsewhere_and_may_not_be_framed(served):
    address, _ = served
    reply = send(address, "GET", "/?" + urlsplit(address).query, None, Authorization=None)
    assert reply.status == 200
    policy = reply.headers["Content-Security-Policy"]
    for part in ("default-src 'none'", "frame-ancestors 'none'", "connect-src 'self'", "base-uri 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    assert "http" not in server.PAGE.replace("http-equiv", "")
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert (Path(pairs_of(served)).stat().st_mode & 0o777) == 0o600


def pairs_of(served):
    return served[1].questions._labels.with_name(".token")


def test_another_address_needs_the_token_too_and_a_name_that_is_ours(pairs, tmp_path):
    """With --host 0.0.0.0, other machines ask for an IP address or for the machine's name, not for a foreign one."""
    guard = server.Guard(None, "secret", "0.0.0.0")
    scope = {"type": "http", "path": "/state", "method": "GET", "query_string": b""}
    for host, status in (("10.1.2.3:8777", None), (socket.gethostname(), None), ("evil.example:8777", 400)):
        for token, expected in (("secret", status), ("guess", status or 403)):
            refusal = guard.refusal(
                Request(scope | {"headers": [(b"host", host.encode()), (b"authorization", f"Bearer {token}".encode())]})
            )
            assert (refusal and refusal[0]) == expected, host


def test_what_is_not_asked_now_is_refused_and_the_page_reads_why(pairs, tmp_path):
    """While a policy is trained, nothing is asked. A reply is JSON, whatever it says."""
    site = Site(TASK, "Which one?", rounds=2)
    site.ask(pairs, pairs.with_name("labels.jsonl"))
    with server.serving(site, tmp_path, "127.0.0.1", 0) as address:
        person = Person(address, None)
        (question, *_) = person.act("state")["questions"]
        site.progress("Learning")
        with pytest.raises(urllib.error.HTTPError) as error:
            person.act("answer", question=question["id"], choice="left", seconds=1, person="")
        assert (error.value.code, json.load(error.value)) == (404, {"detail": "this is not asked now"})
        assert person.act("undo", question=question["id"])["phase"] == "train"
        assert len(lines_of(pairs)) == 1


def test_a_pair_without_a_step_is_named(pairs):
    first, second = store.load_pairs(pairs)
    store.save_pairs(pairs, dataclasses.replace(first, mask=first.mask.at[7].set(False)), second)
    with pytest.raises(ValueError, match="pair 7 has a trajectory without a step"):
        Site(TASK, "").ask(pairs, pairs.with_name("labels.jsonl"))


def test_ten_writers_at_once_answer_every_pair_once(served, pairs):
    address, site = served
    people = [Person(address, lambda left, right: "left", name=f"writer{number}") for number in range(10)]
    threads = [threading.Thread(target=person.answer_all) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    lines = lines_of(pairs)[1:]
    assert sorted(line["pair"] for line in lines) == list(range(20))
    assert site.answered.is_set()
    read_labels(pairs.with_name("labels.jsonl").read_bytes().splitlines(), 20)


def test_a_clip_shows_the_side_that_the_question_has(served):
    """The number of pictures is the number of steps of the trajectory on that side, and one more."""
    address, site = served
    first, second = store.load_pairs(pairs_of(served).with_name("pairs.npz"))
    person = Person(address, None)
    for question in person.act("state")["questions"]:
        asked = site.questions.by_id[question["id"]]
        sides = (first, second) if asked.left == "first" else (second, first)
        for side, trajectory in zip(("left", "right"), sides, strict=True):
            pictures = person.pictures(question, side)
            assert len(pictures) == int(trajectory.mask[asked.pair].sum()) + 1
            assert pictures.max() == 255


# --- killed, as a program ---------------------------------------------------------------------------------------------


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def start_program(pairs, port):
    words = [sys.executable, "-m", "experiments.label", str(pairs), "--port", str(port)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if line.startswith("open "):
            return process, line.split()[1]
    raise AssertionError("the program did not start")


def test_a_killed_program_goes_on_and_no_confirmed_answer_is_lost(pairs):
    """Somebody answers, the server is killed, and the page that is still open goes on with the new one."""
    port = free_port()
    process, address = start_program(pairs, port)
    person, confirmed = Person(address, None), []
    for choice in ("left", "right", "tie", "skip"):
        (question, *_) = person.act("state")["questions"]
        person.act("answer", question=question["id"], choice=choice, seconds=0.5, person="")
        confirmed.append(question["id"])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(urllib.error.URLError):
        person.act("state")
    process, again = start_program(pairs, port)
    try:
        assert again == address
        view = person.act("state")
        assert (view["answered"], view["total"]) == (4, 22)  # two come again
        assert not {question["id"] for question in view["questions"]} & set(confirmed)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "4 answers" in printed
    assert process.returncode == 0


# --- the report -------------------------------------------------------------------------------------------------------


def test_kappa_of_published_examples():
    """Fleiss' and Wikipedia's 50 grant proposals: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no give 0.4. And by hand:
    agreement 3/4, chance 1/2 * 3/4 + 1/2 * 1/4 = 1/2, so 1/2."""
    first, second = ["yes"] * 25 + ["no"] * 25, ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert quality.cohens_kappa([*zip(first, second, strict=True)]) == pytest.approx(0.4)
    assert quality.cohens_kappa([*map(tuple, ("aa", "aa", "ba", "bb"))]) == pytest.approx(0.5)
    assert np.isnan(quality.cohens_kappa([("a", "a")] * 2))
    assert quality.cohens_kappa([("a", "b")] * 5) == 0
    assert np.isnan(quality.cohens_kappa([]))


@pytest.mark.parametrize(
    ("ratings", "alpha"),
    [
        (["0100000010", "1110010000"], 0.095),
        (["aabbdcccedda", "babbbccceddd"], 0.692),
        (["123321412***", "1233224125*3", "*3332342251*", "12332441251*"], 0.743),
    ],
    ids="ABC",
)
def test_alpha_of_published_examples(ratings, alpha):
    """Krippendorff, 2011, "Computing Krippendorff's Alpha-Reliability", examples A, B and C; "*" is "not asked"."""
    items = [[each for each in item if each != "*"] for item in zip(*ratings, strict=True)]
    assert quality.krippendorffs_alpha(items) == pytest.approx(alpha, abs=5e-4)


def answer_of(pair, choice, repeat=False, **note):
    return (pair, repeat), answers.Answer(choice, note)


def described(given, gaps, checks=0.0):
    return {line.name: line for line in quality.report(dict(given), np.array(gaps), checks)}


def test_a_report_hand_worked():
    """Pairs 0 to 3. Ana answers all, and pairs 0 and 1 again: the same, and the opposite. Bo is asked pair 2 again, and
    agrees. Three of six answers for a side are for the left. The true returns say first, first, second, and nothing."""
    ana, bo = {"person": "Ana", "seconds": 2.0}, {"person": "Bo", "seconds": 0.3}
    lines = described(
        [
            answer_of(0, "first", left="first", **ana),
            answer_of(1, "second", left="first", **ana),
            answer_of(2, "second", left="second", **ana),
            answer_of(3, "tie", left="first", **ana),
            answer_of(0, "first", True, left="second", **ana),
            answer_of(1, "first", True, left="second", **ana),
            answer_of(2, "second", True, left="second", **bo),
        ],
        gaps=[2.0, 1.0, -5.0, 0.0],
        checks=0.5,
    )
    assert lines["answers"].value == 7
    assert lines["the same again"].value == 0.5
    assert "1 of 2" in lines["the same again"].text
    assert lines["left side"].value == 3 / 6
    assert lines["checks missed"].value == 0  # pairs 2 and 0, four answers
    assert "0 of 4" in lines["checks missed"].text
    assert lines["faster than 0.5 s"].value == 1 / 7
    assert lines["ties"].value == 1 / 7
    assert lines["skips"].value == 0
    assert lines["Krippendorff's alpha, between people"].value is None  # Bo and Ana share one pair
    assert lines["answers"].text == "pairs: 4; people: Ana, Bo"


def test_a_repetition_whose_first_answer_was_taken_back_is_no_agreement():
    """And what somebody wrote by hand into a note is not trusted."""
    lines = described(
        [answer_of(0, "first", True, person=["Ana"]), answer_of(1, "skip", seconds="2")], gaps=[5.0, -1.0], checks=1
    )
    assert lines["the same again"].value is None
    assert lines["faster than 0.5 s"].value is None
    assert "0 of 1 clear pairs" in lines["checks missed"].text  # a skip misses nothing


def test_a_report_of_nothing_says_so():
    lines = described([], [np.nan, np.nan], checks=0.5)
    assert {name for name, line in lines.items() if line.value is not None} == {"answers"}


def test_models_are_judged_on_answers_that_they_have_not_seen():
    """A person who prefers a large first feature can be predicted, one who throws a coin cannot."""
    rng = np.random.default_rng(0)
    first, second = (random_trajectories(rng, [HORIZON] * 60, HORIZON, obs_size=3) for _ in range(2))
    larger = np.asarray(first.obs[..., 0].sum(-1) > second.obs[..., 0].sum(-1))
    for preferred, low, high in ((larger, 0.75, 1.0), (rng.random(60) < 0.5, 0.2, 0.75)):
        label = Label(jnp.asarray(preferred), jnp.ones(60), jnp.ones(60), jnp.ones(60))
        reward_model, dpo = quality.model_accuracy(TASK, apply_labels(first, second, label))
        assert low <= reward_model.value <= high
        assert (reward_model.name, dpo.name) == ("reward model", "DPO")
        assert 0 <= dpo.value <= 1
    few = jax.tree.map(lambda leaf: leaf[:9], apply_labels(first, second, label))
    assert [line.value for line in quality.model_accuracy(TASK, few)] == [None, None]
