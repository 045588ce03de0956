"""Batches from random-access sources, read by grain.

The global batch of a step is one list of rows, in an order fixed by the seed. Each process reads
only its own rows of it: a step has the same batch on any number of processes.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from flm_jax.core.errors import check_seed, require

Batch = dict[str, np.ndarray]
MULTIPLE = 64  # tokens; batches are cut to multiples of it, so that few lengths are compiled


class Source(Protocol):
    """Random-access examples {"tokens": int32 [L], "mask": bool [L]}.

    A source with a method `batch` (indices -> the stacked examples) is read by that method.
    """

    @property
    def fingerprint(self) -> str:
        """Digest that differs between sources with different examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


def padded_length(length: int, most: int) -> int:
    """Length to which a row of `length` tokens is padded, so that few programs are compiled.

    The lengths are 64, 128, 192, 256, 384, 512, 768, 1024, and so on by powers of two and their
    halves between: eight up to 1024.

    Args:
      length: number of tokens of a row.
      most: upper bound of the result.
    """
    whole = max(MULTIPLE, 1 << (length - 1).bit_length())
    between = 3 * whole // 4
    best = between if between % MULTIPLE == 0 and length <= between else whole
    return max(length, min(best, most))


Mixture = Sequence[tuple[Source, float]]


class MixedSource:
    """The sources of a mixture as one, in their own order, alternating by their weights.

    It ends when the first of them is exhausted.
    """

    def __init__(self, mixture: Mixture):
        parts, weights = zip(*mixture)
        self._parts = grain.MapDataset.mix([grain.MapDataset.source(p) for p in parts], weights)
        self.fingerprint = " ".join(f"{p.fingerprint}*{w}" for p, w in mixture)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Batch:
        return self._parts[index]


class _LocalBatches(grain.MapDataset):
    """Item k is this process's rows of the global batch k, whose indices are in the parent.

    Indices run through all sources, one after the other. grain's own sharding, `ds[p::n]`, gives
    process p other rows for other n, and its own sources take longer for a row of a short sequence
    than reading it does.
    """

    def __init__(
        self,
        parent: grain.MapDataset,
        sources: Sequence[Source],
        global_batch: int,
        rows: Sequence[int],
    ):
        super().__init__(parent)
        self._sources = sources
        self._starts = np.cumsum([0, *map(len, sources)])
        self._global_batch = global_batch
        self._rows = rows

    def __len__(self) -> int:
        return len(self._parent) // self._global_batch

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        start = index * self._global_batch
        places = np.array([self._parent[start + row] for row in self._rows])
        if len(self._sources) == 1:
            return _read(self._sources[0], places.tolist())
        numbers = np.searchsorted(self._starts, places, side="right") - 1
        used = np.unique(numbers)
        parts = [
            _read(self._sources[n], (places[numbers == n] - self._starts[n]).tolist()) for n in used
        ]
        # The parts are joined source by source: the order undoes that.
        order = np.argsort(np.concatenate([np.flatnonzero(numbers == n) for n in used]))
        return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


def _read(source: Source, places: list[int]) -> Batch:
    """Examples of a source as one batch, in one read if the source supports it."""
    batch = getattr(source, "batch", None)
    return batch(places) if batch else _stack([source[place] for place in places])


def _stack(examples: Sequence[Batch]) -> Batch:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


class BatchIterator:
    """Yields {"tokens": int32 [local_batch, L], "mask": bool [local_batch, L]}.

    Attributes:
      stall_seconds: total time spent waiting in `next`, in seconds.
    """

    def __init__(
        self,
        batches: grain.MapDataset,
        options: grain.ReadOptions,
        identity: dict[str, Any],
        prefix_crop: float,
    ):
        self._batches = batches
        self._prefix_crop = prefix_crop
        self._options = options
        self._identity = identity
        self._position = 0
        self._iterator: grain.DatasetIterator | None = None
        self.stall_seconds = 0.0

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        if self._iterator is None:
            rest = self._batches.slice(slice(self._position, None))
            self._iterator = iter(rest.to_iter_dataset(self._options))
        batch = next(self._iterator)
        self.stall_seconds += time.perf_counter() - began
        self._position += 1
        return self._cropped(batch)

    def _cropped(self, batch: Batch) -> Batch:
        """Crops the batch to a prefix at random: the same on every process and when resumed."""
        rng = np.random.default_rng([self._identity["seed"], self._position])
        if rng.random() >= self._prefix_crop:
            return batch
        length = batch["tokens"].shape[1]
        keep = -(-int(rng.integers(1, length + 1)) // MULTIPLE) * MULTIPLE
        return {name: value[:, :keep] for name, value in batch.items()}

    def get_state(self) -> dict[str, Any]:
        """Returns the position as JSON values: the number of batches, and the order's identity."""
        return {"batches": self._position, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a `get_state`, even if taken on another number of processes.

        Raises:
          UserError: the state belongs to another seed, other data or another global batch.
        """
        for name, own in self._identity.items():
            require(
                state.get(name) == own,
                f"the saved data position has {name} {state.get(name)!r}, this run {own!r}; "
                "expected equal: restore the run's own configuration or start a new workdir",
            )
        self.close()
        self._position = int(state["batches"])

    def close(self) -> None:
        """Stops prefetching; a later `next` starts it again at the same position."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def make_iterator(
    source: Source | Mixture,
    *,
    global_batch: int,
    seed: int,
    rows: Sequence[int] | None = None,
    shuffle: bool = True,
    repeat: bool = True,
    threads: int,
    prefetch: int,
    prefix_crop: float,
) -> BatchIterator:
    """Iterates over batches of a source, or of a mixture given as (source, weight) pairs.

    With `repeat` every epoch is a new permutation, and a batch may span two epochs. Without it
    there is one epoch (for a mixture: until its first source is exhausted) and the rows that do not
    fill a last batch are dropped.

    Args:
      source: source of examples; or pairs, drawn from in proportion to their weights.
      global_batch: number of rows of all processes together.
      seed: seed of the order, from 0 to 2^32 - 1.
      rows: indices in each global batch of the rows that are read here; None for all of them.
      shuffle: whether the order is random; else it is the source's own.
      repeat: whether it never ends.
      threads: number of background readers; 0 reads in `next`. One reads about 120,000 rows of 64
        tokens per second; more help only if reading waits for a disk or a network.
      prefetch: number of batches kept ready by the readers.
      prefix_crop: probability that a batch is cut to a prefix, whose length is uniform and rounded
        up to a multiple of `MULTIPLE`.
    """
    rows = _checked_rows(global_batch, rows)
    mixture = [(source, 1.0)] if hasattr(source, "fingerprint") else list(source)
    check_seed(seed)
    require(bool(mixture), "the mixture is empty; expected at least one (source, weight)")
    sources = [part for part, _ in mixture]
    starts = [sum(map(len, sources[:stream])) for stream in range(len(sources))]
    streams = [
        _places(range(start, start + len(part)), seed, stream, shuffle=shuffle, repeat=repeat)
        for stream, (start, part) in enumerate(zip(starts, sources))
    ]
    weights = [float(weight) for _, weight in mixture]
    require(min(weights) > 0, f"mixture weights are {weights}; expected all more than 0")
    places = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights)
    require(
        len(places) >= global_batch,
        f"{len(places)} examples do not fill one batch of {global_batch}; "
        "expected at least one batch: lower the batch or repeat the data",
    )
    identity = {
        "seed": seed,
        "global_batch": global_batch,
        "shuffle": shuffle,
        "repeat": repeat,
        "sources": [[part.fingerprint, weight] for (part, _), weight in zip(mixture, weights)],
    }
    batches = _LocalBatches(places, sources, global_batch, rows)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return BatchIterator(batches, options, identity, prefix_crop)


def _places(
    places: range, seed: int, stream: int, *, shuffle: bool, repeat: bool
) -> grain.MapDataset:
    """Indices of one source's examples in the order in which they are read."""
    numbers = grain.MapDataset.range(places.start, places.stop)
    if shuffle:
        # grain seeds epoch e with seed + e: without hashing, seed 1 would replay seed 0's epochs.
        hashed = np.random.SeedSequence([seed, stream]).generate_state(1)[0]
        numbers = numbers.shuffle(seed=int(hashed))
    return numbers.repeat() if repeat else numbers


def _checked_rows(global_batch: int, rows: Sequence[int] | None) -> list[int]:
    require(global_batch > 0, f"the global batch is {global_batch}; expected at least 1")
    rows = list(range(global_batch)) if rows is None else [int(row) for row in rows]
    require(
        bool(rows) and all(0 <= row < global_batch for row in rows),
        f"rows are {rows[:8]} of a global batch of {global_batch}; expected numbers below it",
    )
    return rows


def eval_batches(
    source: Source,
    global_batch: int,
    *,
    max_batches: int | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yields one pass in the source's order, with every batch of full size.

    Rows after the end have token 0 and mask False, so that sums over the mask are exact.

    Args:
      source: source of examples.
      global_batch: number of rows of all processes together.
      max_batches: largest number of batches.
      rows: indices in each global batch of the rows that are read here; None for all of them.
    """
    rows = _checked_rows(global_batch, rows)
    require(len(source) > 0, "the source is empty; expected at least one example")
    total = -(-len(source) // global_batch)
    blank = {name: np.zeros_like(value) for name, value in source[0].items()}

    def batch(number: int) -> Batch:
        wanted = [number * global_batch + row for row in rows]
        return _stack([source[i] if i < len(source) else blank for i in wanted])

    return (batch(i) for i in range(total if max_batches is None else min(total, max_batches)))
