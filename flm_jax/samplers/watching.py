"""Shows the tokens of each network call to the host while a compiled sampler still runs.

A sampler calls `show` between its network calls. Where nobody watches, that is nothing at all:
the program that is traced is the same as without it.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# (step, tokens [B, L]) -> int32 zero, known once the host has them; a step of -1 is no news.
Watch = Callable[[Int[Array, ""] | int, Int[Array, "b l"]], jax.Array]
_WATCH: contextvars.ContextVar[Watch | None] = contextvars.ContextVar("watch", default=None)


@contextlib.contextmanager
def watching(watch: Watch | None) -> Iterator[None]:
    """Lets samplers that are traced in this block show their tokens to `watch`; None for nobody."""
    before = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(before)


def show(
    step: Int[Array, ""] | int,
    tokens: Int[Array, "b l"],
    state: jax.Array,
    follows: Bool[Array, ""] | bool = True,
) -> jax.Array:
    """Shows the tokens after a network call, and returns `state` once they are seen.

    Args:
      step: index of the call, from 0.
      tokens: int32 [B, L], its tokens; -1 where none is read yet.
      state: array on which the next call depends, so that it waits for the host.
      follows: whether these are tokens of a call that was made, and another call follows; else they
        are no news. Loops over several rows run on for those that are done.

    Returns:
      `state`, unchanged.
    """
    watch = _WATCH.get()
    if watch is None:
        return state
    news = step if follows is True else jnp.where(follows, step, -1)
    return state + watch(news, tokens).astype(state.dtype)
