"""Loaded models choose the tokens of their last call, or of each call, by bigrams and trigrams."""

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
from flm_jax.data.bigrams import BIGRAMS, count_bigrams, load_bigrams, save_bigrams
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.data.trigrams import TRIGRAMS, count_trigrams, load_trigrams, save_trigrams
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import logits
from flm_jax.inference.language_model import LanguageModel
from flm_jax.samplers.base import nothing_given
from flm_jax.samplers.bigram import Chain, candidates_of, choose_together
from flm_jax.samplers.categorical import Choice
from helpers.files import prepared_corpus
from helpers.ngrams import Stream
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


@pytest.mark.parametrize("trigram", [0.0, 4.0])
def test_one_call_of_a_flow_takes_the_best_chain_of_its_answer(corpus, tmp_path, trigram):
    model, mark = _model("denoising", corpus), ByteTokenizer().fingerprint
    lm = LanguageModel(model)
    plain = lm.sample(4, steps=1, seed=3).tokens
    # Texts of the tokens that this network writes, so that it meets their pairs and triples.
    stream = Stream(np.random.default_rng(0).choice(np.unique(plain), 2000))
    pairs, triples = count_bigrams(stream, 260), count_trigrams(stream, 260)
    save_bigrams(tmp_path, pairs, mark)
    save_trigrams(tmp_path, triples, mark)
    how = {"bigram": 6.0, "bigram_candidates": 24, "bigrams": str(tmp_path)}
    found = lm.sample(4, steps=1, seed=3, trigram=trigram, **how)
    key, flow = jax.random.fold_in(jax.random.key(3), 0), model.flow
    xi = flow.noise.draw(key, model.net.table(model.params), (4, LENGTH))
    zeros = jnp.zeros(4)
    scores = logits(forward(model.net, model.params, xi, zeros, zeros), model.net)
    tables = [load(tmp_path, mark) for load in (load_bigrams, load_trigrams)]
    pairs, triples = jax.tree.map(jnp.asarray, tables)
    chain = Chain(pairs, 6.0, 24)
    if trigram:
        chain = chain._replace(trigrams=triples, trigram_weight=trigram)
    choice = Choice(0.0, 1.0, chain)
    best = candidates_of(key, jnp.arange(LENGTH), scores, choice)
    wanted, confidence = choose_together(key, best, choice, nothing_given(4, LENGTH))
    np.testing.assert_array_equal(found.tokens, wanted)
    np.testing.assert_allclose(found.confidence, confidence, rtol=1e-4)
    assert np.any(found.tokens != plain)
    if trigram:
        assert np.any(found.tokens != lm.sample(4, steps=1, seed=3, **how).tokens)


@pytest.mark.parametrize("goal, two_time", [("denoising", False), ("masked_diffusion", False)])
def test_prompts_are_kept_and_few_candidates_change_nothing_but_the_choice(corpus, goal, two_time):
    lm = LanguageModel(_model(goal, corpus, two_time))
    how = {"steps": 3, "prompt": "to b", "bigram": 1.0, "trigram": 1.0}
    for temperature in (0.0, 1.0):
        found = lm.sample(4, temperature=temperature, **how)
        assert all(text.startswith("to b") for text in found.texts)
        again = lm.sample(4, temperature=temperature, **how)
        np.testing.assert_array_equal(found.tokens, again.tokens)


@pytest.mark.parametrize("trigram", [0.0, 1.0])
def test_an_exported_model_takes_its_tables_along(corpus, tmp_path, trigram):
    model = _model("denoising", corpus)
    sampler = model.config["sampler"] | {"bigram": 1.0, "trigram": trigram}
    model = model._replace(config=model.config | {"sampler": sampler})
    save_model(tmp_path / "out", model)
    assert (tmp_path / "out" / BIGRAMS).exists()
    assert (tmp_path / "out" / TRIGRAMS).exists() == bool(trigram)
    again = load_model(tmp_path / "out")
    assert again.config["data"]["path"] == "" and again.config["sampler"]["bigrams"] == ""
    lm, own = LanguageModel(again), LanguageModel(model)
    np.testing.assert_array_equal(lm.sample(2, steps=1).tokens, own.sample(2, steps=1).tokens)
    name = TRIGRAMS if trigram else BIGRAMS
    (tmp_path / "out" / name).unlink()
    with pytest.raises(UserError, match=f"needs {name.partition('.')[0]}.*bigrams=FOLDER"):
        LanguageModel(again).sample(2, steps=1)
    # Bigrams whose weight is 0 leave out trigrams too.
    assert lm.sample(2, steps=1, bigram=0.0).tokens.shape == (2, LENGTH)


def test_helpers_of_other_samplers_are_not_offered(corpus):
    lm = LanguageModel(_model("masked_diffusion", corpus))
    with pytest.raises(UserError, match="bigram"):
        lm.sample(2, steps=1, sampler="confidence", bigram=1.0)
    with pytest.raises(UserError, match="bigram_candidates"):
        lm.sample(2, steps=1, bigram=1.0, bigram_candidates=1)
    names = {field.name for field in dataclasses.fields(lm.sampler)}
    assert {"bigram", "trigram", "bigrams", "bigram_candidates"} <= names
