"""Operations of programs are counted as often as they run."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from flm_jax.distributed.sharding import MeshConfig, make_mesh
from flm_jax.profiling.flops import count_flops

SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 8**3


def count(fn, *args):
    return dict(count_flops(jax.make_jaxpr(fn)(*args)))


def test_products_are_counted_as_often_as_they_run():
    def scanned(x):
        return jax.lax.scan(lambda c, _: (c @ x, None), x, length=5)[0]

    def branched(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x)

    def looped(x):
        return jax.lax.while_loop(lambda y: y[0, 0] > 0, lambda y: y @ x, x)

    assert count(lambda x: x @ x, SQUARE) == {"dot": PRODUCT}
    assert count(scanned, SQUARE) == {"dot": 5 * PRODUCT}
    assert count(branched, SQUARE) == {"dot": 2 * PRODUCT}
    assert count(looped, SQUARE) == {"dot": PRODUCT, "unknown_loops": 1}
    assert count(jax.jit(jax.jit(scanned)), SQUARE) == {"dot": 5 * PRODUCT}
    assert count(lambda x: (x @ x, x)[1], SQUARE) == {}, "not used"


def test_rematerialisation_and_own_rules_are_counted():
    @jax.custom_vjp
    def own(x):
        return x @ x

    own.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x @ x,))

    def loss(fn):
        return jax.grad(lambda x: jnp.sum(jnp.sin(fn(x))))

    assert count(own, SQUARE) == {"dot": PRODUCT}
    assert count(loss(own), SQUARE) == {"dot": 3 * PRODUCT}
    assert count(loss(lambda x: jnp.sin(x @ x)), SQUARE) == {"dot": 3 * PRODUCT}
    again = jax.checkpoint(lambda x: jnp.sin(x @ x))
    assert count(loss(again), SQUARE) == {"dot": 4 * PRODUCT}


def test_devices_and_kernel_grids_multiply():
    mesh = make_mesh(MeshConfig(data=8))
    spec = PartitionSpec("data")
    rows = jax.ShapeDtypeStruct((64, 8), jnp.float32)
    spread = jax.shard_map(lambda x: x @ x, mesh=mesh, in_specs=spec, out_specs=spec)
    assert count(spread, rows) == {"dot": 8 * PRODUCT}

    def kernel(x, out):
        out[...] = x[...] @ x[...]

    block = pl.BlockSpec((8, 8), lambda i: (i, 0))
    call = pl.pallas_call(
        kernel, grid=(8,), in_specs=[block], out_specs=block, out_shape=rows, interpret=True
    )
    assert count(call, rows) == {"kernel": 8 * PRODUCT}
