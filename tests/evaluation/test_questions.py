"""Answers to held-out questions: which are right, how varied they are, and the topics."""

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.chat import ChatSource, Exchange, Framing, asked, told
from flm_jax.data.loading import Data
from flm_jax.data.synthetic_exchanges import EXCHANGES, synthetic_exchanges
from flm_jax.data.tasks.registry import make_task
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.evaluation.questions import answer_figures, held_out_questions, known_answers

BYTES, LENGTH = ByteTokenizer(), 30


def data_of(exchanges):
    source = ChatSource(exchanges, BYTES, Framing(LENGTH, "answer", "skip"))
    train, valid = source.split(20)
    return Data([(train, 1.0)], valid, BYTES, None)


def row(question, answer):
    ids = np.concatenate([asked(BYTES, [question]), told(BYTES, answer)])
    return np.pad(ids, (0, LENGTH - len(ids)), constant_values=BYTES.eos_id)


def test_an_answer_is_right_that_any_exchange_gives_to_its_question():
    pairs = [Exchange("a", str(i)) for i in range(8)] + [Exchange("b", "x")] * 32
    data = data_of(pairs)  # held out: "a" with 0, and "b" twice
    given = held_out_questions(data, 6)
    assert len(data.valid) == 2 and given.mask.sum(axis=1).tolist() == [19] * 6
    assert BYTES.decode(given.tokens[1][given.mask[1]]) == "USER:\nb\nASSISTANT:\n"
    assert (given.tokens[~given.mask] == 0).all()  # no answer leaks
    known = known_answers(data)
    assert sorted(map(len, known.values())) == [1, 8]
    ends = lambda *each: np.stack([row(*one) for one in each])
    all_right = ends(("a", "5"), ("b", "x"), ("a", "0"), ("b", "x"), ("a", "5"), ("b", "x"))
    found = answer_figures(known, BYTES, given, all_right)
    # Three draws of eight have 8 (1 - (7/8)^3) = 2.64 different answers in the mean.
    assert found["answers_right"] == 1.0 and found["answers_right_low"] > 0.6
    assert found["answers_varied"] == pytest.approx(3 / (1 + 8 * (1 - (7 / 8) ** 3)))
    wrong = ends(("a", "x"), ("b", "0"), ("a", "55"), ("b", "x"), ("a", ""), ("b", "x"))
    found = answer_figures(known, BYTES, given, wrong)
    assert found["answers_right"] == pytest.approx(1 / 3) and found["answers_varied"] == 1.0
    assert 0 < found["answers_right_low"] < 1 / 3 < found["answers_right_high"] < 1
    assert "answers_varied" not in answer_figures(known, BYTES, given, np.zeros_like(wrong))


def test_questions_need_exchanges():
    task = make_task("phrases2")
    data = Data([], task.source(8, 0), task.tokenizer, task)
    with pytest.raises(UserError, match="trained on no exchanges; expected one of config.data"):
        held_out_questions(data, 3)


def test_topics_are_drawn_with_answers_of_their_own_alone():
    found = synthetic_exchanges("topics", 400, 0)
    assert found == synthetic_exchanges("topics", 400, 0) != synthetic_exchanges("topics", 400, 1)
    topics = EXCHANGES["topics"]
    assert {one.prompt for one in found} == topics.keys()
    assert all(one.response in topics[one.prompt] for one in found)
    words = [word for each in topics.values() for word in each]
    assert len(set(words)) == len(words) == 32 and {len(word) for word in words} == {5}
    with pytest.raises(UserError, match="unknown exchanges 'sums'; valid: topics"):
        synthetic_exchanges("sums", 1, 0)
    with pytest.raises(UserError, match="got num=0"):
        synthetic_exchanges("topics", 0, 0)
