"""What a guarded program uses of files and threads, as its keeper sees it from time to time.

Loaded by `sandbox_runner`; standard library alone. Namespaces need none of it: the file system and
the kernel hold the limits there.
"""

import contextlib
import os
import signal
import stat
import time

FILES = 4096  # files and folders of a program at a time
SECONDS = 0.05  # between two looks
_LONGEST_PATH = 1024  # of a program's folders; the system refuses to look at 4096
_STOPPED = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG  # or at its end


def excess(task, program):
    """What a guarded program has too much of; None where it keeps what namespaces would hold."""
    most = task["file_bytes"]
    with _standing_still(program):
        size, count = _used(os.path.join(os.path.realpath(task["folder"]), "work"), program, most)
    if size > 4 * most or count > FILES:
        return "files"
    return "threads" if _threads(program) > task["processes"] else None


def _used(folder, process, most):
    """Bytes and files of a folder, with those that a process holds though they are removed.

    Of files that are mapped alone the size is not known: each counts as `most` bytes. A folder that
    cannot be looked at has more files than any may have.
    """
    size, count, held, places = 0, 0, set(), [folder]
    while places and count <= FILES:
        place = places.pop()
        if len(place) > len(folder) + _LONGEST_PATH:
            return size, FILES + 1
        try:
            found = list(os.scandir(place))
            count += len(found)
            for entry in found:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    size += 512 * entry.stat(follow_symlinks=False).st_blocks
                    if entry.is_dir(follow_symlinks=False):
                        places.append(entry.path)
        except PermissionError:  # to list it, or to ask for what it lists
            return size, FILES + 1
        except OSError:
            continue  # it is gone by now
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{process}/fd"):
            found = os.stat(f"/proc/{process}/fd/{number}")
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 0 and found.st_ino not in held:
                held.add(found.st_ino)
                size += 512 * found.st_blocks
    return size + most * len(_mapped(folder, process) - held), count


def _mapped(folder, process):
    """Numbers (inodes) of removed files of a folder that a process has in its memory."""
    with (
        contextlib.suppress(OSError),
        open(f"/proc/{process}/maps", errors="replace") as lines,
    ):
        return {
            int(line.split(None, 5)[4])
            for line in lines
            if f" {folder}/" in line and line.endswith(" (deleted)\n")
        }
    return set()


def _threads(process):
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{process}/task"))
    return 0


@contextlib.contextmanager
def _standing_still(process):
    """Stops a process while it is looked at: a folder that moves would not be seen."""
    try:
        still = os.waitid(os.P_PID, process, _STOPPED)  # by itself
    except ChildProcessError:
        still = True  # it was waited for: its number may be another's
    if still:
        yield
        return
    os.kill(process, signal.SIGSTOP)
    deadline = time.monotonic() + SECONDS  # a thread that waits for the disk stops later
    try:
        while time.monotonic() < deadline and not os.waitid(os.P_PID, process, _STOPPED):
            time.sleep(1e-4)
        yield
    finally:
        os.kill(process, signal.SIGCONT)
