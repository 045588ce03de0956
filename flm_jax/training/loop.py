"""The training loop: steps, progress, evaluation, checkpoints, clean stops.

The host runs ahead of the devices by at most two steps: the metrics of a step are fetched while
later steps are under way, so that the devices never wait for the host.
"""

import collections
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from flm_jax.checkpoints.state import TrainState
from flm_jax.checkpoints.workdir import Checkpoints
from flm_jax.config.training import LoopConfig
from flm_jax.core.errors import Stopped, UserError, require
from flm_jax.core.files import open_new, replacing
from flm_jax.core.progress import Progress, duration
from flm_jax.core.types import Metrics, Params
from flm_jax.distributed.agreement import StopVote, clock_skew, from_first
from flm_jax.training.logs import MetricsLog, Speed
from flm_jax.training.watchdog import Watchdog

_AHEAD = 2  # steps under way before the oldest is waited for
_VOTE_EVERY = 10  # steps between the votes of several processes on stopping


class Run(NamedTuple):
    """The parts of a training run that the loop drives.

    Attributes:
      state: train state at the step to continue from.
      train_step: (state, frozen, batch) -> (state, metrics); compiled, donating the state, or a
        host function that runs compiled parts and its own work between them.
      frozen: parameters of the teacher, or {}.
      batches: iterator with get_state that yields local NumPy batches.
      to_global: function from a local batch to global arrays.
      evaluate: function from (ema_params, tracked) to (values, texts); None for no evaluation.
      eval_every: number of steps between evaluations; 0 for one at the end.
      meta: record that is saved with every checkpoint.
      spent: time of training before `state`, in seconds.
      rate: function from the completed fraction of the run, by steps or seconds, to the factor of
        the learning rate, which train_step takes after the batch; None if it takes no factor.
      note: callback (step, state) -> None after each evaluation.
      shown: function from the name of a metric to whether progress lines show it.
      rows: number of sequences of a step, over all devices.
    """

    state: TrainState
    train_step: Callable
    frozen: Any
    batches: Any
    to_global: Callable
    evaluate: Callable[[Params, Any], tuple[dict[str, float], list[str]]] | None
    eval_every: int
    meta: dict[str, Any]
    note: Callable[[int, TrainState], None] = lambda step, state: None
    shown: Callable[[str], bool] = lambda name: name.endswith("_token")
    rows: int = 1
    spent: float = 0.0
    rate: Callable[[float], float] | None = None


class StopSignal:
    """Turns SIGTERM and SIGINT into a flag, until `restore`; a second one interrupts at once.

    In Python only the main thread handles signals: in another thread none is noticed.

    Attributes:
      name: name of the signal that arrived, "" before.
    """

    def __init__(self):
        self.name = ""
        main = threading.current_thread() is threading.main_thread()
        watched = (signal.SIGTERM, signal.SIGINT) if main else ()
        self._old = {s: signal.signal(s, self._note) for s in watched}

    def _note(self, number, frame):
        del frame
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def restore(self):
        for number, handler in self._old.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: one that C code had set


def stopped(name: str, step: int) -> str:
    """Message of a run that a signal stopped, after its state was saved."""
    return f"{name}: saved step {step}; run the same command to continue."


class _Step(NamedTuple):
    """A step under way, whose local rows are kept in case its loss is not finite."""

    number: int
    batch: dict[str, np.ndarray]
    metrics: Metrics
    vote: jax.Array | None


class Loop:
    """Trains a run to its last step, and supervises the steps under way.

    Used as `with Loop(...) as loop: loop.train()`; leaving the block waits for the last checkpoint
    and restores the signal handlers.

    Attributes:
      state: the newest train state.

    Args:
      run: parts of the run.
      cfg: settings of steps, logging and checkpoints.
      workdir: folder of metrics, samples and bad batches.
      checkpoints: checkpoints of the run.
    """

    def __init__(self, run: Run, cfg: LoopConfig, workdir, checkpoints: Checkpoints):
        if warning := clock_skew():
            print(warning, file=sys.stderr, flush=True)
        self._run, self._cfg, self.state = run, cfg, run.state
        self._workdir = epath.Path(workdir)
        self._checkpoints = checkpoints
        self._first = int(run.state.step)
        self._began = time.monotonic() - run.spent
        require(
            not cfg.seconds or jax.process_count() == 1,
            f"config.train.seconds is {cfg.seconds:g} in a run of {jax.process_count()} processes, "
            "whose clocks differ; set it to 0 and config.train.steps to the end.",
        )
        self._log = MetricsLog(workdir, self._first) if jax.process_index() == 0 else None
        self._speed = Speed(self._first, cfg.steps, run.rows * run.meta["length"])
        self._under_way: collections.deque[_Step] = collections.deque()
        # One process stops by its own signal at once; several agree on a step.
        self._vote = StopVote() if jax.process_count() > 1 else None
        self._agreed = False
        self._signal = StopSignal()
        self._watchdog = Watchdog(cfg.watchdog_seconds, self._first)
        deadline = self._began + cfg.seconds if cfg.seconds else math.inf
        self._bar = Progress("steps", quiet=jax.process_index() > 0, deadline=deadline)

    def __enter__(self) -> "Loop":
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._signal.restore()
        self._bar.close()
        try:
            self._watchdog.waits_for("checkpoint")
            self._checkpoints.close()
        finally:
            self._watchdog.close()
            if self._log:
                self._log.close()

    def train(self) -> None:
        """Trains to cfg.steps, or for cfg.seconds.

        Raises:
          Stopped: a signal arrived; its step was saved.
          UserError: cfg.max_skipped consecutive steps had a non-finite loss or gradient; a
            checkpoint or the metrics could not be written; the data could not be read.
        """
        run, cfg, state = self._run, self._cfg, self.state
        if self._missing_evaluation():
            self._evaluate(self._first, state)
        if self._first and self._time_is_over():  # a new run has one step at least, to be saved
            return
        for step in range(self._first + 1, cfg.steps + 1):
            self._watchdog.waits_for("data")
            batch = next(run.batches)
            self._watchdog.waits_for("device")
            rate = [np.float32(run.rate(self._progress(step)))] if run.rate else []
            state, metrics = run.train_step(state, run.frozen, run.to_global(batch), *rate)
            self.state = state
            self._start(step, batch, metrics)
            stop = self._agreed if self._vote else bool(self._signal.name)
            end = step == cfg.steps or self._time_is_over()
            last = stop or end
            look = self._evaluation_due(step, end)
            save = last or step % cfg.checkpoint_every == 0
            # A few steps stay under way, so that the devices do not wait for the host between two
            # of them.
            self._land(0 if look or save else _AHEAD)
            # First: whatever becomes of the evaluation, the step is not lost.
            if save:
                self._save(state)
            if look:
                self._evaluate(step, state)
            if end:
                return
            if stop:
                line = stopped(self._signal.name or "a signal to another process", step)
                self._say(line)
                raise Stopped(line)

    def _time_is_over(self) -> bool:
        return 0 < self._cfg.seconds <= time.monotonic() - self._began

    def _progress(self, step: int) -> float:
        """Completed fraction of the run, by steps or by seconds."""
        limit, over = self._cfg.seconds, time.monotonic() - self._began
        return max(step / self._cfg.steps, over / limit if limit else 0.0)

    def _evaluation_due(self, step: int, end: bool) -> bool:
        every = self._run.eval_every
        due = end or bool(every and step % every == 0)
        return self._run.evaluate is not None and due

    def _missing_evaluation(self) -> bool:
        """Whether the step to continue from was saved but not evaluated, as process 0 knows.

        All processes evaluate together, and the metrics may be in a place that only process 0
        reads.
        """
        end = self._first == self._cfg.steps or self._time_is_over()
        if self._first == 0 or not self._evaluation_due(self._first, end):
            return False
        missing = bool(self._log) and not self._log.evaluated(self._first)
        return bool(from_first([1] if missing else [], 1))

    def _save(self, state: TrainState) -> None:
        self._watchdog.waits_for("checkpoint")
        more = {"iterator": self._run.batches.get_state()}
        if self._cfg.seconds:
            more["seconds"] = time.monotonic() - self._began
        self._checkpoints.save(state, self._run.meta | more)

    def _start(self, step: int, batch, metrics: Metrics) -> None:
        """Records a step that was handed to the devices."""
        vote = None
        if self._vote and step % _VOTE_EVERY == 0:
            vote = self._vote.cast(bool(self._signal.name))
        self._under_way.append(_Step(step, batch, metrics, vote))

    def _land(self, most: int) -> None:
        """Waits until at most `most` steps are under way.

        The step that is inspected depends on step numbers alone, so that all processes stop at the
        same one.
        """
        while len(self._under_way) > most:
            step = self._under_way.popleft()
            skipped = int(step.metrics["skipped_in_a_row"])
            self._watchdog.completed(step.number)
            self._bar.done(step.number, self._cfg.steps)
            if step.number % self._cfg.log_every == 0 or step.number == self._first + 1:
                self._report(step)
            if skipped >= self._cfg.max_skipped:
                self._give_up(step, skipped)
            if step.vote is not None:
                self._agreed |= bool(step.vote)

    def _report(self, step: _Step) -> None:
        values = {f"train/{k}": float(v) for k, v in jax.device_get(step.metrics).items()}
        seconds, rate, left = self._speed.lap(step.number)
        if self._cfg.seconds:
            left = min(left, max(self._began + self._cfg.seconds - time.monotonic(), 0.0))
        shown = "  ".join(f"{k[6:]} {v:.4g}" for k, v in values.items() if self._run.shown(k))
        if step.number == self._first + 1:
            pace = f"{seconds:.1f} s with compilation"
        else:
            pace = f"{seconds * 1e3:.0f} ms/step  {rate:,.0f} tokens/s  left {duration(left)}"
            values |= {"train/seconds_per_step": seconds, "train/tokens_per_second": rate}
        self._say(f"step {step.number}/{self._cfg.steps}  {shown}  {pace}")
        values["train/data_stall_seconds"] = self._run.batches.stall_seconds
        if self._log:
            self._log.write(step.number, values)

    def _give_up(self, step: _Step, skipped: int) -> None:
        """Saves this process's rows of the offending batch and ends the run."""
        own = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
        path = self._workdir / f"bad_batch_{step.number}{own}.npz"
        with replacing(path) as temporary, open_new(temporary) as file:
            np.savez(file, step=step.number, **step.batch)
        raise UserError(
            f"{skipped} steps in a row had a non-finite loss or gradient, the last at step "
            f"{step.number} (config.train.max_skipped = {self._cfg.max_skipped}); parameters are "
            f"as before them and checkpoints intact; the batch is in {path}: look at it, or start "
            "in a new --workdir with a lower optim.lr."
        )

    def _evaluate(self, number: int, state: TrainState) -> None:
        self._watchdog.waits_for("evaluation")
        try:
            with Progress("evaluating", quiet=jax.process_index() > 0):
                values, texts = self._run.evaluate(state.ema_params, state.tracked)
        except Exception:
            if jax.process_count() == 1:  # of several, the others may not have come this far
                self._save(state)  # unless it was saved before
            raise
        values = {f"eval/{k}": v for k, v in values.items()}
        shown = "  ".join(f"{k[5:]} {v:.4g}" for k, v in values.items() if "_at_tau_" not in k)
        self._say(f"eval at step {number}: {shown}")
        for text in texts[:2]:
            self._say(f"  | {text[:160]!r}")
        if self._log:
            self._log.write(number, {k: float(np.asarray(v)) for k, v in values.items()}, texts)
        self._run.note(number, state)
        self._speed.skip(number)

    def _say(self, line: str) -> None:
        if jax.process_index() == 0:
            self._bar.say(line)
