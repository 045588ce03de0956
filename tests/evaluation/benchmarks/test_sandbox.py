"""Hostile programs harm nothing and stall nothing, under both isolations."""

import dataclasses
import os
import socket
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from flm_jax.core.errors import UserError
from flm_jax.evaluation.benchmarks import sandbox as benchmarks_sandbox
from flm_jax.evaluation.benchmarks.sandbox import (
    Limits,
    Sandbox,
    open_sandbox,
    run_program,
    run_programs,
)

SECONDS = 1.0
LIMITS = Limits(seconds=SECONDS, memory_bytes=256 << 20, file_bytes=1 << 20, output_bytes=10_000)
# As root a guarded program has a user id of its own, which must be able to read the interpreter.
_PYTHONS = {"namespaces": (sys.executable,), "guard": (sys.executable, "/usr/bin/python3")}


@pytest.fixture(params=benchmarks_sandbox.ISOLATIONS, scope="module")
def isolation(request):
    for python in _PYTHONS[request.param]:
        try:
            return open_sandbox(LIMITS, request.param, python)
        except UserError as error:
            reason = str(error)
    return pytest.skip(reason)


@pytest.fixture
def sandbox(isolation, tmp_path, monkeypatch):
    """With an interpreter of a name that finds all its processes, and folders of its own."""
    python = tmp_path / f"python-{uuid.uuid4().hex}"
    python.symlink_to(isolation.python)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield isolation._replace(python=str(python))
        assert not os.listdir(folder), "a working folder is left"
    assert not processes(python.name), "a process is left"


def processes(name):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def ends(sandbox, program, *statuses):
    """Runs a program; one that is to end by itself has more time, on a busy machine."""
    seconds = SECONDS if "timeout" in statuses else 10 * SECONDS
    limits = dataclasses.replace(LIMITS, seconds=seconds)
    began = time.monotonic()
    outcome = run_program(sandbox._replace(limits=limits), program)
    assert time.monotonic() - began < seconds + 6.0
    assert outcome.status in statuses, outcome
    return outcome


def test_right_and_wrong_programs(sandbox):
    programs = ["print('héllo')", "assert 1 == 2, 'no'", "def f(:", "x = [1]\nx[2]", "import re"]
    outcomes = list(run_programs(sandbox, programs, workers=2))
    assert [o.status for o in outcomes] == ["passed", "failed", "failed", "failed", "passed"]
    assert outcomes[0].output == "héllo\n"
    assert outcomes[1].detail == "AssertionError: no"
    assert outcomes[2].detail.startswith("SyntaxError") and "IndexError" in outcomes[3].detail


@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "print('passed')",
        "import os\nfor n in range(3, 64):\n try: os.write(n, b'0' * 32 + b' passed\\n')\n"
        " except OSError: pass",
    ],
)
def test_only_the_last_line_is_a_pass(sandbox, program):
    outcome = ends(sandbox, program + "\nimport os; os._exit(0)\n", "failed")
    assert "passed" not in outcome.detail


def test_endless_loops(sandbox):
    outcome = ends(sandbox, "while True: pass", "timeout")
    assert outcome.detail == "no end within 1 s"
    ends(sandbox, "import time; time.sleep(99)", "timeout")


def test_signals_are_no_escape(sandbox):
    ignoring = "import signal\nfor n in range(1, 65):\n try: signal.signal(n, signal.SIG_IGN)\n"
    masking = " except (OSError, ValueError): pass\nsignal.pthread_sigmask(0, range(1, 65))\n"
    ends(sandbox, ignoring + masking + "while True: pass", "timeout")
    ends(sandbox, "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "timeout", "failed")
    others = "import os\nfor pid in (os.getppid(), -1, 1):\n try: os.kill(pid, 9)\n"
    ends(sandbox, others + " except OSError: pass\nwhile True: pass", "timeout", "failed")


def test_fork_bomb(sandbox):
    bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    ends(sandbox, bomb, "timeout")
    ends(
        sandbox,
        "import threading as t, time\nwhile 1: t.Thread(target=time.sleep, args=(9,)).start()",
        "failed",
    )


def test_nothing_runs_on(sandbox):
    daemon = "import os, time\nif os.fork() == 0:\n os.setsid()\n os.close(1)\n time.sleep(99)"
    ends(sandbox, daemon, "passed", "failed")


def test_memory(sandbox):
    outcome = ends(sandbox, "x = bytearray(10 << 30)", "failed")
    assert outcome.detail.startswith("MemoryError")
    ends(sandbox, "x = []\nwhile True: x.append(bytearray(1 << 20))", "failed")


def test_files_outside_stay(sandbox):
    outside = Path(tempfile.mkdtemp(dir="/tmp"))
    victim, empty = outside / "victim", outside / "empty"
    victim.write_text("kept")
    empty.mkdir()
    for path, mode in ((outside, 0o777), (victim, 0o666), (empty, 0o777)):
        path.chmod(mode)  # nothing but the sandbox is in the way
    program = f"""
import os, shutil
for harm in (
    lambda: os.remove({str(victim)!r}),
    lambda: open({str(victim)!r}, "w").write("gone"),
    lambda: os.truncate({str(victim)!r}, 0),
    lambda: os.rename({str(victim)!r}, {str(outside / "moved")!r}),
    lambda: os.rmdir({str(empty)!r}),
    lambda: os.chmod({str(victim)!r}, 0),
    lambda: os.mkdir({str(outside / "new")!r}),
    lambda: os.symlink("/etc", {str(outside / "link")!r}),
    lambda: (os.chdir({str(outside)!r}), os.remove("victim")),
    lambda: os.remove("victim", dir_fd=os.open({str(outside)!r}, os.O_RDONLY)),
    lambda: shutil.rmtree({str(outside)!r}),
    lambda: print(open({str(victim)!r}).read()),
    lambda: os.system("rm -rf {outside}"),
):
    try: harm()
    except OSError: pass
"""
    try:
        outcome = ends(sandbox, program, "passed")
        assert sorted(p.name for p in outside.iterdir()) == ["empty", "victim"]
        assert victim.read_text() == "kept" and victim.stat().st_mode & 0o777 == 0o666
        assert "kept" not in outcome.output
    finally:
        victim.unlink(missing_ok=True)
        empty.rmdir()
        outside.rmdir()


def test_the_working_folder_is_empty_and_small(sandbox):
    ends(sandbox, "import os; assert os.listdir('.') == []; open('a', 'w').write('b')", "passed")
    ends(sandbox, "f = open('a', 'wb')\nwhile True: f.write(bytes(1 << 16))", "failed")


def test_the_environment_is_not_there(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET", "hush-hush")
    program = """
import glob, os
print(dict(os.environ))
for pid in range(1, 1000):
    try: print(open(f"/proc/{pid}/environ").read())
    except OSError: pass
for way in (lambda: os.listdir("/proc/self"), lambda: os.popen("env").read()):
    try: print(way())
    except OSError: pass
"""
    outcome = ends(sandbox, program, "passed")
    assert "hush" not in outcome.output and "HOME" in outcome.output


def test_no_network(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        connect = f"import socket; socket.create_connection(('127.0.0.1', {port}), 0.5)"
        ends(sandbox, connect, "failed")
        with pytest.raises(TimeoutError):
            server.accept()
    ends(sandbox, "import socket; socket.create_connection(('1.1.1.1', 53), 0.5)", "failed")


def test_closed_and_endless_output(sandbox):
    closing = "import os, sys\nfor n in (0, 1, 2): os.close(n)\n"
    ends(sandbox, closing, "passed")
    ends(sandbox, closing + "while True: pass", "timeout")
    outcome = ends(sandbox, "while True: print('a' * 100)", "output")
    assert outcome.output == outcome.output[:10_000]
    ends(sandbox, "import os\nwhile True: os.write(2, b'a' * 4096)", "output")


def test_privileges_are_gone():
    sandbox = open_sandbox(LIMITS)
    if sandbox.isolation != "namespaces":
        pytest.skip("namespaces are not permitted here")
    program = """
import ctypes, os
libc = ctypes.CDLL(None)
assert os.getuid() != 0
for call in ((libc.mount, b"none", b"/tmp", b"tmpfs", 0, None), (libc.chroot, b"/work"),
             (libc.sethostname, b"a", 1), (libc.unshare, 0x10000000)):
    assert call[0](*call[1:]) != 0, call
"""
    outcome = run_program(sandbox, program)
    assert outcome.status == "passed", outcome


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="unknown isolation 'namespace'; did you mean 'namespaces'"):
        open_sandbox(isolation="namespace")
    with pytest.raises(UserError, match="got seconds=0; expected more than 0"):
        Limits(seconds=0)
    with pytest.raises(UserError, match="no sandbox .*works here .*No such file"):
        open_sandbox(python="/absent/python")


def test_what_cannot_start_is_an_outcome():
    outcome = run_program(Sandbox(LIMITS, "guard", "/usr/bin/false"), "print(1)")
    assert outcome.status == "error"
