"""Converts NNX modules to pure init/apply functions over nested dicts of arrays."""

from collections.abc import Callable

import jax
from flax import nnx

from flm_jax.core.types import Key, Params


def pure(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Callable, Callable]:
    """Turns a module constructor into (init, bind).

    Args:
      make: function that builds the module from nnx.Rngs; it may hold Params only (no stored Rngs,
        no statistics).

    Returns:
      init: function from a key to parameters as a nested dict.
      bind: function from parameters to the module that holds them, to be called at once and
        dropped.
    """
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, _, rest = nnx.split(abstract, nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise TypeError(f"{type(abstract).__name__} holds state other than Param: {rest}")

    def init(key: Key) -> Params:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))

    def bind(params: Params) -> nnx.Module:
        return nnx.merge(graph, params)

    return init, bind
