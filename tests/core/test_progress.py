"""Progress: a bar where there is a terminal, lines where there is none, nothing in the way."""

import io
import time

import pytest

from flm_jax.cli.run import run_cli
from flm_jax.core.errors import UserError
from flm_jax.core.progress import Progress, duration, tracked


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return Clock()


def until(condition):
    """Waits for what a thread does."""
    ends = time.monotonic() + 10.0
    while not condition() and time.monotonic() < ends:
        time.sleep(0.002)


def last(stream):
    """What a terminal shows on the line of the bar."""
    return stream.getvalue().rsplit("\r\x1b[K", 1)[-1]


def test_a_terminal_shows_a_bar_with_the_time_left(clock):
    stream = Terminal()
    with Progress("samples", 20, stream=stream, clock=clock) as bar:
        assert "samples" in last(stream) and "0/20" in last(stream)
        clock.now = 100.0  # compilation is no part of the pace
        bar.done(4)
        assert "left" not in last(stream)
        clock.now = 104.0
        bar.done(8)
        assert last(stream) == f"samples [{'#' * 12}{'-' * 18}] 8/20 left 0:00:12"
    assert last(stream) == ""  # what is printed next starts on an empty line


def test_a_bar_is_drawn_a_few_times_a_second_and_fits_its_line(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "24")
    stream = Terminal()
    with Progress("a long name of work to be done", 10_000, stream=stream, clock=clock) as bar:
        for count in range(1000):
            clock.now += 0.001
            bar.done(count)
    lines = stream.getvalue().split("\r\x1b[K")
    assert len(lines) < 15 and max(map(len, lines)) < 24


def test_work_that_records_nothing_shows_how_long_it_has_taken(clock, monkeypatch):
    monkeypatch.setattr("flm_jax.core.progress._TICK_SECONDS", 0.001)
    terminal, pipe = Terminal(), io.StringIO()
    with Progress("compiling", stream=terminal, clock=clock) as bar:
        clock.now = 12.0
        until(lambda: last(terminal) == "compiling ... after 0:00:12")
        assert last(terminal) == "compiling ... after 0:00:12"
        clock.now = 13.0
        bar.done(1, 3)
        assert last(terminal).endswith("1/3 after 0:00:13")
        clock.now = 16.0
        bar.done(2)
        clock.now = 18.0  # a part that takes longer than those before does not add to the time left
        until(lambda: last(terminal).endswith("left 0:00:01"))
        assert last(terminal).endswith("2/3 left 0:00:01")
    with Progress("compiling", stream=pipe, clock=clock):
        clock.now += 59.0
        time.sleep(0.02)
        assert pipe.getvalue() == ""
        clock.now += 2.0
        until(pipe.getvalue)
        time.sleep(0.02)
    assert pipe.getvalue() == "compiling ... after 0:01:01\n"
    clock.now += 100.0
    time.sleep(0.02)
    assert pipe.getvalue().count("\n") == 1 and last(terminal) == ""


def test_lines_are_printed_with_the_bar_out_of_their_way(clock, capsys):
    stream = Terminal()
    with Progress("parts", stream=stream, clock=clock) as bar:
        assert last(stream) == "parts ..."
        bar.done(1, 4)
        bar.say("part 1/4")
        assert stream.getvalue().count("\r\x1b[K") >= 3 and "1/4" in last(stream)
    assert capsys.readouterr().out == "part 1/4\n"


def test_without_a_terminal_there_is_a_line_a_minute(clock):
    stream = io.StringIO()
    with Progress("samples", 20, stream=stream, clock=clock) as bar:
        for count in range(1, 13):
            clock.now += 10.0
            bar.done(count)
    assert stream.getvalue() == "samples 6/20 left 0:02:20\nsamples 12/20 left 0:01:20\n"


def test_short_and_quiet_work_is_silent(clock):
    for stream, quiet in ((io.StringIO(), False), (Terminal(), True)):
        with Progress("samples", 2, quiet=quiet, stream=stream, clock=clock) as bar:
            bar.done(1)
            clock.now += 1.0 if not quiet else 1000.0
            bar.done(2)
        assert stream.getvalue() == ""


def test_a_dumb_terminal_has_no_bar(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress("samples", 2, stream=stream, clock=clock) as bar:
        bar.done(1)
    assert stream.getvalue() == ""


def test_the_time_left_ends_at_a_deadline(clock):
    stream = io.StringIO()
    with Progress("steps", 100, deadline=90.0, stream=stream, clock=clock) as bar:
        for count in (1, 2, 3):
            bar.done(count)
            clock.now += 30.0
    assert stream.getvalue() == "steps 3/100 left 0:00:30\n"


def test_durations():
    assert [duration(s) for s in (0.0, 59.2, 3600.0)] == ["0:00:00", "0:01:00", "1:00:00"]


def test_items_of_inner_work_take_the_line_of_the_bar_around_them(clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("flm_jax.core.progress._DRAW_SECONDS", 0.0)
    with Progress("samples", 8) as bar:
        bar.done(4)
        seen = []
        for item in tracked("abc", "judge", 3):
            assert last(stream).startswith("judge") and f" {len(seen)}/3" in last(stream)
            seen.append(item)
            bar.done(4 + len(seen))
            assert last(stream).startswith("judge")
        assert last(stream) == "" and seen == list("abc")
        bar.done(8)
        assert last(stream).startswith("samples")


def test_the_bars_of_work_that_failed_are_removed_before_the_error_is_told(clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with pytest.raises(SystemExit):  # while what was begun is still held by the traceback

        def main(argv):
            held = tracked("abc", "judge", 3)
            next(held)
            raise UserError("what was wrong")

        monkeypatch.setattr("absl.app.run", lambda run, flags_parser: run(["command"]))
        run_cli(main)
    assert last(stream) == "error: what was wrong\n"


def test_inner_work_that_ends_early_leaves_its_line_empty(clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    for _ in zip("a", tracked("abc", "judge", 3)):
        pass
    assert last(stream) == ""
