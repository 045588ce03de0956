"""Restrictions of a process that runs a model's program; loaded by `sandbox_runner`.

It uses the standard library alone. `confine` is called once, by the process itself, and cannot be
undone:

- limits of resources, so that nothing is used up;
- no capabilities, and none for the processes that it starts;
- a filter of system calls (seccomp): what lies outside all limits (System V, memfd, keys of the
  kernel, open files on their way), what reaches other processes or makes namespaces, and sockets;
- in the isolation "guard", which has no namespaces: no new process and no signal to another one by
  the same filter, files by Landlock where the kernel has it, and audit hooks of the interpreter
  (PEP 578) for what neither sees: modes, owners, times and attributes of files.
"""

import ctypes
import os
import re
import resource
import signal
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
_DEATH_SIGNAL, _DUMPABLE, _SECCOMP, _NO_NEW_PRIVILEGES = 1, 4, 22, 38
# Of (x86-64, ARM); numbers from 424 on are the same everywhere.
_COLUMNS = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_BEYOND_LIMITS = {  # memory that no limit counts, and what the kernel keeps for a user
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "sendmsg": (46, 211),  # open files go over by it, which then count for nobody
    "sendmmsg": (307, 269),
    "sendfile": (40, 71),  # this and the next: a pipe counts 4 kB, and may hold 2 MiB
    "splice": (275, 76),
    "tee": (276, 77),
    "vmsplice": (278, 75),
    "landlock_create_ruleset": (444, 444),  # rules without end; this process has had its own
    "landlock_add_rule": (445, 445),
    "io_setup": (206, 0),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
_OTHERS = {  # what reaches into other processes, or asks more of the kernel than programs need
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_register": (427, 427),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "syslog": (103, 116),
    "socket": (41, 198),
}
_STARTS = {  # "guard" alone: no process is started, and no other one is told anything
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "timer_create": (222, 107),  # its signal might go on with what the keeper has stopped
}
_FALLOCATE = (285, 47)  # in "guard" files grow no faster than they are written
_COMMANDS = {  # what calls may not be asked for: (place of that argument, values)
    (72, 25): (1, (8, 10, 15, 1026)),  # fcntl: whom a file or folder tells what, by which signal
    (16, 29): (1, (0x8901, 0x8902)),  # ioctl: the same
    (157, 167): (0, (_DEATH_SIGNAL, _DUMPABLE)),  # prctl
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_SOCKETPAIR, _PRLIMIT, _AFFINITY = (53, 199), (302, 261), (203, 122)
_KILL, _TGKILL = (62, 129), (234, 131)
# Bits of clone's first argument; a thread with files of its own would hide them.
_NEW_NAMESPACES, _THREAD, _SAME_FILES = 0x7E020000, 0x00010000, 0x00000400
_UNIX, _STREAM, _KINDS = 1, 1, 15  # of sockets
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _REFUSE, _MISSING, _KILL_PROCESS = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
_UNSUPPORTED = 0x0005005F


def places():
    """Files and folders of the system and of the interpreter, with links resolved."""
    own = (sys.base_prefix, sys.prefix)
    return dict.fromkeys((*SYSTEM, *own, *map(os.path.realpath, own)))


def checked(name, *args, call=""):
    """Calls a function of the C library that returns 0 on success; raises OSError otherwise.

    The error names the function, or the system `call` that it is to make.
    """
    if getattr(LIBC, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call or name}: {os.strerror(code)}")


def die_with_parent():
    checked("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def hide(hidden):
    """Sets whether other processes of the same user may inspect this one."""
    checked("prctl", _DUMPABLE, int(not hidden), 0, 0, 0)


def confine(task, folder, uid, others):
    """Restricts this process permanently.

    Args:
      task: dict of the runner, with isolation and limits.
      folder: working folder, the only place where files may be changed; None for none.
      uid: user id to change to; None keeps that of this process.
      others: number of processes and threads that the kernel counts for that user besides this
        one's.
    """
    guarded = task["isolation"] == "guard"
    _drop(uid)
    _limit(task, others)
    if uid is None:
        _try_limit_of_processes()
    locked = guarded and _landlock(folder)
    _filter_calls(guarded)
    if guarded:
        _audit(folder, locked)


def counts_each_namespace():
    """Whether the kernel counts a user's processes in each namespace of users: from 5.14 on."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return bool(release) and tuple(map(int, release.groups())) >= (5, 14)


def _drop(uid):
    if uid is not None:
        # Groups first: without root's user id they can no longer be changed.
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    # Version 3 of the structure; three sets of two words, all empty.
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    checked("capset", header, none)
    # The signal at the parent's death is set again below: a fork and a change of ids clear it.
    checked("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    die_with_parent()


def _limit(task, others):
    most = {
        "AS": task["memory_bytes"],
        "CPU": int(task["seconds"]) + 2,
        "FSIZE": task["file_bytes"],
        "NOFILE": 64,
        "NPROC": task["processes"] + others,
        "CORE": 1,  # at 0 a program that the system pipes dumps to would still be started
        "MSGQUEUE": 0,
        "MEMLOCK": 0,
        "SIGPENDING": 256,  # timers too
    }
    for name, value in most.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _try_limit_of_processes():
    """OSError where the kernel does not hold the limit, as for root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
    try:
        child = os.fork()
    except BlockingIOError:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
        return
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    raise OSError("this user's processes have no limit")


def _filter_calls(guarded):
    """Refuses system calls; calls of another architecture end the process."""
    machine = os.uname().machine
    if machine not in _COLUMNS:
        raise OSError(f"no filter of system calls for {machine}; expected x86_64 or aarch64")
    column, architecture = _COLUMNS[machine]
    refused = _BEYOND_LIMITS | _OTHERS | (_STARTS if guarded else {})
    # Instructions of BPF: (operation, jump if true, jump if false, constant). Of what it reads,
    # the number of the call is at 0, the architecture at 4 and the n-th argument at 16 + 8 n.
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL_PROCESS)]
    code += [(_LOAD, 0, 0, 0)]
    if machine == "x86_64":  # the numbers of x32 would be another way to the same calls
        code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _REFUSE)]
    for numbers in refused.values():
        if numbers[column] is not None:
            code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _REFUSE)]
    # clone3 hides its flags from a filter; the C library takes clone where it is missing.
    code += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _MISSING)]
    flags = [(_ANY_BIT, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, _REFUSE)]
    for bit in (_THREAD, _SAME_FILES) if guarded else ():
        flags += [(_ANY_BIT, 1, 0, bit), (_RETURN, 0, 0, _REFUSE)]
    code += _of_argument(_CLONE[column], 0, flags)
    only = {_PRLIMIT: 0, _AFFINITY: 0}  # this process itself
    only |= {_KILL: os.getpid(), _TGKILL: os.getpid()} if guarded else {}
    for numbers, value in only.items():
        code += _of_argument(numbers[column], 0, _unless(value))
    # Connected Unix sockets: others could be sent to any address.
    kind = [(_LOAD, 0, 0, 24), (_AND, 0, 0, _KINDS), *_unless(_STREAM)]
    code += _of_argument(_SOCKETPAIR[column], 0, [*_unless(_UNIX), *kind])
    for numbers, (place, values) in _COMMANDS.items():
        each = [[(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _REFUSE)] for value in values]
        code += _of_argument(numbers[column], place, sum(each, []))
    if guarded:
        code += [(_EQUAL, 0, 1, _FALLOCATE[column]), (_RETURN, 0, 0, _UNSUPPORTED)]
    code += [(_RETURN, 0, 0, _ALLOW)]
    # Kept by a name, since the program holds its address alone.
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
    program = struct.pack("H6xQ", len(code), ctypes.addressof(packed))
    checked("prctl", _SECCOMP, 2, ctypes.create_string_buffer(program), 0, 0)


def _of_argument(number, place, rules):
    """Rules on an argument of one call, which is allowed where none of them refuses."""
    # The lower half of the argument (little-endian). Loading it overwrites the number of the call,
    # which later rules compare: the last rule here therefore always returns.
    rules = [(_LOAD, 0, 0, 16 + 8 * place), *rules, (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(rules), number), *rules]


def _unless(value):
    return [(_EQUAL, 1, 0, value), (_RETURN, 0, 0, _REFUSE)]


_RULESET, _ADD_RULE, _RESTRICT = 444, 445, 446  # calls of Landlock
_READS = 0b1101  # run, read files and folders
_OF_FILES = 0b1100000000000111  # the rights that a file has, not a folder alone
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_SHORTENING = 3  # the version from which on files are not shortened by name either


def _landlock_version():
    """Version of Landlock that the kernel has; 0 for none."""
    return max(LIBC.syscall(_RULESET, None, 0, 1), 0)


def landlock_is_whole():
    """Whether this kernel's Landlock keeps files from all changes."""
    return _landlock_version() >= _SHORTENING


def _landlock(folder):
    """Files by Landlock: the interpreter's to read, the folder's to change.

    Returns:
      Whether it keeps them from all changes; older ones do a part.
    """
    version = _landlock_version()
    if not version:
        return False
    rights = max(bits for least, bits in _RIGHTS.items() if version >= least)
    network, scopes = 0b11 * (version >= 4), 0b11 * (version >= 6)
    # Older versions take the longer structure, if what they do not know is 0.
    rules = LIBC.syscall(_RULESET, struct.pack("QQQ", rights, network, scopes), 24, 0)
    if rules < 0:
        raise OSError(ctypes.get_errno(), "Landlock gives no rules")
    found = {path: _READS for path in places()} | {path: 0b110 for path in DEVICES}
    found |= {folder: rights} if folder else {}
    for path, allowed in found.items():
        if not os.path.exists(path):
            continue
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed &= rights if os.path.isdir(path) else _OF_FILES
        # Without padding, as the kernel declares it.
        rule = struct.pack("=Qi", allowed & rights, place)
        if LIBC.syscall(_ADD_RULE, rules, 1, rule, 0) != 0:
            raise OSError(ctypes.get_errno(), f"Landlock refuses a rule of {path}")
        os.close(place)
    if LIBC.syscall(_RESTRICT, rules, 0) != 0:
        raise OSError(ctypes.get_errno(), "Landlock does not bind this process")
    os.close(rules)
    return version >= _SHORTENING


_NATIVE = "ctypes."  # calls past the interpreter, which the hooks would not see
# Events of changes: how many paths they begin with, how many descriptors of folders end them.
_UNSEEN = {  # by Landlock
    "os.chmod": (1, 1),
    "os.chown": (1, 1),
    "os.utime": (1, 1),
    "os.setxattr": (1, 0),
    "os.removexattr": (1, 0),
}
_CHANGES = {
    "os.remove": (1, 1),
    "os.rmdir": (1, 1),
    "os.mkdir": (1, 1),
    "os.truncate": (1, 0),
    "os.rename": (2, 2),
    "os.link": (2, 2),
    "os.symlink": (2, 1),
    "sqlite3.connect": (1, 0),
}
_LISTS = ("os.listdir", "os.scandir")


def _audit(folder, locked):
    """Audit hooks; where Landlock has `locked` the files they see to the rest alone."""
    own = (folder,) if folder else ()
    readable = (*places(), *DEVICES, *own)
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    # Bound before the program begins, which may replace what modules and builtins hold.
    real, decoded, followed = os.path.realpath, os.fsdecode, os.readlink
    changes = _UNSEEN if locked else _UNSEEN | _CHANGES
    whole, is_a, refusal = int, isinstance, PermissionError

    def check(event, path, allowed, at=-1):
        if is_a(path, whole):
            path = followed(f"/proc/self/fd/{path}")
        elif event == "sqlite3.connect" and path == ":memory:":
            return
        base = followed(f"/proc/self/fd/{at}") + "/" if is_a(at, whole) and at >= 0 else ""
        path = decoded(path)
        path = real(path if path.startswith("/") else base + path)
        for place in allowed:
            if path == place or path.startswith(place + "/"):
                return
        raise refusal(f"{event} is not allowed outside the working folder")

    def hook(event, args):
        if event.startswith(_NATIVE):
            raise refusal(f"{event} is not allowed here")
        if event in changes:
            paths, folders = changes[event]
            for n in (0, 1)[:paths]:
                at = args[-folders:][min(n, folders - 1)] if folders else -1
                check(event, args[n], own, at)
        elif locked:
            return
        elif event == "open" and not is_a(args[0], whole):
            writing = args[2] & writes if is_a(args[2], whole) else True
            check(event, args[0], (*own, "/dev/null") if writing else readable)
        elif event in _LISTS and args[0] is not None:
            check(event, args[0], readable)

    sys.addaudithook(hook)
