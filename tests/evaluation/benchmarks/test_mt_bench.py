"""MT-Bench: two turns answered, judged once, grades read, judges that fail."""

import contextlib
import hashlib
import html
import json
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.parse

import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.chat import framed
from flm_jax.evaluation.benchmarks import (
    chat_endpoint,
    judge_prompts,
    judging,
    mt_bench,
    mt_bench_files,
)
from flm_jax.evaluation.benchmarks.base import Choices
from flm_jax.evaluation.benchmarks.judge_prompts import PROMPTS, judge_prompt
from flm_jax.evaluation.benchmarks.mt_bench_files import Question
from flm_jax.evaluation.benchmarks.registry import make_benchmark
from flm_jax.evaluation.benchmarks.runner import collect
from flm_jax.inference.answers import Answer
from helpers.benchmarks import Judge, mt_bench_questions
from helpers.files import json_lines


@pytest.fixture
def answered(tmp_path):
    """Questions of MT-Bench, and records of answers that repeat what was asked."""
    path = json_lines(tmp_path / "q.jsonl", *mt_bench_questions(3))
    benchmark = make_benchmark("mt_bench", path, Choices(chat=True))

    def echo(asked, wanted):
        turns = [(*prompt.before, prompt.text) for prompt in asked]
        yield [Answer(i, f"<{t[-1]}>", framed(*t), 1) for i, t in enumerate(turns) if wanted(i)]

    records = collect(benchmark, tmp_path, {}, echo)
    return mt_bench_files.read_questions(path), records


def test_both_turns_are_answered_and_written_as_fastchat_reads_them(tmp_path, answered):
    _, records = answered
    assert [(r["id"], r["turn"]) for r in records] == [
        (81 + i, t) for t in (0, 1) for i in range(3)
    ]
    assert records[3]["prompt"] == "more 0" and records[3]["before"] == ["ask 0", "<ask 0>"]
    assert "before" not in records[0]
    path = mt_bench.write_answers(tmp_path, records, "tiny")
    line = json.loads(path.read_text().splitlines()[0])
    assert line.keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert line["choices"] == [{"index": 0, "turns": ["<ask 0>", "<more 0>"]}]
    assert (line["question_id"], line["model_id"]) == (81, "tiny")


@pytest.fixture
def judge():
    with Judge() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_answers_are_judged_once(tmp_path, answered, judge):
    asked, records = answered
    how = judging.Judging(judge.endpoint)
    row = judging.judge(asked, records, "tiny", tmp_path, how)
    assert (row["first_turn"], row["second_turn"], row["grade"]) == (4.0, 8.0, 6.0)
    assert row["grade_low"] == row["grade_high"] == 6.0 and row["not_graded"] == 0
    assert set(judge.headers) == {("/v1/chat/completions", "Bearer sesame", "judge/x")}
    path = tmp_path / "judgments_judge_x.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((f["question_id"], f["turn"]) for f in found) == [
        (i, t) for i in (81, 82, 83) for t in (1, 2)
    ]
    assert {tuple(f["judge"]) for f in found} == {
        ("judge/x", "single-v1"),
        ("judge/x", "single-v1-multi-turn"),
    }
    assert judging.judge(asked, records, "tiny", tmp_path, how) == row
    assert len(judge.asked) == 6
    # Another answer is judged anew, in both turns.
    records[0]["answer"] = "other"
    judging.judge(asked, records, "tiny", tmp_path, how)
    assert len(judge.asked) == 8


def test_a_first_turn_alone_is_judged(tmp_path, answered, judge):
    asked, records = answered
    first = [record for record in records if not record["turn"]]
    row = judging.judge(asked, first, "tiny", tmp_path, judging.Judging(judge.endpoint))
    assert row["first_turn"] == row["grade"] == 4.0 and "second_turn" not in row
    assert len(judge.asked) == 3


def test_the_row_says_who_judged_by_what(tmp_path, answered, judge, monkeypatch):
    asked, records = answered
    for name, value in (("URL", judge.endpoint.url), ("MODEL", "a"), ("KEY", "sesame")):
        monkeypatch.setenv(f"JUDGE_{name}", value)
    choices = Choices(judge_model="gpt-4o-2024-05-13")
    row = mt_bench.judged(asked, choices, records, "tiny", tmp_path)
    assert (row["judge"], row["judge_prompts"]) == ("gpt-4o-2024-05-13", "own")
    assert {model for *_, model in judge.headers} == {"gpt-4o-2024-05-13"}
    assert (tmp_path / "judgments_gpt-4o-2024-05-13.jsonl").exists()


def test_whose_prompts_they_are(monkeypatch):
    own = judge_prompts.PROMPTS
    other = {**own, "single-v1": own["single-v1"]._replace(system="s")}
    assert (judge_prompts.whose(own), judge_prompts.whose(other)) == ("own", "other")
    text = f"s\0{own['single-v1'].template}".encode()
    known = {"single-v1": hashlib.sha256(text).hexdigest()[:16]}
    monkeypatch.setattr(judge_prompts, "_PUBLISHED", known)
    assert judge_prompts.whose(other) == "published"


def test_a_judge_that_fails_leaves_what_is_there(tmp_path, answered, judge):
    asked, records = answered
    how = judging.Judging(judge.endpoint, workers=1)
    judge.replies["ask 2"] = lambda count, content: (401, "no such key")
    with pytest.raises(UserError, match="401, 'no such key'. 4 of 6 grades are kept") as told:
        judging.judge(asked, records, "tiny", tmp_path, how)
    assert "sesame" not in str(told.value)
    judge.replies = {"ask 2": lambda count, content: (200, "<html>")}
    with pytest.raises(UserError, match="answered b'<html>'; expected the JSON"):
        judging.judge(asked, records, "tiny", tmp_path, how)
    # Overloaded once for each, then without a grade.
    odd = lambda n, content: (503, "") if n % 2 else (200, content.replace("[[", "["))
    judge.replies = {"ask 2": odd}
    judge.asked.clear()
    row = judging.judge(asked, records, "tiny", tmp_path, how)
    assert len(judge.asked) == 4
    assert row["not_graded"] == 2 and row["first_turn"] == 4.0


def test_an_unreachable_judge_is_one_error(tmp_path, answered):
    asked, records = answered
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    where = chat_endpoint.Endpoint(f"http://127.0.0.1:{port}", "", "x", 1.0, 0.01)
    with pytest.raises(UserError, match=rf"{port} gave no answer: .*refused.* 0 of 6 grades"):
        judging.judge(asked, records, "tiny", tmp_path, judging.Judging(where))


class Hostile(socketserver.ThreadingTCPServer):
    """Sends parts of bytes, with a wait before each; `calls` counts requests, `got` keeps them."""

    allow_reuse_address = daemon_threads = True

    def __init__(self):
        self.parts, self.wait, self.got = [], 0.0, []
        super().__init__(("127.0.0.1", 0), HostileHandler)
        url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.endpoint = chat_endpoint.Endpoint(url, "sesame-open", "x", 30.0, 0.01)


class HostileHandler(socketserver.StreamRequestHandler):
    def handle(self):
        self.server.got.append(self.request.recv(1 << 16))
        with contextlib.suppress(OSError):
            for part in self.server.parts:
                time.sleep(self.server.wait)
                self.wfile.write(part)
                self.wfile.flush()


@pytest.fixture
def hostile():
    with Hostile() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


GOOD = b'{"choices": [{"message": {"content": "[[7]]"}}]}'
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
REPLIES = {
    "huge": ([HEAD, *[b"a" * (1 << 16)] * 64], 0.0, "more than 1048576 bytes", 4),
    "slow body": ([HEAD, *[b"a"] * 40], 0.1, "no whole answer within 0.5 s", 4),
    "slow head": ([bytes([one]) for one in HEAD], 0.1, "no whole answer within 0.5 s", 4),
    "stalled error": (
        [b"HTTP/1.1 500 Oh\r\nContent-Length: 9\r\n\r\n", b"", b"a"],
        0.8,
        "no whole answer within 0.5 s",
        4,
    ),
    "deep": ([HEAD, b"[" * 100_000], 0.0, "expected the JSON of a chat completion", 4),
    "digits": ([HEAD, b"9" * 10_000], 0.0, "expected the JSON of a chat completion", 4),
    "cut echo": ([b"HTTP/1.1 401 No\r\n\r\n" + b"a" * 290 + b"sesame-open"], 0.0, "aa.key.", 1),
    "echo": ([b"HTTP/1.1 401 No\r\n\r\nBearer sesame-open"], 0.0, r"401, 'Bearer \(key\)'", 1),
}


@pytest.mark.parametrize("name", REPLIES)
def test_hostile_replies_are_bounded_in_size_and_time(hostile, name):
    hostile.parts, hostile.wait, message, tries = REPLIES[name]
    began, endpoint = time.monotonic(), hostile.endpoint
    if hostile.wait:
        endpoint = endpoint._replace(seconds=0.5)
    with pytest.raises(UserError, match=f"gave no answer: .*{message}") as told:
        chat_endpoint.ask(endpoint, "s", "u")
    assert time.monotonic() - began < 10.0
    assert len(hostile.got) == tries and "sesame" not in str(told.value)
    assert len(str(told.value)) < 1500
    hostile.parts, hostile.wait = [HEAD, GOOD.replace(b"7", b"sesame-open 7")], 0.0
    assert chat_endpoint.ask(hostile.endpoint, "s", "u") == "[[(key) 7]]"


def test_keys_that_quoting_changes_are_hidden(hostile):
    quoted = hostile.endpoint._replace(key="a\\b'c\"d")
    hostile.parts = [b"HTTP/1.1 401 No\r\n\r\nno a\\b'c\"d"]
    with pytest.raises(UserError, match="401, 'no .key.'"):
        chat_endpoint.ask(quoted, "s", "u")
    hostile.parts = [HEAD, json.dumps({"choices": [{"message": {"content": quoted.key}}]}).encode()]
    assert chat_endpoint.ask(quoted, "s", "u") == "(key)"


SPELLINGS = {
    "PHP's JSON": lambda key: json.dumps(key).replace("/", "\\/"),
    "JSON": lambda key: "".join(f"\\u{ord(sign):04X}" for sign in key),
    "JSON in JSON": lambda key: json.dumps(json.dumps(key)),
    "a URL": lambda key: urllib.parse.quote(key, safe=""),
    "HTML": html.escape,
    "numbers of HTML": lambda key: "".join(f"&#x{ord(sign):x};" for sign in key),
    "two bytes": lambda key: "\0".join(key),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_keys_are_hidden_however_they_are_spelt(hostile, name):
    spelt = hostile.endpoint._replace(key="sk-a/b+\\c'd\"e<&9")
    hostile.parts = [f"HTTP/1.1 401 No\r\n\r\nno {SPELLINGS[name](spelt.key)}.".encode()]
    with pytest.raises(UserError, match=r"401, .no ['\"\\]*\(key\)['\"\\]*\.") as told:
        chat_endpoint.ask(spelt, "s", "u")
    assert "sk" not in str(told.value)


def test_what_a_server_sends_on_is_not_read_on(hostile):
    """After the time of a call nothing of it goes on, as a thread that reads without an end."""
    hostile.parts, hostile.wait = [b"HTTP/1.1 100 Continue\r\n\r\n"] * 400, 0.005
    before = threading.active_count()
    with pytest.raises(UserError, match="no whole answer"):
        chat_endpoint.ask(hostile.endpoint._replace(seconds=0.2), "s", "u")
    end = time.monotonic() + 0.8
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_plain_http_takes_no_proxy(hostile, monkeypatch):
    """It would read the key, also of a judge on this machine, of which no warning is given."""
    with Hostile() as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy.endpoint.url.removesuffix("/v1"))
        hostile.parts = proxy.parts = [HEAD, GOOD]
        assert chat_endpoint.ask(hostile.endpoint, "s", "u") == "[[7]]"
        assert not proxy.got
        proxy.parts = [b"HTTP/1.1 403 No\r\n\r\n"]  # of https it is told the host alone
        with pytest.raises(UserError, match="Tunnel connection failed"):
            chat_endpoint.ask(hostile.endpoint._replace(url="https://a.example/v1"), "s", "u")
        assert proxy.got[0].startswith(b"CONNECT a.example:443")
        assert not any(b"sesame" in got for got in proxy.got)
        proxy.shutdown()


def test_the_key_goes_to_no_server_without_a_certificate(tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate of its own")
    own = tmp_path / "own.pem"
    kind = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    line = [
        "openssl",
        "req",
        "-x509",
        *kind.split(),
        "-keyout",
        str(own),
        "-out",
        str(tmp_path / "public.pem"),
    ]
    subprocess.run(line, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "public.pem", own)
    got = []

    def serve(server):
        for _ in range(4):
            taken, _ = server.accept()
            with contextlib.suppress(OSError), context.wrap_socket(taken, server_side=True) as talk:
                got.append(talk.recv(1 << 12))

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        url = f"https://localhost:{server.getsockname()[1]}/v1"
        where = chat_endpoint.Endpoint(url, "sesame-open", "x", 10.0, 0.01)
        with pytest.raises(UserError, match="CERTIFICATE_VERIFY_FAILED"):
            chat_endpoint.ask(where, "s", "u")
    assert not any(got)


@pytest.mark.parametrize("field", ["{answer.x}", "{answer:>1000000000000000}", "{0}", "{"])
def test_templates_of_judges_are_checked(field):
    question = Question(1, "writing", ("a", "b"))
    prompts = {name: prompt._replace(template=field) for name, prompt in PROMPTS.items()}
    with pytest.raises(UserError, match="judge prompt .*expected the fields"):
        judge_prompt(question, ["c", "d"], 0, prompts)


def test_the_key_follows_no_redirect(hostile):
    with Hostile() as other:
        threading.Thread(target=other.serve_forever, args=(0.05,), daemon=True).start()
        for status in (301, 302, 303, 307, 308):
            line = f"HTTP/1.1 {status} Moved\r\nLocation: {other.endpoint.url}/x\r\n\r\n"
            hostile.parts = [line.encode()]
            with pytest.raises(UserError, match=f"status {status}.* redirects are not followed"):
                chat_endpoint.ask(hostile.endpoint, "s", "u")
        other.shutdown()
        assert not other.got and len(hostile.got) == 5


def test_the_key_and_its_way_are_checked(capsys):
    good = {"JUDGE_URL": "http://127.0.0.1:1/v1", "JUDGE_MODEL": "m", "JUDGE_KEY": "abc"}
    for key in ("a\r\nHost: b", "sesame open", "a\n", "schlüssel"):
        with pytest.raises(UserError, match="JUDGE_KEY holds a blank") as told:
            chat_endpoint.from_environment(good | {"JUDGE_KEY": key})
        assert key not in str(told.value)
    for url in ("http://user:word@host/v1", "https://", "ftp://a", "http://[a"):
        with pytest.raises(UserError, match="expected the base of"):
            chat_endpoint.from_environment(good | {"JUDGE_URL": url})
    for url in ("http://localhost/v1", "http://[::1]/v1", "https://a.example/v1"):
        chat_endpoint.from_environment(good | {"JUDGE_URL": url})
    assert not capsys.readouterr().err
    chat_endpoint.from_environment(good | {"JUDGE_URL": "http://a.example/v1"})
    assert "JUDGE_KEY goes to a.example unencrypted" in capsys.readouterr().err


def test_the_judge_is_of_the_environment():
    assert chat_endpoint.from_environment({}) is None
    found = chat_endpoint.from_environment({"JUDGE_URL": "http://a/v1/", "JUDGE_MODEL": "m"})
    assert found[:3] == ("http://a/v1", "", "m")
    with pytest.raises(UserError, match="JUDGE_URL is 'a'; expected"):
        chat_endpoint.from_environment({"JUDGE_URL": "a"})
    with pytest.raises(UserError, match="JUDGE_MODEL is not"):
        chat_endpoint.from_environment({"JUDGE_URL": "http://a"})


def test_prompts_and_references_of_fastchat(tmp_path):
    names = ("single-v1", "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn")
    prompts = [
        {"name": name, "system_prompt": "s", "prompt_template": f"{name} {{ref_answer_1}}"}
        for name in names
    ]
    found = judge_prompts.read_prompts(json_lines(tmp_path / "p.jsonl", *prompts))
    answers = mt_bench_files.answer_line(81, ["r1", "r2"], "gpt", 0.0)
    references = mt_bench_files.read_references(json_lines(tmp_path / "r.jsonl", answers))
    asked = mt_bench_files.Question(81, "math", ("a {x}", "b"))
    told = judge_prompts.judge_prompt(asked, ["c", "d"], 1, found, references)
    assert told == ("single-math-v1-multi-turn", "s", "single-math-v1-multi-turn r1")
    other = asked._replace(category="writing")
    assert judge_prompts.judge_prompt(other, ["c", "d"], 0, found, references)[0] == "single-v1"
    assert "a {x}" in judge_prompts.judge_prompt(asked, ["c"], 0)[2]
    for turn, name in enumerate(names[2:]):
        own = judge_prompts.judge_prompt(asked, ["c", "d"], turn, references=references)
        assert own[0] == name and all(word in own[2] for word in ("r1", "cd"[turn], "[[5]]"))
    with pytest.raises(UserError, match="has no prompt single-v1-multi-turn"):
        judge_prompts.read_prompts(json_lines(tmp_path / "p.jsonl", prompts[0]))
    wrong = {names[0]: judge_prompts.JudgePrompt("s", "{nothing}")}
    with pytest.raises(UserError, match="judge prompt single-v1: KeyError.*expected the fields"):
        judge_prompts.judge_prompt(asked, ["c"], 0, wrong)
    with pytest.raises(UserError, match="line 1: expected 'question_id' and 'choices'"):
        mt_bench_files.read_references(
            json_lines(tmp_path / "r.jsonl", {"question_id": 1, "choices": []})
        )


@pytest.mark.parametrize(
    "text, grade",
    [
        ("[[7]]", 7.0),
        ("so [[ 9.5 ]].", 9.5),
        ("[[11]]", None),
        ("[7]", None),
        ("[[5]]? [[8]]", 8.0),
    ],
)
def test_grades_are_read(text, grade):
    assert judge_prompts.rating(text) == grade
