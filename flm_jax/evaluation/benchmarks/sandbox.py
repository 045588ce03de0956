"""Runs programs that a model wrote, each in separate processes without access to anything else.

There are limits on time, memory, processes, files and output, an empty working folder that is
removed afterwards, an environment without this process's variables, and a filter of system calls.
One of two isolations is used, and never replaced by the other automatically:

- "namespaces" (Linux 5.12; root, or where users may make namespaces): no network, no other process
  in sight, a root folder in memory that shows the interpreter and the system's libraries,
  read-only; everything that the program started ends with it.
- "guard": no new processes; files by Landlock where the kernel has it (5.13); audit hooks of the
  interpreter (PEP 578). As root the program has its own user id. Without Landlock it stops
  accidental damage by a model, but not a deliberate attempt to get around it.

A program passes when it runs to its last line and its tests pass. The tests run in a process that
the program cannot reach (`sandbox_exchange`), and see its results as values. A program without
tests passes if it ran to its end. docs/reference/security.md states what each layer guarantees.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flm_jax.core.errors import UserError, one_of, require

ISOLATIONS = {
    "namespaces": "namespaces: no network, no files but the interpreter's, no other processes",
    "guard": "guard: Landlock or audit hooks refuse files outside, a filter processes and sockets",
}
# As a module, of which Python keeps the compiled form, and which the program's imports do not find.
_RUNNER = (
    "import sys; sys.path.insert(0, sys.argv[1]); import sandbox_runner; del sys.path[0]; "
    "sandbox_runner.main()"
)
_HOME = str(Path(__file__).resolve().parent)
_START_SECONDS = 20.0  # for an interpreter to start on a busy machine
_RESULT_BYTES = 1 << 14
# Modules that the runner has not loaded, of which some interpreters have the first one built in:
# the second must be read from the library, which a user id of its own may not be allowed to.
# Threads, since the limit of processes may count what is not the program's.
_TRIAL = """
import math, random, threading
threads = [threading.Thread(target=math.sqrt, args=(4,)) for _ in range(2)]
for thread in threads: thread.start()
"""


class Program(NamedTuple):
    """A program with its tests.

    Attributes:
      code: code of the program.
      tests: code that fails by an exception; it runs in a different process from the program.
      setup: code before the tests, which is trusted like the tests.
      names: names of the program that the tests use, even if the setup or Python define them too.
    """

    code: str
    tests: str = ""
    setup: str = ""
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Limits:
    """Resource limits of a program.

    Attributes:
      seconds: wall time in seconds; processor time as well, plus two seconds.
      memory_bytes: address space of each process.
      processes: number of threads and processes at a time. In total they may use `processes` times
        the memory.
      file_bytes: size of a file; all files together may have four times that.
      output_bytes: size of standard output and error together; more ends the program.
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
    """Result of running a program.

    Attributes:
      status: "passed"; "failed" (an exception, or an end before the last line); "timeout"; "output"
        (too much of it); "error" (it could not be started).
      detail: one line, for example of an exception.
      output: printed output.
      seconds: wall time in seconds, including the interpreter's start.
    """

    status: str
    detail: str
    output: str
    seconds: float


class Sandbox(NamedTuple):
    """Environment in which programs run, opened by `open_sandbox`."""

    limits: Limits
    isolation: str
    python: str


def open_sandbox(
    limits: Limits | None = None, isolation: str = "namespaces", python: str = sys.executable
) -> Sandbox:
    """Opens a sandbox after trying it with a small program.

    Args:
      limits: limits of each program.
      isolation: one of `ISOLATIONS`.
      python: interpreter of the programs.

    Raises:
      UserError: the sandbox does not work here.
    """
    one_of("isolation", isolation, ISOLATIONS)
    limits = limits or Limits()
    reason = f"{sys.platform} has none"
    if sys.platform == "linux":
        most = dataclasses.replace(limits, seconds=20.0, processes=max(limits.processes, 3))
        try:
            status, reason, *_ = run_program(Sandbox(most, isolation, python), _TRIAL)
        except OSError as error:  # of a kernel or a Python without some call, for example
            status, reason = "error", str(error)
        if status == "passed":
            _warn_of_less(isolation)
            return Sandbox(limits, isolation, python)
        reason = reason or status
    mend = {
        "namespaces": "5.12 or later, with root, or users who may make namespaces; "
        "--isolation=guard does with less, and promises less (docs/reference/security.md)",
        "guard": "5.3 or later, with an interpreter that other users may read, where root "
        "starts it",
    }
    raise UserError(
        f"no sandbox for programs works here (isolation {isolation}: {reason}); expected Linux "
        f"{mend[isolation]}."
    )


def _warn_of_less(isolation: str) -> None:
    """Says where the kernel holds less than an isolation promises elsewhere."""
    from flm_jax.evaluation.benchmarks import sandbox_limits  # needs Linux

    if isolation == "guard" and not sandbox_limits.landlock_is_whole():
        print(
            "WARNING: files outside are kept from programs by audit hooks of Python, which stop "
            "mistakes and no attack; expected Landlock, which Linux has from 6.2 on.",
            file=sys.stderr,
            flush=True,
        )


def run_program(sandbox: Sandbox, program: Program | str) -> Outcome:
    """Runs one program; returns within its time limit plus the interpreter's start."""
    program = Program(program) if isinstance(program, str) else program
    began = time.monotonic()
    # Removal must not fail the run: the program may have made what cannot be removed.
    with tempfile.TemporaryDirectory(prefix="flm_jax_", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        result, write = os.pipe()
        # The task is a file in memory, which has no name for a program to open.
        line, task = [sandbox.python, "-s", "-c", _RUNNER, _HOME], _call("memfd_create", "task")
        os.write(task, _task(sandbox, program, folder, write))
        os.lseek(task, 0, os.SEEK_SET)
        try:
            process = subprocess.Popen(
                line,
                stdin=task,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                # The same order of sets in each run. The library's folder is not searched.
                env={"PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            os.close(result)
            return Outcome("error", f"{line[0]}: {error}", "", 0.0)
        finally:
            os.close(write)
            os.close(task)
        try:
            output, said = _watch(process, result, sandbox.limits)
        finally:
            _end(process)
            os.close(result)
            _flatten(folder)
    return _outcome(output, said, sandbox.limits, time.monotonic() - began)


def _call(name: str, argument: Any) -> int:
    """What a system call gives; an OSError that names it where kernel or Python lack it."""
    try:
        return getattr(os, name)(argument)
    except (OSError, AttributeError) as error:
        raise OSError(f"{name}: {getattr(error, 'strerror', '') or error}") from error


def _task(sandbox: Sandbox, program: Program, folder: str, result: int) -> bytes:
    """What the runner reads: the length of a first part, that part, and one for the tests alone."""
    first = dataclasses.asdict(sandbox.limits) | {
        "isolation": sandbox.isolation,
        "folder": folder,
        "program": program.code,
        "result": result,
    }
    tests = {"setup": program.setup, "tests": program.tests, "names": program.names}
    head, rest = (json.dumps(part).encode() for part in (first, tests))
    return f"{len(head):16d}".encode() + head + rest


def run_programs(
    sandbox: Sandbox, programs: Sequence[Program | str], workers: int = 0
) -> Iterator[Outcome]:
    """Yields outcomes in the order of the programs, several at a time; 0 workers for one a core."""
    count = workers or os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        yield from pool.map(lambda program: run_program(sandbox, program), programs)


def _watch(process: subprocess.Popen, result: int, limits: Limits) -> tuple[bytes, bytes]:
    """What the program printed and what was said of it, until it ends or has had its time."""
    most = {process.stdout.fileno(): limits.output_bytes, result: _RESULT_BYTES}
    found = {number: b"" for number in most}
    ended = _call("pidfd_open", process.pid)
    deadline = time.monotonic() + limits.seconds + _START_SECONDS
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


def _flatten(folder: str) -> None:
    """Brings folders within folders to the top, so that their removal meets no depth.

    A program may have made more levels than removal can go down, or than a path can name.
    """
    places, number = [folder], itertools.count()
    while places:
        place = places.pop()
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)
            for entry in list(os.scandir(place)):
                if entry.is_dir(follow_symlinks=False):
                    above = os.path.join(folder, f".{next(number)}")
                    os.chmod(entry.path, 0o700)  # it is moved by its owner alone if it is writable
                    os.rename(entry.path, above)
                    places.append(above)


def _outcome(output: bytes, said: bytes, limits: Limits, seconds: float) -> Outcome:
    text = output[: limits.output_bytes].decode("utf8", "replace")
    lines = _shown(said.decode("utf8", "replace")).splitlines()
    # In reverse, so that the first line of each kind counts.
    said_of = {line.partition(" ")[0]: line.partition(" ")[2] for line in reversed(lines)}
    if len(output) > limits.output_bytes or len(said) > _RESULT_BYTES:
        return Outcome("output", f"more than {limits.output_bytes} bytes printed", text, seconds)
    if "setup" in said_of:
        return Outcome("error", said_of["setup"], text, seconds)
    if "passed" in said_of:
        return Outcome("passed", "", text, seconds)
    if "failed" in said_of:
        return Outcome("failed", said_of["failed"], text, seconds)
    if "files" in said_of:
        return Outcome("failed", "more, larger or deeper files than it may have", text, seconds)
    if "threads" in said_of:
        return Outcome("failed", "more threads than it may have", text, seconds)
    if "timeout" in said_of:
        return Outcome("timeout", f"no end within {limits.seconds:g} s", text, seconds)
    if "ended" in said_of:
        return Outcome("failed", f"ended early with status {said_of['ended']}", text, seconds)
    if "gone" in said_of:
        return Outcome("failed", "ended early", text, seconds)
    detail = f"the runner said nothing; it printed {text[-300:]!r}"
    return Outcome("error", detail, text, seconds)


def _shown(text: str) -> str:
    """Text without terminal controls; they stand as Python writes them."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
