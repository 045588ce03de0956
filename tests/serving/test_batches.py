"""The worker: which rows it joins, and what becomes of those that are taken back or fail."""

import threading
from concurrent.futures import CancelledError

import pytest

from flm_jax.core.errors import UserError
from flm_jax.serving.batches import QueueFullError, StoppingError, Worker

WAIT = 20.0


class Programs:
    """Programs that write down what they run; each batch waits until it is let go."""

    def __init__(self, ready=("a", "b"), held=True):
        self.ready = {kind: [1, 2, 4] for kind in ready}
        self.batches, self.made = [], []
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.may_compile, self.held = threading.Event(), held

    def compiled(self, kind):
        return self.ready.get(kind, [])

    def compile(self, kind, size):
        self.made.append((kind, size))
        assert self.may_compile.wait(WAIT)
        if kind == "bad":
            raise UserError("no such program")
        self.ready.setdefault(kind, []).append(size)

    def run(self, kind, rows, size, seen=None):
        self.batches.append((kind, list(rows), size))
        self.begun.release()
        assert not self.held or self.go.acquire(timeout=WAIT)
        for place, row in enumerate(rows):
            if seen is not None:
                seen(place, 0, f"{kind}{row} so far")
        if "break" in rows:
            raise RuntimeError("broken")
        return [f"{kind}{row}" for row in rows]


def test_rows_of_a_kind_that_wait_are_joined_the_oldest_first():
    programs = Programs()
    worker = Worker(programs, [1, 2, 4], most=20)
    first = worker.submit([("a", 0)])
    assert programs.begun.acquire(timeout=WAIT) and worker.running == 1
    later = worker.submit([("b", 1), ("a", 2), ("b", 3), ("b", 4)])
    more = worker.submit([("a", 5)] * 5)
    assert worker.waiting == 9
    for _ in range(5):
        programs.go.release()
    assert [one.result(WAIT) for one in first + later] == ["a0", "b1", "a2", "b3", "b4"]
    assert [one.result(WAIT) for one in more] == ["a5"] * 5
    assert programs.batches == [
        ("a", [0], 1),
        ("b", [1, 3, 4], 4),
        ("a", [2, 5, 5, 5], 4),
        ("a", [5, 5], 2),
    ]
    assert worker.close(WAIT) and (worker.rows_done, worker.batches_done) == (10, 4)


def test_rows_that_are_taken_back_leave_room_and_a_full_queue_refuses_all_or_none():
    programs = Programs()
    worker = Worker(programs, [1, 2, 4], most=3)
    running = worker.submit([("a", 0)])
    assert programs.begun.acquire(timeout=WAIT)
    waiting = worker.submit([("a", 1), ("a", 2)])
    with pytest.raises(QueueFullError) as caught:
        worker.submit([("a", 3), ("a", 4)])
    assert caught.value.seconds >= 0 and worker.waiting == 2
    worker.forget([running[0], waiting[0]])
    assert worker.waiting == 1 and waiting[0].cancelled() and not running[0].cancelled()
    kept = worker.submit([("a", 5), ("a", 6)])
    for _ in range(2):
        programs.go.release()
    assert [one.result(WAIT) for one in [waiting[1], *kept]] == ["a2", "a5", "a6"]
    assert programs.batches[1:] == [("a", [2, 5, 6], 4)]
    with pytest.raises(CancelledError):
        waiting[0].result(WAIT)
    assert worker.close(WAIT)


def test_a_batch_that_fails_takes_no_other_with_it():
    programs = Programs(held=False)
    worker = Worker(programs, [1], most=4)
    lost, kept = worker.submit([("a", "break"), ("a", 1)])
    assert kept.result(WAIT) == "a1"
    with pytest.raises(RuntimeError, match="broken"):
        lost.result(WAIT)
    assert worker.alive and worker.close(WAIT)


def test_rows_without_a_program_wait_for_it_while_others_are_generated():
    programs = Programs(held=False)
    worker = Worker(programs, [2, 4], most=9)
    cold = worker.submit([("cold", 0), ("cold", 1), ("bad", 2)])
    assert worker.submit([("a", 3)])[0].result(WAIT) == "a3"
    assert not any(one.done() for one in cold)
    programs.may_compile.set()
    assert [one.result(WAIT) for one in cold[:2]] == ["cold0", "cold1"]
    with pytest.raises(UserError, match="no such program"):
        cold[2].result(WAIT)
    assert programs.made == [("cold", 2), ("bad", 2)]
    # Sizes that round otherwise are not among the worker's, and are not used.
    assert programs.batches[0] == ("a", [3], 2)
    assert worker.close(WAIT)


def test_each_row_is_shown_to_its_own_callback_alone():
    programs = Programs()
    worker = Worker(programs, [1, 4], most=9)
    shown, first = [], worker.submit([("a", 0)])
    assert programs.begun.acquire(timeout=WAIT)
    own = [lambda step, tokens: shown.append((step, tokens)), None]
    rows = first + worker.submit([("a", 1), ("a", 2)], own) + worker.submit([("a", 3)])
    for _ in range(2):
        programs.go.release()
    assert [one.result(WAIT) for one in rows] == ["a0", "a1", "a2", "a3"]
    assert shown == [(0, "a1 so far")] and programs.batches[1] == ("a", [1, 2, 3], 4)
    assert worker.close(WAIT)


def test_what_waits_at_the_end_is_done_and_nothing_is_added():
    programs = Programs()
    worker = Worker(programs, [1, 2], most=9)
    rows = worker.submit([("a", place) for place in range(3)])
    ends = threading.Thread(target=worker.close, args=(WAIT,))
    assert programs.begun.acquire(timeout=WAIT)
    ends.start()
    for _ in range(2):
        programs.go.release()
    assert [one.result(WAIT) for one in rows] == ["a0", "a1", "a2"]
    ends.join(WAIT)
    assert not worker.alive
    with pytest.raises(StoppingError):
        worker.submit([("a", 9)])
