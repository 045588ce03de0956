"""Attention by tokamax, its einsums in place of its kernels: they run where tokamax is installed.

That takes Python 3.12; the kernels themselves are compared on a GPU by launch/gpu_check.sh.
"""

import dataclasses
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flm_jax.core.errors import UserError
from flm_jax.models import attention as module
from flm_jax.models import fused_attention
from flm_jax.models.attention import (
    AttentionPlan,
    attention,
    available,
    check_attention,
    resolved,
)

FUSED = AttentionPlan("fused", interpret=True)
SIZES = dict(length=128, heads=2, head_dim=64, softcap=50.0, dtype="bfloat16")
SEEN = jnp.arange(96)[None] < jnp.array([[96], [70]])
installed = pytest.mark.skipif(bool(fused_attention.why_missing()), reason="needs tokamax")


def results(plan, softcap=2.0, **how):
    """Output and gradients, those of a sum; scores of a few units, which a cap of 2 changes."""
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = [3.0 * jax.random.normal(k, (2, 96, 2, 16)) for k in keys]
    if plan.mesh:
        spread = NamedSharding(plan.mesh, PartitionSpec(plan.batch_axes))
        qkv = [jax.device_put(x, spread) for x in qkv]

    def loss(*args):
        out = attention(*args, softcap=softcap, plan=plan, **how)
        return jnp.sum(jnp.sin(out)), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*qkv)
    return [out, *grads]


@installed
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize(
    "how", [{}, {"causal": True}, {"block": 32}, {"block": 32, "visible_BM": SEEN}]
)
def test_fused_is_xla(softcap, how):
    for got, want in zip(results(FUSED, softcap, **how), results(AttentionPlan(), softcap, **how)):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@installed
def test_fused_over_devices_is_xla():
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    plan = dataclasses.replace(FUSED, mesh=mesh, batch_axes=("data",), head_axis="tensor")
    for got, want in zip(results(plan), results(AttentionPlan())):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@installed
def test_tokamax_is_quiet_about_its_tile_sizes():
    records = [logging.makeLogRecord({"msg": m}) for m in ("Autotuning cache miss for %s", "else")]
    found = [logging.getLogger("absl").filter(record) for record in records]
    assert not found[0] and found[1]


def on(monkeypatch, platform, capability="9.0", missing=""):
    """A plan of kind auto as if a device of this platform were here."""
    device = types.SimpleNamespace(platform=platform, compute_capability=capability)
    monkeypatch.setattr(AttentionPlan, "device", device)
    monkeypatch.setattr(fused_attention, "why_missing", lambda: missing)
    return AttentionPlan("auto")


def test_auto_takes_the_kernel_of_the_platform(monkeypatch):
    kinds = {}
    for platform in ("cpu", "tpu", "gpu"):
        plan = on(monkeypatch, platform)
        kinds[platform] = resolved(plan, reverse_only=True, **SIZES).kind
        assert resolved(plan, **SIZES).kind == "xla"  # derivatives by forward mode
        assert available("auto", platform)
    assert kinds == {"cpu": "xla", "tpu": "splash", "gpu": "fused"}
    assert resolved(AttentionPlan("cudnn"), **SIZES).kind == "cudnn"


@pytest.mark.parametrize(
    ("here", "sizes", "why"),
    [
        ({"missing": "tokamax is not installed"}, {}, "tokamax is not installed"),
        ({"capability": "8.0"}, {}, "compute capability 9 or 10, this one has 8.0"),
        ({}, {"dtype": "float32"}, "computes in bfloat16, got float32"),
        ({}, {"head_dim": 256}, "head sizes up to 128, got 256"),
    ],
)
def test_what_fused_cannot_compute(monkeypatch, capsys, here, sizes, why):
    """Asked for it is refused; auto says why, once, and takes XLA."""
    plan = on(monkeypatch, "gpu", **here)
    with pytest.raises(UserError, match=why):
        check_attention(dataclasses.replace(plan, kind="fused"), **SIZES | sizes)
    module._say_once.cache_clear()
    for _ in range(2):
        assert resolved(plan, reverse_only=True, **SIZES | sizes).kind == "xla"
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


def test_fused_is_refused_on_other_platforms():
    with pytest.raises(UserError, match="runs on gpu, these devices are cpu"):
        check_attention(AttentionPlan("fused"), **SIZES)
