"""Laws with closed forms, and networks that are exact for them."""

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.core.network import Network
from flm_jax.flows.gamma_fit import logistic_cdf
from flm_jax.flows.gamma_state import GammaConfig, bin_centers, fresh_state
from flm_jax.flows.noise_schedule import update_state
from flm_jax.samplers.categorical import Choice

KEY = jax.random.key(7)
PLAIN = Choice(1.0, 1.0)

# A law over sequences of 4 tokens out of 3, with repeated words so that order of revealing matters.
SEQUENCES = np.array(
    [[0, 1, 2, 0], [0, 1, 0, 0], [2, 2, 1, 0], [1, 0, 2, 2], [2, 1, 2, 0]], np.int32
)
LAW = np.array([0.4, 0.25, 0.15, 0.12, 0.08])
VOCAB, LENGTH = 3, 4
ENTROPY = float(-np.sum(LAW * np.log(LAW))) / LENGTH


def exact_masked_network():
    """The posterior of LAW given the visible tokens, in closed form; the state tells them exactly.

    Table and anchors are unit vectors of R^4, the features are the log posterior itself.
    """

    def features(params, x_s, s, t, *, key=None):
        del params, s, t, key
        masked = x_s[:, None, :, VOCAB] > 0.5
        match = jnp.take_along_axis(x_s[:, None], jnp.asarray(SEQUENCES)[None, :, :, None], axis=3)
        agrees = jnp.all(masked | (match[..., 0] > 0.5), axis=2)
        weights = agrees * jnp.asarray(LAW, jnp.float32)[None]
        onehot = jax.nn.one_hot(jnp.asarray(SEQUENCES), VOCAB)
        marginal = jnp.einsum("bn,nlv->blv", weights, onehot)
        return jnp.log(jnp.maximum(marginal / jnp.sum(marginal, -1, keepdims=True), 1e-30))

    unit = jnp.eye(VOCAB + 1)
    return Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(VOCAB), jnp.zeros(VOCAB)),
        table=lambda params: unit[:VOCAB],
        vocab_size=VOCAB,
        dim=VOCAB + 1,
        max_length=LENGTH,
        anchor=lambda params: jnp.tile(unit[VOCAB:], (LENGTH, 1)),
    )


EXACT = exact_masked_network()


def law_batch(rows, seed):
    index = np.random.default_rng(seed).choice(len(LAW), size=rows, p=LAW)
    return {"tokens": jnp.asarray(SEQUENCES[index]), "mask": jnp.ones((rows, LENGTH), bool)}


CHAIN_NEXT = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.5, 0.25, 0.25]])
CHAIN_FIRST = np.array([0.6, 0.3, 0.1])


def exact_chain():
    """A causal network that is the Markov chain (FIRST, CHAIN); the state is the token's unit."""
    first, step = jnp.log(jnp.asarray(CHAIN_FIRST)), jnp.log(jnp.asarray(CHAIN_NEXT))

    def features(params, x_s, s, t, *, key=None):
        del params, s, t, key
        start = jnp.broadcast_to(first, (x_s.shape[0], 1, VOCAB))
        return jnp.concatenate([start, x_s[:, :-1] @ step], axis=1).astype(jnp.float32)

    def extend(params, cache, x_BD, position):
        del params
        row = jnp.where(position == 0, first[None], x_BD @ step)
        return row[:, None].astype(jnp.float32), cache

    return Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(VOCAB), jnp.zeros(VOCAB)),
        table=lambda params: jnp.eye(VOCAB),
        vocab_size=VOCAB,
        dim=VOCAB,
        max_length=LENGTH,
        cache=lambda rows, length: {},
        extend=extend,
    )


SHAPE = jnp.array([-2.0, 1.5, 1.0])


def observed(curve, cfg, rows=400.0):
    """Statistics of a batch with `rows` rows in every bin of gamma, all hidden entirely."""
    nats, number = curve(bin_centers(cfg)), jnp.full(cfg.bins, rows)
    moments = jnp.stack([number, number * nats, number * nats**2], axis=-1)
    return fresh_state(cfg).cells.at[-1].set(moments)


def learnt(kind):
    """A state that has seen the cross entropy 1 + 2 F(gamma) in every bin, fitted once."""
    cfg = GammaConfig(learnt=kind, refit_every=1, bins=32)
    seen = observed(lambda gamma: 1.0 + 2.0 * logistic_cdf(SHAPE, gamma), cfg)
    return cfg, update_state(fresh_state(cfg), seen, jnp.int32(0), cfg)


def exact_uniform_network():
    """The law of a token of LAW given the noisy states of the others, in closed form.

    Features are log probabilities, times the signal, states unit vectors of R^3.
    """

    def features(params, x_s, s, t, *, key=None, visible=None):
        del params, t, key, visible
        signal = s[:, None, None]
        own = jax.nn.one_hot(jnp.asarray(SEQUENCES), VOCAB)
        agrees = jnp.einsum("blv,nlv->bnl", x_s, own)
        log = jnp.log(signal * agrees + (1.0 - signal) / VOCAB)
        others = jnp.sum(log, axis=2, keepdims=True) - log
        weights = jax.nn.softmax(others + jnp.log(jnp.asarray(LAW))[None, :, None], axis=1)
        return jnp.log(jnp.maximum(jnp.einsum("bnl,nlv->blv", weights, own), 1e-30))

    return Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(VOCAB), jnp.zeros(VOCAB)),
        table=lambda params: jnp.eye(VOCAB),
        vocab_size=VOCAB,
        dim=VOCAB,
        max_length=LENGTH,
    )
