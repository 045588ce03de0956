"""Attention kernels: all kinds agree, over devices too, and refuse what they cannot compute."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flm_jax.core.errors import UserError
from flm_jax.models.attention import AttentionPlan, attention, check_attention, keep_kernels
from flm_jax.models.dit import DiTConfig, dit
from flm_jax.profiling.flops import count_flops

SPLASH = AttentionPlan("splash", interpret=True)


def inputs(batch=2, length=256, heads=2, head_dim=16, scale=3.0):
    """Scores of a few units: a cap of 2 changes the result by far more than the tolerance."""
    shape = (batch, length, heads, head_dim)
    return [scale * jax.random.normal(k, shape) for k in jax.random.split(jax.random.key(0), 3)]


def output_and_gradients(plan, softcap, qkv):
    def loss(*args):
        out = attention(*args, softcap=softcap, plan=plan)
        return jnp.mean(jnp.sin(out)), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*qkv)
    # Of the sum, not of the mean: entries of order one, against which 1e-5 means something.
    return [out, *(g * out.size for g in grads)]


def assert_close(got, want):
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("length", [128, 384])
def test_splash_is_xla(softcap, length):
    qkv = inputs(length=length)
    want = output_and_gradients(AttentionPlan("xla"), softcap, qkv)
    assert_close(output_and_gradients(SPLASH, softcap, qkv), want)
    other = output_and_gradients(AttentionPlan("xla"), 2.0 - softcap, qkv)
    assert np.abs(other[0] - want[0]).max() > 1e-2


@pytest.mark.parametrize("how", [{}, {"block": 48}, {"causal": True}])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_positions_that_may_not_be_seen_change_nothing(softcap, how):
    """The visible ones get what they get in a row without the others, from both kernels."""
    qkv, seen = inputs(length=128), np.arange(128) < np.array([[128], [70]])
    qkv[1] = qkv[1].at[1, 70:].set(7.0)
    alone = [np.asarray(attention(*(x[1:, :70] for x in qkv), softcap=softcap, **how))[0]]
    whole = np.asarray(attention(*qkv, softcap=softcap, **how))
    for plan in (AttentionPlan("xla"), SPLASH):
        run = lambda *args, plan=plan: attention(
            *args, visible_BM=jnp.asarray(seen), softcap=softcap, plan=plan, **how
        )
        got = np.asarray(jax.jit(run)(*qkv))
        assert_close([got[0], got[1, :70]], [whole[0], *alone])
        assert np.isfinite(got).all()
    if not how.get("causal"):
        assert np.abs(whole[1, :70] - alone[0]).max() > 1e-2


@pytest.mark.parametrize("shape, rows", [((4, 1, 2), 8), ((2, 2, 2), 4), ((1, 8, 1), 3)])
def test_splash_over_devices_is_xla(shape, rows):
    """Rows over data and fsdp, heads over tensor; three rows on eight devices are replicated."""
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    heads = "tensor" if shape[2] > 1 else None
    plan = dataclasses.replace(SPLASH, mesh=mesh, batch_axes=("data", "fsdp"), head_axis=heads)
    qkv = inputs(batch=rows, length=128)
    spec = PartitionSpec(("data", "fsdp") if rows > 3 else None)
    spread = [jax.device_put(x, NamedSharding(mesh, spec)) for x in qkv]
    want = output_and_gradients(AttentionPlan("xla"), 2.0, qkv)
    assert_close(output_and_gradients(plan, 2.0, spread), want)
    seen = np.arange(128) < 3 * np.arange(20, 20 + rows)[:, None]
    run = lambda plan, qkv: jax.jit(
        lambda *x: attention(*x, plan=plan, visible_BM=jnp.asarray(seen))
    )(*qkv)
    assert_close([run(plan, spread)[seen]], [run(AttentionPlan("xla"), qkv)[seen]])


def test_rows_are_not_gathered():
    """Each device computes its own rows: the program holds no collective."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    plan = dataclasses.replace(SPLASH, mesh=mesh, batch_axes=("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    shape = jax.ShapeDtypeStruct((8, 128, 1, 8), jnp.float32, sharding=sharding)
    text = jax.jit(lambda *x: attention(*x, plan=plan)).lower(*[shape] * 3).compile().as_text()
    assert not any(kind in text for kind in ("all-gather", "all-reduce", "all-to-all"))


CONFIG = DiTConfig(
    vocab_size=11,
    length=128,
    dim=16,
    depth=2,
    heads=2,
    cond_dim=6,
    mlp_ratio=2,
    dropout=0.0,
    two_time=False,
    attention_softcap=2.0,
    logit_softcap=30.0,
    dtype="float32",
    remat="none",
    scan_blocks=True,
)


def test_remat_matmuls_computes_no_product_twice():
    """The gradient takes as many operations as without rematerialisation; fewer than in full."""

    def count(remat):
        cfg = dataclasses.replace(CONFIG, remat=remat, attention="splash")
        net = dit(cfg, SPLASH)

        def loss(params, y, s):
            return jnp.sum(net.features(params, y, s, s))

        params = jax.eval_shape(net.init, jax.random.key(0))
        shapes = jax.ShapeDtypeStruct((2, 128, 16), jnp.float32), jnp.zeros(2)
        return count_flops(jax.make_jaxpr(jax.grad(loss))(params, *shapes))

    assert count("none") == count("matmuls")
    assert count("full")["dot"] > count("none")["dot"] > 0
    assert count("full")["kernel"] > count("none")["kernel"] > 0


def test_remat_matmuls_keeps_the_forward_pass_of_cudnn():
    """By JAX's name of its primitive, which cannot be traced where cuDNN is not installed."""
    forward = fused_attention_stablehlo._dot_product_attention_fwd_p_wrapper
    assert keep_kernels(forward)
    assert not keep_kernels(fused_attention_stablehlo._dot_product_attention_bwd_p_wrapper)
    assert not keep_kernels(jax.lax.tanh_p)


def test_a_network_with_splash_is_the_network():
    net = dit(CONFIG)
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten([0.5 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])
    args = jax.random.normal(jax.random.key(2), (2, 128, 16)), jnp.asarray([0.1, 0.7])
    other = dit(dataclasses.replace(CONFIG, attention="splash"), SPLASH)
    want, got = (jax.jit(n.features)(params, *args, args[1]) for n in (net, other))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def refused(kind, message, **changes):
    given = {"length": 128, "heads": 2, "head_dim": 64, "softcap": 0.0, "dtype": "bfloat16"}
    plan = AttentionPlan(kind, interpret=changes.pop("interpret", True))
    with pytest.raises(UserError, match=message):
        check_attention(plan, **given | changes)
    check_attention(dataclasses.replace(plan, kind="xla"), **given | changes)


def test_what_a_kernel_cannot_compute_is_refused():
    refused("splsh", "did you mean 'splash'")
    refused("splash", "runs on tpu, these devices are cpu", interpret=False)
    refused("cudnn", "runs on gpu, these devices are cpu", interpret=False)
    refused("splash", "multiples of 128, got 1000", length=1000)
    refused("cudnn", "'cudnn' sees all positions.*config.model.attention = 'xla'", hides=True)
    refused("cudnn", "cannot cap scores, got a cap of 50", softcap=50.0)
    refused("cudnn", "computes in bfloat16, got float32", dtype="float32")
    refused("cudnn", "head sizes in multiples of 8 up to 128, got 100", head_dim=100)


def test_heads_that_do_not_divide_are_refused():
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    plan = dataclasses.replace(SPLASH, mesh=mesh, head_axis="tensor")
    with pytest.raises(UserError, match="6 attention heads do not divide over the 4 devices"):
        attention(*inputs(heads=6), plan=plan)


def test_splash_on_a_cpu_is_refused_when_the_network_is_built():
    with pytest.raises(UserError, match="config.model.attention = 'xla'"):
        dit(dataclasses.replace(CONFIG, attention="splash"))
