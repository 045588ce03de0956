"""Progress of long work on stderr: a bar with the time left on a terminal, else a line a minute."""

import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

_LINE_SECONDS = 60.0  # between two lines where there is no terminal
_DRAW_SECONDS = 0.1  # between two drawings of a bar
_TICK_SECONDS = 1.0  # between two drawings while nothing is recorded
_CLEAR = "\r\x1b[K"
_WIDEST_BAR = 30
_WRITING = threading.RLock()  # ticks come from threads of their own
_open: list["Progress"] = []  # the last one shows itself, and those around it wait
Item = TypeVar("Item")


def duration(seconds: float) -> str:
    """Formats seconds as h:mm:ss."""
    whole = math.ceil(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Progress:
    """Progress of one piece of work, shown while its `with` block lasts.

    Each second it is drawn anew, with the time that the work has taken until there is a time left,
    so that a compilation or a file that is read is seen to go on. The time left follows from the
    pace since the first call of `done`, so that compilation before it, and work of an earlier run,
    do not count. Of several such blocks inside each other the innermost is shown.

    Args:
      label: name of the work, for example "samples".
      total: number of its parts; 0 if it is not known yet, or never.
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
        self._bar = not quiet and on_terminal(self._stream)
        self._quiet, self._deadline, self._clock = quiet, deadline, clock
        self._label, self._total, self._count = label, total, 0
        self._first: tuple[int, float] | None = None
        self._began = self._latest = clock()
        self._shown = self._began - (_DRAW_SECONDS if self._bar else 0.0)
        self._ended = threading.Event()

    def __enter__(self) -> "Progress":
        if not self._quiet:
            with _WRITING:
                _open.append(self)
            threading.Thread(target=self._tick, daemon=True).start()
            self._show()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the bar; nothing is shown afterwards."""
        self._ended.set()
        with _WRITING:
            self._clear()
            self._quiet = True
            if self in _open:
                _open.remove(self)

    def done(self, count: int, total: int = 0) -> None:
        """Records the number of completed parts, and the total if it is given."""
        with _WRITING:
            self._count, self._total = count, total or self._total
            self._latest = self._clock()
            if self._first is None:
                self._first = count, self._latest
            self._show()

    def say(self, line: str) -> None:
        """Prints a line to stdout, with the bar out of its way; see `say`."""
        say(line)

    def _tick(self) -> None:
        while not self._ended.wait(_TICK_SECONDS):
            self._show()

    def _show(self) -> None:
        with _WRITING:
            wait = _DRAW_SECONDS if self._bar else _LINE_SECONDS
            if not self._is_shown() or self._clock() - self._shown < wait:
                return
            self._shown = self._clock()
            if self._bar:
                self._draw()
            else:
                print(self._text(""), file=self._stream, flush=True)

    def _is_shown(self) -> bool:
        return not self._quiet and _open[-1:] == [self]

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
        taken, left = math.floor(self._clock() - self._began), self._left()
        shown = f" after {duration(taken)}" if taken else ""
        if not self._total:
            return f"{self._label} ...{shown}"
        shown = shown if left is None else f" left {duration(left)}"
        return f"{self._label}{bar} {self._count}/{self._total}{shown}"

    def _left(self) -> float | None:
        """Seconds left at the pace so far; None before there is one."""
        if self._first is None or self._count <= self._first[0]:
            return None
        begun, since = self._first
        pace, now = (self._latest - since) / (self._count - begun), self._clock()
        left = pace * (self._total - self._count) - (now - self._latest)
        return max(min(left, self._deadline - now), 0.0)


def say(line: str, stream: TextIO | None = None) -> None:
    """Prints a line to a stream, stdout by default, with the bar that is shown out of its way."""
    with _WRITING:
        make_way()
        print(line, file=stream, flush=True)
        for bar in _open[-1:]:
            if bar._bar:
                bar._draw()


def make_way() -> None:
    """Empties the line of the bar that is shown, which comes back with the next second."""
    with _WRITING:
        for bar in _open[-1:]:
            bar._clear()


def close_all() -> None:
    """Removes all bars, so that an error is printed on a line of its own."""
    for bar in reversed(_open.copy()):
        bar.close()


def on_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can draw a line anew."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def tracked(
    items: Iterable[Item], label: str, total: int, *, quiet: bool = False
) -> Iterator[Item]:
    """Yields items and shows their progress; an item is completed when the next one is requested.

    Inside the `with` block of another `Progress` it takes the line of that bar until it ends.

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
