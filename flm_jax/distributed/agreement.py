"""Decisions on which all processes of a run must agree; with one process they are immediate."""

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flm_jax.core.errors import UserError, require

SKEW_LIMIT = 60  # seconds between the clocks of two hosts


def worst(verdict: int) -> int:
    """Returns the largest verdict of all processes; each of them must call this."""
    if jax.process_count() == 1:
        return verdict
    return int(np.max(multihost_utils.process_allgather(np.int32(verdict))))


def from_first(values: Sequence[int], size: int) -> list[int]:
    """Returns the first `size` non-negative `values` of process 0; each process must call this."""
    if jax.process_count() == 1:
        return list(values[:size])
    padded = np.full(size, -1, np.int32)
    padded[: len(values[:size])] = values[:size]
    return [int(v) for v in multihost_utils.broadcast_one_to_all(padded) if v >= 0]


def in_turn(items: Iterable[Any], work: Callable[[Any], Any], share: bool) -> Iterator[Any]:
    """Yields the results of `work` on each item, in order.

    Args:
      items: items of work, the same on every process.
      work: function from an item to arrays, of the same shapes for every item; None among them
        stays None.
      share: whether each process does an equal part of the work, and all of them get all results;
        then every process must consume them all. Otherwise each process does all of the work.
    """
    count = jax.process_count() if share else 1
    if count == 1:
        yield from map(work, items)
        return
    items = iter(items)
    while some := list(itertools.islice(items, count)):
        # Of a last round that has too few items, some do the last one again.
        own = work(some[min(jax.process_index(), len(some) - 1)])
        found = multihost_utils.process_allgather(own)
        for place in range(len(some)):
            yield jax.tree.map(lambda x, place=place: np.asarray(x[place]), found)


def by_first(work: Callable[[], Any]) -> Any:
    """Calls `work` on process 0 alone, and returns its result, sent as JSON, on all processes.

    Raises:
      UserError: raised by `work`, on every process.
    """
    if jax.process_count() == 1:
        return work()
    content = b""
    if jax.process_index() == 0:
        try:
            told = {"value": work()}
        except UserError as error:
            told = {"error": str(error)}
        content = json.dumps(told).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.frombuffer(content.ljust(size), np.uint8)
    told = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())
    require("error" not in told, told.get("error", ""))
    return told["value"]


def wait_for_all(name: str) -> None:
    """Returns once every process has called it with this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class StopVote:
    """Vote by which all processes learn at the same step whether any of them must stop.

    A signal may reach one host alone; stopping there alone would leave the others waiting in their
    next collective. The vote is one more small computation on the devices: nobody waits for it,
    since its result is fetched with the result of the step at which it was cast.
    """

    def __init__(self):
        mesh = Mesh(np.array(jax.devices()), ("all",))
        self._split = NamedSharding(mesh, PartitionSpec("all"))
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def cast(self, stop: bool) -> jax.Array:
        """Returns int32 on the devices: 1 if any process casts True; all of them must call this."""
        own = np.full(jax.local_device_count(), stop, np.int32)
        return self._any(jax.make_array_from_process_local_data(self._split, own))


def skew_warning(seconds: Sequence[float]) -> str:
    """Returns a warning about clocks that differ, or "".

    Args:
      seconds: wall-clock time of each process at the same moment.
    """
    fast, slow = int(np.argmax(seconds)), int(np.argmin(seconds))
    skew = seconds[fast] - seconds[slow]
    if skew <= SKEW_LIMIT:
        return ""
    return (
        f"WARNING: the clocks of processes {slow} and {fast} differ by {skew:.0f} s, expected at "
        f"most {SKEW_LIMIT} s; training goes by step numbers and is not affected, but the times in "
        "logs and metrics are: synchronise the hosts' clocks (NTP)."
    )


def clock_skew() -> str:
    """`skew_warning` over the clocks of all processes; each of them must call this."""
    if jax.process_count() == 1:
        return ""
    wait_for_all("clock_skew")  # so that all read their clocks at one moment
    whole, part = divmod(int(time.time() * 1000), 1000)
    # Two int32: as a float32 the time of day would be coarser than the limit.
    pairs = multihost_utils.process_allgather(np.array([whole, part], np.int32))
    return skew_warning([w + p / 1000 for w, p in np.asarray(pairs).tolist()])
