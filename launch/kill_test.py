"""Kills a training again and again, at random moments, and checks that nothing was lost.

python launch/kill_test.py [--kills=100] [--seed=0] [--workdir=FOLDER]

Trains a tiny model once undisturbed. Then trains it with SIGKILL at moments drawn from the seed
(some while it starts, some between steps, half of them while a checkpoint is written), restarting
with the same command until it is done, and over again until all kills were spent. Every restart
must continue from the newest complete checkpoint; every finished run must hold the same bits as
the undisturbed one: parameters, average, optimizer state, counters, data position. Exit status 1
at the first that does not.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT_EVERY = 20  # steps
_POLL = 0.002  # seconds
_FIRST_STEP = re.compile(r"^step \d+/", re.MULTILINE)


class Moment(NamedTuple):
    """When to kill: `seconds` after the start, the first step, or the begin of save `number`."""

    after: str
    seconds: float
    number: int = 1


class Life(NamedTuple):
    """One process.

    Attributes:
      output: all it printed.
      status: exit status; -9 when killed.
      saving: whether the kill fell while a checkpoint was written.
      start: seconds to its first step.
    """

    output: str
    status: int
    saving: bool
    start: float


class LostError(Exception):
    """Something was lost."""


def command(workdir: Path, steps: int) -> list[str]:
    """The training under test; small, so that the 100 starts are most of the time."""
    values = {
        "data.task_size": 512,
        "model.dim": 16,
        "model.depth": 1,
        "model.heads": 2,
        "model.dropout": 0.1,
        "train.batch": 16,
        "train.steps": steps,
        "train.log_every": 1,
        "train.checkpoint_every": CHECKPOINT_EVERY,
        "eval.every": 0,
        "eval.sample_steps": 2,
    }
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    config = f"--config={ROOT / 'configs/phrases/flm.py'}"
    return [sys.executable, "-u", "-m", "flm_jax.train", config, f"--workdir={workdir}", *flags]


def newest(workdir: Path) -> int | None:
    """The newest complete checkpoint."""
    return max(ocp.utils.checkpoint_steps(epath.Path(workdir / "checkpoints")), default=None)


def saves_under_way(workdir: Path) -> set[str]:
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return {name for name in names if ocp.utils.TMP_DIR_SUFFIX in name}


def live(workdir: Path, steps: int, cache: Path, moment: Moment | None) -> Life:
    """Runs the training until it ends or the moment comes."""
    env = os.environ | {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    log = workdir.parent / f"{workdir.name}.log"
    with log.open("wb") as file:
        began = time.monotonic()
        process = subprocess.Popen(
            command(workdir, steps), cwd=ROOT, env=env, stdout=file, stderr=file
        )
        try:
            if moment is not None and moment.after == "start":
                comes, start = not _ended(process, moment.seconds), 0.0
            else:
                comes = _steps_begin(process, log)
                start = time.monotonic() - began
                comes = comes and moment is not None and _comes(moment, process, workdir)
            if comes:
                process.send_signal(signal.SIGKILL)
            status = process.wait()
        finally:
            process.kill()  # where this script itself is interrupted
    output = log.read_text(errors="replace")
    # Before its first step a process has not cleaned up what the one before it left.
    saving = status == -signal.SIGKILL and bool(_FIRST_STEP.search(output))
    return Life(output, status, saving and bool(saves_under_way(workdir)), start)


def _steps_begin(process: subprocess.Popen, log: Path) -> bool:
    """Waits for the first step; False if the process ended before."""
    while not _FIRST_STEP.search(log.read_text(errors="replace")):
        if _ended(process, 0.01):
            return False
    return True


def _comes(moment: Moment, process: subprocess.Popen, workdir: Path) -> bool:
    """Waits for the moment, once steps were taken; False if the process ended before."""
    seen: set[str] = set()  # saves, each under a name of its own
    while moment.after == "save" and len(seen) < moment.number:
        seen |= saves_under_way(workdir)
        if _ended(process, _POLL):
            return False
    return not _ended(process, moment.seconds)


def _ended(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def draw(rng: random.Random, start: float, whole: float) -> Moment:
    """A moment; `start` and `whole` are seconds of an undisturbed process, to step 1 and in all."""
    kind = rng.random()
    if kind < 0.15:
        return Moment("start", rng.uniform(0, start))
    if kind < 0.5:
        return Moment("step", rng.uniform(0, (whole - start) / 2))
    return Moment("save", rng.uniform(0, 0.05), rng.randint(1, 6))


def check_life(life: Life, before: int | None) -> None:
    """Raises LostError unless the process went on from `before`, the newest checkpoint."""
    if life.status not in (0, -signal.SIGKILL):
        raise LostError(f"a restart ended with status {life.status}:\n{life.output}")
    continued = re.search(r"continuing .* from step (\d+)", life.output)
    if continued and int(continued[1]) != before and "DAMAGED" not in life.output:
        raise LostError(f"continued from step {continued[1]}, not {before}:\n{life.output}")
    if _FIRST_STEP.search(life.output) and bool(continued) != (before is not None):
        raise LostError(f"began anew, though step {before} was saved:\n{life.output}")


def final_state(workdir: Path, steps: int) -> dict:
    """All that the last checkpoint holds, by name."""
    path = epath.Path(workdir / "checkpoints" / str(steps))
    items = ("ema", "train")
    found = {name: ocp.StandardCheckpointHandler().restore(path / name) for name in items}
    flat = ocp.tree.to_flat_dict(found, sep="/")
    arrays = {name: np.asarray(value) for name, value in flat.items() if value is not None}
    meta = ocp.JsonCheckpointHandler().restore(path / "meta")
    return {**arrays, "meta": np.array(json.dumps(meta, sort_keys=True))}


def check_equal(got: dict, expected: dict) -> None:
    """Raises LostError unless all bits are equal."""
    names = sorted(got.keys() | expected.keys())
    wrong = [
        name
        for name in names
        if name not in got
        or name not in expected
        or got[name].dtype != expected[name].dtype
        or got[name].tobytes() != expected[name].tobytes()
    ]
    if wrong:
        raise LostError(
            f"{len(wrong)} of {len(names)} differ from the undisturbed run: {wrong[:5]}"
        )


def kill_test(
    folder: Path, cache: Path, *, kills: int, seed: int, steps: int, say=print
) -> dict[str, float]:
    """Runs it all in `folder`, with compiled programs in `cache`; its figures.

    Raises:
      LostError: something was lost.
    """
    rng, began = random.Random(seed), time.monotonic()
    for name in ("first", "whole"):  # the second finds everything compiled, as the restarts will
        started = time.monotonic()
        life = live(folder / name, steps, cache, None)
        whole = time.monotonic() - started
        if life.status:
            raise LostError(f"the undisturbed run ended with status {life.status}:\n{life.output}")
    start, expected = life.start, final_state(folder / "whole", steps)
    check_equal(final_state(folder / "first", steps), expected)
    say(f"undisturbed: {whole:.1f} s, {start:.1f} s to step 1; {len(expected)} arrays")
    figures = {"kills": 0, "runs": 0, "in_saves": 0, "set_aside": 0}
    while figures["kills"] < kills:
        workdir, done = folder / f"run_{figures['runs']}", False
        while not done:
            moment = draw(rng, start, whole) if figures["kills"] < kills else None
            before = newest(workdir)
            life = live(workdir, steps, cache, moment)
            check_life(life, before)
            figures["set_aside"] += life.output.count("is DAMAGED")
            figures["in_saves"] += life.saving
            done = life.status == 0
            figures["kills"] += not done
            if not done:
                say(
                    f"{time.monotonic() - began:6.0f} s  run {figures['runs']}  "
                    f"kill {figures['kills']}/{kills} after {moment.after}"
                    f"{' during a save' if life.saving else ''}, "
                    f"newest checkpoint {newest(workdir)}"
                )
        check_equal(final_state(workdir, steps), expected)
        say(f"run {figures['runs']} finished, bit-equal to the undisturbed one")
        figures["runs"] += 1
    return figures | {"seconds": round(time.monotonic() - began)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of a run")
    parser.add_argument("--workdir", default="", help="folder to keep; default a temporary one")
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.workdir or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = kill_test(
                folder,
                folder / "cache",
                kills=args.kills,
                seed=args.seed,
                steps=args.steps,
                say=lambda line: print(line, flush=True),
            )
        except LostError as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
    print(
        f"PASSED: {found['kills']} kills ({found['in_saves']} during a save), "
        f"as many restarts, {found['runs']} runs bit-equal to the undisturbed one, "
        f"{found['set_aside']} damaged checkpoints set aside, {found['seconds']} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
