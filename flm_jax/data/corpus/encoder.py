"""Encodes texts to ids in several processes, in the order of the texts."""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from flm_jax.core.errors import UserError, require
from flm_jax.data.tokenizers.base import Tokenizer

_BATCH_CHARACTERS = 500_000  # of the texts that a process is given at once
_ALONE_CHARACTERS = 4_000_000  # up to here other processes would take longer to start
_AHEAD = 2  # batches that wait for each process

_encodes: Tokenizer  # of a worker process


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Encoder:
    """Tokenises streams of texts; the ids do not depend on the number of processes.

    Each document is tokenised by one process. The processes start with the first stream that is
    long enough, and end with the `with` block.
    """

    def __init__(self, tokenizer: Tokenizer, workers: int = 1):
        require(workers >= 1, f"got {workers} workers; expected at least 1")
        self.tokenizer = tokenizer
        self._workers = workers
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def encoded(self, texts: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (text, ids int32 [n]) of each text, in order.

        Raises:
          UserError: a worker process was killed.
        """
        batches = _batches(texts)
        if self._workers == 1:
            return self._here(batches)
        first = []
        for batch in batches:
            first.append(batch)
            if self._pool or sum(map(len, itertools.chain(*first))) > _ALONE_CHARACTERS:
                return self._elsewhere(itertools.chain(first, batches))
        return self._here(first)

    def _here(self, batches: Iterable[list[str]]) -> Iterator[tuple[str, np.ndarray]]:
        for batch in batches:
            yield from zip(batch, self.tokenizer.encode_batch(batch))

    def _elsewhere(self, batches: Iterable[list[str]]) -> Iterator[tuple[str, np.ndarray]]:
        if self._pool is None:
            one = self.tokenizer
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self._workers,
                # A fork would copy the locks of this process's threads as they are.
                multiprocessing.get_context("spawn"),
                _start,
                (type(one), one.spec(), one.files()),
            )
        waiting: collections.deque = collections.deque()
        try:
            for batch in batches:
                waiting.append((batch, self._pool.submit(_encode, batch)))
                if len(waiting) > _AHEAD * self._workers:
                    yield from _result(*waiting.popleft())
            while waiting:
                yield from _result(*waiting.popleft())
        except BrokenProcessPool as error:
            raise UserError(
                "a process that tokenised was killed, as where memory runs out; "
                "expected it to go on: pass fewer --workers"
            ) from error


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of complete texts with about `_BATCH_CHARACTERS` together."""
    batch: list[str] = []
    held = 0
    for text in texts:
        batch.append(text)
        held += len(text)
        if held >= _BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _result(
    batch: list[str], future: concurrent.futures.Future
) -> Iterator[tuple[str, np.ndarray]]:
    ids, ends = future.result()
    return zip(batch, np.split(ids, ends[:-1]))


def _start(cls: type[Tokenizer], spec: dict[str, Any], files: dict[str, bytes]) -> None:
    """Starts a worker process: builds its tokenizer, and leaves Ctrl-C to the parent."""
    global _encodes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _encodes = cls.from_spec(spec, files)


def _encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all texts concatenated, and the end of each; one by one, so by one thread."""
    found = [_encodes.encode(text) for text in texts]
    return np.concatenate(found), np.cumsum([len(ids) for ids in found])
