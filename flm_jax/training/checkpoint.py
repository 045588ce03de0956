"""Workdirs: config.json, tokenizer/, checkpoints/STEP/{ema, train, meta}, metrics.

`ema` (the averaged parameters) stands alone, so that sampling and distillation read nothing else;
an imported model has only that. `train` holds parameters, optimizer state and counters; `meta`
(JSON) the data iterator and the fingerprint of the data.
"""

import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from flm_jax.training.step import TrainState
from flm_jax.types import Params, UserError, require


def _manager(workdir: epath.Path, keep: int | None) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    return ocp.CheckpointManager(workdir / "checkpoints", options=options)


def _without_ema(state: TrainState) -> dict[str, Any]:
    return {k: v for k, v in state._asdict().items() if k != "ema_params"}


class Checkpoints:
    """Saves and restores the state of one run, asynchronously, keeping the newest few."""

    def __init__(self, workdir: str | epath.Path, keep: int | None = None):
        self._manager = _manager(epath.Path(workdir).resolve(), keep)

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts saving; a step that is saved already is left alone."""
        step = int(state.step)
        if step == self.latest:
            return
        items = ocp.args.Composite(
            ema=ocp.args.StandardSave(state.ema_params),
            train=ocp.args.StandardSave(_without_ema(state)),
            meta=ocp.args.JsonSave(meta),
        )
        self._manager.save(step, args=items)

    def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """State with the shapes and shardings of `like`, and the meta record.

        Raises:
          UserError: the checkpoint is damaged or of another shape.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        items = ocp.args.Composite(
            ema=ocp.args.StandardRestore(abstract.ema_params),
            train=ocp.args.StandardRestore(_without_ema(abstract)),
            meta=ocp.args.JsonRestore(),
        )
        found = _restored(self._manager, step, items)
        return TrainState(ema_params=found.ema, **found.train), found.meta

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def _restored(manager: ocp.CheckpointManager, step: int, items: ocp.args.Composite):
    try:
        return manager.restore(step, args=items)
    except (ValueError, KeyError, OSError, TypeError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"checkpoint {manager.directory / str(step)} cannot be read "
            f"({type(error).__name__}: {reason[0][:200] if reason else ''}); "
            "expected a complete checkpoint of this model: delete that folder to use an older one."
        ) from error


def load_ema(workdir: str | epath.Path, abstract: Params) -> tuple[Params, int]:
    """Averaged parameters of the newest checkpoint.

    Args:
      workdir: of `train` or `convert`.
      abstract: tree of ShapeDtypeStruct (with shardings, if any) to restore into.

    Returns:
      Parameters and the step they are from.
    """
    folder = epath.Path(workdir).resolve()
    require(
        (folder / "checkpoints").exists(),
        f"workdir {workdir} has no checkpoints; expected the --workdir of a training run.",
    )
    manager = _manager(folder, None)
    step = manager.latest_step()
    require(step is not None, f"workdir {workdir} has no complete checkpoint; train it first.")
    items = ocp.args.Composite(ema=ocp.args.StandardRestore(abstract))
    params = _restored(manager, step, items).ema
    manager.close()
    return params, step


def save_ema(workdir: str | epath.Path, params: Params, step: int, meta: dict[str, Any]) -> None:
    """A checkpoint of averaged parameters alone, as `convert` writes."""
    manager = _manager(epath.Path(workdir).resolve(), None)
    items = ocp.args.Composite(ema=ocp.args.StandardSave(params), meta=ocp.args.JsonSave(meta))
    manager.save(step, args=items)
    manager.wait_until_finished()
    manager.close()


def write_config(workdir: str | epath.Path, config: dict[str, Any]) -> None:
    """Writes the resolved configuration."""
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_config(workdir: str | epath.Path) -> dict[str, Any]:
    """The resolved configuration of a workdir."""
    path = epath.Path(workdir) / "config.json"
    require(
        path.exists(),
        f"{workdir} is no workdir (it has no config.json); expected that of a training run.",
    )
    return json.loads(path.read_text())
