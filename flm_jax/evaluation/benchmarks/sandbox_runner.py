"""Runs one program under limits; `sandbox` starts it as a separate process.

It uses the standard library and its neighbours alone, since its interpreter may have no
packages. Its standard input is a file with a task of two parts, see `sandbox`. Its processes are:

- the keeper watches the time, and in "guard" the folder and the threads;
- with namespaces, the first one of a new process namespace, whose end ends all others in it, makes
  the root folder and starts the other two; in "guard" the keeper does;
- the program's process (`sandbox_exchange.serve`) never held the tests, nor a way to the result;
- the tests' process (`sandbox_exchange.judge`) says the verdict.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import signal
import sys
import time


def _neighbour(name):
    """A module that stands beside this one, whatever package there is."""
    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_PARTS = ("sandbox_limits", "sandbox_exchange", "sandbox_looks")
limits, exchange, looks = map(_neighbour, _PARTS)
checked = limits.checked

_NEW_MOUNTS, _NEW_NAMES, _NEW_IPC = 0x00020000, 0x04000000, 0x08000000
_NEW_USERS, _NEW_PIDS, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_NO_SUID, _NO_DEVICES, _BIND, _DEEP, _PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MOUNT_SETATTR, _RECURSIVE = 442, 0x8000
_UNIX, _STREAM, _BOTH_WAYS = 1, 1, 2
_NOBODY = 65534
_OTHER_TASKS = 1024  # that a user may start while a guarded program of that user runs


def _mount(source, target, kind, flags, data=None):
    words = [None if x is None else os.fsencode(x) for x in (source, target, kind)]
    checked("mount", *words, ctypes.c_ulong(flags), None if data is None else data.encode())


def _unshare(uid):
    """New namespaces of everything, of users as well unless root gives the program a user id.

    Returns:
      How many processes the kernel counts for the program's user besides the program's own.
    """
    flags = _NEW_MOUNTS | _NEW_NAMES | _NEW_IPC | _NEW_PIDS | _NEW_NETWORK
    own, group = os.getuid(), os.getgid()
    if uid is not None:
        checked("unshare", flags)
        return 0
    # Three: this process, the first one of the namespaces and that of the tests.
    others = 3 if limits.counts_each_namespace() else _tasks_of(own)
    checked("unshare", flags | _NEW_USERS)
    # In this order: users may map groups only after they have given up setgroups.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_NOBODY} {own} 1"),
        ("gid_map", f"{_NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return others


def _tasks_of(uid):
    """Processes and threads of a user."""
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            own = os.stat(f"/proc/{name}").st_uid == uid
            count += len(os.listdir(f"/proc/{name}/task")) if own else 0
    return count


def _show(source, root):
    """Makes a file or folder visible under another root, read-only, without mounts below it."""
    target = root + source
    if os.path.islink(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    try:
        _mount(source, target, None, _BIND)
    except OSError:  # users may not leave out what is mounted below
        _mount(source, target, None, _BIND | _DEEP)
    _make_read_only(target, device=source in limits.DEVICES)


def _make_read_only(target, device=False, flags=_RECURSIVE):
    """Without the powers of files and devices too; of the mounts below as well, by `flags`."""
    # The structure mount_attr: attributes to set (read-only, nosuid, nodev) and three numbers,
    # all 0.
    bits = 1 | 2 | (0 if device else 4)
    wanted = bits.to_bytes(8, sys.byteorder) + bytes(24)
    call = "mount_setattr (Linux 5.12)"
    checked("syscall", _MOUNT_SETATTR, -100, os.fsencode(target), flags, wanted, 32, call=call)


def _seen(path, root):
    """Whether a path shows the same under the other root."""
    with contextlib.suppress(OSError):
        return os.path.samefile(path, root + path)
    return False


def _new_root(task, uid):
    """A root of its own in memory: the interpreter, the system's libraries and an empty folder.

    All but that folder is read-only, also to a user who owns it: who could move a folder above the
    interpreter would choose what the tests import.
    """
    root = task["folder"]
    _mount(None, "/", None, _PRIVATE | _DEEP)
    _mount("tmpfs", root, "tmpfs", _NO_SUID | _NO_DEVICES, f"nr_inodes={looks.FILES},mode=755")
    for path in (*limits.places(), *limits.DEVICES):
        if os.path.exists(path) and not _seen(path, root):
            _show(path, root)
    names = (f"/work{number or ''}" for number in range(looks.FILES))
    folder = next(name for name in names if not os.path.exists(root + name))
    os.mkdir(root + folder)
    size = f"size={4 * task['file_bytes']},nr_inodes={looks.FILES},mode=700"
    _mount("tmpfs", root + folder, "tmpfs", _NO_SUID | _NO_DEVICES, size)
    if not os.path.exists(f"{root}/tmp"):
        os.symlink(folder, f"{root}/tmp")
    if uid is not None:
        os.chown(root + folder, uid, uid)
    _make_read_only(root, flags=0)
    checked("chroot", os.fsencode(root))
    return folder


def _own_uids():
    """Two user ids that no other process has, where this one may choose; else None twice."""
    if os.getuid() != 0:
        return None, None
    with open("/proc/self/uid_map") as file:
        ranges = [[int(x) for x in line.split()] for line in file]
    count = min(next((n for first, _, n in ranges if first == 0), 1), 1 << 31)
    if count < 1000:
        return None, None
    span = min(1 << 22, count // 4)  # of numbers that processes have
    # The number of this process sets them apart from those of sandboxes beside it.
    first = count - 2 - os.getpid() % span
    return first, first - span


def _environment(folder):
    """Signals and variables as a program expects them."""
    os.setsid()
    os.chdir(folder)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.environ.clear()
    own = {"HOME": folder, "TMPDIR": folder, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    own |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    os.environ.update(own)
    sys.dont_write_bytecode = True


def _program(task, folder, uid, link):
    """The program's process; never returns. It gives the way to the result up before it begins."""
    code, result = task.pop("program"), task["result"]
    _environment(folder)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if task["isolation"] == "guard":
        limits.hide(False)  # the keeper looks at the files that it holds open
    limits.confine(task, folder, uid, task["others"])
    os.close(result)
    exchange.serve(link, code)


def _tests(task, uid, link, say):
    """The tests' process; never returns."""
    # Read only here: the program's process is a copy of its parent, whose memory must not hold
    # the tests.
    start = task["length"]
    more = json.loads(os.pread(0, os.fstat(0).st_size - start, start))
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    _environment("/")
    limits.confine(task, None, uid, task["others"])
    say(exchange.judge(link, more["setup"], more["tests"], more["names"]))
    os._exit(0)


def _forked(work, say):
    """A process that does one thing; a failure of it is one of the set-up."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            with contextlib.suppress(OSError):
                say(f"setup {type(error).__name__}: {error}")
        finally:
            os._exit(3)
    return child


def _started(task, say):
    """Starts the program and its tests: both processes, and the program's end of their link."""
    uid, other = task["uids"]
    if task["isolation"] == "namespaces":
        folder = _new_root(task, uid)
    else:
        folder = os.path.join(task["folder"], "work")
        os.mkdir(folder, 0o700)
        if uid is not None:
            os.chown(folder, uid, uid)
    ends = (ctypes.c_int * 2)()
    checked("socketpair", _UNIX, _STREAM | os.O_CLOEXEC, 0, ends)
    theirs, ours = ends

    def program():
        os.close(ours)
        _program(task, folder, uid, theirs)

    def tests():
        os.close(theirs)
        task.pop("program")
        _tests(task, other, ours, say)

    answer, judge = _forked(program, say), _forked(tests, say)
    os.close(ours)
    return answer, judge, theirs


def _settled(answer, judge, link, say, how=0):
    """Whether the tests' process has ended; of the program's it says how it did."""
    while (ended := os.waitpid(-1, how))[0] not in (0, judge):
        if ended[0] == answer:
            say(f"ended {os.waitstatus_to_exitcode(ended[1])}")
            checked("shutdown", link, _BOTH_WAYS)  # a copy that it left may hold the link open
    if ended[0] == judge:
        say("gone")  # counts where the tests said nothing: a program of the same user may end them
    return ended[0] == judge


def _first(task, say):
    """The first process of new namespaces; never returns."""
    os.setsid()
    limits.die_with_parent()
    _settled(*_started(task, say), say)
    os._exit(0)


def _end(child):
    """Ends a process, unless it was waited for: its number may be another's by then."""
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(child, os.WNOHANG)[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _keep(task, say):
    """Starts the program, directly or in namespaces, and ends it after its time."""
    guarded = task["isolation"] == "guard"
    if guarded:
        if os.getuid() == 0 and task["uids"][0] is None:
            raise OSError("root has no other user id to give to a program")
        # An ordinary user's limit counts what else that user runs: `looks.excess` counts as well.
        task["others"] = 0 if os.getuid() == 0 else _tasks_of(os.getuid()) + _OTHER_TASKS
    else:
        task["others"] = _unshare(task["uids"][0])
    limits.hide(True)
    # Blocked before anything is started, so that none arrives unseen between two waits.
    signals = (signal.SIGCHLD, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    # In "guard" neither of the two may start a process, so that ending them ends all.
    started = _started(task, say) if guarded else [_forked(lambda: _first(task, say), say)]
    deadline, ended = time.monotonic() + task["seconds"], False
    while not ended:
        left = deadline - time.monotonic()
        got = signal.sigtimedwait(signals, max(min(left, looks.SECONDS if guarded else left), 0.0))
        if got is None and guarded and (excess := looks.excess(task, started[0])):
            say(excess)
            break
        if (got is None and left <= 0) or (got and got.si_signo == signal.SIGTERM):
            say("timeout" if got is None else "stopped")
            break
        if guarded:
            ended = _settled(*started, say, os.WNOHANG)
        else:
            ended = os.waitpid(started[0], os.WNOHANG)[0] == started[0]
    for child in started[:2]:
        _end(child)


def main():
    length = int(os.pread(0, 16, 0))
    task = json.loads(os.pread(0, length, 16)) | {"length": 16 + length}
    result = task["result"]
    os.closerange(3, result)
    os.closerange(result + 1, 4096)
    os.umask(0o022)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no exception of the program's choice

    def say(line):
        os.write(result, f"{' '.join(line.split())}\n".encode("utf8", "replace"))

    limits.die_with_parent()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    task["uids"] = _own_uids()
    try:
        _keep(task, say)
    except OSError as error:
        say(f"setup {error}")
        sys.exit(3)
