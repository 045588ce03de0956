"""Prompts of different lengths: files, rows, answers, refusals before anything is compiled."""

import dataclasses

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.chat import framed
from flm_jax.inference import engine
from flm_jax.inference.answers import Answering, answer_batches
from flm_jax.inference.prompts import Prompt, answer_texts, lay_out, read_prompts
from flm_jax.samplers.masked_diffusion import ConfidenceConfig
from helpers.files import json_lines
from helpers.prompts import BYTES, ROW_LENGTH, answers, byte_model

CONFIDENT = ConfidenceConfig(temperature=0.0)


@pytest.fixture(scope="module")
def chat():
    return byte_model(chat=True)


def test_files_are_read(tmp_path):
    records = {"prompt": "a", "id": 3}, {"infill": "b{2}", "answer_length": 0}
    path = json_lines(
        tmp_path / "p.jsonl", records[0], "", records[1], {"prompt": "c", "infill": "d"}
    )
    assert read_prompts(path) == [
        Prompt("a", "", None, f"{path}, line 1"),
        Prompt("", "b{2}", 0, f"{path}, line 3"),
        Prompt("c", "d", None, f"{path}, line 4"),
    ]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: no JSON"),
        ([1], "line 2: expected an object.*got list"),
        ({"text": "a"}, r"line 2: expected text under 'prompt'.*\['text'\]"),
        ({"prompt": 3}, "line 2: expected text under 'prompt'.*'prompt': 3"),
        ({"prompt": ""}, "line 2: expected text"),
        ({"prompt": "a", "answer_length": 0}, "line 2: got 0 for 'answer_length'.* at least 1"),
        ({"prompt": "a", "answer_length": True}, "line 2: got True for 'answer_length'"),
        ({"infill": "a", "answer_length": -1}, "line 2: got -1 for 'answer_length'.* least 0"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        read_prompts(json_lines(tmp_path / "p.jsonl", {"prompt": "a"}, line))
    with pytest.raises(UserError, match="no file .*p2.jsonl"):
        read_prompts(str(tmp_path / "p2.jsonl"))


def test_rows_of_a_chat_model(chat):
    prompts = [Prompt("Hi", answer_length=3), Prompt("Why", "{2}x", answer_length=50)]
    rows = lay_out(chat, prompts, ROW_LENGTH, chat=True)
    tokens, mask, seen = rows.given
    heads = [len(framed("Hi")), len(framed("Why"))]
    assert (
        tokens.shape == mask.shape == seen.shape == (2, 128)
    )  # 21 + 3 + 50 tokens, in steps of 64
    assert rows.starts.tolist() == heads and rows.stops.tolist() == [heads[0] + 3, heads[1] + 53]
    assert BYTES.decode(tokens[0, : heads[0]]) == framed("Hi")
    assert mask[0].tolist() == [not heads[0] <= i < heads[0] + 3 for i in range(128)]
    assert (tokens[0, heads[0] + 3 :] == BYTES.pad_id).all()
    free = {heads[1], heads[1] + 1, *range(heads[1] + 3, heads[1] + 53)}
    assert set(np.flatnonzero(~mask[1]).tolist()) == free
    assert tokens[1, heads[1] + 2] == ord("x")


def test_rows_of_a_model_that_knows_no_padding():
    model = byte_model(packing="wrap")
    rows = lay_out(model, [Prompt("Hi", answer_length=3)], ROW_LENGTH)
    assert rows.given.tokens[0, 0] == BYTES.bos_id and rows.starts.tolist() == [3]
    assert np.flatnonzero(~rows.given.mask[0]).tolist() == [3, 4, 5] and rows.stops.tolist() == [6]
    assert lay_out(model, [Prompt("Hi")], ROW_LENGTH, whole=True).given.tokens.shape == (
        1,
        ROW_LENGTH,
    )
    padded = lay_out(byte_model(packing="pad"), [Prompt("Hi", answer_length=3)], ROW_LENGTH)
    assert padded.given.mask[0, 6:].all() and not padded.given.mask[0, 3:6].any()


def test_an_answer_ends_at_eos_or_where_it_stops():
    row = np.array([*b"ab", *b"cd", BYTES.eos_id, *b"ef"])
    assert answer_texts(BYTES, row, 2, 7) == ("cd", "abcd")
    assert answer_texts(BYTES, row, 0, 1) == ("a", "a")
    assert answer_texts(BYTES, row, 5, 7) == ("ef", "abcdef")


def test_rows_of_a_batch_do_not_know_each_other(chat):
    prompts = [Prompt("a" * n, answer_length=4 + n) for n in (1, 9, 30, 5, 17)]
    how = Answering(6, 2, chat=True, sampler=CONFIDENT)
    together = list(answers(chat, prompts, how))
    assert [a.place for a in together] == [0, 1, 2, 3, 4]
    for i, answer in enumerate(together):
        assert answer.whole == framed(prompts[i].text) + answer.text and answer.calls == 6
        # Rows of the same width: that of the longest.
        alone = list(
            answers(chat, [prompts[i], prompts[2]], dataclasses.replace(how, batch_size=1))
        )[0]
        assert alone.text == answer.text


def test_answers_that_are_there_change_no_other(chat):
    prompts = [Prompt(f"{n}") for n in range(5)]
    how = Answering(3, 2, seed=4, answer_length=7, chat=True)
    whole = list(answers(chat, prompts, how))
    assert len({a.text for a in whole}) == 5
    some = answer_batches(chat, prompts, how, lambda place: place in (3, 4))
    assert list(some) == [whole[3:4], whole[4:]]


def test_what_does_not_fit_is_named_before_compiling(chat, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("compiled before refusing")

    monkeypatch.setattr(engine, "_program", refuse)
    long = Prompt("a" * ROW_LENGTH, where="p.jsonl, line 7")
    short = Prompt("a", where="p.jsonl, line 1")
    cases = [
        (
            [short, long],
            {},
            rf"p.jsonl, line 7: the prompt takes {ROW_LENGTH} of {ROW_LENGTH} tokens",
        ),
        ([short], {"answer_length": 160}, "line 1: the prompt takes 1 tokens and its answer 160"),
        ([short._replace(infill="b", answer_length=0)], {}, "line 1: the infill has no {n}"),
        ([short], {"answer_length": -1}, "got answer_length=-1"),
        ([short], {"length": 999}, "got length=999"),
        ([short], {"batch_size": 0}, "got batch_size=0"),
    ]
    for prompts, settings, message in cases:
        with pytest.raises(UserError, match=message):
            list(answers(chat, prompts, Answering(2, **settings)))


def test_files_of_any_editor_are_read(tmp_path):
    path = tmp_path / "p.jsonl"
    lines = rb'{"prompt": "a\r\nb"}', b"", rb'{"infill": "c{2}\r"}'
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    assert read_prompts(str(path)) == [
        Prompt("a\nb", "", None, f"{path}, line 1"),
        Prompt("", "c{2}\n", None, f"{path}, line 3"),
    ]


def test_lone_surrogates_are_told_once_and_read_as_replacements(tmp_path, caplog):
    path = json_lines(
        tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b\ud800"}, {"infill": "\udc00"}
    )
    found = read_prompts(path)
    assert [p.text + p.infill for p in found] == ["a", "b\ufffd", "\ufffd"]
    (said,) = caplog.messages
    assert said.startswith(f"{path}, line 2: got a lone surrogate")


@pytest.mark.parametrize(
    "given, name", [(("a\ud800", ""), "prompt"), (("", "a\ud800{3}"), "infill")]
)
def test_lone_surrogates_of_a_call_are_read_as_replacements(chat, caplog, given, name):
    row = engine.given_tokens(chat, *given, 1, 20).tokens[0].tolist()
    assert BYTES.decode(row[:4]) == "a\ufffd"
    (said,) = caplog.messages
    assert said.startswith(f"the {name}: got a lone surrogate")
