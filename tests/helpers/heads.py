"""Vocabulary heads without a network, alone and over meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from flm_jax.core.network import Network, Parallel
from flm_jax.denoiser.head import Readout

# No other size equals V or the share 1/8, 1/4, 1/2 of it: collectives are told by their shapes.
B, L, D, V = 8, 10, 12, 88
CAP = 3.0


def unused(*_, **__):
    raise AssertionError("the readout does not run the network")


def head_network(**changes) -> Network:
    net = Network(unused, unused, unused, unused, V, D, L, logit_softcap=CAP)
    return dataclasses.replace(net, **changes)


def readout(seed: int, dim: int = D, vocab: int = V, dtype=jnp.float32) -> Readout:
    # NumPy draws, here and below: JAX would compile each shape anew.
    draw = np.random.default_rng(seed).standard_normal
    shapes = ((B, L, dim), (dim, vocab), (vocab,))
    features, kernel, bias = (draw(shape, np.float32) for shape in shapes)
    return Readout(jnp.asarray(features).astype(dtype), jnp.asarray(kernel), jnp.asarray(bias))


MESHES = {
    "data": ((8,), ("data",), ("data",), None, None),
    "tensor": ((8,), ("tensor",), (), "tensor", None),
    "data-tensor": ((2, 4), ("data", "tensor"), ("data",), "tensor", None),
    "data-fsdp-tensor": ((2, 2, 2), ("data", "fsdp", "tensor"), ("data", "fsdp"), "tensor", "fsdp"),
}


def parallel(name: str) -> Parallel:
    shape, axes, batch, vocab, embed = MESHES[name]
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
    return Parallel(mesh, batch, vocab, embed)
