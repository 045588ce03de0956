"""Floating-point operations of a traced program, counted from its jaxpr.

Compilers count the body of a scan once and do not know custom kernels.
"""

import collections
import math
from collections.abc import Callable, Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxprs_in_params

Counts = collections.Counter


def count_flops(program: ClosedJaxpr | Jaxpr) -> Counts:
    """Counts operations of the matrix products of one call, over all devices.

    A multiplication with its addition counts as two. Bodies of scans count length times, bodies of
    `shard_map` once a device, kernels once for each point of their grid, and for a conditional the
    most expensive branch; unused results are left out, as the compiler leaves them out.

    Returns:
      A counter over "dot" (products by the compiler), "kernel" (products inside Pallas kernels),
      "attention" (cuDNN's and tokamax's), "factor" (Cholesky, triangular solves); also
      "unknown_loops": the number of loops whose length is only known at run time, with their bodies
      counted once.
    """
    jaxpr = program.jaxpr if hasattr(program, "jaxpr") else program
    total = Counts()
    for eqn in _live(jaxpr):
        total += _equation(eqn)
    return total


def total_flops(program: ClosedJaxpr | Jaxpr) -> int:
    """Sum of all kinds of operations in `count_flops`."""
    return sum(n for kind, n in count_flops(program).items() if kind != "unknown_loops")


def _live(jaxpr: Jaxpr) -> Iterator:
    """Equations with a used result."""
    needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    for eqn in reversed(jaxpr.eqns):
        # Kernels write their results into references: an effect, not an output.
        if eqn.effects or any(v in needed for v in eqn.outvars):
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
            yield eqn


def _times(counts: Counts, n: int) -> Counts:
    # Loops are counted as they stand in the program, operations as they run.
    return Counts({k: v if k == "unknown_loops" else v * n for k, v in counts.items()})


def _equation(eqn) -> Counts:
    name, params = eqn.primitive.name, eqn.params
    if name in _LEAVES:
        kind, count = _LEAVES[name]
        return Counts({kind: count(eqn)})
    if name == _GPU_KERNEL and (found := _fused_attention(eqn)):
        return Counts(attention=found)
    bodies = [count_flops(body) for body in jaxprs_in_params(params)]
    if name == "cond":
        return max(bodies, key=lambda c: sum(c.values()))
    total = sum(bodies, Counts())
    if name == "scan":
        return _times(total, params["length"])
    if name == "while" and total:
        return total + Counts(unknown_loops=1)
    if name == "shard_map":
        axes = params["newly_manual_axes"]
        return _times(total, math.prod(params["mesh"].shape[a] for a in axes))
    if name == "pallas_call":
        products = _times(total, math.prod(params["grid_mapping"].grid))
        return Counts(kernel=products["dot"])
    return total


def _dot(eqn) -> int:
    (contract, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contract)


def _cholesky(eqn) -> int:
    *batch, n, _ = eqn.invars[0].aval.shape
    return math.prod(batch) * n**3 // 3


def _solve(eqn) -> int:
    n = eqn.invars[0].aval.shape[-1]
    return math.prod(eqn.invars[1].aval.shape) * n


def _attention(products: int) -> Callable:
    """Counts flash attention's products [L, K] x [K, L] for each head: 2 forward, 5 backward."""

    def count(eqn) -> int:
        batch, length, heads, head_dim = eqn.invars[0].aval.shape
        return 2 * products * batch * heads * head_dim * length * eqn.invars[1].aval.shape[1]

    return count


# JAX's name of what Pallas makes of a kernel for GPUs; its products are no primitives of JAX.
_GPU_KERNEL = "mpmd_map"


def _fused_attention(eqn) -> int:
    """Operations of a kernel of tokamax's attention, counted as in `_attention`; else 0.

    The forward kernel gives the output, alone or with two numbers for each query. The backward
    kernels give the queries' gradient, and the gradients of keys and values.
    """
    shapes = [v.aval.shape for v in eqn.outvars]
    if not shapes or any(len(shape) != 4 for shape in shapes[:1]):
        return 0
    forward = "flash_attention" in str(eqn.params.get("name"))
    products = 2 if forward else {1: 2, 2: 3}.get(len(shapes), 0)
    batch, length, heads, head_dim = shapes[0]
    return 2 * products * batch * heads * head_dim * length * length


_LEAVES = {
    "dot_general": ("dot", _dot),
    "cholesky": ("factor", _cholesky),
    "triangular_solve": ("factor", _solve),
    "dot_product_attention_fwd_wrapper": ("attention", _attention(2)),
    "dot_product_attention_bwd_wrapper": ("attention", _attention(5)),
}


def trace(fn: Callable, *args) -> ClosedJaxpr:
    """Traces a jitted function to a jaxpr, for arrays or their shapes."""
    return fn.trace(*args).jaxpr if hasattr(fn, "trace") else jax.make_jaxpr(fn)(*args)
