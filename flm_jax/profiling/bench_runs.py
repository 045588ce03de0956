"""Runs the GPU suites: one process for each group of cases, and a line after each case.

A case that fails, runs out of memory, kills its process or takes too long costs one line; the
others continue, in a new process if the old one ended.
"""

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from flm_jax.core.progress import Progress
from flm_jax.profiling.bench_cases import Case
from flm_jax.profiling.bench_results import line, ratios

_ONE = 120.0  # seconds that one variant may take, compilation included
_COMMAND = (sys.executable, "-m", "flm_jax.profiling.bench_group")
_ENDING = 20.0  # seconds for a process that has said all
_END = "end"


class _Group:
    """The process of `bench_group` and the lines that it prints."""

    def __init__(self, suite: str, names: Sequence[str]):
        self._process = subprocess.Popen(
            [*_COMMAND, suite, *names],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
        )
        self._said: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for text in self._process.stdout:
            if text.startswith("{"):
                self._said.put(text)
        self._said.put(_END)

    def next(self, seconds: float) -> dict[str, Any] | None:
        """The next line; None where the process ended.

        Raises:
          queue.Empty: no line within `seconds`.
        """
        text = self._said.get(timeout=max(seconds, 0.0))
        return None if text == _END else json.loads(text)

    def close(self, now: bool = False) -> int:
        """Waits for the process, or ends it `now`; its exit status."""
        if now:
            self._process.kill()
        try:
            return self._process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def names_of(cases: Sequence[Case]) -> list[str]:
    """Lists CASE/VARIANT of all variants."""
    return [f"{case.name}/{variant}" for case in cases for variant in case.variants]


def run_suite(
    suite: str,
    cases: Sequence[Case],
    seconds: float,
    save: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Measures all cases, group by group in their order.

    Args:
      suite: name of the suite.
      cases: some of its cases.
      seconds: time limit for all cases in seconds; cases not done by then are listed as failed.
      save: callback that takes all results so far, after each variant.

    Returns:
      A dict for each case: "case", "sizes", "variants" with the figures of those that ran, "ratios"
      of the last of them to the others, "failed" with a line for each of the rest.
    """
    until = time.monotonic() + seconds
    results = {
        case.name: {"case": case.name, "sizes": case.sizes, "variants": {}, "ratios": {}}
        | {"failed": {}}
        for case in cases
    }
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)

    total, noted = len(names_of(cases)), itertools.count(1)

    def note(name: str, told: dict[str, Any]) -> None:
        bar.done(next(noted))
        case, variant = name.split("/")
        result = results[case]
        if "figures" in told:
            result["variants"][variant] = told["figures"]
            bar.say(line(name, told["figures"]))
        else:
            result["failed"][variant] = told["failed"]
            bar.say(f"{name}: failed: {told['failed']}")
        *others, last = result["variants"] or [""]
        found = result["variants"]
        result["ratios"] = {other: ratios(found[last], found[other]) for other in others}
        save(list(results.values()))

    with Progress("variants", total, deadline=until) as bar:
        for members in groups.values():
            left = names_of(members)
            while left and time.monotonic() < until:
                left = _one_process(suite, left, until, note)
            for name in left:
                note(name, {"failed": f"not begun within the {seconds:.0f} s of --seconds"})
    return list(results.values())


def _one_process(suite: str, names: list[str], until: float, note: Callable) -> list[str]:
    """Measures as many as it can in one process; returns the names that are left."""
    group = _Group(suite, names)
    left = list(names)
    while left:
        try:
            told = group.next(min(_ONE, until - time.monotonic()))
        except queue.Empty:
            group.close(now=True)
            why = f"stopped: not done after {_ONE:.0f} s, or when the suite's time was over"
            note(left.pop(0), {"failed": why})
            return left
        if told is None:
            status = group.close()
            note(left.pop(0), {"failed": f"its process ended with status {status}; see above"})
            return left
        if "begin" not in told:
            note(left.pop(0), told)
    group.close()
    return left
