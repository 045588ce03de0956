"""The training loop: steps, progress, evaluation, checkpoints, clean stops."""

import dataclasses
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from flm_jax.training.checkpoint import Checkpoints
from flm_jax.training.metrics import MetricsLog, Speed, duration
from flm_jax.training.step import TrainState
from flm_jax.types import Params, UserError

STOPPED_EXIT = 75  # stopped by a signal after saving: run the same command to continue


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """See flm_jax/defaults.py for units."""

    steps: int
    batch: int
    microbatches: int
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    max_skipped: int


class Run(NamedTuple):
    """What the loop drives.

    Attributes:
      state: at the step to continue from.
      train_step: compiled (state, frozen, batch) -> (state, metrics); donates the state.
      frozen: teacher parameters, or {}.
      batches: iterator with get_state; yields local NumPy batches.
      to_global: local batch -> global arrays.
      evaluate: ema_params -> (values, texts).
      eval_every: steps; 0 = at the end only.
      meta: saved with every checkpoint.
    """

    state: TrainState
    train_step: Callable
    frozen: Any
    batches: Any
    to_global: Callable
    evaluate: Callable[[Params], tuple[dict[str, float], list[str]]]
    eval_every: int
    meta: dict[str, Any]


class _StopSignal:
    """Turns SIGTERM and SIGINT into a flag; a second one interrupts at once."""

    def __init__(self):
        self.name = ""
        self._old = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number, frame):
        del frame
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def restore(self):
        for number, handler in self._old.items():
            signal.signal(number, handler)


def train(run: Run, cfg: TrainConfig, workdir: str | epath.Path, checkpoints: Checkpoints) -> int:
    """Trains to cfg.steps.

    Returns:
      0 when finished, STOPPED_EXIT when a signal stopped it after saving.

    Raises:
      UserError: cfg.max_skipped steps in a row had a non-finite loss or gradient.
    """
    state, first = run.state, int(run.state.step)
    main = jax.process_index() == 0
    log = MetricsLog(workdir, first) if main else None
    tokens = cfg.batch * run.meta["length"]
    speed, stop, pending = Speed(first, cfg.steps, tokens), _StopSignal(), None
    try:
        for step in range(first + 1, cfg.steps + 1):
            batch = run.to_global(next(run.batches))
            state, metrics = run.train_step(state, run.frozen, batch)
            if pending is not None:  # fetched only now, with the next step already under way
                _report(log, *pending, cfg, speed, run.batches.stall_seconds)
            pending = (step, metrics) if step % cfg.log_every == 0 or step == first + 1 else None
            last = step == cfg.steps or bool(stop.name)
            look = step == cfg.steps or (run.eval_every and step % run.eval_every == 0)
            if (last or look) and pending is not None:
                _report(log, *pending, cfg, speed, run.batches.stall_seconds)
                pending = None
            if look:
                _evaluate(log, step, run, state)
                speed.skip(step)
            if last or step % cfg.checkpoint_every == 0:
                checkpoints.save(state, run.meta | {"iterator": run.batches.get_state()})
            if stop.name and step < cfg.steps:
                _say(f"{stop.name}: saved step {step}; run the same command to continue.")
                return STOPPED_EXIT
    finally:
        stop.restore()
        checkpoints.close()
        if log:
            log.close()
    return 0


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


def _report(log, step: int, metrics, cfg: TrainConfig, speed: Speed, stall: float) -> None:
    values = {f"train/{k}": float(v) for k, v in jax.device_get(metrics).items()}
    seconds, rate, left = speed.lap(step)
    shown = "  ".join(f"{k[6:]} {v:.4g}" for k, v in values.items() if k.endswith("_token"))
    _say(
        f"step {step}/{cfg.steps}  {shown}  {seconds * 1e3:.0f} ms/step  "
        f"{rate:,.0f} tokens/s  left {duration(left)}"
    )
    values |= {"train/seconds_per_step": seconds, "train/tokens_per_second": rate}
    values["train/data_stall_seconds"] = stall
    if log:
        log.write(step, values)
    skipped = int(values["train/skipped_in_a_row"])
    if skipped >= cfg.max_skipped:
        raise UserError(
            f"{skipped} steps in a row had a non-finite loss or gradient (at step {step}); "
            "parameters are as before them: lower optim.lr or look at the data."
        )


def _evaluate(log, step: int, run: Run, state: TrainState) -> None:
    values, texts = run.evaluate(state.ema_params)
    values = {f"eval/{k}": v for k, v in values.items()}
    shown = "  ".join(f"{k[5:]} {v:.4g}" for k, v in values.items() if "_at_tau_" not in k)
    _say(f"eval at step {step}: {shown}")
    for text in texts[:2]:
        _say(f"  | {text[:160]!r}")
    if log:
        log.write(step, {k: float(np.asarray(v)) for k, v in values.items()}, texts)
