"""The training loop around a step of microseconds, and damages to its checkpoints."""

import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flm_jax.checkpoints.state import new_state
from flm_jax.checkpoints.workdir import Checkpoints
from flm_jax.config.training import TrainConfig
from flm_jax.training.loop import Loop, Run
from flm_jax.training.step import make_train_step


class Batches:
    """Counts up; NaN from step `bad` on; sleeps before step `slow`."""

    def __init__(self, bad=None, slow=None, seconds=0.0):
        self._bad, self._slow, self._seconds = bad, slow, seconds
        self.taken, self.stall_seconds = 0, 0.0

    def __next__(self):
        self.taken += 1
        if self.taken == self._slow:
            time.sleep(self._seconds)
        value = np.nan if self._bad and self.taken >= self._bad else self.taken
        rows = np.full((8, 2), value, np.float32)
        return {"tokens": rows, "mask": np.ones((8, 2), bool)}

    def get_state(self):
        return {"batches": self.taken}


def small_objective(params, frozen, batch, key, rows):
    del frozen, key, rows
    loss = jnp.sum(params["w"] ** 2) * jnp.mean(batch["tokens"])
    return loss, {"nll_nats_per_token": loss}


SMALL_OPTIMIZER = optax.adam(1e-3)
SMALL_STEP = jax.jit(
    make_train_step(small_objective, SMALL_OPTIMIZER, seed=0, microbatches=1, ema_decay=0.9),
    donate_argnums=0,
)


def small_state(size=10, step=0):
    state = new_state({"w": jnp.linspace(0.1, 1.0, size)}, SMALL_OPTIMIZER)
    return state._replace(step=jnp.int32(step))


def small_run(
    workdir,
    batches,
    size=10,
    to_global=lambda batch: batch,
    evaluate=lambda params, tracked: ({}, []),
    eval_every=0,
    rate=None,
    **changed,
):
    """The real loop around a step of microseconds, from the newest checkpoint if there is one."""
    cfg = {
        "steps": 12,
        "batch": 8,
        "microbatches": 1,
        "log_every": 1000,
        "checkpoint_every": 4,
        "keep_checkpoints": 2,
        "max_skipped": 3,
        "watchdog_seconds": 0.0,
    }
    Path(workdir).mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, 2)
    found = checkpoints.restore(small_state(size))
    if found:
        batches.taken = found[1]["iterator"]["batches"]
    run = Run(
        state=found[0] if found else small_state(size),
        train_step=SMALL_STEP,
        frozen={},
        batches=batches,
        to_global=to_global,
        evaluate=evaluate,
        eval_every=eval_every,
        meta={"length": 2},
        spent=found[1].get("seconds", 0.0) if found else 0.0,
        rate=rate,
    )
    cfg = TrainConfig(**cfg | changed)
    with Loop(run, cfg, workdir, checkpoints) as loop:
        loop.train()


def restored(workdir, size=10):
    checkpoints = Checkpoints(workdir, 2)
    found = checkpoints.restore(small_state(size))
    checkpoints.close()
    return found and found[0]


def saved(workdir, *steps):
    checkpoints = Checkpoints(workdir, 2)
    for step in steps:
        checkpoints.save(small_state(step=step), {"step": step})
    checkpoints.close()
    return workdir / "checkpoints"


def _halve(*patterns):
    def damage(folder):
        files = [f for p in patterns for f in folder.glob(p) if f.stat().st_size > 60]
        assert files
        for file in files:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return damage


def _remove(*patterns):
    def damage(folder):
        for file in [file for pattern in patterns for file in folder.glob(pattern)]:
            shutil.rmtree(file) if file.is_dir() else file.unlink()

    return damage


DAMAGES = {
    "arrays cut short": _halve("train/ocdbt.process_0/d/*", "train/d/*"),
    "average cut short": _halve("ema/ocdbt.process_0/d/*", "ema/d/*"),
    "index cut short": _halve("train/_METADATA"),
    "arrays lost": _remove("train/ocdbt.process_0/d/*", "train/d/*"),
    "manifest lost": _remove("ema/manifest.ocdbt"),
    "item lost": _remove("train"),
    "record lost": _remove("meta"),
    "record cut short": lambda folder: (folder / "meta/metadata").write_text('{"st'),
    "all lost": _remove("*"),
}
