"""Texts of all lengths are scored and answered by a few programs, with the results of their own."""

import jax
import numpy as np
import pytest

from flm_jax.build.families.registry import family
from flm_jax.build.flow import make_flow
from flm_jax.build.load import Model
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.config.schema import choose
from flm_jax.data.pipeline import padded_length
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.inference.language_model import LanguageModel
from flm_jax.inference.prompts import Prompt, lay_out
from flm_jax.metrics.likelihood import sequence_nats
from helpers.prompts import byte_model
from helpers.runs import tiny_config

LONGEST = 192


def model_of(goal, name="dit"):
    config = tiny_config()
    choose(config, model=name.replace("self-conditioned", "dit"), objective=goal)
    if name == "self-conditioned":
        config.model.self_conditioning = True
    config.model.update({"length": LONGEST, "dim": 8, "depth": 1, "heads": 2, "vocab_size": 260})
    config.data.task, config.data.packing = "", "stream"
    config = check(config)
    net = make_network(config)
    leaves, tree = jax.tree.flatten(net.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])
    return Model(config, net, params, make_flow(config, 260), ByteTokenizer(), 0)


def test_eight_lengths_hold_all_up_to_1024():
    found = [padded_length(length, 1024) for length in range(1, 1025)]
    assert sorted(set(found)) == [64, 128, 192, 256, 384, 512, 768, 1024]
    assert all(at_least >= length for length, at_least in enumerate(found, start=1))
    assert max(at_least / n for n, at_least in enumerate(found, start=1) if n > 128) < 1.5
    assert [padded_length(n, 100) for n in (1, 65, 100)] == [64, 100, 100]


@pytest.mark.parametrize(
    "goal, name",
    [
        ("autoregressive", "causal"),
        ("masked_diffusion", "dit"),
        ("denoising", "dit"),
        ("denoising", "self-conditioned"),
        ("uniform_diffusion", "dit"),
    ],
)
def test_scores_are_those_of_rows_that_are_not_filled_up(goal, name):
    model = model_of(goal, name)
    texts = ["a", "between", "x" * 64, "x" * 65]
    scored = LanguageModel(model)
    found = scored.score(texts)
    assert scored._nll._cache_size() == 2
    kind = family(model.config)
    row = jax.jit(kind.row_likelihood(model.config, model.net, model.flow))
    ids = model.tokenizer.encode(texts[1])[None]
    batch = {"tokens": ids, "mask": np.ones(ids.shape, bool)}
    want, _ = sequence_nats(row, model.params, [batch], draws=kind.draws)
    np.testing.assert_allclose(found.nats[1], want[0], rtol=2e-5)


def test_rows_of_prompts_have_few_widths():
    model = byte_model(packing="stream")
    widths = {
        lay_out(model, [Prompt("x" * n, answer_length=3)], 160).given.tokens.shape[1]
        for n in range(1, 150)
    }
    assert widths == {64, 128, 160}
