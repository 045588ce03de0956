"""The learnt times of a flow: recorded during training, plotted later.

A workdir's schedule.jsonl holds a record for each evaluation; see `flows.gamma_law`.
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
from flm_jax.flows.gamma_law import learnt_quantile, mixture_quantile, mixture_weights
from flm_jax.flows.gamma_state import GammaConfig, GammaState, bin_centers
from flm_jax.flows.gamma_statistics import curve

FILE = "schedule.jsonl"

Record = dict[str, Any]


def schedule_record(step: int, state: GammaState, cfg: GammaConfig) -> Record:
    """Record of the learnt times at a step.

    Returns:
      A dict of step; gamma, nats and rows: centres of the bins that a fit would use, their mean
      cross entropy, and their number of rows after decay; u, quantiles and mixture: gamma at
      quantile levels u of the learnt distribution and of the training mixture; weights: weights of
      the uniform, the normal and the learnt component; r2 of the last fit; examples: number of rows
      seen in total; ready: whether there is a learnt distribution (before, another component has
      its weight).
    """
    state = jax.tree.map(jnp.asarray, jax.device_get(state))
    number, nats = (np.asarray(x) for x in curve(state, cfg))
    seen, u = number > 0.0, np.linspace(0.01, 0.99, 99)
    listed = lambda x: np.asarray(x).tolist()
    return {
        "step": step,
        "gamma": listed(bin_centers(cfg)[seen]),
        "nats": listed(nats[seen]),
        "rows": listed(number[seen]),
        "u": listed(u),
        "quantiles": listed(learnt_quantile(state, jnp.asarray(u), cfg)),
        "mixture": listed(mixture_quantile(jnp.asarray(u), cfg, state)),
        "weights": listed(mixture_weights(cfg, state)),
        "r2": float(state.r2),
        "examples": float(state.examples),
        "ready": bool(state.ready > 0.0),
    }


def schedule_recorder(
    workdir: str, config: dict[str, Any], start_step: int
) -> Callable[[int, TrainState], None]:
    """Returns note(step, state), which appends a record to the workdir's file on process 0.

    Args:
      start_step: first step of this run; see `StepLines`.
    """
    cfg = learnt_law(config)
    lines = StepLines(epath.Path(workdir) / FILE, start_step) if jax.process_index() == 0 else None

    def note(step: int, state: TrainState) -> None:
        if lines:
            lines.append(schedule_record(step, state.tracked, cfg))

    return note


def read_schedule(workdir: str | epath.Path) -> list[Record]:
    """Reads records by step, the last one of repeated steps; [] without a file."""
    rows = map(nulls_as_nan, read_json_lines(epath.Path(workdir) / FILE))
    found = {row["step"]: row for row in rows}
    return [found[step] for step in sorted(found)]
