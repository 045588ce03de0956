"""Routes to a flow map: published numbers, derivatives, solvable flows, refused settings.

Golden tolerance 2e-5 on losses of 4.6 nats and on gradients up to 0.1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_goldens import (
    arrays,
    assert_close,
    assert_trees_close,
    gradients,
    network,
    states,
)

from flm_jax.flows.clocks import decoding_clock
from flm_jax.losses.distillation import Pairs, diagonal_loss_at
from flm_jax.losses.eulerian import eulerian_loss_at
from flm_jax.losses.lagrangian import lagrangian_loss_at
from flm_jax.losses.targets import TargetConfig

DIAGONAL, OFF_DIAGONAL = slice(0, 3), slice(3, 8)


@pytest.fixture(scope="module")
def clock():
    return decoding_clock(97)


def golden_pairs(golden, tables, rows, path="onehot"):
    """Pairs at the stored times, seen through one table or two."""
    tokens, noise = golden["x1"][rows], golden["noise"][rows]
    s, t = golden["psd_mid_s"][rows], golden["psd_mid_t"][rows]
    views = [states(noise, s, tokens, table, path) for table in tables]
    weights = jnp.full(tokens.shape, 1 / golden["x1"].size)
    views = (*views, None)[:2]
    return Pairs(views, golden["tau_s"][rows], golden["tau_t"][rows], s, t, weights)


@pytest.mark.parametrize("alpha, projection", [("2.0", "sparsemax"), ("1.5", "entmax15")])
def test_lagrangian_golden(clock, alpha, projection):
    golden = arrays("fmlm")
    net, params = network("dit_double")
    cfg = TargetConfig("ce", projection)

    def losses(params):
        pairs = golden_pairs(golden, [params["table"]], OFF_DIAGONAL)
        loss, values = lagrangian_loss_at(params, params, pairs, net=net, clock=clock, cfg=cfg)
        pairs = golden_pairs(golden, [params["table"]], DIAGONAL)
        tokens = golden["x1"][DIAGONAL]
        diagonal, first = diagonal_loss_at(
            params, pairs.views, pairs.tau_s, tokens, pairs.weights, net=net, teacher=None
        )
        return loss + diagonal, jnp.concatenate([first, values])

    (mean, ce), gradient = jax.jit(jax.value_and_grad(losses, has_aux=True))(params)
    want = golden[f"lsd_entmax{alpha}_loss"]
    print(np.abs(np.asarray(ce - want)).max(1))
    assert_close(ce, want)
    assert_close(mean, want.mean())
    if alpha == "2.0":
        assert_trees_close(gradient, gradients("lsd_grads", "dit_double.safetensors"))


def test_eulerian_golden(clock):
    golden = arrays("fmlm")
    net, params = network("dit_double")
    teacher = network("dit_single")
    rows = golden["idx_offdiag"]

    @jax.jit
    def losses(params):
        pairs = golden_pairs(golden, [params["table"], teacher[1]["table"]], rows)
        return eulerian_loss_at(
            params,
            params,
            pairs,
            net=net,
            clock=clock,
            cfg=TargetConfig("mse", "none"),
            bound=1e6,
            teacher=teacher,
        )[1]

    got, want = losses(params), golden["esd_noboundary_teacher_loss"][rows]
    print(golden["tau_s"], golden["tau_t"], golden["idx_boundary"])
    print(np.asarray(got)[:, :4], np.asarray(want)[:, :4], np.asarray(got / want)[:, :4])
    assert_close(got, want)
