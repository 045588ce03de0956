"""The learnt law of the times of a flow: recorded while it is trained, drawn later.

A workdir's schedule.jsonl holds a record for each evaluation; see `flows.noise_schedule`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from flm_jax.build.flow import learnt_law
from flm_jax.checkpoints.state import TrainState
from flm_jax.core.files import StepLines, nulls_as_nan, read_json_lines
from flm_jax.flows.noise_schedule import GammaConfig, GammaState, bin_centers, learnt_quantile

FILE = "schedule.jsonl"

Record = dict[str, Any]


def schedule_record(step: int, state: GammaState, cfg: GammaConfig) -> Record:
    """What was learnt by a step.

    Returns:
      step; gamma and nats: centers of the bins that were seen and the mean cross entropy there;
      u and quantiles: of the learnt law, the fit's or the empirical curve's, at shares u; r2: of
      the last fit; ready: whether one was accepted (until then the uniform takes its share).
    """
    state = jax.device_get(state)
    seen = state.count > 0.0
    u = np.linspace(0.01, 0.99, 99)
    quantiles = learnt_quantile(jax.tree.map(jnp.asarray, state), jnp.asarray(u), cfg)
    return {
        "step": step,
        "gamma": np.asarray(bin_centers(cfg))[seen].tolist(),
        "nats": (state.total[seen] / state.count[seen]).tolist(),
        "u": u.tolist(),
        "quantiles": np.asarray(quantiles).tolist(),
        "r2": float(state.r2),
        "ready": bool(state.ready > 0.0),
    }


def schedule_recorder(
    workdir: str, config: dict[str, Any], start_step: int
) -> Callable[[int, TrainState], None]:
    """note(step, state), which adds a record to the workdir's file; process 0 alone writes.

    Args:
      start_step: of this run; see `StepLines`.
    """
    cfg = learnt_law(config)
    lines = StepLines(epath.Path(workdir) / FILE, start_step) if jax.process_index() == 0 else None

    def note(step: int, state: TrainState) -> None:
        if lines:
            lines.append(schedule_record(step, state.tracked, cfg))

    return note


def read_schedule(workdir: str | epath.Path) -> list[Record]:
    """Records by step; of a step that stands twice, the last. [] without a file."""
    rows = map(nulls_as_nan, read_json_lines(epath.Path(workdir) / FILE))
    found = {row["step"]: row for row in rows}
    return [found[step] for step in sorted(found)]
