"""What the guard looks at while a program runs: files however they are hidden, and threads."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from flm_jax.evaluation.benchmarks import sandbox_limits, sandbox_looks, sandbox_runner
from flm_jax.evaluation.benchmarks.sandbox import Program, run_program
from helpers.sandbox import LIMITS, NOBODY, elsewhere, ends, opened

USER = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
FULL = "more, larger or deeper files than it may have"
FILLS = "for n in range(12): open(f'{where}/{n}', 'wb').write(bytes(1 << 20))\nwhile True: pass"
HIDDEN = {
    "deep": "where = '.'\nfor n in range(20): os.mkdir('d' * 250); os.chdir('d' * 250)\n" + FILLS,
    "unreadable": "where = 'a'\nos.mkdir('a'); os.chmod('a', 0o300)\n" + FILLS,
    "unasked": "os.mkdir('a'); kept = [open(f'a/{n}', 'wb', 0) for n in range(12)]\n"
    "os.chmod('a', 0o600)\nfor file in kept: file.write(bytes(1 << 20))\nwhile True: pass",
    "levels": "for n in range(3000): os.mkdir('a'); os.chdir('a')\nwhile True: pass",
    "mapped": """
kept = []
for n in range(12):
    with open("a", "wb+") as file:
        file.write(bytes(1 << 20)); file.flush(); kept.append(mmap.mmap(file.fileno(), 4096))
    os.remove("a"); os.closerange(3, 64)
while True: pass
""",
}


@pytest.fixture
def guard():
    return opened(LIMITS, "guard")


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_files_are_found_and_removed(guard, name, monkeypatch):
    code = "import mmap, os\n" + HIDDEN[name]
    if name != "unreadable" or os.getuid() != 0:
        with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patched:
            os.chmod(folder, 0o755)
            patched.setattr(tempfile, "tempdir", folder)
            assert ends(guard, code, "failed").detail == FULL
            assert not os.listdir(folder)
    if os.getuid() == 0 and name in ("unreadable", "unasked", "levels"):
        with tempfile.TemporaryDirectory() as folder:
            said = elsewhere(Path(folder), "guard", code, **USER)
            assert said.startswith(f"failed|{FULL}"), said


MOVES = """
import os
os.mkdir("p")
for n in range(3): open(f"p/{n}", "wb").write(bytes(1 << 20))
print("on", flush=True)
name, number = "p", 0
while True:
    number += 1
    os.rename(name, f"p{number}")
    name = f"p{number}"
"""


def test_a_folder_that_is_moved_about_is_found_at_each_look(tmp_path):
    """It has another name by the time that the keeper would open the one it read."""
    (tmp_path / "work").mkdir()
    line = [sys.executable, "-c", MOVES]
    task = {"folder": str(tmp_path), "file_bytes": 1 << 19, "processes": 4}
    with subprocess.Popen(line, cwd=tmp_path / "work", stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            end, looks = time.monotonic() + 1.5, set()
            while time.monotonic() < end:
                looks.add(sandbox_looks.excess(task, process.pid))
        finally:
            process.kill()
    assert looks == {"files"}


def test_a_program_that_has_ended_is_not_stopped(guard):
    """Its tests may go on for some looks, and its number may be another's by then."""
    tests = "import time\ntry: f()\nexcept BaseException: time.sleep(0.4)"
    program = Program("import os\ndef f(): os._exit(3)", tests, "", ("f",))
    assert ends(guard, program, "failed").detail == "ended early with status 3"


THREADS = """
import threading, time
threads = [threading.Thread(target=time.sleep, args=(0.4,)) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_threads_of_users_are_counted_for_each_program():
    """The system counts all that a user runs, such as eight programs at once."""
    if os.getuid() != 0:
        pytest.skip("only root starts programs as another user")
    with tempfile.TemporaryDirectory() as folder:
        said = elsewhere(Path(folder), "guard", THREADS, times=8, **USER)
        assert said == "\n".join(["passed||"] * 8), said
        said = elsewhere(Path(folder), "guard", THREADS.replace("range(3)", "range(9)"), **USER)
        assert said == "failed|more threads than it may have|", said


def test_landlock_that_lets_files_be_shortened_is_not_enough(monkeypatch):
    class Kernel:
        def __init__(self, version):
            self.version = version

        def syscall(self, number, *args):
            if number != sandbox_limits._RULESET:
                return 0
            return self.version if args[-1] else os.open(os.devnull, os.O_RDONLY)

    for version, enough in ((0, False), (2, False), (3, True)):
        monkeypatch.setattr(sandbox_limits, "LIBC", Kernel(version))
        assert sandbox_limits._landlock(None) is enough


def test_no_two_processes_have_the_same_users(monkeypatch):
    if os.getuid() != 0:
        pytest.skip("root alone gives programs other users")
    found = set()
    for number in (1, 10_001, 20_001, (1 << 22) - 1):
        monkeypatch.setattr(os, "getpid", lambda number=number: number)
        found |= set(sandbox_runner._own_uids())
    assert None in found or len(found) == 8


def test_a_guarded_program_has_what_a_right_one_needs(guard):
    code = "import os, mmap, tempfile\nwith tempfile.TemporaryFile() as file:\n"
    code += " file.truncate(4096); mmap.mmap(file.fileno(), 4096)\nmmap.mmap(-1, 4096)\n"
    code += "for n in range(40): os.makedirs('/'.join('a' * n) or 'b', exist_ok=True)"
    assert run_program(guard, code).status == "passed"
