"""Prompts in chat templates, answers that lose nothing, infills of every kind of tokenizer."""

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.chat import ChatSource, Exchange, Framing, asked, framed, told
from flm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from flm_jax.inference import engine
from flm_jax.inference.answers import Answering
from flm_jax.inference.prompts import Prompt, answer_texts, lay_out, room
from flm_jax.inference.self_generation import training_prompts
from helpers import chat_tokenizers
from helpers.files import json_lines
from helpers.prompts import BYTES, ROW_LENGTH, answers, byte_model

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
BUILDERS = {
    "llada": chat_tokenizers.llada,
    "llada2": chat_tokenizers.llada2,
    "metaspace": chat_tokenizers.metaspace,
    "pieces": chat_tokenizers.word_pieces,
}

HOW = Framing(120, "ignored", "cut")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        name: HuggingFaceTokenizer.load(str(build(folder / name)))
        for name, build in BUILDERS.items()
    }


@pytest.fixture(scope="module")
def llada(tokenizers):
    return byte_model(tokenizer=tokenizers["llada"], packing="wrap")


def ids_of(tokenizer, *names):
    return [tokenizer._backend.token_to_id(name) for name in names]


def test_a_row_begins_as_the_template_says(llada):
    tokenizer = llada.tokenizer
    prompts = [Prompt("Hi", before=("So", "Yes")), Prompt("Hi", "a{2}b", 3)]
    rows = lay_out(llada, prompts, ROW_LENGTH, chat=True)
    long, short = (tokenizer.encode_turns(turns) for turns in (["So", "Yes", "Hi"], ["Hi"]))
    assert rows.starts.tolist() == [len(long), len(short)]
    row = rows.given.tokens
    assert row[0, : len(long)].tolist() == long.tolist()
    assert row[0].tolist().count(tokenizer.bos_id) == 1
    a, b = tokenizer.encode("ab").tolist()
    assert row[1, : len(short) + 4].tolist() == [*short.tolist(), a, 0, 0, b]
    assert rows.given.mask[1, len(short) :][:7].tolist() == [True, False, False, True] + [False] * 3
    assert room(llada, prompts[0], ROW_LENGTH, chat=True) == ROW_LENGTH - len(long)
    plain = lay_out(llada, [Prompt("Hi")], ROW_LENGTH).given.tokens[0]
    assert plain[:3].tolist() == [tokenizer.bos_id, *tokenizer.encode("Hi").tolist()]


def test_without_a_template_exchanges_are_framed_in_words(tokenizers):
    for tokenizer in (BYTES, tokenizers["pieces"]):
        words = "USER:\na\nASSISTANT:\nb\nUSER:\nc\nASSISTANT:\n"
        assert framed("a", "b", "c") == words
        assert asked(tokenizer, ["a", "b", "c"]).tolist() == tokenizer.encode(words).tolist()


@pytest.mark.parametrize("name, end", [("llada", "<|eot_id|>"), ("llada2", "<|role_end|>")])
def test_answers_are_learnt_in_the_template(tokenizers, name, end):
    tokenizer = tokenizers[name]
    row = ChatSource([Exchange("Hi", "Yes <|eot_id|>")], tokenizer, HOW)[0]
    head = tokenizer.encode_turns(["Hi"])
    answer = [*tokenizer.encode("Yes <|eot_id|>"), *ids_of(tokenizer, end, "<|endoftext|>")]
    assert row["tokens"][row["mask"]].tolist() == [*head.tolist(), *answer]
    assert row["prompt"].sum() == len(head)
    other = ChatSource([Exchange("Hi", "Yes")], tokenizers["metaspace"], HOW)
    assert other.fingerprint != ChatSource([Exchange("Hi", "Yes")], tokenizer, HOW).fingerprint


def test_what_is_learnt_is_what_is_read(tokenizers):
    """The text of an answer comes back, also of tokenizers that strip or join."""
    for name, tokenizer in tokenizers.items():
        for text in ("x", "the cats.", " x") if name == "pieces" else ("ab", " ab", "a  b", "\nab"):
            head = asked(tokenizer, ["a x"])
            row = np.concatenate([head, told(tokenizer, text), tokenizer.encode("a")])
            found = answer_texts(tokenizer, row, len(head), len(row)).answer
            assert found == text or (name == "pieces" and found.strip() == text.strip())


@pytest.mark.parametrize(
    "name, before, words, answer",
    [
        ("metaspace", "ab", ["\u2581a", "b"], " ab"),
        ("metaspace", "ab", ["a", "b"], "ab"),
        ("metaspace", "", ["\u2581a", "b"], "ab"),
        ("pieces", "un", ["##able", "cat", "."], "able cat."),
        ("pieces", "the", ["cat", "##s"], " cats"),
        ("pieces", "the", ["[PAD]", "cat", "[CLS]"], " cat"),
    ],
)
def test_an_answer_is_what_it_adds_to_the_prompt(tokenizers, name, before, words, answer):
    tokenizer = tokenizers[name]
    head = tokenizer.encode(before).tolist()
    row = np.array([*head, *ids_of(tokenizer, *words)])
    found = answer_texts(tokenizer, row, len(head), len(row))
    assert found == (answer, before + answer)


def test_an_answer_that_completes_what_stands_before_it():
    row = np.array([*"aé".encode(), ord("b")])
    assert answer_texts(BYTES, row, 2, 4) == ("éb", "aéb")


@pytest.mark.parametrize("name", ["llada", "llada2"])
def test_every_end_of_a_turn_ends_an_answer(tokenizers, name):
    tokenizer = tokenizers[name]
    others = sorted(tokenizer.special_ids - tokenizer.end_ids)
    for end in tokenizer.end_ids:
        row = np.array([*tokenizer.encode("ab"), *others, *tokenizer.encode("c"), end, *others])
        row = np.concatenate([row, tokenizer.encode("d")])
        assert answer_texts(tokenizer, row, 1, len(row)) == ("bc", "abc")


@pytest.mark.parametrize(
    "name, before, infill, words",
    [
        ("metaspace", "", "ab{2}c{1} a", ["\u2581a", "b", 0, 0, "c", 0, "\u2581a"]),
        ("metaspace", "", "{1}ab", [0, "a", "b"]),
        ("metaspace", "a", "b{1}c", ["\u2581a", "b", 0, "c"]),
        ("pieces", "", "un{1}able the{2} cat", ["un", 0, "##able", "the", 0, 0, "cat"]),
        ("pieces", "un", "able{1}", ["un", "##able", 0]),
    ],
)
def test_infills_are_encoded_with_what_is_around_them(tokenizers, name, before, infill, words):
    model = byte_model(tokenizer=tokenizers[name], packing="stream")
    rows = lay_out(model, [Prompt(before, infill, 0)], ROW_LENGTH)
    size = rows.stops[0]
    want = [word and ids_of(model.tokenizer, word)[0] for word in words]
    assert rows.given.tokens[0, :size].tolist() == want
    assert rows.given.mask[0, :size].tolist() == [word != 0 for word in words]


def test_questions_to_learn_from_are_asked_in_the_template(llada, tmp_path):
    path = json_lines(tmp_path / "q.jsonl", {"prompt": "Hi", "response": "Yes"})
    (asked, kind) = training_prompts(llada, 2, 0, path)
    want = llada.tokenizer.encode_turns(["Hi"]).tolist()
    assert asked.tokens[1, asked.mask[1]].tolist() == want and kind == "chat"


def test_questions_to_learn_from_have_a_canvas(llada, tmp_path):
    """Of one length, behind which nothing is seen; questions that leave no room are left out."""
    long = {"prompt": "word " * ROW_LENGTH, "response": "Yes"}
    path = json_lines(tmp_path / "q.jsonl", long, {"prompt": "Hi", "response": "Yes"})
    (asked, _) = training_prompts(llada, 2, 0, path, answer_length=5)
    start = len(llada.tokenizer.encode_turns(["Hi"]))
    place = np.arange(ROW_LENGTH)
    assert (asked.visible == (place < start + 5)).all()
    assert (asked.mask == ((place < start) | (place >= start + 5))).all()
    with pytest.raises(UserError, match="2 of 2 questions leave no room for an answer of"):
        training_prompts(llada, 2, 0, path, answer_length=ROW_LENGTH)
    with pytest.raises(UserError, match=f"answer_length={ROW_LENGTH + 1} for rows of"):
        training_prompts(llada, 2, 0, answer_length=ROW_LENGTH + 1)


def test_an_infill_behind_bos_begins_the_text(tokenizers):
    model = byte_model(tokenizer=tokenizers["metaspace"], packing="wrap")
    row = lay_out(model, [Prompt("", "ab{1}", 0)], ROW_LENGTH).given.tokens[0, :3]
    assert row.tolist() == ids_of(model.tokenizer, "<s>", "\u2581a", "b")


def test_a_model_answers_in_its_template(llada):
    """A whole answer: nothing of the prompt, no special token, and the same prompt each time."""
    how = Answering(4, 2, answer_length=12, chat=True)
    found = list(answers(llada, [Prompt("a <|eot_id|>"), Prompt("b")], how))
    head = llada.tokenizer.decode(llada.tokenizer.encode_turns(["a <|eot_id|>"]))
    assert found[0].whole == head + found[0].text and "<|eot_id|>" in head
    given = engine.given_tokens(llada, "b", "", 1, ROW_LENGTH, chat=True)
    want = llada.tokenizer.encode_turns(["b"]).tolist()
    assert given.tokens[0, : len(want)].tolist() == want and int(given.mask.sum()) == len(want)
