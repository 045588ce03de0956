"""Progress of long work on stderr: a bar with the time left on a terminal, else a line a minute."""

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

_LINE_SECONDS = 60.0  # between two lines where there is no terminal
_DRAW_SECONDS = 0.1  # between two drawings of a bar
_CLEAR = "\r\x1b[K"
_WIDEST_BAR = 30
Item = TypeVar("Item")


def duration(seconds: float) -> str:
    """Formats seconds as h:mm:ss."""
    whole = math.ceil(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Progress:
    """Progress of one piece of work, shown while its `with` block lasts.

    The time left follows from the pace since the first call of `done`, so that compilation before
    it, and work of an earlier run, do not count.

    Args:
      label: name of the work, for example "samples".
      total: number of its parts; 0 if it is not known yet.
      quiet: whether nothing is shown, as in all processes but the first.
      deadline: time of `clock` at which the work ends at the latest.
      stream: text stream to write to; None for stderr.
      clock: function that returns the time in seconds.
    """

    def __init__(
        self,
        label: str,
        total: int = 0,
        *,
        quiet: bool = False,
        deadline: float = math.inf,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stream = sys.stderr if stream is None else stream
        self._bar = not quiet and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._quiet, self._deadline, self._clock = quiet, deadline, clock
        self._label, self._total, self._count = label, total, 0
        self._first: tuple[int, float] | None = None
        self._shown = clock() - (_DRAW_SECONDS if self._bar else 0.0)

    def __enter__(self) -> "Progress":
        self._show()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the bar; nothing is shown afterwards."""
        self._clear()
        self._quiet = True

    def done(self, count: int, total: int = 0) -> None:
        """Records the number of completed parts, and the total if it is given."""
        self._count, self._total = count, total or self._total
        if self._first is None:
            self._first = count, self._clock()
        self._show()

    def say(self, line: str) -> None:
        """Prints a line to stdout, with the bar out of its way."""
        self._clear()
        print(line, flush=True)
        if self._bar and not self._quiet:
            self._draw()

    def _show(self) -> None:
        if self._quiet or self._clock() - self._shown < (
            _DRAW_SECONDS if self._bar else _LINE_SECONDS
        ):
            return
        self._shown = self._clock()
        if self._bar:
            self._draw()
        else:
            print(self._text(""), file=self._stream, flush=True)

    def _draw(self) -> None:
        columns = shutil.get_terminal_size().columns - 1
        width = min(_WIDEST_BAR, columns - len(self._text("")) - 2)
        filled = width * min(self._count, self._total) // self._total if self._total else 0
        bar = f" [{'#' * filled}{'-' * (width - filled)}]" if self._total and width > 4 else ""
        self._stream.write(f"{_CLEAR}{self._text(bar)[:columns]}")
        self._stream.flush()

    def _clear(self) -> None:
        if self._bar and not self._quiet:
            self._stream.write(_CLEAR)
            self._stream.flush()

    def _text(self, bar: str) -> str:
        if not self._total:
            return f"{self._label} ..."
        left = self._left()
        time_left = "" if left is None else f" left {duration(left)}"
        return f"{self._label}{bar} {self._count}/{self._total}{time_left}"

    def _left(self) -> float | None:
        """Seconds left at the pace so far; None before there is one."""
        if self._first is None or self._count <= self._first[0]:
            return None
        begun, since = self._first
        now = self._clock()
        pace = (now - since) / (self._count - begun)
        return max(min(pace * (self._total - self._count), self._deadline - now), 0.0)


def tracked(
    items: Iterable[Item], label: str, total: int, *, quiet: bool = False
) -> Iterator[Item]:
    """Yields items and shows their progress; an item is completed when the next one is requested.

    Inside the `with` block of another `Progress` it takes the line of that bar, which comes back
    with the next call of its `done`.

    Args:
      items: items of work.
      label: name of the work.
      total: number of items.
      quiet: whether nothing is shown, as in all processes but the first.
    """
    with Progress(label, total, quiet=quiet) as bar:
        for number, item in enumerate(items):
            if number:
                bar.done(number)
            yield item
