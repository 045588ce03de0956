"""Sandboxes of tests: whichever isolation works, as root and as another user."""

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import flm_jax
from flm_jax.core.errors import UserError
from flm_jax.evaluation.benchmarks.sandbox import ISOLATIONS, Limits, open_sandbox, run_program

# As root a guarded program has a user id of its own, which must be able to read the interpreter.
PYTHONS = {"namespaces": (sys.executable,), "guard": (sys.executable, "/usr/bin/python3")}
SECONDS = 1.0
LIMITS = Limits(seconds=SECONDS, memory_bytes=256 << 20, file_bytes=1 << 20, output_bytes=10_000)


def opened(limits, *isolations):
    """The first sandbox that works here, of the isolations given or all; skips without one."""
    reason = ""
    for isolation in isolations or ISOLATIONS:
        for python in PYTHONS[isolation]:
            try:
                return open_sandbox(limits, isolation, python)
            except UserError as error:
                reason = str(error)
    return pytest.skip(reason)


def ends(sandbox, program, *statuses):
    """Runs a program; one that is to end by itself has more time, on a busy machine."""
    seconds = SECONDS if "timeout" in statuses else 10 * SECONDS
    limits = dataclasses.replace(LIMITS, seconds=seconds)
    began = time.monotonic()
    outcome = run_program(sandbox._replace(limits=limits), program)
    assert time.monotonic() - began < seconds + 6.0
    assert outcome.status in statuses, outcome
    return outcome


# Runs a program as another process would, some times at once: prints status, detail and output.
_RUN = """
import sys
from flm_jax.evaluation.benchmarks.sandbox import Limits, Program, Sandbox, run_programs
code, tests, times = sys.argv[3:]
sandbox = Sandbox(Limits(seconds=10.0), *sys.argv[1:3])
programs = [Program(code, tests, "", ("f",))] * int(times)
for outcome in run_programs(sandbox, programs, len(programs)): print(*outcome[:3], sep="|")
"""
NOBODY = 65534


def elsewhere(folder, isolation, code, tests="", before=(), times=1, **options):
    """What `run_program` says in a process of its own, of a copy of its files that all may read.

    Args:
      folder: for the copy.
      before: words of a command before it.
      times: how often, all at once.
      options: of `subprocess.run`: a user, for example.
    """
    home = Path(flm_jax.__file__).parent
    names = ["__init__.py", *(f"{part}/__init__.py" for part in ("core", "evaluation"))]
    names += ["core/errors.py", "evaluation/benchmarks/__init__.py"]
    names += [f"evaluation/benchmarks/{path.name}" for path in home.rglob("sandbox*.py")]
    for name in names:
        target = folder / "flm_jax" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(home / name, target)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    python = PYTHONS["guard"][-1]
    if not os.path.exists(python):
        pytest.skip(f"no {python}")
    line = [*before, python, "-c", _RUN, isolation, python, code, tests, str(times)]
    variables = {"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        line, env=variables, cwd="/", capture_output=True, text=True, timeout=60, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")
