"""Likelihoods of exact networks are entropies, and wrong ones have larger bounds."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.losses.masked_diffusion import MaskedConfig
from flm_jax.metrics.likelihood import likelihood, make_autoregressive_nll, make_masked_nll
from helpers.laws import (
    CHAIN_FIRST,
    CHAIN_NEXT,
    ENTROPY,
    EXACT,
    KEY,
    LAW,
    LENGTH,
    SEQUENCES,
    VOCAB,
    exact_chain,
    law_batch,
)


def test_likelihood_bound_of_the_exact_denoiser_is_the_entropy():
    """Within 4 of its own standard errors; these under 1% of it."""
    row_nll = jax.jit(make_masked_nll(EXACT, MaskedConfig()))
    batches = [law_batch(512, i) for i in range(4)]
    found = likelihood(row_nll, {}, batches, draws=32)
    assert found.standard_error < 0.015 * ENTROPY
    assert abs(found.nats_per_token - ENTROPY) < 4 * found.standard_error
    assert (found.tokens, found.sequences, found.draws) == (2048 * LENGTH, 2048, 32)
    np.testing.assert_allclose(found.perplexity, np.exp(found.nats_per_token))


def test_a_wrong_denoiser_has_a_larger_bound():
    """Tempered logits (cap of 1): the bound is above the entropy, which the exact one attains."""
    flat = dataclasses.replace(EXACT, logit_softcap=1.0)
    row_nll = jax.jit(make_masked_nll(flat, MaskedConfig()))
    assert likelihood(row_nll, {}, [law_batch(512, 0)], draws=8).nats_per_token > 1.5 * ENTROPY


def test_positions_that_do_not_count_change_no_bound():
    """The valid tokens of a row alone are averaged, and counted."""
    row_nll = jax.jit(make_masked_nll(EXACT, MaskedConfig()))
    batch, tau = law_batch(96, 0), jnp.zeros(96)
    count = np.repeat([4, 2, 0], 32)
    part = batch | {"mask": jnp.arange(LENGTH)[None] < count[:, None]}
    nll, scored = row_nll({}, part, tau, KEY)
    assert scored.tolist() == count.tolist()
    marginals = np.array(
        [[LAW[SEQUENCES[:, i] == v].sum() for v in range(VOCAB)] for i in range(4)]
    )
    each = -np.log(marginals[np.arange(4)[None], np.asarray(batch["tokens"])])  # all are hidden
    want = (each * np.asarray(part["mask"])).sum(axis=1) / np.maximum(count, 1)
    np.testing.assert_allclose(nll, want, rtol=1e-5)


def test_a_row_weighs_as_much_as_it_has_tokens_after_its_prompt():
    batch, tau = law_batch(2, 0), jnp.zeros(2)
    prompts = batch | {"prompt": jnp.arange(LENGTH)[None] < jnp.asarray([[1], [LENGTH - 1]])}
    _, scored = make_masked_nll(EXACT, MaskedConfig())({}, prompts, tau, KEY)
    assert scored.tolist() == [LENGTH - 1, 1]

    def row_nll(params, batch, tau, key):
        return jnp.asarray([1.0, 3.0]), scored

    found = likelihood(row_nll, {}, [prompts])
    assert found.tokens == LENGTH
    np.testing.assert_allclose(found.nats_per_token, (LENGTH - 1 + 3.0) / LENGTH, rtol=1e-6)


def test_likelihood_of_an_exact_chain_is_its_entropy():
    """Every sequence as often as the chain has it, by weights: to 1e-5; masked tokens left out."""
    every = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)), np.int32)
    law = CHAIN_FIRST[every[:, 0]] * np.prod(CHAIN_NEXT[every[:, :-1], every[:, 1:]], axis=1)
    entropy = -np.sum(law * np.log(law))
    row_nll = jax.jit(make_autoregressive_nll(exact_chain()))
    batch = {"tokens": jnp.asarray(every), "mask": jnp.ones(every.shape, bool)}
    nll, _ = row_nll({}, batch, jnp.zeros(len(every)), KEY)
    np.testing.assert_allclose(np.sum(law * np.asarray(nll)) * LENGTH, entropy, rtol=1e-5)
    found = likelihood(row_nll, {}, [batch])
    np.testing.assert_allclose(found.nats_per_token, -np.mean(np.log(law)) / LENGTH, rtol=1e-5)
    half = batch | {"mask": jnp.arange(LENGTH)[None] < jnp.full((len(every), 1), 2)}
    pair = CHAIN_FIRST[every[:, 0]] * CHAIN_NEXT[every[:, 0], every[:, 1]]
    found = likelihood(row_nll, {}, [half])
    np.testing.assert_allclose(found.nats_per_token, -np.mean(np.log(pair)) / 2, rtol=1e-5)
    assert found.tokens == 2 * len(every)
