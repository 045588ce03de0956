"""Hostile programs harm nothing and stall nothing, under both isolations."""

import socket
import tempfile
from pathlib import Path

import pytest

from flm_jax.core.errors import UserError
from flm_jax.evaluation.benchmarks import sandbox as benchmarks_sandbox
from flm_jax.evaluation.benchmarks.sandbox import (
    Limits,
    Outcome,
    Sandbox,
    open_sandbox,
    run_program,
    run_programs,
)
from helpers.sandbox import LIMITS, ends, opened


def test_right_and_wrong_programs(each_sandbox):
    programs = ["print('héllo')", "assert 1 == 2, 'no'", "def f(:", "x = [1]\nx[2]", "import re"]
    outcomes = list(run_programs(each_sandbox, programs, workers=2))
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
def test_only_the_last_line_is_a_pass(each_sandbox, program):
    outcome = ends(each_sandbox, program + "\nimport os; os._exit(0)\n", "failed")
    assert "passed" not in outcome.detail


def test_endless_loops(each_sandbox):
    outcome = ends(each_sandbox, "while True: pass", "timeout")
    assert outcome.detail == "no end within 1 s"
    ends(each_sandbox, "import time; time.sleep(99)", "timeout")


def test_signals_are_no_escape(each_sandbox):
    ignoring = "import signal\nfor n in range(1, 65):\n try: signal.signal(n, signal.SIG_IGN)\n"
    masking = " except (OSError, ValueError): pass\nsignal.pthread_sigmask(0, range(1, 65))\n"
    ends(each_sandbox, ignoring + masking + "while True: pass", "timeout")
    ends(
        each_sandbox, "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "timeout", "failed"
    )
    others = "import os\nfor pid in (os.getppid(), -1, 1):\n try: os.kill(pid, 9)\n"
    ends(each_sandbox, others + " except OSError: pass\nwhile True: pass", "timeout", "failed")


def test_fork_bomb(each_sandbox):
    bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    ends(each_sandbox, bomb, "timeout")
    ends(
        each_sandbox,
        "import threading as t, time\nwhile 1: t.Thread(target=time.sleep, args=(9,)).start()",
        "failed",
    )


def test_nothing_runs_on(each_sandbox):
    daemon = "import os, time\nif os.fork() == 0:\n os.setsid()\n os.close(1)\n time.sleep(99)"
    ends(each_sandbox, daemon, "passed", "failed")


def test_memory(each_sandbox):
    outcome = ends(each_sandbox, "x = bytearray(10 << 30)", "failed")
    assert outcome.detail.startswith("MemoryError")
    ends(each_sandbox, "x = []\nwhile True: x.append(bytearray(1 << 20))", "failed")


def test_no_dump_is_made_of_a_crash(each_sandbox):
    """Nor is one handed to the system's program for them, which no limit of a program binds."""
    code = "import os, resource\nprint(resource.getrlimit(resource.RLIMIT_CORE), flush=True)\n"
    outcome = ends(each_sandbox, code + "os.abort()", "failed")
    assert outcome.output.startswith("(1, 1)") and "status -6" in outcome.detail, outcome


def test_files_outside_stay(each_sandbox):
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
        outcome = ends(each_sandbox, program, "passed")
        assert sorted(p.name for p in outside.iterdir()) == ["empty", "victim"]
        assert victim.read_text() == "kept" and victim.stat().st_mode & 0o777 == 0o666
        assert "kept" not in outcome.output
    finally:
        victim.unlink(missing_ok=True)
        empty.rmdir()
        outside.rmdir()


def test_the_working_folder_is_empty_and_small(each_sandbox):
    ends(
        each_sandbox, "import os; assert os.listdir('.') == []; open('a', 'w').write('b')", "passed"
    )
    ends(each_sandbox, "f = open('a', 'wb')\nwhile True: f.write(bytes(1 << 16))", "failed")


def test_the_environment_is_not_there(each_sandbox, monkeypatch):
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
    outcome = ends(each_sandbox, program, "passed")
    assert "hush" not in outcome.output and "HOME" in outcome.output


def test_no_network(each_sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        connect = f"import socket; socket.create_connection(('127.0.0.1', {port}), 0.5)"
        ends(each_sandbox, connect, "failed")
        with pytest.raises(TimeoutError):
            server.accept()
    ends(each_sandbox, "import socket; socket.create_connection(('1.1.1.1', 53), 0.5)", "failed")


def test_closed_and_endless_output(each_sandbox):
    closing = "import os, sys\nfor n in (0, 1, 2): os.close(n)\n"
    ends(each_sandbox, closing, "passed")
    ends(each_sandbox, closing + "while True: pass", "timeout")
    outcome = ends(each_sandbox, "while True: print('a' * 100)", "output")
    assert outcome.output == outcome.output[:10_000]
    ends(each_sandbox, "import os\nwhile True: os.write(2, b'a' * 4096)", "output")


def test_privileges_are_gone():
    sandbox = opened(LIMITS, "namespaces")
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


def test_no_isolation_takes_the_place_of_another(monkeypatch):
    """Where namespaces are missing the weaker one is named, not taken."""
    fails = lambda sandbox, program: Outcome("error", "unshare: not permitted", "", 0.0)
    monkeypatch.setattr(benchmarks_sandbox, "run_program", fails)
    with pytest.raises(UserError, match="namespaces: unshare: not permitted.*--isolation=guard"):
        open_sandbox(LIMITS)
    monkeypatch.setattr(benchmarks_sandbox.sys, "platform", "darwin")
    with pytest.raises(UserError, match="darwin has none.*expected Linux"):
        open_sandbox(LIMITS)


def test_what_cannot_start_is_an_outcome():
    outcome = run_program(Sandbox(LIMITS, "guard", "/usr/bin/false"), "print(1)")
    assert outcome.status == "error"
