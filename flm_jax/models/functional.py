"""NNX modules as pure init/apply functions over nested dicts of arrays."""

from collections.abc import Callable

import jax
from flax import nnx

from flm_jax.core.types import Key, Params


def pure(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Callable, Callable]:
    """Turns a module constructor into (init, bind).

    Args:
      make: builds the module from nnx.Rngs; may hold Params only (no stored Rngs, no statistics).

    Returns:
      init: key -> parameters as a nested dict.
      bind: parameters -> the module holding them, to be called at once and thrown away.
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
