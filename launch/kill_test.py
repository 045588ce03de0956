"""Kills a command again and again, at random moments, and checks that nothing was lost.

python launch/kill_test.py [--what=training] [--kills=100] [--seed=0] [--workdir=FOLDER]

--what is training, policy, samples (answers to a file of prompts) or benchmark (programs in the
sandbox). The command is run once undisturbed. Then it meets SIGKILL at moments drawn from the seed
(some while it starts, some during its work, half of them while it writes), and is restarted as it
was until it is done, and over again until all kills were spent. Every restart must go on with what
was complete: the newest checkpoint, every record. Every finished run must leave the same bits as
the undisturbed one: parameters, average, optimizer state, counters, data position; each record
once. Exit status 1 at the first that does not.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from absl import logging
from kill_cases import CASES, ROOT, Case, LostError, make_case

_POLL = 0.002  # seconds
# Optimizer steps or records of a run, enough for kills to fall among them.
_SIZES = {"training": 400, "policy": 60, "samples": 400, "benchmark": 160}


class Moment(NamedTuple):
    """When to kill: `seconds` after the start, the begin of the work, or that of write `number`."""

    after: str
    seconds: float
    number: int = 1


class Life(NamedTuple):
    """One process.

    Attributes:
      output: all it printed.
      status: exit status; -9 when killed.
      writing: whether the kill fell in a write, or in the first moments of one.
      start: seconds to the begin of its work.
    """

    output: str
    status: int
    writing: bool
    start: float


def environment(cache: Path) -> dict[str, str]:
    """Of the processes, with compiled programs in `cache`."""
    return os.environ | {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def live(case: Case, workdir: Path, env: dict[str, str], moment: Moment | None) -> Life:
    """Runs the command until it ends or the moment comes."""
    log = workdir.parent / f"{workdir.name}.log"
    before, begun = case.kept(workdir), False
    with log.open("wb") as file:
        began = time.monotonic()
        process = subprocess.Popen(
            case.command(workdir), cwd=ROOT, env=env, stdout=file, stderr=file
        )
        try:
            if moment is not None and moment.after == "start":
                comes, start = not _ended(process, moment.seconds), 0.0
            else:
                comes = begun = _begins(process, case, before, workdir, log)
                start = time.monotonic() - began
                comes = comes and moment is not None and _comes(moment, process, case, workdir)
            if comes:
                process.send_signal(signal.SIGKILL)
            status = process.wait()
        finally:
            process.kill()  # where this script itself is interrupted
    # Before its work a process has not cleaned up what the one before it left.
    killed = status == -signal.SIGKILL and begun
    writing = killed and case.writing(workdir, moment.after == "write")
    return Life(log.read_text(errors="replace"), status, writing, start)


def _begins(
    process: subprocess.Popen, case: Case, before: object, workdir: Path, log: Path
) -> bool:
    """Waits for the begin of the work; False if the process ended before."""
    while not case.begun(before, workdir, log.read_text(errors="replace")):
        if _ended(process, 0.01):
            return False
    return True


def _comes(moment: Moment, process: subprocess.Popen, case: Case, workdir: Path) -> bool:
    """Waits for the moment, once the work has begun; False if the process ended before."""
    seen: set = set()  # writes, each under a name of its own
    while moment.after == "write" and len(seen) < moment.number:
        seen |= case.writes(workdir)
        if _ended(process, _POLL):
            return False
    return not _ended(process, moment.seconds)


def _ended(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def draw(rng: random.Random, case: Case, start: float, whole: float) -> Moment:
    """A moment; `start` and `whole` are seconds of an undisturbed process, to its work and all."""
    kind = rng.random()
    if kind < 0.15:
        return Moment("start", rng.uniform(0, start))
    if kind < 0.5:
        return Moment("work", rng.uniform(0, (whole - start) / 2))
    return Moment("write", rng.uniform(0, case.within), rng.randint(1, case.first))


def check_life(case: Case, life: Life, before: object, workdir: Path) -> None:
    """Raises LostError if the process failed, or lost what was there `before`."""
    if life.status not in (0, -signal.SIGKILL):
        raise LostError(f"a restart ended with status {life.status}:\n{life.output}")
    case.check(life.output, before, workdir)


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


def undisturbed(case: Case, folder: Path, env: dict[str, str]) -> tuple[float, Life]:
    """Runs it twice, to equal ends: the second finds all compiled, as restarts do; its seconds."""
    for name in ("first", "whole"):
        started = time.monotonic()
        life = live(case, folder / name, env, None)
        seconds = time.monotonic() - started
        if life.status:
            raise LostError(f"the undisturbed run ended with status {life.status}:\n{life.output}")
    check_equal(case.final(folder / "first"), case.final(folder / "whole"))
    return seconds, life


def kill_test(
    folder: Path, cache: Path, *, kills: int, seed: int, steps: int, what="training", say=print
) -> dict[str, float]:
    """Runs it all in `folder`, with compiled programs in `cache`; its figures.

    Raises:
      LostError: something was lost.
    """
    rng, began, env = random.Random(seed), time.monotonic(), environment(cache)
    case = make_case(what, folder, env, steps)
    whole, life = undisturbed(case, folder, env)
    expected = case.final(folder / "whole")
    say(f"undisturbed: {whole:.1f} s, {life.start:.1f} s to its work; {len(expected)} {case.unit}")
    figures = {"kills": 0, "runs": 0, "in_writes": 0, "set_aside": 0}
    while figures["kills"] < kills:
        workdir, done = folder / f"run_{figures['runs']}", False
        while not done:
            left = figures["kills"] < kills
            moment = draw(rng, case, life.start, whole) if left else None
            before = case.kept(workdir)
            found = live(case, workdir, env, moment)
            check_life(case, found, before, workdir)
            figures["set_aside"] += found.output.count("is DAMAGED")
            figures["in_writes"] += found.writing
            done = found.status == 0
            figures["kills"] += not done
            if not done:
                say(
                    f"{time.monotonic() - began:6.0f} s  run {figures['runs']}  "
                    f"kill {figures['kills']}/{kills} after {moment.after}"
                    f"{' at a write' if found.writing else ''}, kept: {case.shown(workdir)}"
                )
        check_equal(case.final(workdir), expected)
        say(f"run {figures['runs']} finished, bit-equal to the undisturbed one")
        figures["runs"] += 1
    return figures | {"seconds": round(time.monotonic() - began)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=sorted(CASES), default="training", help="is killed")
    parser.add_argument("--kills", type=int, default=100, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps or records of a run")
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
                steps=args.steps or _SIZES[args.what],
                what=args.what,
                say=lambda line: print(line, flush=True),
            )
        except LostError as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
    print(
        f"PASSED: {found['kills']} kills of {args.what} ({found['in_writes']} at a write), "
        f"as many restarts, {found['runs']} runs bit-equal to the undisturbed one, "
        f"{found['set_aside']} damaged checkpoints set aside, {found['seconds']} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
