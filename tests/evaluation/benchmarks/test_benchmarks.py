"""Benchmarks from prompts to tables: rules, references, resumption, refusals, the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flm_jax.checkpoints.config_file import write_config
from flm_jax.checkpoints.workdir import save_ema
from flm_jax.core.errors import UserError
from flm_jax.data.chat import framed
from flm_jax.evaluation.benchmarks import gsm8k, gsm8k_numbers, runner
from flm_jax.evaluation.benchmarks.base import Choices
from flm_jax.evaluation.benchmarks.registry import make_benchmark
from flm_jax.evaluation.benchmarks.runner import (
    RECORDS,
    by_key,
    by_model,
    by_reference,
    collect,
    open_folder,
    summarise,
)
from flm_jax.evaluation.benchmarks.sandbox import Limits
from flm_jax.inference.answers import Answer, Answering
from flm_jax.inference.prompts import Prompt
from helpers.benchmarks import HUMANEVAL, gsm8k_problems, mbpp_problem, mt_bench_questions
from helpers.compiling import FAST
from helpers.files import json_lines
from helpers.goldens_mlfm import record
from helpers.prompts import BYTES, ROW_LENGTH, byte_model
from helpers.sandbox import opened

# Folder of the published files: gsm8k/test.jsonl, humaneval/HumanEval.jsonl.gz, mbpp/mbpp.jsonl.
PUBLISHED = Path(os.environ.get("FLM_JAX_BENCHMARKS", "absent"))
FILES = {
    "gsm8k": "gsm8k/test.jsonl",
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "mbpp": "mbpp/mbpp.jsonl",
}


@pytest.fixture(scope="module")
def sandbox():
    return opened(Limits(seconds=20))


@pytest.fixture(scope="module")
def chat():
    return byte_model(chat=True)


@pytest.mark.parametrize(
    "answer, strict, flexible",
    [
        ("It is 5.\n#### 18", "18", "18"),
        ("### 1,234", "1234", "1234"),
        ("#### $70,000.", None, "70000"),
        ("#### -3", "-3", "-3"),
        ("####18 and 7", None, "7"),
        ("#### 18. So 7.", "18", "7"),
        ("# 18", None, "18"),
        ("#### 1\n#### 2", "1", "2"),
        ("The answer is 2.50 dollars.", None, "2.50"),
        ("10-5", None, "-5"),
        ("from 10 to -5", None, "-5"),
        ("costs $.5", None, ".5"),
        ("It is 5...", None, "5.."),
        ("nothing", None, None),
        ("", None, None),
    ],
)
def test_numbers_are_read_as_the_harness_reads_them(answer, strict, flexible):
    found = gsm8k_numbers.strict(answer), gsm8k_numbers.flexible(answer)
    assert tuple(text and gsm8k_numbers.harness_text(text) for text in found) == (strict, flexible)


def test_gsm8k_prompts_and_scores(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", *gsm8k_problems(3))
    first, *shots = gsm8k.read_gsm8k(path)
    assert gsm8k.gsm8k_prompt(first.question, [], Choices(chat=True)) == Prompt("0+0?")
    prompt = gsm8k.gsm8k_prompt(first.question, shots, Choices()).text
    assert prompt.startswith("Question: 1+1?\nAnswer: So.\n#### 2\n\nQuestion: 2+2?")
    assert prompt.endswith("\n\nQuestion: 0+0?\nAnswer:")
    more = "#### 0\n\nQuestion: 9?\nAnswer: 9"
    read = [gsm8k.gsm8k_score(first, more, chat)["flexible_right"] for chat in (False, True)]
    assert read == [True, False]
    with pytest.raises(UserError, match="line 1: expected an answer that ends .* got 'b'"):
        gsm8k.read_gsm8k(json_lines(tmp_path / "b.jsonl", {"question": "a", "answer": "b"}))


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("task", ["gsm8k", "humaneval", "mbpp"])
def test_right_answers_are_right(tmp_path, sandbox, task, chat):
    records = {
        "gsm8k": gsm8k_problems(5),
        "humaneval": [HUMANEVAL],
        "mbpp": [mbpp_problem(n) for n in range(9)],
    }
    path = json_lines(tmp_path / "a.jsonl", *records[task])
    choices = Choices(chat=chat, pass_at=(1, 2), whole=True)
    row = _reference(tmp_path / "out", make_benchmark(task, path, choices, sandbox), samples=2)
    gsm8k_rules = [f"{rule}_match" for rule in gsm8k.RULES]
    rules = gsm8k_rules if task == "gsm8k" else ["pass@1", "pass@2"]
    assert [name for name in row if name in rules] == rules
    assert {row[rule] for rule in rules} == {1.0}
    assert all(row[f"{rule}_low"] <= 1.0 <= row[f"{rule}_high"] + 1e-9 for rule in rules)
    assert all(row[f"{rule}_low"] < 0.95 for rule in rules)
    assert row["problems"] == len(records[task]) and row["samples_each"] == 2


def test_pass_at_k_is_a_mean_over_problems(tmp_path, sandbox):
    path = json_lines(tmp_path / "a.jsonl", *(mbpp_problem(n) for n in range(5)))
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


def test_published_numbers_are_those_of_the_reference():
    path = PUBLISHED / FILES["gsm8k"]
    if not path.exists():
        pytest.skip("no published files; FLM_JAX_BENCHMARKS is their folder")
    golden, problems = record("evals"), gsm8k.read_gsm8k(str(path))
    numbers = [gsm8k_numbers.reference_gold(problem.answer) for problem in problems]
    assert len(problems) == golden["gsm8k_n_records"]
    assert numbers[:20] == golden["gsm8k_golds_first_20"]


@pytest.mark.parametrize("task", FILES)
def test_published_right_answers_are_right(tmp_path, sandbox, task):
    path = PUBLISHED / FILES[task]
    if not path.exists():
        pytest.skip("no published files; FLM_JAX_BENCHMARKS is their folder")
    choices = Choices(limit=0 if task == "gsm8k" else 24)
    row = _reference(tmp_path, make_benchmark(task, str(path), choices, sandbox))
    names = [f"{rule}_match" for rule in gsm8k.RULES] if task == "gsm8k" else ["pass@1"]
    assert {row[name] for name in names} == {1.0}
    assert row["problems"] == (1319 if task == "gsm8k" else 24)


def _reference(folder, benchmark, samples=1):
    done = by_key(open_folder(folder, {}))
    answer = by_reference(benchmark, 4, samples)
    records = collect(benchmark, folder, done, answer, samples)
    return summarise(benchmark, records)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, chat):
    path = json_lines(tmp_path / "a.jsonl", *gsm8k_problems(7))
    benchmark = make_benchmark("gsm8k", path, Choices(chat=True))
    how = Answering(3, 3, seed=5, answer_length=6, chat=True)

    def records(folder, stop=None):
        done = by_key(open_folder(folder, {"steps": 3}))
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
    long = {"question": "a" * ROW_LENGTH, "answer": "#### 1"}
    near = {"question": "a" * (ROW_LENGTH - len(framed("")) - 2), "answer": "#### 1"}
    benchmark = make_benchmark(
        "gsm8k",
        json_lines(tmp_path / "a.jsonl", long, near, *gsm8k_problems(1)),
        Choices(chat=True),
    )
    answer = by_model(chat, Answering(2, 8, answer_length=9, chat=True))
    records = collect(benchmark, tmp_path, {}, answer)
    assert [record.get("too_long", False) for record in records] == [True, False, False]
    assert [record["calls"] for record in records] == [0, 2, 2]
    assert len(BYTES.encode(records[1]["answer"])) <= 8  # two tokens, as text
    row = summarise(benchmark, records)
    assert row["too_long"] == 1 and row["calls"] == 2.0 and row["strict_match"] == 0.0
    alone = make_benchmark("gsm8k", json_lines(tmp_path / "b.jsonl", long), Choices(chat=True))
    with pytest.raises(UserError, match=f"no prompt .* fits in {ROW_LENGTH} tokens"):
        collect(alone, tmp_path, {}, answer)


def test_a_second_turn_is_asked_behind_the_first(tmp_path, chat, monkeypatch):
    asked = []

    def echo(model, prompts, how, wanted):
        asked.append(prompts)
        yield [Answer(i, f"<{p.text}>", "", 1) for i, p in enumerate(prompts)]

    monkeypatch.setattr(runner, "answer_batches", echo)
    path = json_lines(tmp_path / "q.jsonl", *mt_bench_questions(2))
    benchmark = make_benchmark("mt_bench", path, Choices(chat=True))
    collect(benchmark, tmp_path, {}, by_model(chat, Answering(2, answer_length=200, chat=True)))
    first, second = asked
    assert [p.text for p in second] == ["more 0", "more 1"]
    assert [p.before for p in second] == [("ask 0", "<ask 0>"), ("ask 1", "<ask 1>")]
    assert not any(p.before for p in first)
    takes = [len(framed(*p.before, p.text)) for p in second]
    assert [p.answer_length for p in second] == [ROW_LENGTH - size for size in takes]


def test_impossible_choices_are_refused(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", *gsm8k_problems(2))
    for choices, message in (
        (Choices(shots=2), "got shots=2; --examples has 0"),
        (Choices(shots=2, chat=True), "got shots=2; --examples has 0"),
        (Choices(prompt_style="vicuna"), "got prompt_style='vicuna'; gsm8k has chat, plain"),
        (Choices(limit=-1), "got limit=-1"),
    ):
        with pytest.raises(UserError, match=message):
            make_benchmark("gsm8k", path, choices)
    with pytest.raises(UserError, match="unknown task 'gsm8'; did you mean 'gsm8k'"):
        make_benchmark("gsm8", path, Choices())
    bad = mt_bench_questions(1)[0] | {"turns": ["one"]}
    with pytest.raises(UserError, match="line 2: expected a number under 'question_id' and two"):
        make_benchmark(
            "mt_bench", json_lines(tmp_path / "q.jsonl", *mt_bench_questions(1), bad), Choices()
        )


def save(model, workdir):
    save_ema(workdir, model.params, 0, {})
    write_config(workdir, model.config)
    model.tokenizer.save(workdir / "tokenizer")


def command(*flags, **environment):
    env = os.environ | {"XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu"} | environment
    line = [sys.executable, "-m", "flm_jax.run_benchmark", *flags]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=300)


def test_the_command_scores_a_model(tmp_path, chat):
    save(chat, tmp_path / "model")
    path = json_lines(tmp_path / "q.jsonl", *mt_bench_questions(2))
    flags = ["--task=mt_bench", f"--data={path}", f"--workdir={tmp_path}/model"]
    flags += [f"--out={tmp_path}/out", "--steps=2", "--answer_length=5"]
    done = command(*flags)
    assert done.returncode == 0, done.stderr
    assert "not judged: JUDGE_URL is not set" in done.stdout
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text())) >= 6
    again = command(*flags, JUDGE_URL="host", JUDGE_MODEL="m")
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 1
    assert "JUDGE_URL is 'host'; expected the base" in again.stderr
    other = command(*flags, "--first_turn")
    assert other.returncode == 2 and "first_turn: False there, True now" in other.stderr


def test_the_command_has_the_protocol_of_masked_flows(tmp_path, chat):
    save(chat, tmp_path / "model")
    model, flags = f"--workdir={tmp_path}/model", ["--steps=2", "--cut_prompts", "--length=150"]
    path = json_lines(tmp_path / "q.jsonl", *mt_bench_questions(2))
    flags += ["--first_turn", "--prompt_style=vicuna", r"--stop_strings=a,\nb", f"--data={path}"]
    done = command("--task=mt_bench", model, f"--out={tmp_path}/mt", *flags)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "mt" / "settings.json").read_text())
    assert told["stop_strings"] == ["a", "\nb"] and not told["chat"] and told["cut"]
    lines = (tmp_path / "mt" / RECORDS).read_text().splitlines()
    assert len(lines) == 2 and all(" USER: ask" in json.loads(line)["prompt"] for line in lines)
    assert not any("too_long" in json.loads(line) for line in lines)  # Vicuna's takes 170 bytes
    wrong = command("--task=mt_bench", model, f"--out={tmp_path}/b", *flags, "--chat")
    assert wrong.returncode == 2 and "got --prompt_style=vicuna with --chat" in wrong.stderr


def test_the_command_scores_right_answers(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", HUMANEVAL)
    flags = ["--task=humaneval", f"--data={path}", f"--out={tmp_path}/out"]
    done = command(*flags, "--reference")
    assert done.returncode == 0, done.stderr
    assert "programs run in " in done.stdout and "| pass@1 |" in done.stdout
    wrong = command(*flags)
    assert wrong.returncode == 2 and "expected --workdir" in wrong.stderr
