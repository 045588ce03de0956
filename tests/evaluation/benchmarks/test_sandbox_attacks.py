"""Programs written to cheat or to break out: none passes, and none reaches anything."""

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import pytest

from flm_jax.evaluation.benchmarks.sandbox import Program, run_program
from helpers.sandbox import NOBODY, elsewhere, ends

TESTS = "assert f(1) == 4242\nassert all([f(2) == 4243, f(3) == 4244])"
WRONG = "\ndef f(x): return x\n"
# A program that answers the tests' process itself, with more names than it was asked for.
SPEAKS = """
import json, os
def forged(action):
    if action == "names":
        names = {n: ["object", 0] for n in ("f", "all", "AssertionError", "__builtins__")}
        return ["names", names]
    return ["value", True]
for number in range(3, 64):
    try:
        os.write(number, b'["ran"]\\n')
        with open(number) as lines:
            for line in lines:
                os.write(number, json.dumps(forged(json.loads(line)[0])).encode() + b"\\n")
    except OSError:
        pass
"""
CHEATS = {
    "write": "import os\nw = os.write\nos.write = lambda n, b: w(n, b.split()[0] + b' passed\\n')",
    "ends": "import os\nfor n in range(1, 64):\n for word in (b'passed\\n', b'[\"ran\"]\\n'):\n"
    "  try: os.write(n, word)\n  except OSError: pass\nos._exit(0)",
    "frames": """
def f(x):
    frame = sys._getframe()
    while frame:
        for one in list(frame.f_locals.values()):
            for word in (("passed",), (["value", 4242],)):
                try: one(*word)
                except BaseException: pass
        try: frame.f_lineno += 1
        except BaseException: pass
        frame = frame.f_back
    return x
""",
    "builtins": "import builtins\nbuiltins.all = builtins.abs = lambda *x: True",
    "equal": "class E(int):\n __eq__ = lambda *x: True\ndef f(x): return E(x)",
    "equal object": "class E:\n __eq__ = __bool__ = lambda *x: True\ndef f(x): return E()",
    "equal list": "class E(list):\n __eq__ = lambda *x: True\ndef f(x): return E([x])",
    "protocol": SPEAKS,
    "leaves": "import os\ndef f(x): os._exit(0)",
    "stops": "def f(x): raise StopIteration",
    "module": """
import os, types
os.chmod(".", 0o755)
speak = "import sys\\nf = sys._getframe()\\nwhile f:\\n for one in list(f.f_locals.values()):\\n"
speak += "  if getattr(one, '__name__', '') == 'say': one('passed')\\n f = f.f_back\\n"
for name in ("__init__.py", "test_it.py"): open(name, "w").write(speak)
def f(x): return types.ModuleType("unittest.__main__")  # runs what lies in folders
""",
}
OTHER_TESTS = {
    "protocol": "assert all([f(1) == 4242])",
    "leaves": "try: f(1)\nexcept BaseException: pass",
    "stops": "assert all(map(lambda x: f(x) == 4242, [1]))",
}


@pytest.mark.parametrize("name", CHEATS)
def test_no_program_decides_its_verdict(each_sandbox, name):
    code = CHEATS[name] if "def f" in CHEATS[name] else CHEATS[name] + WRONG
    tests = OTHER_TESTS.get(name, TESTS)
    also = ("timeout",) if name == "frames" else ()  # it may wait for itself
    outcome = ends(each_sandbox, Program(code, tests, "", ("f",)), "failed", *also)
    assert any(word in outcome.detail for word in ("Error", "ended early", "no end")), outcome


def test_tests_are_not_in_the_program_s_memory(each_sandbox):
    """Neither among its objects nor, where it may look, in any of its bytes."""
    code = """
import gc
word = "9876" + "54321"
found = [one for one in gc.get_objects() for one in gc.get_referents(one) if one is not word]
print(any(isinstance(one, str) and word in one for one in found))
try:
    import ctypes
    maps = open("/proc/self/maps").read()
    print(any(word in ctypes.string_at(a, b - a) for a, b in maps))
except OSError: pass
def f(x): return x
"""
    program = Program(code, "assert f(1) == 1, 987654321", "seen = 987654321", ("f",))
    assert ends(each_sandbox, program, "passed").output == "False\n"


VALUES = """
import collections, datetime, decimal, fractions, math
class Node:
    def __init__(self, value): self.value, self.left = value, None
def twice(x): return [x, x]
def made(kind): return {
    "counter": collections.Counter("aab"), "deque": collections.deque([1]), "set": {1, (2, 3)},
    "huge": 10 ** 6000, "complex": 1j, "bytes": b"a", "range": range(3), "nan": math.nan,
    "text": "\\ud800\\x1b", "day": datetime.date(2020, 1, 2), "third": fractions.Fraction(1, 3),
    "tenth": decimal.Decimal("0.1"), "keys": {1: 2}.keys(), "ordered": collections.OrderedDict(a=1),
    "span": datetime.timedelta(1, 2), "type": int, "named": collections.namedtuple("A", "b")(1),
}[kind]
def count():
    yield from range(3)
def depth(node): return 1 + depth(node.left) if node else 0
def fails(kind): raise kind("so")
"""
VALUE_TESTS = """
from collections import Counter, OrderedDict, deque
from datetime import date, timedelta
assert twice({"a": [1, (2.5, None)], "b": {True}}) == [{"a": [1, (2.5, None)], "b": {True}}] * 2
assert made("counter") == Counter("aab") and made("counter")["c"] == 0
assert made("deque") == deque([1]) and made("set") == {1, (2, 3)} and made("huge") == 10 ** 6000
assert made("complex") == 1j and made("bytes") == b"a" and made("range") == range(3)
assert made("nan") != made("nan") and made("text") == "\\ud800\\x1b" and made("keys") == {1}
assert made("day") == date(2020, 1, 2) and made("span") == timedelta(1, 2)
assert made("third") * 3 == 1 and made("tenth") * 10 == 1 and made("type") is int
assert type(made("ordered")) is OrderedDict and made("named") == (1,)
assert list(count()) == [0, 1, 2] and next(count()) == 0 and sum(count()) == 3
root = Node(1)
root.left = Node(2)
root.left.left = Node(math.floor(3.5))
assert depth(root) == 3 and root.left.left.value == 3 and root.left == root.left != root
for kind in (ValueError, KeyError):
    try:
        fails(kind)
    except kind as error:
        assert error.args == ("so",) or error.args == ("'so'",)
    else:
        raise AssertionError
"""


def test_values_go_over_as_they_are(each_sandbox):
    names = ("Node", "twice", "made", "count", "depth", "fails")
    ends(each_sandbox, Program(VALUES, VALUE_TESTS, "import math", names), "passed")
    trusted = Program("def g(x): return 7\ndef f(x): return 1", "assert g(f(1)) == 2", "", ("f",))
    ends(each_sandbox, trusted, "failed")
    ends(each_sandbox, trusted._replace(setup="def g(x): return x + 1"), "passed")


RIGHT = """
import asyncio, os, shutil, sqlite3, tempfile, threading
os.mkdir("a"); os.mkdir("a/b"); open("a/b/c", "w").write("x"); os.rename("a", "d")
os.chmod("d/b/c", 0o600); shutil.copy("d/b/c", "e"); shutil.rmtree("d")
with tempfile.TemporaryDirectory() as folder:
    os.mkdir(folder + "/q"); open(folder + "/q/x", "w").write("1")
with tempfile.TemporaryFile() as file: file.write(b"1"); file.truncate(0)
shutil.rmtree(tempfile.mkdtemp())
sqlite3.connect("a.db").execute("create table a(b)")
asyncio.run(asyncio.sleep(0.001))
def f(n):
    found = []
    threads = [threading.Thread(target=found.append, args=(i,)) for i in range(n)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return len(found)
"""


def test_right_programs_pass_as_root_and_as_another_user(each_sandbox):
    ends(each_sandbox, Program(RIGHT, "assert f(3) == 3", "", ("f",)), "passed")
    if os.getuid() == 0:
        with tempfile.TemporaryDirectory() as folder:
            isolation, user = each_sandbox.isolation, {"user": NOBODY, "group": NOBODY}
            tests = "assert f(3) == 3"
            said = elsewhere(Path(folder), isolation, RIGHT, tests, extra_groups=[], **user)
            assert said == "passed||" or "unshare" in said, said
            inside = "import os\nprint(os.getuid(), os.geteuid())"
            found = elsewhere(Path(folder), isolation, inside, extra_groups=[], **user)
            assert found == f"passed||{NOBODY} {NOBODY}" or "unshare" in found, found
            ending = "import os, time\nfor pid in range(2, 99):\n"
            ending += " try: pid != os.getpid() and os.kill(pid, 9)\n except OSError: pass\n"
            ending += "time.sleep(0.5)"  # its tests have the same user, but are another process
            killed = elsewhere(Path(folder), isolation, ending, extra_groups=[], **user)
            status = "failed" if isolation == "namespaces" else "passed"  # no signals at all
            assert killed.startswith(status) or "unshare" in killed, killed
            interrupted = elsewhere(
                Path(folder), isolation, ending.replace("range(2", "range(1").replace("9)", "2)"),
                extra_groups=[], **user,
            )  # fmt: skip
            assert interrupted.startswith(status) or "unshare" in interrupted, interrupted


# All but the working folder, whoever owns the root in memory: what lies above the interpreter's
# folder, moved away, would let the program say what the tests import.
WRITES = """
import os, sys
for where in ("/", "/etc", "/usr", "/home", "/dev", "/opt"):
    for harm in (lambda: os.mkdir(where + "/new"), lambda: os.rename(where, where + "2"),
                 lambda: os.rename("/lib", "/lib2"), lambda: os.symlink(".", where + "/link")):
        try: harm(); print("done", where)
        except OSError: pass
where = "." if (sys.prefix + sys.base_prefix).count("/tmp/") else "/tmp"  # or an interpreter's
open(where + "/a", "w").write("b")
print(open("a").read())
"""


def test_the_root_is_read_only(isolation):
    if isolation.isolation != "namespaces":
        pytest.skip("guard has no root of its own")
    assert run_program(isolation, WRITES).output == "b\n"
    if os.getuid() == 0:
        with tempfile.TemporaryDirectory() as folder:
            user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            said = elsewhere(Path(folder), "namespaces", WRITES, **user)
            assert said == "passed||b" or "unshare" in said, said


def test_the_library_of_an_interpreter_behind_a_link_is_there(isolation, tmp_path):
    if isolation.isolation != "namespaces":
        pytest.skip("guard has no root of its own")
    venv.create(tmp_path / "real", symlinks=True, with_pip=False)
    (tmp_path / "link").symlink_to("real")
    library = next((tmp_path / "real").glob("lib/python*/site-packages"))
    (library / "only_there.py").write_text("word = 'found'")
    linked = isolation._replace(python=str(tmp_path / "link/bin/python"))
    outcome = run_program(linked, "import only_there\nprint(only_there.word)")
    assert outcome.output == "found\n", outcome


# The C library, of which guard's hooks refuse the module alone: the runner's frames hold it.
LIBRARY = """
import os, sys
frame, libc = sys._getframe(), None
while frame:
    for one in list(frame.f_globals.values()): libc = libc or getattr(one, "LIBC", None)
    frame = frame.f_back
def refused(name, call, reason=1):
    got = libc.syscall(*call)
    assert got == -1 and (guarded or errno() == reason), (name, got, guarded or errno())
"""


def test_calls_outside_all_limits_are_refused(isolation):
    """Of the kernel itself, past the interpreter, where a program may call it."""
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86-64")
    guarded = isolation.isolation == "guard"
    code = f"""{LIBRARY}
guarded = {guarded}
if not guarded: from ctypes import get_errno as errno
calls = {{"shmget": (29, 0, 1 << 20, 0o1600), "msgget": (68, 0, 0o1600), "memfd": (319, b"a", 0),
         "shmctl": (31, 0, 14, bytes(200)), "semctl": (66, 0, 0, 19, bytes(200)),
         "semop": (65, 0, bytes(6), 1), "msgctl": (71, 0, 12, bytes(200)), "mq": (241, b"a"),
         "sendmsg": (46, 1, bytes(56), 0), "aio": (206, 1, bytes(8)), "inotify": (294, 0),
         "syslog": (103, 3, bytes(99), 99), "owner": (72, 1, 8, 1), "signal": (72, 1, 10, 9),
         "told": (16, 1, 0x8901, bytes(4)), "death": (157, 1, 0), "hidden": (157, 4, 0),
         "vmsplice": (278, 1, bytes(16), 1, 0), "splice": (275, 0, 0, 1, 0, 1, 0),
         "tee": (276, 0, 1, 1, 0), "sendfile": (40, 1, 0, 0, 1), "rules": (444, bytes(24), 24, 0),
         "rule": (445, 1, 1, bytes(16), 0),
         "keyctl": (250, 0, -3, 0), "add_key": (248, b"user", b"a", b"b", 1, -3),
         "vsock": (41, 40, 1, 0), "netlink": (41, 16, 3, 0), "unix": (41, 1, 1, 0),
         "datagrams": (53, 1, 2, 0, bytes(8)), "kinds": (53, 1, 0x80805, 0, bytes(8)),
         "pair": (53, 16, 3, 0, bytes(8)), "ptrace": (101, 16, 1, 0, 0), "unshare": (272, 1 << 28),
         "clone": (56, 1 << 28 | 17, 0, 0, 0, 0), "uring": (425, 1, bytes(120)),
         "prlimit": (302, 1, 7, None, bytes(16)), "x32": (0x40000000 | 29, 0, 1 << 20, 0o1600)}}
if guarded: calls |= {{
         "files": (56, 0x10900, 0, 0, 0, 0), "fork": (57,), "vfork": (58,), "kill": (62, 1, 0),
         "timer": (222, 1, None, bytes(8)),
         "exec": (59, b"/bin/true", 0, 0), "space": (285, os.open("a", 66), 0, 0, 4096)}}
for name, call in calls.items(): refused(name, call)
refused("clone3", (435, bytes(88), 88), 38)
assert os.getuid() != 0
"""
    outcome = run_program(isolation, code)
    assert outcome.status == "passed", outcome


def test_root_without_other_users_is_refused():
    """The kernel limits no processes of root: a failed limit is a failed set-up."""
    if os.getuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root makes such a namespace, by unshare")
    alone = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode != 0:
        pytest.skip("namespaces of users are not permitted here")
    for isolation, reason in (("namespaces", "have no limit"), ("guard", "no other user id")):
        with tempfile.TemporaryDirectory() as folder:
            said = elsewhere(Path(folder), isolation, "print(1)", before=alone)
            assert said.startswith("error|") and reason in said, said


def mounted(inside):
    """Whether a mount with one file, which all may read and write, is kept from programs."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.unshare(0x00020000)
    private, none = ctypes.c_ulong(16384 | 1 << 18), ctypes.c_ulong(0)
    assert libc.mount(None, b"/", None, private, None) == 0
    assert libc.mount(b"t", bytes(inside), b"tmpfs", none, b"mode=777") == 0
    secret = inside / "secret"
    secret.write_text("hush")
    secret.chmod(0o666)
    code = f"""
for harm in (lambda: print(open("{secret}").read()), lambda: open("{secret}", "w").write("gone"),
             lambda: open("{inside}/more", "w").write("more")):
    try: harm()
    except OSError: pass
"""
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    with tempfile.TemporaryDirectory() as folder:
        by_root = elsewhere(Path(folder), "namespaces", code)
        # A user's own namespace cannot leave mounts out, only make them read-only.
        by_user = elsewhere(Path(folder), "namespaces", code, **user)
    kept = [p.name for p in inside.iterdir()] == ["secret"] and secret.read_text() == "hush"
    return kept and by_root == "passed||" and by_user.startswith("passed||")


def test_mounts_below_the_system_are_left_out():
    if os.getuid() != 0:
        pytest.skip("only root mounts")
    inside = Path("/usr/local/games")
    if not inside.is_dir() or any(inside.iterdir()):
        pytest.skip(f"no empty {inside}")
    child = os.fork()
    if child == 0:  # in a mount namespace that ends with this process
        try:
            os._exit(0 if mounted(inside) else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_guarded_program_reaches_nothing_outside(isolation):
    """Ways around the interpreter's hooks, which Landlock and the filter of calls close."""
    if isolation.isolation != "guard":
        pytest.skip("the guard alone")
    outside = Path(tempfile.mkdtemp(dir="/tmp"))
    outside.chmod(0o777)
    (outside / "victim").write_text("kept")
    (outside / "victim").chmod(0o666)
    service = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    service.bind(str(outside / "heard"))
    (outside / "heard").chmod(0o666)
    code = f"""
import builtins, os, resource, signal, socket, sqlite3
builtins.all = builtins.any = lambda *x: True
os.path.realpath = os.fsdecode = lambda path: "/usr"
folder = {str(outside)!r}
deep = "/".join("abcdefgh"); os.makedirs(deep); here = os.open(".", os.O_RDONLY)
def chdir(): os.chdir(deep); open(os.open("../../../.." + folder + "/new1", 65, dir_fd=here), "w")
def attach(): sqlite3.connect(":memory:").execute(f"attach '{{folder}}/new2' as b").execute(
    "create table b.c(d)")
for harm in (
    chdir, attach,
    lambda: os.mkfifo(folder + "/new3"),
    lambda: os.mknod(folder + "/new4"),
    lambda: open(folder + "/new5", "w"),
    lambda: print(open(folder + "/victim").read()),
    lambda: os.truncate(folder + "/victim", 0),
    lambda: signal.pidfd_send_signal(os.pidfd_open(os.getppid()), signal.SIGKILL),
    lambda: os.kill(os.getppid(), signal.SIGKILL),
    lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0)),
    lambda: os.setpriority(0, os.getppid(), 19),
    lambda: os.posix_spawn("/bin/true", ["true"], {{}}),
    lambda: os.fork(),
    lambda: socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b"a", folder + "/heard"),
):
    try: harm(); print("done")
    except OSError: pass
    except sqlite3.Error: pass
"""
    try:
        outcome = ends(isolation, code, "passed")
        assert outcome.output == ""
        assert sorted(p.name for p in outside.iterdir()) == ["heard", "victim"]
        assert (outside / "victim").read_text() == "kept"
    finally:
        service.close()
        shutil.rmtree(outside)


@pytest.mark.parametrize(
    "program",
    [
        "for n in range(10 ** 6): open(str(n), 'w').write('a')",
        "for n in range(10 ** 6): open(str(n), 'wb').write(bytes(1 << 19))",
        "import os\nkept = []\nfor n in range(50):\n kept.append(open('a', 'wb', 0))\n"
        " kept[-1].write(bytes(1 << 20)); os.remove('a')\nwhile True: pass",
    ],
)
def test_many_files_are_too_many(each_sandbox, program):
    """Python 3.13 prints what goes wrong when an open file is forgotten, and the loop goes on."""
    forgets = "write('a')" in program and sys.version_info >= (3, 13)
    ends(each_sandbox, program, *(("failed", "output") if forgets else ("failed",)))


def test_runs_are_alike_and_what_they_say_is_text(each_sandbox):
    """Hashes of texts, which order sets; no status of the program's choice, no terminal escapes."""
    first, second = (ends(each_sandbox, "print(hash('a'))", "passed").output for _ in range(2))
    assert first == second
    code = "import os\nfor n in range(3, 64):\n try: os.write(n, b'setup \\x1b[2J broken\\n')\n"
    ends(each_sandbox, code + " except OSError: pass", "failed")
    raises = "raise ValueError('\\x1b[31m red\\nsetup broken\\x9b')"
    detail = ends(each_sandbox, raises, "failed").detail
    assert detail == r"ValueError: \x1b[31m red setup broken\x9b"
