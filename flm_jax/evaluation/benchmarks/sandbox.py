"""Runs programs that a model wrote, each in a process of its own that can harm nothing.

Limits on time, memory, processes, files and output, an empty working folder that is removed
afterwards, an environment without variables of this one. Of two isolations the stronger that the
machine permits is taken:

- "namespaces" (Linux; root, or where users may make namespaces): no network but an own loopback, no
  other process in sight, a root folder in memory that shows the interpreter and the system's
  libraries, read-only; everything that the program started ends with it.
- "guard": audit hooks of the interpreter (PEP 578) refuse sockets, new processes and files outside
  the working folder; as root the program runs under a user id of its own. It stops what a model
  writes by mistake, not one who studies how to get around it.

A program passes when it runs to its last line: leaving early, however, is no pass. Only one that
searches the interpreter's own memory for the word that says so could claim it.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flm_jax.core.errors import UserError, one_of, require

ISOLATIONS = {
    "namespaces": "namespaces: no network, no files but the interpreter's, no other processes",
    "guard": "audit hooks: sockets, new processes and files outside are refused by the interpreter",
}
_RUNNER = Path(__file__).with_name("sandbox_runner.py")
_START_SECONDS = 20.0  # for an interpreter to start on a busy machine
_RESULT_BYTES = 1 << 14
# Modules that the runner has not loaded, of which some interpreters have the first one built in:
# the second must be read from the library, which a user id of its own may not be allowed to.
_TRIAL = "import math, random"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
      seconds: wall time; processor time as well, and two more.
      memory_bytes: address space of each process.
      processes: threads and processes at a time. In all it may so use `processes` times the memory.
      file_bytes: size of a file; four times that in all.
      output_bytes: of standard output and error together; more ends the program.
    """

    seconds: float = 3.0
    memory_bytes: int = 1 << 30
    processes: int = 4
    file_bytes: int = 16 << 20
    output_bytes: int = 1 << 20

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(value > 0, f"got {field.name}={value}; expected more than 0.")


class Outcome(NamedTuple):
    """How a program ended.

    Attributes:
      status: "passed"; "failed" (an exception, or an end before the last line); "timeout";
        "output" (too much of it); "error" (it could not be started).
      detail: one line, of an exception for example.
      output: what it printed.
      seconds: wall time, with the interpreter's start.
    """

    status: str
    detail: str
    output: str
    seconds: float


class Sandbox(NamedTuple):
    """Where programs run; made by `open_sandbox`."""

    limits: Limits
    isolation: str
    python: str


def open_sandbox(
    limits: Limits | None = None, isolation: str = "auto", python: str = sys.executable
) -> Sandbox:
    """A sandbox that was tried with a small program.

    Args:
      limits: of each program.
      isolation: one of `ISOLATIONS`; "auto" for the first that works.
      python: interpreter of the programs.

    Raises:
      UserError: no isolation works here.
    """
    one_of("isolation", isolation, ("auto", *ISOLATIONS))
    limits, reasons = limits or Limits(), []
    for kind in ISOLATIONS if isolation == "auto" else [isolation]:
        tried = run_program(
            Sandbox(dataclasses.replace(limits, seconds=20.0), kind, python), _TRIAL
        )
        if tried.status == "passed":
            return Sandbox(limits, kind, python)
        reasons.append(f"{kind}: {tried.detail or tried.status}")
    raise UserError(
        f"no sandbox for programs works here ({'; '.join(reasons)}); expected Linux, with an "
        "interpreter that other users may read, or as a user who may make namespaces."
    )


def run_program(sandbox: Sandbox, program: str) -> Outcome:
    """Runs one program; returns within its seconds and those of the interpreter's start."""
    began = time.monotonic()
    secret = secrets.token_hex(16)
    # Removal must not fail the run: the program may have made what cannot be removed.
    with tempfile.TemporaryDirectory(prefix="flm_jax_", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        result, write = os.pipe()
        line = [sandbox.python, "-I", "-B", str(_RUNNER)]
        try:
            process = subprocess.Popen(
                line,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                env={},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            os.close(result)
            return Outcome("error", f"{line[0]}: {error}", "", 0.0)
        finally:
            os.close(write)
        task = dataclasses.asdict(sandbox.limits) | {
            "isolation": sandbox.isolation,
            "folder": folder,
            "program": program,
            "secret": secret,
            "result": write,
        }
        try:
            output, said = _watch(process, result, task)
        finally:
            _end(process)
            os.close(result)
    return _outcome(output, said, secret, sandbox.limits, time.monotonic() - began)


def run_programs(sandbox: Sandbox, programs: Sequence[str], workers: int = 0) -> Iterator[Outcome]:
    """Outcomes in the order of the programs, several at a time; workers 0 for one a core."""
    count = workers or os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        yield from pool.map(lambda program: run_program(sandbox, program), programs)


def _watch(process: subprocess.Popen, result: int, task: dict) -> tuple[bytes, bytes]:
    """What the program printed and what was said of it, until it ends or has had its time."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(task).encode())
        process.stdin.close()
    most = {process.stdout.fileno(): task["output_bytes"], result: _RESULT_BYTES}
    found = {number: b"" for number in most}
    ended = os.pidfd_open(process.pid)
    deadline = time.monotonic() + task["seconds"] + _START_SECONDS
    try:
        with selectors.DefaultSelector() as ready:
            for number in (*most, ended):
                ready.register(number, selectors.EVENT_READ)
            for number in most:
                os.set_blocking(number, False)
            while (left := deadline - time.monotonic()) > 0:
                events = [key.fd for key, _ in ready.select(left)]
                for number in events:
                    if number != ended and not _read(number, found, most):
                        ready.unregister(number)
                if ended in events or any(len(found[n]) > most[n] for n in most):
                    break
            for number in most:
                while len(found[number]) <= most[number] and _read(number, found, most):
                    pass
    finally:
        os.close(ended)
    return found[process.stdout.fileno()], found[result]


def _read(number: int, found: dict[int, bytes], most: dict[int, int]) -> bool:
    """Reads a part; False at the end, or where nothing more is there now."""
    try:
        part = os.read(number, min(1 << 16, most[number] + 1 - len(found[number])))
    except BlockingIOError:
        return False
    found[number] += part
    return bool(part)


def _end(process: subprocess.Popen) -> None:
    """Ends the runner: asked first, so that it can end what it started; then all its session."""
    with contextlib.suppress(BrokenPipeError):
        process.stdout.close()
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2.0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(output: bytes, said: bytes, secret: str, limits: Limits, seconds: float) -> Outcome:
    text = output[: limits.output_bytes].decode("utf8", "replace")
    lines = said.decode("utf8", "replace").splitlines()
    words = [line[len(secret) + 1 :] for line in lines if line.startswith(secret + " ")]
    said_of = {word.partition(" ")[0]: word.partition(" ")[2] for word in reversed(words)}
    if len(output) > limits.output_bytes or len(said) > _RESULT_BYTES:
        return Outcome("output", f"more than {limits.output_bytes} bytes printed", text, seconds)
    if "setup" in said_of:
        return Outcome("error", said_of["setup"], text, seconds)
    if "timeout" in said_of:
        return Outcome("timeout", f"no end within {limits.seconds:g} s", text, seconds)
    if "passed" in said_of:
        return Outcome("passed", "", text, seconds)
    if "failed" in said_of:
        return Outcome("failed", said_of["failed"], text, seconds)
    if "ended" in said_of:
        return Outcome("failed", f"ended early with status {said_of['ended']}", text, seconds)
    return Outcome("error", f"the runner said nothing; it printed {text[-300:]!r}", text, seconds)
