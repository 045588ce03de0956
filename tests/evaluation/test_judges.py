"""Perplexity judges: GPT-2 against its own code's numbers, others refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.tokenizers.builtin import CharacterTokenizer
from flm_jax.evaluation import judges
from flm_jax.evaluation.features import judge_features
from flm_jax.metrics.generative_perplexity import judge_samples, judge_texts
from flm_jax.metrics.prompt_following import prompt_following

GPT2 = Path(__file__).parents[1] / "goldens/gpt2"


def test_gpt2_agrees_with_its_own_code():
    """Nats of whole texts within 1e-4; its first token is not scored."""
    judge = judges.load_judge(str(GPT2))
    own = CharacterTokenizer("abcdefghijklmnopqrstuvwxyz ")
    wanted = json.loads((GPT2 / "scores.json").read_text())
    rows = np.zeros((len(wanted), 40), np.int32)
    for row, want in zip(rows, wanted):
        row[: len(want["text"])] = own.encode(want["text"])
    got = judge_samples(judge, rows, own, "stream")
    np.testing.assert_allclose(got[:, 0], [w["nats"] for w in wanted], atol=1e-4)
    np.testing.assert_array_equal(got[:, 1], [w["tokens"] - 1 for w in wanted])


def test_its_features_are_the_state_behind_a_text():
    """Read by the head they are the law of the next token, whatever stands beside the text."""
    judge = judges.load_judge(str(GPT2))
    texts, following = ["a lake", "the", ""], "e"
    found = judge_features(judge)(texts, 2)
    assert found.shape == (3, judge.net.dim)
    kernel, bias = (np.asarray(x, np.float64) for x in judge.net.readout(judge.params))
    logits = found @ kernel + bias
    laws = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    nats = lambda some: judge_texts(judge, some)[:, 0]
    ((place,),) = judge.tokenizer.encode_batch([following])
    gained = nats([text + following for text in texts[:2]]) - nats(texts[:2])
    np.testing.assert_allclose(-laws[:2, place], gained, atol=2e-4)


def test_a_prompt_gains_what_the_likelihoods_of_whole_texts_say():
    judge = judges.load_judge(str(GPT2))
    prompts, written = ["a cat sat", "where is", "the l"], [" on a mat", " the house", "ake"]
    nats = lambda some: judge_texts(judge, some)[:, 0]
    behind = lambda given: nats([a + b for a, b in zip(given, written)]) - nats(given)
    count = sum(map(len, judge.tokenizer.encode_batch(written)))
    other = [*prompts[1:], prompts[0]]
    both = prompt_following(judge, prompts, written, 2)
    found, likely = both["prompt_gain_nats"], both["continuation_perplexity"]
    assert likely.value == pytest.approx(np.exp(behind(prompts).sum() / count), rel=1e-4)
    assert likely.low <= likely.value <= likely.high
    assert found.value == pytest.approx((behind(other) - behind(prompts)).sum() / count, abs=1e-4)
    assert found.low <= found.value <= found.high
    same = prompt_following(judge, ["the"] * 2, ["a b", "c d"])["prompt_gain_nats"]
    assert same.value == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(UserError, match="two or more"):
        prompt_following(judge, ["a"], ["b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "holds a model of type 'llama'; expected 'gpt2'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'; only 'gelu_new'"),
        ({"n_layer": 3}, "are missing for 3 layers"),
    ],
)
def test_other_models_are_refused(tmp_path, change, message):
    for path in GPT2.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((GPT2 / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        judges.load_judge(str(tmp_path))


def test_a_judge_must_be_there(tmp_path):
    with pytest.raises(UserError, match="has no config.json; expected a workdir of train"):
        judges.load_judge(str(tmp_path))
