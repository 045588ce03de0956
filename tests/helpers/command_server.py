"""Runs many commands of the library in a fraction of their starting time.

One process imports what the commands import, and forks for each: the command itself is imported and
run as `python -m` does it, with flags, streams and exit status of its own.

python tests/helpers/command_server.py < commands.json > outcomes.json
"""

import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_LIMIT, _AT_ONCE = 100.0, 2
_OWN_FLAGS = ("cli.", "tpu")  # modules that define flags, which each command imports anew


class Outcome(NamedTuple):
    """How a command ended: exit status (-1: it was ended), and what it wrote."""

    status: int
    out: str
    err: str


def run_commands(commands: list[dict], folder: Path) -> list[Outcome]:
    """Outcomes of commands {"words": [module, flags...], "env": {...}} in a working folder."""
    from helpers.compiling import FAST  # not where this file is a program

    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(commands),
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return [Outcome(*one) for one in json.loads(done.stdout)]


def _import_library() -> None:
    import flm_jax

    for found in pkgutil.walk_packages(flm_jax.__path__, "flm_jax."):
        name = found.name.removeprefix("flm_jax.")
        # The root lists the commands.
        if ("." in name or found.ispkg) and not name.startswith(_OWN_FLAGS):
            import_module(found.name)


def _child(command: dict, out: str, err: str) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(command.get("env", {}))
    module, *flags = command["words"]
    sys.argv = [f"{module}.py", *flags]
    status = 0
    try:
        runpy.run_module(f"flm_jax.{module}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # as the interpreter does
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _serve(commands: list[dict]) -> list[Outcome]:
    running: dict[int, tuple[int, float]] = {}
    found: list[Outcome | None] = [None] * len(commands)
    with tempfile.TemporaryDirectory() as folder:
        paths = lambda place: (f"{folder}/{place}.out", f"{folder}/{place}.err")

        def end() -> None:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                time.sleep(0.005)
                for one, (_, began) in running.items():
                    if time.monotonic() - began > _LIMIT:
                        os.kill(one, signal.SIGKILL)
                return
            place, _ = running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            texts = (Path(path).read_text(errors="replace") for path in paths(place))
            found[place] = Outcome(code, *texts)

        for place, command in enumerate(commands):
            while len(running) >= _AT_ONCE:
                end()
            pid = os.fork()
            if pid == 0:
                _child(command, *paths(place))
            running[pid] = (place, time.monotonic())
        while running:
            end()
    return found


if __name__ == "__main__":
    _import_library()
    print(json.dumps(_serve(json.load(sys.stdin))))
