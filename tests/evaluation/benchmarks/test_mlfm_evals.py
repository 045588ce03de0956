"""Prompts, rows and answers of the authors' evaluations of masked language flows.

Texts, ids and places are compared exactly, so there are no tolerances here.
"""

import dataclasses
import json

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.evaluation.benchmarks import mt_bench
from flm_jax.evaluation.benchmarks.base import STOP_STRINGS, Choices
from flm_jax.evaluation.benchmarks.registry import make_benchmark
from flm_jax.evaluation.benchmarks.runner import by_model, collect, summarise
from flm_jax.inference.answers import Answer, Answering
from flm_jax.inference.prompts import Prompt, answer_texts, lay_out, uncut_text
from helpers.benchmarks import gsm8k_problems, mt_bench_questions
from helpers.files import json_lines
from helpers.goldens_mlfm import record
from helpers.prompts import BYTES, byte_model

GOLDEN = record("evals")
# The solved problem that stands in their prompt of one shot; second in the published test file.
ROBE = {
    "question": "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many "
    "bolts in total does it take?",
    "answer": "It takes 2/2=<<2/2=1>>1 bolt of white fiber\nSo the total amount of fabric is "
    "2+1=<<2+1=3>>3 bolts of fabric\n#### 3",
}


class Letters(ByteTokenizer):
    """Ids as in their test of layouts: 3 and more; no token begins or ends a row."""

    bos_id, eos_id, pad_id = None, 2, None
    vocab_size, mask_id = 62, 61

    def encode(self, text):
        return np.array([3 + ord(c) % 50 for c in text], np.int32)

    def _decode(self, ids):
        return "".join(chr(97 + i) for i in ids)


def prompt_text(model, prompt, chat):
    rows = lay_out(model, [prompt], model.net.max_length, chat=chat)
    return model.tokenizer.decode(rows.given.tokens[0, : rows.starts[0]])


@pytest.fixture(scope="module")
def wide():
    """A model of bytes that learnt exchanges, with room for long prompts; its tokenizer has no
    template."""
    model = byte_model(chat=True)
    return model._replace(net=dataclasses.replace(model.net, max_length=2048))


@pytest.mark.parametrize(
    "name, shots, choices",
    [
        ("prompt", 0, Choices(chat=True)),
        ("prompt_one_shot", 1, Choices(chat=True, shots=1)),
        ("prompt_plain_style", 0, Choices(prompt_style="plain")),
    ],
)
def test_gsm8k_prompts(tmp_path, wide, name, shots, choices):
    given = GOLDEN["gsm8k_prompt"]
    path = json_lines(tmp_path / "a.jsonl", {key: given[key] for key in ("question", "answer")})
    if shots:
        choices = dataclasses.replace(choices, examples=json_lines(tmp_path / "b.jsonl", ROBE))
    prompt = make_benchmark("gsm8k", path, choices).prompt(0, ())
    assert prompt_text(wide, prompt, choices.chat) == given[name]


@pytest.mark.parametrize(
    "name, choices",
    [
        ("prompt", Choices(prompt_style="vicuna", first_turn=True)),
        ("prompt_sft_chat", Choices(chat=True)),
    ],
)
def test_mt_bench_prompts(tmp_path, wide, name, choices):
    given = GOLDEN["mt_bench_prompt"]
    asked = {"question_id": 81, "category": "writing", "turns": [given["turn"], "more"]}
    prompt = make_benchmark("mt_bench", json_lines(tmp_path / "q.jsonl", asked), choices).prompt
    assert prompt_text(wide, prompt(0, ()), choices.chat) == given[name]


def test_rows_are_those_of_the_authors():
    golden = GOLDEN["encode_batch"]
    tokenizer = Letters()
    model = byte_model(tokenizer=tokenizer)
    texts = [Prompt("abcde"), Prompt("abcdefghijkl"), Prompt("a" * 40)]
    assert [len(one.text) for one in texts] == golden["prompts_lengths"]
    rows = lay_out(model, texts, golden["max_length"], cut=True)
    ids = np.array(golden["input_ids"])
    hidden = np.array(golden["corrupt_mask"], bool)
    np.testing.assert_array_equal(rows.given.mask, ~hidden)
    np.testing.assert_array_equal(rows.given.tokens[~hidden], ids[~hidden])
    assert (ids[hidden] == tokenizer.mask_id).all()
    assert np.stack([rows.starts, rows.stops], axis=1).tolist() == golden["spans"]
    with pytest.raises(UserError, match="the prompt takes 40 of 16 tokens"):
        lay_out(model, texts, golden["max_length"])


def test_a_prompt_is_cut_as_far_as_its_answer_needs():
    model = byte_model(tokenizer=Letters())
    row = lay_out(model, [Prompt("a" * 9 + "b" * 9, answer_length=7)], 16, cut=True)
    assert (row.starts[0], row.stops[0]) == (9, 16)
    assert set(row.given.tokens[0, :9].tolist()) == {3 + ord("b") % 50}
    infill = lay_out(model, [Prompt("a" * 20, "b{3}", 0)], 16, cut=True)
    assert infill.starts[0] == 12 and not infill.given.mask[0, 13:].any()


def test_stop_strings_and_what_is_kept():
    assert list(STOP_STRINGS) == GOLDEN["mt_bench_default_stop_strings"]
    assert list(STOP_STRINGS) == GOLDEN["mt_bench_settings"]["stop_strings"]
    for case in GOLDEN["mt_bench_trim"]:
        assert mt_bench.trimmed(case["text"], STOP_STRINGS) == case["trimmed"]
    for case in GOLDEN["mt_bench_clean_completion"]:
        assert mt_bench.cleaned(case["decoded"], STOP_STRINGS) == case["clean"]
    assert mt_bench.cleaned("a\nUSER: b", ()) == "a\nUSER: b"
    assert mt_bench.cleaned("a STOP b STOP c", ("STOP",)) == "a"


def test_answers_end_at_the_first_stop_token():
    golden = GOLDEN["mt_bench_trim_ids"]
    tokenizer = Letters()
    assert golden["stop"] == [tokenizer.eos_id]
    row = np.array([9, *golden["ids"]])
    assert answer_texts(tokenizer, row, 1, 6).answer == tokenizer.decode(golden["out"])
    assert uncut_text(tokenizer, row, 1, 6) == tokenizer.decode([5, 6, 7])


def test_only_the_reference_reads_behind_the_end_of_an_answer(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", *gsm8k_problems(4))
    benchmark = make_benchmark("gsm8k", path, Choices(chat=True))
    written = ["### 0", "### 0 or 7", "It is 4", "6"]
    ends = [5, 5, 0, 1]

    def answer(asked, wanted):
        yield [Answer(i, w[:end], "x", 1, w) for i, (w, end) in enumerate(zip(written, ends))]

    records = collect(benchmark, tmp_path, {}, answer)
    assert [r["number_right"] for r in records] == [True, False, False, True]
    assert [r["reference_right"] for r in records] == [True, False, True, True]
    assert [r["reference_strict_right"] for r in records] == [True, False, False, False]
    assert [r.get("uncut") for r in records] == [None, "### 0 or 7", "It is 4", None]
    row = summarise(benchmark, records)
    assert (row["number_match"], row["reference_match"], row["reference_strict_match"]) == (
        0.5,
        0.75,
        0.25,
    )
    assert row["number_match_low"] < 0.5 < row["number_match_high"]
    names = ["number", "strict", "flexible", "reference", "reference_strict"]
    assert [n for n in row if n.endswith("_match")] == [f"{name}_match" for name in names]


def test_what_a_model_writes_behind_its_end_is_kept(tmp_path, monkeypatch):
    chat = byte_model(chat=True)
    benchmark = make_benchmark(
        "gsm8k", json_lines(tmp_path / "a.jsonl", *gsm8k_problems(1)), Choices(chat=True)
    )

    def completions(model, given, **_):
        tokens = given.tokens.copy()
        start = int(given.mask[0].argmin())
        ids = [*BYTES.encode("### 0").tolist(), BYTES.eos_id, *BYTES.encode(" 5").tolist()]
        tokens[0, start : start + len(ids)] = ids
        tokens[0, start + len(ids) :] = BYTES.eos_id
        yield type("Done", (), dict(places=np.arange(1), tokens=tokens, calls=2.0))

    monkeypatch.setattr("flm_jax.inference.engine.completions", completions)
    how = Answering(2, chat=True, length=64)
    (found,) = collect(benchmark, tmp_path, {}, by_model(chat, how))
    assert (found["answer"], found["uncut"]) == ("### 0", "### 0 5")
    assert found["number_right"] and not found["reference_right"]
    assert found["reference_strict_right"]


def test_the_answer_takes_what_the_prompt_leaves_of_the_row(tmp_path, monkeypatch):
    """`length` alone is the reference's row: as long for each prompt, long ones cut."""
    chat, laid = byte_model(chat=True), []
    records = [{"question": "a" * n, "answer": "#### 1"} for n in (9, 300)]
    benchmark = make_benchmark(
        "gsm8k", json_lines(tmp_path / "a.jsonl", *records), Choices(chat=True)
    )

    def batches(model, prompts, how, wanted):
        laid.append(lay_out(model, prompts, how.length, chat=how.chat, cut=how.cut))
        yield [Answer(i, "1", "1", 1) for i in range(len(prompts))]

    monkeypatch.setattr("flm_jax.evaluation.benchmarks.runner.answer_batches", batches)
    how = Answering(2, chat=True, length=100, cut=True)
    found = collect(benchmark, tmp_path, {}, by_model(chat, how))
    (rows,) = laid
    assert rows.stops.tolist() == [100, 100] and rows.given.tokens.shape == (2, 100)
    assert rows.starts.tolist() == [9 + len("USER:\n\nASSISTANT:\n"), 99]
    assert not any(record.get("too_long") for record in found)


def test_mt_bench_of_one_turn(tmp_path):
    path = json_lines(tmp_path / "q.jsonl", *mt_bench_questions(2))
    choices = Choices(prompt_style="vicuna", first_turn=True, stop_strings=("END",))
    benchmark = make_benchmark("mt_bench", path, choices)
    answer = lambda asked, wanted: [[Answer(i, " Assistant: aEND b", "x", 1) for i in range(2)]]
    records = collect(benchmark, tmp_path, {}, answer)
    assert [(r["id"], r["turn"], r["answer"]) for r in records] == [(81, 0, "a"), (82, 0, "a")]
    told = mt_bench.write_answers(tmp_path, records, "tiny").read_text().splitlines()
    assert json.loads(told[0])["choices"][0]["turns"] == ["a"]
    with pytest.raises(UserError, match="got prompt_style='vicuna' for two turns.*--first_turn"):
        make_benchmark("mt_bench", path, dataclasses.replace(choices, first_turn=False))
