"""Benchmarks from prompts to tables: rules, references, resumption, judging, refusals."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_code import HUMANEVAL, mbpp
from test_prompts import BYTES, LENGTH, lines, make_model

from flm_jax.checkpoints.workdir import save_ema, write_config
from flm_jax.core.errors import UserError
from flm_jax.data.chat import framed
from flm_jax.evaluation.benchmarks import chat_endpoint, gsm8k, mt_bench
from flm_jax.evaluation.benchmarks.base import Choices
from flm_jax.evaluation.benchmarks.registry import make_benchmark
from flm_jax.evaluation.benchmarks.runner import (
    RECORDS,
    by_model,
    by_reference,
    collect,
    open_folder,
    summarise,
)
from flm_jax.evaluation.benchmarks.sandbox import Limits, open_sandbox
from flm_jax.inference.answers import Answer, Answering

# Folder of the published files: gsm8k/test.jsonl, humaneval/HumanEval.jsonl.gz, mbpp/mbpp.jsonl.
PUBLISHED = Path(os.environ.get("FLM_JAX_BENCHMARKS", "absent"))
FILES = {
    "gsm8k": "gsm8k/test.jsonl",
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "mbpp": "mbpp/mbpp.jsonl",
}


@pytest.fixture(scope="module")
def sandbox():
    return open_sandbox(Limits(seconds=20))


@pytest.fixture(scope="module")
def chat():
    return make_model(chat=True)


def problems(count):
    return [{"question": f"{n}+{n}?", "answer": f"So.\n#### {2 * n}"} for n in range(count)]


def questions(count):
    return [
        {"question_id": 81 + n, "category": "math", "turns": [f"ask {n}", f"more {n}"]}
        for n in range(count)
    ]


@pytest.mark.parametrize(
    "answer, strict, flexible",
    [
        ("It is 5.\n#### 18", "18", "18"),
        ("### 1,234", "1234", "1234"),
        ("#### $70,000.", "70000", "70000"),
        ("#### -3", "-3", "-3"),
        ("####18 and 7", "18", "7"),
        ("# 18", None, "18"),
        ("The answer is 2.50 dollars.", None, "2.50"),
        ("10-5", None, "5"),
        ("from 10 to -5", None, "-5"),
        ("costs $.5", None, ".5"),
        ("nothing", None, None),
        ("", None, None),
    ],
)
def test_numbers_are_read_by_both_rules(answer, strict, flexible):
    assert (gsm8k.strict(answer), gsm8k.flexible(answer)) == (strict, flexible)


def test_gsm8k_prompts_and_scores(tmp_path):
    path = lines(tmp_path / "a.jsonl", *problems(3))
    first, *shots = gsm8k.read_gsm8k(path)
    assert gsm8k.gsm8k_prompt(first.question, shots, True) == "0+0?"
    prompt = gsm8k.gsm8k_prompt(first.question, shots, False)
    assert prompt.startswith("Question: 1+1?\nAnswer: So.\n#### 2\n\nQuestion: 2+2?")
    assert prompt.endswith("\n\nQuestion: 0+0?\nAnswer:")
    more = "#### 0\n\nQuestion: 9?\nAnswer: 9"
    read = [gsm8k.gsm8k_score(first, more, chat)["flexible_right"] for chat in (False, True)]
    assert read == [True, False]
    with pytest.raises(UserError, match="line 1: expected an answer that ends .* got 'b'"):
        gsm8k.read_gsm8k(lines(tmp_path / "b.jsonl", {"question": "a", "answer": "b"}))


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("task", ["gsm8k", "humaneval", "mbpp"])
def test_right_answers_are_right(tmp_path, sandbox, task, chat):
    records = {"gsm8k": problems(5), "humaneval": [HUMANEVAL], "mbpp": [mbpp(n) for n in range(9)]}
    path = lines(tmp_path / "a.jsonl", *records[task])
    choices = Choices(chat=chat, pass_at=(1, 2), whole=True)
    row = _reference(tmp_path / "out", make_benchmark(task, path, choices, sandbox), samples=2)
    rules = ("strict_match", "flexible_match") if task == "gsm8k" else ("pass@1", "pass@2")
    assert [row[rule] for rule in rules] == [1.0, 1.0]
    assert all(row[f"{rule}_low"] <= 1.0 <= row[f"{rule}_high"] + 1e-9 for rule in rules)
    assert all(row[f"{rule}_low"] < 0.95 for rule in rules)
    assert row["problems"] == len(records[task]) and row["samples_each"] == 2


def test_pass_at_k_is_a_mean_over_problems(tmp_path, sandbox):
    path = lines(tmp_path / "a.jsonl", *(mbpp(n) for n in range(5)))
    benchmark = make_benchmark("mbpp", path, Choices(pass_at=(1, 2), whole=True), sandbox)
    results = [(True, True), (True, False), (False, False), (False, True)]
    records = [
        {"id": i, "passed": passed, "status": "error" if i == 2 else "passed"}
        for i, each in enumerate(results)
        for passed in each
    ]
    row = benchmark.summary(records)
    assert (row["pass@1"], row["pass@2"]) == (0.5, 0.75)
    assert 0.0 <= row["pass@1_low"] < 0.5 < row["pass@1_high"] <= 1.0
    assert row["programs_not_started"] == 2


@pytest.mark.parametrize("task", FILES)
def test_published_right_answers_are_right(tmp_path, sandbox, task):
    path = PUBLISHED / FILES[task]
    if not path.exists():
        pytest.skip("no published files; FLM_JAX_BENCHMARKS is their folder")
    choices = Choices(limit=0 if task == "gsm8k" else 24)
    row = _reference(tmp_path, make_benchmark(task, str(path), choices, sandbox))
    assert row["strict_match" if task == "gsm8k" else "pass@1"] == 1.0
    assert row["problems"] == (1319 if task == "gsm8k" else 24)


def _reference(folder, benchmark, samples=1):
    done = open_folder(folder, {})
    answer = by_reference(benchmark, 4, samples)
    records = collect(benchmark, folder, done, answer, samples)
    return summarise(benchmark, records)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, chat):
    path = lines(tmp_path / "a.jsonl", *problems(7))
    benchmark = make_benchmark("gsm8k", path, Choices(chat=True))
    how = Answering(3, 3, seed=5, answer_length=6, chat=True)

    def records(folder, stop=None):
        done = open_folder(folder, {"steps": 3})
        answer = by_model(chat, how)

        def show(count, of):
            assert of == 14
            if count == stop:
                raise KeyboardInterrupt

        return collect(benchmark, folder, done, answer, 2, show)

    whole = records(tmp_path / "whole")
    assert len({record["answer"] for record in whole}) == 14
    assert [(r["id"], r["sample"]) for r in whole] == [(i, s) for i in range(7) for s in range(2)]
    with pytest.raises(KeyboardInterrupt):
        records(tmp_path / "parts", stop=6)
    path = tmp_path / "parts" / RECORDS
    kept = path.read_text().splitlines(keepends=True)
    assert len(kept) == 6
    path.write_text("".join(kept[:5]) + '{"id": 3, "sam')  # killed while it wrote
    assert records(tmp_path / "parts") == whole
    lines_now = path.read_text().splitlines(keepends=True)
    assert lines_now[:5] == kept[:5] and len(lines_now) == 14
    before = path.read_text()
    assert records(tmp_path / "parts") == whole and path.read_text() == before


def test_other_settings_and_damaged_records_are_refused(tmp_path):
    open_folder(tmp_path, {"steps": 3, "seed": 0})
    with pytest.raises(UserError, match=r"other settings \(steps: 3 there, 4 now\)"):
        open_folder(tmp_path, {"steps": 4, "seed": 0})
    (tmp_path / RECORDS).write_text("{\n")
    with pytest.raises(UserError, match="records.jsonl, line 1: no JSON"):
        open_folder(tmp_path, {"steps": 3, "seed": 0})


def test_what_does_not_fit_is_wrong_and_counted(tmp_path, chat):
    long = {"question": "a" * LENGTH, "answer": "#### 1"}
    near = {"question": "a" * (LENGTH - len(framed("")) - 2), "answer": "#### 1"}
    benchmark = make_benchmark(
        "gsm8k", lines(tmp_path / "a.jsonl", long, near, *problems(1)), Choices(chat=True)
    )
    answer = by_model(chat, Answering(2, 8, answer_length=9, chat=True))
    records = collect(benchmark, tmp_path, {}, answer)
    assert [record.get("too_long", False) for record in records] == [True, False, False]
    assert [record["calls"] for record in records] == [0, 2, 2]
    assert len(BYTES.encode(records[1]["answer"])) <= 8  # two tokens, as text
    row = summarise(benchmark, records)
    assert row["too_long"] == 1 and row["calls"] == 2.0 and row["strict_match"] == 0.0
    alone = make_benchmark("gsm8k", lines(tmp_path / "b.jsonl", long), Choices(chat=True))
    with pytest.raises(UserError, match=f"no prompt .* fits in {LENGTH} tokens"):
        collect(alone, tmp_path, {}, answer)


def test_impossible_choices_are_refused(tmp_path):
    path = lines(tmp_path / "a.jsonl", *problems(2))
    for choices, message in (
        (Choices(shots=2), "got shots=2; --examples has 0"),
        (Choices(shots=2, chat=True), "got shots=2 for questions"),
        (Choices(limit=-1), "got limit=-1"),
    ):
        with pytest.raises(UserError, match=message):
            make_benchmark("gsm8k", path, choices)
    with pytest.raises(UserError, match="unknown task 'gsm8'; did you mean 'gsm8k'"):
        make_benchmark("gsm8", path, Choices())
    bad = questions(1)[0] | {"turns": ["one"]}
    with pytest.raises(UserError, match="line 2: expected a number under 'question_id' and two"):
        make_benchmark("mt_bench", lines(tmp_path / "q.jsonl", *questions(1), bad), Choices())


@pytest.fixture
def answered(tmp_path):
    """Questions of MT-Bench, and records of answers that repeat what was asked."""
    path = lines(tmp_path / "q.jsonl", *questions(3))
    benchmark = make_benchmark("mt_bench", path, Choices(chat=True))

    def echo(texts, wanted):
        yield [Answer(i, f"<{t}>", framed(t), 1) for i, t in enumerate(texts) if wanted(i)]

    records = collect(benchmark, tmp_path, {}, echo)
    return mt_bench.read_questions(path), records


def test_both_turns_are_answered_and_written_as_fastchat_reads_them(tmp_path, answered):
    _, records = answered
    assert [(r["id"], r["turn"]) for r in records] == [
        (81 + i, t) for t in (0, 1) for i in range(3)
    ]
    second = "ask 0\nASSISTANT:\n<ask 0>\nUSER:\nmore 0"
    assert records[3]["prompt"] == second
    assert framed(second) == framed("ask 0") + "<ask 0>\n" + framed("more 0")
    path = mt_bench.write_answers(tmp_path, records, "tiny")
    line = json.loads(path.read_text().splitlines()[0])
    assert line.keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert line["choices"] == [{"index": 0, "turns": ["<ask 0>", f"<{second}>"]}]
    assert (line["question_id"], line["model_id"]) == (81, "tiny")


class Judge(http.server.ThreadingHTTPServer):
    """Imitates an endpoint: grades 4 in first turns and 8 in second ones."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.replies, self.headers = [], {}, []
        self.endpoint = chat_endpoint.Endpoint(
            f"http://127.0.0.1:{self.server_address[1]}/v1", "sesame", "judge/x", 5.0, 0.01
        )


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.headers.append((self.path, self.headers["Authorization"], body["model"]))
        user = body["messages"][1]["content"]
        self.server.asked.append(user)
        text = f"Fine. [[{8 if 'Second question' in user else 4}]]"
        status, content = 200, json.dumps({"choices": [{"message": {"content": text}}]})
        for word, reply in self.server.replies.items():
            if word in user:
                status, content = reply(len(self.server.asked), content)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *args):
        pass


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
    how = mt_bench.Judging(judge.endpoint)
    row = mt_bench.judge(asked, records, "tiny", tmp_path, how)
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
    assert mt_bench.judge(asked, records, "tiny", tmp_path, how) == row
    assert len(judge.asked) == 6
    # Another answer is judged anew, in both turns.
    records[0]["answer"] = "other"
    mt_bench.judge(asked, records, "tiny", tmp_path, how)
    assert len(judge.asked) == 8


def test_a_judge_that_fails_leaves_what_is_there(tmp_path, answered, judge):
    asked, records = answered
    how = mt_bench.Judging(judge.endpoint, workers=1)
    judge.replies["ask 2"] = lambda count, content: (401, "no such key")
    with pytest.raises(UserError, match="401, 'no such key'. 4 of 6 grades are kept") as told:
        mt_bench.judge(asked, records, "tiny", tmp_path, how)
    assert "sesame" not in str(told.value)
    judge.replies = {"ask 2": lambda count, content: (200, "<html>")}
    with pytest.raises(UserError, match="answered b'<html>'; expected the JSON"):
        mt_bench.judge(asked, records, "tiny", tmp_path, how)
    # Overloaded once for each, then without a grade.
    odd = lambda n, content: (503, "") if n % 2 else (200, content.replace("[[", "["))
    judge.replies = {"ask 2": odd}
    judge.asked.clear()
    row = mt_bench.judge(asked, records, "tiny", tmp_path, how)
    assert len(judge.asked) == 4
    assert row["not_graded"] == 2 and row["first_turn"] == 4.0


def test_an_unreachable_judge_is_one_error(tmp_path, answered):
    asked, records = answered
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    where = chat_endpoint.Endpoint(f"http://127.0.0.1:{port}", "", "x", 1.0, 0.01)
    with pytest.raises(UserError, match=rf"{port} gave no answer: .*refused.* 0 of 6 grades"):
        mt_bench.judge(asked, records, "tiny", tmp_path, mt_bench.Judging(where))


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
    found = mt_bench.read_prompts(lines(tmp_path / "p.jsonl", *prompts))
    answers = mt_bench.answer_line(81, ["r1", "r2"], "gpt", 0.0)
    references = mt_bench.read_references(lines(tmp_path / "r.jsonl", answers))
    asked = mt_bench.Question(81, "math", ("a {x}", "b"))
    told = mt_bench.judge_prompt(asked, ["c", "d"], 1, found, references)
    assert told == ("single-math-v1-multi-turn", "s", "single-math-v1-multi-turn r1")
    other = asked._replace(category="writing")
    assert mt_bench.judge_prompt(other, ["c", "d"], 0, found, references)[0] == "single-v1"
    assert "a {x}" in mt_bench.judge_prompt(asked, ["c"], 0)[2]
    with pytest.raises(UserError, match="has no prompt single-v1-multi-turn"):
        mt_bench.read_prompts(lines(tmp_path / "p.jsonl", prompts[0]))
    wrong = {names[0]: mt_bench.JudgePrompt("s", "{nothing}")}
    with pytest.raises(UserError, match="judge prompt single-v1: KeyError.*expected the fields"):
        mt_bench.judge_prompt(asked, ["c"], 0, wrong)
    with pytest.raises(UserError, match="line 1: expected 'question_id' and 'choices'"):
        mt_bench.read_references(lines(tmp_path / "r.jsonl", {"question_id": 1, "choices": []}))


@pytest.mark.parametrize(
    "text, grade", [("[[7]]", 7.0), ("so [[ 9.5 ]].", 9.5), ("[[11]]", None), ("[7]", None)]
)
def test_grades_are_read(text, grade):
    assert mt_bench.rating(text) == grade


def save(model, workdir):
    save_ema(workdir, model.params, 0, {})
    write_config(workdir, model.config)
    model.tokenizer.save(workdir / "tokenizer")


def command(*flags, **environment):
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | environment
    line = [sys.executable, "-m", "flm_jax.benchmark", *flags]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=300)


def test_the_command_scores_a_model(tmp_path, chat):
    save(chat, tmp_path / "model")
    path = lines(tmp_path / "q.jsonl", *questions(2))
    flags = ["--task=mt_bench", f"--data={path}", f"--workdir={tmp_path}/model"]
    flags += [f"--out={tmp_path}/out", "--steps=2", "--answer_length=5"]
    done = command(*flags)
    assert done.returncode == 0, done.stderr
    assert "not judged: JUDGE_URL is not set" in done.stdout
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text())) >= 6
    again = command(*flags, JUDGE_URL="host", JUDGE_MODEL="m")
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 1
    assert "JUDGE_URL is 'host'; expected the base" in again.stderr


def test_the_command_scores_right_answers(tmp_path):
    path = lines(tmp_path / "a.jsonl", HUMANEVAL)
    flags = ["--task=humaneval", f"--data={path}", f"--out={tmp_path}/out"]
    done = command(*flags, "--reference")
    assert done.returncode == 0, done.stderr
    assert "programs run in " in done.stdout and "| pass@1 |" in done.stdout
    wrong = command(*flags)
    assert wrong.returncode == 2 and "expected --workdir" in wrong.stderr
