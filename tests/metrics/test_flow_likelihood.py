"""The bound on a flow's likelihood: tight for the exact denoiser, larger for any other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.core.network import Network
from flm_jax.flows.clocks import CLOCKS, decoding_clock, identity_clock
from flm_jax.flows.flow import onehot_flow
from flm_jax.metrics.flow_likelihood import make_flow_bound
from flm_jax.metrics.likelihood import likelihood
from helpers.laws import ENTROPY, LAW, LENGTH, SEQUENCES, VOCAB, law_batch


def exact_flow_network(flow, table=None):
    """The posterior of LAW given y_t = t E[x] + (1-t) E^T eps, as seen through the table.

    Its features are the log posterior marginals themselves.
    """
    table = jnp.eye(VOCAB) if table is None else table
    precision = jnp.linalg.inv(table.T @ table)
    leverage = jnp.einsum("vd,de,ve->v", table, precision, table)

    def features(params, y_t, s, t, *, key=None):
        del params, t, key
        time = flow.t(s)
        seen = jnp.einsum("bld,de,ve->blv", y_t / (1.0 - time)[:, None, None], precision, table)
        r = (time / (1.0 - time))[:, None, None]
        evidence = r * seen - 0.5 * jnp.square(r) * leverage[None, None]
        picked = evidence[:, jnp.arange(LENGTH)[None], jnp.asarray(SEQUENCES)]  # [B, N, L]
        weights = jax.nn.softmax(jnp.log(jnp.asarray(LAW))[None] + picked.sum(axis=-1), axis=-1)
        onehot = jax.nn.one_hot(jnp.asarray(SEQUENCES), VOCAB)
        return jnp.log(jnp.maximum(jnp.einsum("bn,nlv->blv", weights, onehot), 1e-30))

    return Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(VOCAB), jnp.zeros(VOCAB)),
        table=lambda params: table,
        vocab_size=VOCAB,
        dim=table.shape[1],
        max_length=LENGTH,
    )


def bound(net, flow):
    row_nll = jax.jit(make_flow_bound(net, flow))
    return likelihood(row_nll, {}, [law_batch(1024, i) for i in range(2)], draws=32)


@pytest.mark.parametrize("make", [lambda: decoding_clock(VOCAB), identity_clock])
def test_bound_of_the_exact_denoiser_is_the_entropy(make):
    """Whatever clock the network is told; 4 standard errors, and 1% for what is left at the end."""
    flow = onehot_flow(make())
    found = bound(exact_flow_network(flow), flow)
    assert found.standard_error < 0.015 * ENTROPY
    assert abs(found.nats_per_token - ENTROPY) < 4 * found.standard_error + 0.01 * ENTROPY


def test_bound_is_that_of_the_state_and_not_of_its_view():
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((VOCAB, VOCAB)))
    flow = onehot_flow(decoding_clock(VOCAB))
    found = bound(exact_flow_network(flow, jnp.asarray(turn, jnp.float32)), flow)
    assert abs(found.nats_per_token - ENTROPY) < 4 * found.standard_error + 0.01 * ENTROPY


@pytest.mark.parametrize("name", ["decoding", "embedded"])
def test_bound_is_tight_where_the_network_sees_less_than_the_state(name):
    """Through two numbers a token: what they do not tell is no loss of the model."""
    table = np.random.default_rng(0).standard_normal((VOCAB, 2)).astype(np.float32)
    flow = onehot_flow(CLOCKS[name](VOCAB, 2))
    found = bound(exact_flow_network(flow, jnp.asarray(table)), flow)
    assert abs(found.nats_per_token - ENTROPY) < 4 * found.standard_error + 0.01 * ENTROPY


def test_a_wrong_denoiser_has_a_larger_bound():
    """Tempered logits, and positions taken for independent: above the entropy by their loss."""
    flow = onehot_flow(decoding_clock(VOCAB))
    net = exact_flow_network(flow)
    assert bound(dataclasses.replace(net, logit_softcap=2.0), flow).nats_per_token > 1.1 * ENTROPY
    other = dataclasses.replace(
        net, features=lambda p, y, s, t, key=None: jnp.zeros((*y.shape[:2], VOCAB))
    )
    assert bound(other, flow).nats_per_token > np.log(VOCAB)


def test_positions_that_do_not_count_change_no_bound():
    flow = onehot_flow(decoding_clock(VOCAB))
    row_nll = jax.jit(make_flow_bound(exact_flow_network(flow), flow))
    batch, key, tau = law_batch(64, 0), jax.random.key(0), jnp.full(64, 0.3)
    part = batch | {
        "mask": jnp.arange(LENGTH)[None] < jnp.repeat(jnp.array([4, 2, 0, 4]), 16)[:, None]
    }
    whole, (some, scored) = row_nll({}, batch, tau, key)[0], row_nll({}, part, tau, key)
    assert scored.tolist() == [4] * 16 + [2] * 16 + [0] * 16 + [4] * 16
    np.testing.assert_allclose(some[:16], whole[:16], rtol=1e-6)
    assert not np.allclose(some[16:32], whole[16:32]) and (some[32:48] == 0).all()
