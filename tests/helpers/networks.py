"""Tiny and exact networks, with the batches, flows and states that go with them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate, stats

from flm_jax.build.families.flow_map import ROUTES
from flm_jax.build.families.registry import make_objective
from flm_jax.build.flow import make_flow
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.config.schema import choose
from flm_jax.core.network import Network
from flm_jax.denoiser.forward import denoise
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import onehot_flow
from flm_jax.flows.gaussian_noise import embedded_noise
from flm_jax.flows.posterior import posterior_features, posterior_kernel
from flm_jax.flows.time_sampling import Rows
from flm_jax.metrics.generative_perplexity import Judge
from flm_jax.models.dit import DiTConfig, dit
from flm_jax.models.step_policy import PolicyConfig
from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.euler import sample_euler
from helpers.runs import tiny_config

EIGHT_ROWS = Rows(0, 8)


def objective_of(**changes):
    """(network, objective) of a tiny configuration."""
    config = tiny_config()
    config.model.vocab_size, config.model.length = VOCAB, LENGTH
    config.train.batch = 8
    choose(config, objective=changes.pop("name", "denoising"))
    config.objective.update(changes)
    config.model.two_time = config.objective.name in ROUTES
    config = check(config)
    net = make_network(config)
    return net, make_objective(config, net, make_flow(config, VOCAB))


def random_params(net, seed=1):
    leaves, tree = jax.tree.flatten(net.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


def random_batch(rows=8, **more):
    tokens = jax.random.randint(jax.random.key(3), (rows, LENGTH), 0, VOCAB)
    return {"tokens": tokens, "mask": jnp.ones((rows, LENGTH), bool), **more}


def mirror_network():
    """A network whose features are its state and its two times."""

    def features(params, y, s, t, *, key=None):
        s, t = (x if x.ndim == 2 else jnp.broadcast_to(x[:, None], y.shape[:2]) for x in (s, t))
        return jnp.concatenate([y, s[..., None], t[..., None]], axis=-1)

    table = jnp.eye(VOCAB)
    readout = lambda params: (jnp.zeros((VOCAB + 2, VOCAB)), jnp.zeros(VOCAB))
    return Network(lambda key: {}, features, readout, lambda p: table, VOCAB, VOCAB, LENGTH)


def exact_tau(t, vocab_size):
    """The definition, by adaptive quadrature."""
    shift = t / (1 - t)
    correct = lambda z: stats.norm.pdf(z) * np.exp((vocab_size - 1) * stats.norm.logcdf(z + shift))
    right = integrate.quad(correct, -12, 12, points=[0.0], epsabs=1e-12, limit=400)[0]
    return 1 - vocab_size / (vocab_size - 1) * (1 - right)


def table_of(vocab_size, dim, seed=0):
    return jax.random.normal(jax.random.key(seed), (vocab_size, dim))


def unigram_judge(tokenizer, probs, framing="stream", length=8, first_counts=True):
    """The same law for every token, in closed form."""
    net = Network(
        init=lambda key: {},
        features=lambda params, x_s, s, t, *, key=None: jnp.zeros_like(x_s),
        readout=lambda params: (jnp.zeros((1, len(probs))), jnp.log(jnp.asarray(probs))),
        table=lambda params: jnp.zeros((len(probs), 1)),
        vocab_size=len(probs),
        dim=1,
        max_length=length,
    )
    return Judge("unigram", net, {}, tokenizer, framing, first_counts)


POLICY = PolicyConfig()


def tiny_states(seed=1, rows=3):
    return 0.5 * jax.random.normal(jax.random.key(seed), (rows, LENGTH, TINY.dim))


def posterior_probs(y_t, t, table):
    found = posterior_features(FLOW, y_t, t, table)
    return jax.nn.softmax(found @ posterior_kernel(FLOW, table), axis=-1)


VOCAB, LENGTH, ROWS = 11, 6, 3
TINY = DiTConfig(
    vocab_size=VOCAB,
    length=LENGTH,
    dim=8,
    depth=1,
    heads=2,
    cond_dim=6,
    mlp_ratio=2,
    dropout=0.5,
    two_time=True,
    attention_softcap=50.0,
    logit_softcap=30.0,
    dtype="float32",
    remat="none",
    scan_blocks=True,
)
FLOW = onehot_flow(decoding_clock(VOCAB))
FREE = nothing_given(ROWS, LENGTH)
KEY = jax.random.key(4)


@functools.lru_cache
def tiny_network(two_time):
    net = dit(dataclasses.replace(TINY, two_time=two_time))
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten([0.5 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])
    # A head that reads the embedding back makes the output depend on the state.
    params["head"] = {"kernel": 4.0 * params["table"].T, "bias": jnp.zeros(VOCAB)}
    params["modulation"] = jax.tree.map(jnp.zeros_like, params["modulation"])
    return net, params


@functools.lru_cache
def sampler(net, steps):
    return jax.jit(lambda k, p, g: sample_euler(k, net, p, flow=FLOW, steps=steps, given=g))


@functools.lru_cache
def denoiser(net):
    return jax.jit(functools.partial(denoise, net))


def draw(net, params, *, key=KEY, steps=3, given=FREE):
    return sampler(net, steps)(key, params, given)


def some_given():
    tokens = jax.random.randint(jax.random.key(6), (ROWS, LENGTH), 0, VOCAB)
    return Given(tokens, jax.random.bernoulli(jax.random.key(7), 0.5, (ROWS, LENGTH)))


SEQUENCES = ((0, 1, 2), (3, 1, 4))


def exact_network():
    """The denoiser of two equally likely sequences, in the one-hot space itself (E = I).

    Its features are the logarithms of the exact probabilities.
    """
    vocab_size = 5
    flow = onehot_flow(decoding_clock(vocab_size))
    sequences = jax.nn.one_hot(jnp.asarray(SEQUENCES), vocab_size)

    def features(params, x_s, s, t, *, key=None):
        del params, t, key
        time = jnp.minimum(flow.t(s), 0.999)
        scores = jnp.einsum("blv,klv->bk", x_s, sequences) * (time / (1 - time) ** 2)[:, None]
        probs = jnp.einsum("bk,klv->blv", jax.nn.softmax(scores, axis=-1), sequences)
        return jnp.log(probs + 1e-30)

    identity = jnp.eye(vocab_size)
    net = Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (identity, jnp.zeros(vocab_size)),
        table=lambda params: identity,
        vocab_size=vocab_size,
        dim=vocab_size,
        max_length=3,
    )
    return net, flow


def matches(tokens):
    return [(np.asarray(tokens) == s).all(axis=1) for s in SEQUENCES]


def start(key, net, params, given):
    """Embedded noise [B, L, D] for every position."""
    return embedded_noise(key, net.table(params), given.tokens.shape)
