"""Loaded models choose the tokens of their last call, or of each call, by bigrams."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.build.export import save_model
from flm_jax.build.flow import make_flow
from flm_jax.build.load import Model, load_model
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.config.schema import choose
from flm_jax.core.errors import UserError
from flm_jax.data.bigrams import BIGRAMS, load_bigrams
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import logits
from flm_jax.inference.language_model import LanguageModel
from flm_jax.samplers.base import nothing_given
from flm_jax.samplers.bigram import Chain, candidates_of, choose_together
from flm_jax.samplers.categorical import Choice
from helpers.files import prepared_corpus
from helpers.runs import tiny_config

LENGTH = 8


def _model(goal, data, two_time=False):
    config = tiny_config()
    choose(config, objective=goal)
    config.model.update({"length": LENGTH, "dim": 8, "depth": 1, "heads": 2, "vocab_size": 260})
    config.model.two_time = two_time
    config.data.task, config.data.packing, config.data.path = "", "stream", str(data)
    config = check(config)
    net = make_network(config)
    leaves, tree = jax.tree.flatten(net.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])
    return Model(config, net, params, make_flow(config, 260), ByteTokenizer(), 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return prepared_corpus(tmp_path_factory.mktemp("corpus"), "bytes")


def test_one_call_of_a_flow_takes_the_best_chain_of_its_answer(corpus):
    model = _model("denoising", corpus)
    lm = LanguageModel(model)
    found = lm.sample(4, steps=1, seed=3, bigram=6.0, bigram_candidates=260)
    key, flow = jax.random.fold_in(jax.random.key(3), 0), model.flow
    xi = flow.noise.draw(key, model.net.table(model.params), (4, LENGTH))
    zeros = jnp.zeros(4)
    scores = logits(forward(model.net, model.params, xi, zeros, zeros), model.net)
    table = jax.tree.map(jnp.asarray, load_bigrams(corpus, ByteTokenizer().fingerprint))
    choice = Choice(0.0, 1.0, Chain(table, 6.0, 260))
    best = candidates_of(key, jnp.arange(LENGTH), scores, choice)
    wanted, confidence = choose_together(key, best, choice, nothing_given(4, LENGTH))
    np.testing.assert_array_equal(found.tokens, wanted)
    np.testing.assert_allclose(found.confidence, confidence, rtol=1e-4)
    assert np.any(found.tokens != lm.sample(4, steps=1, seed=3).tokens)


@pytest.mark.parametrize("goal, two_time", [("denoising", False), ("masked_diffusion", False)])
def test_prompts_are_kept_and_few_candidates_change_nothing_but_the_choice(corpus, goal, two_time):
    lm = LanguageModel(_model(goal, corpus, two_time))
    how = {"steps": 3, "prompt": "to b", "bigram": 1.0}
    for temperature in (0.0, 1.0):
        found = lm.sample(4, temperature=temperature, **how)
        assert all(text.startswith("to b") for text in found.texts)
        again = lm.sample(4, temperature=temperature, **how)
        np.testing.assert_array_equal(found.tokens, again.tokens)


def test_an_exported_model_takes_its_bigrams_along(corpus, tmp_path):
    model = _model("denoising", corpus)
    sampler = model.config["sampler"] | {"bigram": 1.0}
    model = model._replace(config=model.config | {"sampler": sampler})
    save_model(tmp_path / "out", model)
    assert (tmp_path / "out" / BIGRAMS).exists()
    again = load_model(tmp_path / "out")
    assert again.config["data"]["path"] == "" and again.config["sampler"]["bigrams"] == ""
    lm, own = LanguageModel(again), LanguageModel(model)
    np.testing.assert_array_equal(lm.sample(2, steps=1).tokens, own.sample(2, steps=1).tokens)
    (tmp_path / "out" / BIGRAMS).unlink()
    with pytest.raises(UserError, match="bigrams=FOLDER"):
        LanguageModel(again).sample(2, steps=1)


def test_helpers_of_other_samplers_are_not_offered(corpus):
    lm = LanguageModel(_model("masked_diffusion", corpus))
    with pytest.raises(UserError, match="bigram"):
        lm.sample(2, steps=1, sampler="confidence", bigram=1.0)
    with pytest.raises(UserError, match="bigram_candidates"):
        lm.sample(2, steps=1, bigram=1.0, bigram_candidates=1)
    names = {field.name for field in dataclasses.fields(lm.sampler)}
    assert {"bigram", "bigrams", "bigram_candidates"} <= names
