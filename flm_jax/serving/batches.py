"""One thread that samples: rows of a kind that wait are generated together, the oldest first."""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from flm_jax.core.errors import UserError
from flm_jax.inference.rows import Kind, Row, Seen, Written

# (index of a network call, tokens int32 [L]) of one row, see `rows.Seen`.
SeenRow = Callable[[int, np.ndarray], None]
_WEIGHT = 0.2  # of the newest batch in the average time of a row


class QueueFullError(Exception):
    """There is no room for more rows.

    Attributes:
      seconds: estimate of the time until there is.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"full for {seconds} s")
        self.seconds = seconds


class StoppingError(Exception):
    """The worker takes no more rows."""


class Programs(Protocol):
    """Compiles and runs programs of rows; `inference.rows.RowSampler` is one."""

    def compiled(self, kind: Kind) -> list[int]:
        """Returns the batch sizes whose programs are there."""

    def compile(self, kind: Kind, size: int) -> Any:
        """Makes a program."""

    def run(
        self, kind: Kind, rows: Sequence[Row], size: int, seen: Seen | None = None
    ) -> list[Written]:
        """Generates rows by a program of `size` rows, and shows each network call to `seen`."""


class Waiting(NamedTuple):
    """A row that waits, the future of what is written there, and who sees its network calls."""

    kind: Kind
    row: Row
    future: Future
    seen: SeenRow | None = None


class Batch(NamedTuple):
    """Rows of one kind, and the number of rows of the program that generates them."""

    rows: list[Waiting]
    size: int


class Worker:
    """Generates rows in batches, in a thread of its own.

    While a batch runs, rows gather; the next batch takes the oldest row and all others of its kind,
    up to the largest size, in the order in which they came. Rows without a program wait until a
    second thread has compiled it, while others are generated. A future that is cancelled before its
    batch starts leaves its place to others.

    Args:
      programs: compiler and runner of rows, such as a `RowSampler`.
      sizes: batch sizes in ascending order.
      most: largest number of rows that wait.
    """

    def __init__(self, programs: Programs, sizes: Sequence[int], most: int) -> None:
        self._programs, self._sizes, self._most = programs, list(sizes), most
        self._rows: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._closing, self._seconds_a_row = False, 0.0
        self._compiling: set[Kind] = set()
        self._compiler = ThreadPoolExecutor(1, "flm-compiling")
        self.running, self.rows_done, self.batches_done = 0, 0, 0
        self._thread = threading.Thread(target=self._work, name="flm-sampling", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of rows that wait for a batch."""
        return len(self._rows)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(
        self, rows: Sequence[tuple[Kind, Row]], seen: Sequence[SeenRow | None] | None = None
    ) -> list[Future]:
        """Queues rows, all or none; returns the futures of what is written there.

        Args:
          rows: kind of each row, and the row.
          seen: callback of each row with its tokens after each network call that another one
            follows, from another thread; None for nobody.

        Raises:
          QueueFullError: there is no room for them.
          StoppingError: `close` was called.
        """
        each = seen or [None] * len(rows)
        new = [Waiting(kind, row, Future(), one) for (kind, row), one in zip(rows, each)]
        with self._changed:
            if self._closing:
                raise StoppingError
            if len(self._rows) + len(new) > self._most:
                raise QueueFullError(self._seconds_a_row * len(self._rows))
            self._rows.extend(new)
            self._changed.notify()
        return [one.future for one in new]

    def forget(self, futures: Sequence[Future]) -> None:
        """Takes rows back that nobody wants any more; those that are being generated end unseen."""
        for future in futures:
            future.cancel()
        with self._changed:
            self._rows = deque(one for one in self._rows if not one.future.cancelled())

    def close(self, seconds: float) -> bool:
        """Takes no more rows, and waits until those that are there are done.

        Returns:
          Whether they are, within that time.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        self._compiler.shutdown(wait=False, cancel_futures=True)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while batch := self._next():
            began = time.monotonic()
            self._generate(batch)
            spent = (time.monotonic() - began) / len(batch.rows)
            before = self._seconds_a_row or spent
            self._seconds_a_row = before + _WEIGHT * (spent - before)
            self.running, self.rows_done = 0, self.rows_done + len(batch.rows)
            self.batches_done += 1

    def _next(self) -> Batch | None:
        """Waits for the next batch; None when there is no more."""
        with self._changed:
            while self._rows or not self._closing:
                self._order()
                batch = self._oldest()
                if batch is None:
                    self._changed.wait()
                elif batch.rows:
                    self.running = len(batch.rows)
                    return batch
        return None

    def _order(self) -> None:
        """Has the programs compiled that the rows need, one for each kind at a time."""
        for kind, count in Counter(one.kind for one in self._rows).items():
            wanted = self._fitting(self._sizes, count)
            if kind not in self._compiling and max(self._ready(kind), default=0) < wanted:
                self._compiling.add(kind)
                self._compiler.submit(self._compile, kind, wanted)

    def _oldest(self) -> Batch | None:
        """Takes the oldest row that has a program, and others of its kind, but cancelled ones."""
        ready: dict[Kind, list[int]] = {}
        for one in self._rows:
            if one.kind not in ready:
                ready[one.kind] = self._ready(one.kind)
            if ready[one.kind]:
                break
        else:
            return None
        sizes = ready[one.kind]
        taken: list[Waiting] = []
        rest: deque[Waiting] = deque()
        for other in self._rows:
            if other.kind != one.kind or len(taken) == sizes[-1]:
                rest.append(other)
            elif other.future.set_running_or_notify_cancel():
                taken.append(other)
        self._rows = rest
        return Batch(taken, self._fitting(sizes, len(taken)))

    def _ready(self, kind: Kind) -> list[int]:
        return [size for size in self._programs.compiled(kind) if size in self._sizes]

    @staticmethod
    def _fitting(sizes: Sequence[int], count: int) -> int:
        """Smallest of the sizes for this number of rows, or the largest one."""
        return next((size for size in sizes if size >= count), sizes[-1])

    def _compile(self, kind: Kind, size: int) -> None:
        failed: BaseException | None = None
        try:
            self._programs.compile(kind, size)
        except UserError as error:
            failed = error
        except BaseException as error:  # its rows end, and others go on
            logging.getLogger(__name__).exception("a compilation failed")
            failed = error
        with self._changed:
            self._compiling.discard(kind)
            if failed is not None:
                lost = [one for one in self._rows if one.kind == kind]
                self._rows = deque(one for one in self._rows if one.kind != kind)
                for one in lost:
                    if one.future.set_running_or_notify_cancel():
                        one.future.set_exception(failed)
            self._changed.notify()

    def _generate(self, batch: Batch) -> None:
        rows = batch.rows

        def seen(place: int, step: int, tokens: np.ndarray) -> None:
            if (own := rows[place].seen) is not None:
                own(step, tokens)

        watched = seen if any(one.seen for one in rows) else None
        try:
            own = [one.row for one in rows]
            found = self._programs.run(rows[0].kind, own, batch.size, watched)
        except BaseException as error:  # the next batch may well be generated
            logging.getLogger(__name__).exception("a batch failed")
            for one in rows:
                one.future.set_exception(error)
            return
        for one, written in zip(rows, found):
            one.future.set_result(written)
