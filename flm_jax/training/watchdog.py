"""Reports a training step that does not end; it only reports and takes no action."""

import sys
import threading
import time
import traceback

_FIRST_STEP = 10  # times the limit: it compiles


class Watchdog:
    """Thread that reports, once per stall, that no step was completed for too long.

    The report goes to stderr: one line with the step, the seconds and the phase, then the Python
    stack of the thread that created the watchdog. The end of a stall is reported as well.

    Args:
      seconds: time without a completed step before it reports; 10 times as long for the first step;
        0 for never.
      step: step that was completed before the first.
    """

    def __init__(self, seconds: float, step: int):
        self._seconds = seconds
        self._step = step
        self._completed = 0
        self._since = time.monotonic()
        self._phase = "device"
        self._told = False
        self._ended = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if seconds > 0:
            self._thread.start()

    def waits_for(self, phase: str) -> None:
        """Records the next phase of the loop: data, device, checkpoint or evaluation."""
        self._phase = phase

    def completed(self, step: int) -> None:
        """Records that a step was completed."""
        now = time.monotonic()
        if self._told:
            waited = now - self._since
            self._told = False
            _tell(f"watchdog: step {step} was completed after {waited:.3g} s; training goes on.")
        self._step, self._since = step, now
        self._completed += 1

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(min(self._seconds / 4, 10)):
            waited = time.monotonic() - self._since
            limit = self._seconds * (1 if self._completed else _FIRST_STEP)
            if waited > limit and not self._told:
                self._told = True
                self._report(waited)

    def _report(self, waited: float) -> None:
        frame = sys._current_frames().get(self._watched)
        stack = "".join(traceback.format_stack(frame)) if frame else "(the thread ended)\n"
        _tell(
            f"watchdog: STALLED: no step completed for {waited:.3g} s after step {self._step}, "
            f"waiting for: {self._phase} (limit config.train.watchdog_seconds = "
            f"{self._seconds:g}); the Python stack:\n{stack.rstrip()}"
        )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
