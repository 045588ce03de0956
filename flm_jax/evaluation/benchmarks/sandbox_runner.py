"""Runs one program under limits; started by `sandbox` as a process of its own.

Standard library alone, since it runs as `python -I -B sandbox_runner.py`. Its standard input is a
JSON object, see `sandbox`. Three processes, each the parent of the next: the keeper, which
watches the time; with namespaces the first process of a new process namespace, whose end ends all
others in it; and the program, without privileges. Each line of the result begins with a secret.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
import types

_NEW_MOUNTS, _NEW_NAMES, _NEW_IPC = 0x00020000, 0x04000000, 0x08000000
_NEW_USERS, _NEW_PIDS, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXECUTION, _REMOUNT = 1, 2, 4, 8, 32
_NO_TIMES, _BIND, _DEEP, _PRIVATE, _RELATIVE_TIMES = 1024 | 2048, 4096, 16384, 1 << 18, 1 << 21
_PR_DEATH_SIGNAL, _PR_NO_NEW_PRIVILEGES, _PR_SUBREAPER = 1, 38, 36
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(name, *args):
    if getattr(_LIBC, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _mount(source, target, kind, flags, data=None):
    words = [None if x is None else os.fsencode(x) for x in (source, target, kind)]
    _checked("mount", *words, ctypes.c_ulong(flags), None if data is None else data.encode())


def _die_with_parent():
    _checked("prctl", _PR_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def _unshare():
    """New namespaces of everything; of users as well where this is not root, or not a free one."""
    flags = _NEW_MOUNTS | _NEW_NAMES | _NEW_IPC | _NEW_PIDS | _NEW_NETWORK
    uid, gid = os.getuid(), os.getgid()
    if uid == 0 and _LIBC.unshare(flags) == 0:
        return
    _checked("unshare", flags | _NEW_USERS)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _show(source, root):
    """Makes a file or folder visible under another root, read-only."""
    target = root + source
    if os.path.islink(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    _mount(source, target, None, _BIND | _DEEP)
    if source not in _DEVICES:
        had = os.statvfs(target).f_flag  # what a mount forbids already must stay forbidden
        kept = had & (_NO_EXECUTION | _NO_TIMES) | (_RELATIVE_TIMES if had & os.ST_RELATIME else 0)
        _mount(None, target, None, _BIND | _REMOUNT | _READ_ONLY | _NO_SUID | _NO_DEVICES | kept)


def _new_root(task, uid):
    """A root of its own in memory: the interpreter, the system's libraries and an empty folder."""
    root = task["folder"]
    _mount(None, "/", None, _PRIVATE | _DEEP)
    size = f"size={4 * task['file_bytes']},nr_inodes=4096,mode=755"
    _mount("tmpfs", root, "tmpfs", _NO_SUID | _NO_DEVICES, size)
    shown = []
    for path in (*_SYSTEM, sys.base_prefix, sys.prefix, *_DEVICES):
        inside = any(path == other or path.startswith(other + "/") for other in shown)
        if os.path.exists(path) and not inside:
            _show(path, root)
            shown.append(path)
    with contextlib.suppress(OSError):  # shared memory is under no other limit
        for name in ("shmall", "shmmax", "msgmnb"):
            with open(f"/proc/sys/kernel/{name}", "w") as file:
                file.write("0")
    for name, mode in (("tmp", 0o1777), ("work", 0o700)):
        os.makedirs(f"{root}/{name}", exist_ok=True)
        os.chmod(f"{root}/{name}", mode)
    if uid is not None:
        os.chown(f"{root}/work", uid, uid)
    os.chroot(root)
    return "/work"


def _own_uid():
    """A user id that no other process has, where this one may choose; else None."""
    if os.getuid() != 0:
        return None
    with open("/proc/self/uid_map") as file:
        ranges = [[int(x) for x in line.split()] for line in file]
    count = min(next((n for first, _, n in ranges if first == 0), 1), 1 << 31)
    return count - 2 - os.getpid() % min(10_000, count // 4) if count >= 1000 else None


def _limit(task):
    seconds = int(task["seconds"]) + 2
    most = {
        "AS": task["memory_bytes"],
        "CPU": seconds,
        "FSIZE": task["file_bytes"],
        "NOFILE": 64,
        "NPROC": task["processes"],
        "CORE": 0,
        "MSGQUEUE": 0,
        "MEMLOCK": 0,
    }
    for name, value in most.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _drop(uid):
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _checked("capset", header, none)
    _checked("prctl", _PR_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _die_with_parent()


_SPAWNS = (
    "os.fork",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "os.kill",
    "pty.",
    "subprocess.",
)
_REFUSED = (*_SPAWNS, "socket.", "ctypes.", "signal.pthread_kill", "syslog.")
_CHANGES = ("remove", "rename", "rmdir", "mkdir", "chmod", "chown", "link", "symlink", "truncate")
_FILES = {f"os.{name}" for name in (*_CHANGES, "utime", "setxattr", "removexattr", "chflags")}


def _guard(folder):
    """Refuses sockets, processes and files outside, where no namespace does; see PEP 578."""
    readable = (*_SYSTEM, *_DEVICES, sys.base_prefix, sys.prefix, folder)
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    real, fsdecode = os.path.realpath, os.fsdecode

    def within(path, places):
        path = real(fsdecode(path))
        return any(path == place or path.startswith(place + "/") for place in places)

    def hook(event, args):
        if event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not allowed here")
        paths = ()
        if event == "open" and isinstance(args[0], (str, bytes)):
            writing = args[2] & writes if isinstance(args[2], int) else True
            paths, places = args[:1], (folder, "/dev/null") if writing else readable
        elif event in ("os.listdir", "os.scandir") and isinstance(args[0], (str, bytes)):
            paths, places = args[:1], readable
        elif event in _FILES:
            paths, places = [x for x in args if isinstance(x, (str, bytes, os.PathLike))], (folder,)
            if any(isinstance(x, int) and x > 2 for x in args[2 if event == "os.chmod" else 1 :]):
                places = ()  # relative to an open folder, or of an open file
        if not all(within(path, places) for path in paths):
            raise PermissionError(f"{event} is not allowed outside the working folder")

    sys.addaudithook(hook)


def _program(task, folder, uid, say):
    """The program itself; never returns."""
    os.setsid()
    os.chdir(folder)
    _drop(uid)
    _limit(task)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.environ.clear()
    own = {"HOME": folder, "TMPDIR": folder, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    os.environ.update(own | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    module = types.ModuleType("program")
    sys.modules["program"], sys.argv = module, ["program.py"]
    code = task.pop("program")
    if task["isolation"] == "guard":
        _guard(folder)
    verdict = "passed"
    try:
        exec(compile(code, "program.py", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        verdict = "failed"
        with contextlib.suppress(BaseException):
            verdict = f"failed {type(error).__name__}: {str(error)[:500]}"
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    say(verdict)
    os._exit(0)


def _first(task, uid, say):
    """The first process of the namespaces, or None's place without them: starts the program."""
    os.setsid()
    _die_with_parent()
    folder = _new_root(task, uid)
    child = os.fork()
    if child == 0:
        _program(task, folder, uid, say)
    while True:
        pid, status = os.wait()
        if pid == child:
            say(f"ended {os.waitstatus_to_exitcode(status)}")
            os._exit(0)


def _sweep(uid):
    """Ends what a program without a namespace left behind."""
    if uid is not None and (pid := os.fork()) == 0:
        os.setresuid(uid, uid, uid)
        with contextlib.suppress(OSError):
            os.kill(-1, signal.SIGKILL)
        os._exit(0)
    for _ in range(1000):
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        if not children:
            return
        for pid in children:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)


def _keep(task, uid, say):
    """Starts the program, directly or in namespaces, and ends it after its time."""
    if task["isolation"] == "namespaces":
        _unshare()
    else:
        _checked("prctl", _PR_SUBREAPER, 1, 0, 0, 0)
    signals = (signal.SIGCHLD, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    child = os.fork()
    if child == 0:
        try:
            if task["isolation"] == "namespaces":
                _first(task, uid, say)
            folder = os.path.join(task["folder"], "work")
            os.mkdir(folder, 0o700)
            if uid is not None:
                os.chown(folder, uid, uid)
            _program(task, folder, uid, say)
        except BaseException as error:
            say(f"setup {type(error).__name__}: {error}")
        finally:
            os._exit(3)
    deadline, status = time.monotonic() + task["seconds"], None
    while status is None:
        left = deadline - time.monotonic()
        got = signal.sigtimedwait(signals, max(left, 0.0))
        if got is None or got.si_signo == signal.SIGTERM:
            say("timeout" if got is None else "stopped")
            break
        pid, found = os.waitpid(child, os.WNOHANG)
        status = found if pid == child else None
    with contextlib.suppress(OSError):
        os.kill(child, signal.SIGKILL)
    if status is None:
        status = os.waitpid(child, 0)[1]
    if task["isolation"] == "guard":
        _sweep(uid)
        say(f"ended {os.waitstatus_to_exitcode(status)}")


def main():
    task = json.loads(sys.stdin.buffer.read())
    result, secret = task["result"], task.pop("secret")
    os.closerange(3, result)
    os.closerange(result + 1, 4096)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.umask(0o022)

    def say(line):
        os.write(result, f"{secret} {' '.join(line.split())}\n".encode("utf8", "replace"))

    _die_with_parent()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    try:
        _keep(task, _own_uid(), say)
    except OSError as error:
        say(f"setup {error}")
        sys.exit(3)


if __name__ == "__main__":
    main()
