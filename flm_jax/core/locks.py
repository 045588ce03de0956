"""Locks of folders: one writer at a time, by a lock that the system drops when its holder ends."""

import contextlib
import errno
import fcntl
import functools
import inspect
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from flm_jax.core.errors import UserError
from flm_jax.core.paths import check_folder, expanded, is_remote

Function = TypeVar("Function", bound=Callable[..., Any])
_NAME = ".flm_jax{}.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
# By this process, to which the system would give them again, and which loses one when it closes
# the same file a second time; a thread takes a place here before it opens the file.
_held: set[str] = set()
_places = threading.Lock()


def alone_in(
    argument: str, doing: str, first: Callable[[], bool] = lambda: True
) -> Callable[[Function], Function]:
    """Returns a decorator of functions that hold the lock of the folder they write to.

    Args:
      argument: name of the argument that is the folder, and of its flag.
      doing: activity of the function, for the messages of others: "training".
      first: function that says whether this process of a run holds the lock.
    """

    def decorated(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def held(*args: Any, **named: Any) -> Any:
            folder = expanded(str(signature.bind(*args, **named).arguments[argument]))
            if not first():
                return function(*args, **named)
            check_folder(folder, f"--{argument}")
            with alone(folder, doing):
                return function(*args, **named)

        return held  # type: ignore[return-value]

    return decorated


@contextlib.contextmanager
def alone(
    folder: str | os.PathLike[str], doing: str, part: str = "", shared: bool = False
) -> Iterator[None]:
    """Holds the lock of a folder; creates the folder, and removes it again if it stays empty.

    Object stores and some network file systems have no locks; there the folder is not locked.

    Args:
      folder: path of the folder, without `~`.
      doing: activity, for the messages of others.
      part: part of the folder, where several processes write parts of it.
      shared: whether others may hold the lock as well, if they share it too.

    Raises:
      UserError: another process holds the lock, or shares it; the message has its number and host.
    """
    if is_remote(folder):
        yield
        return
    made = _made(os.path.realpath(folder))
    path = os.path.join(os.path.realpath(folder), _NAME.format(part))
    try:
        with _place(path, folder):
            file = _taken(path, folder, doing, shared)
            try:
                yield
            finally:
                if not shared:
                    with contextlib.suppress(OSError):  # someone removed it
                        os.unlink(path)  # before it is given up: see `_taken`
                os.close(file)
    finally:
        for place in made:
            with contextlib.suppress(OSError):  # what was written stays
                os.rmdir(place)


@contextlib.contextmanager
def _place(path: str, folder: object) -> Iterator[None]:
    """Keeps other threads of this process from a lock."""
    # A lock of lockf belongs to the process: its threads do not exclude each other by it, and it
    # is gone as soon as one of them closes the file.
    with _places:
        if path in _held:
            raise _in_use(folder, "this process")
        _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)


def _made(folder: str) -> list[str]:
    """Creates a folder; returns the folders that were missing, innermost first."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for place in reversed(missing):
        os.makedirs(place, exist_ok=True)
    return missing


def _taken(path: str, folder: object, doing: str, shared: bool) -> int:
    """Takes a lock and returns its open file."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # its holder, which ended just now, had made the folder
            os.makedirs(os.path.dirname(path), exist_ok=True)
            continue
        except OSError as error:
            raise UserError(f"{path} cannot be opened ({error.strerror}); remove it.") from error
        try:
            fcntl.lockf(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                holder = _said(file)
                os.close(file)
                raise _in_use(folder, holder or "another process") from error
            print(f"WARNING: {folder} cannot be locked ({error}).", file=sys.stderr, flush=True)
        found = os.fstat(file)
        if found.st_nlink > 1 or not stat.S_ISREG(found.st_mode):
            os.close(file)  # what is written there would be written to another file as well
            raise UserError(f"{path} is a link or no plain file; remove it.")
        if found.st_nlink:
            break
        os.close(file)  # the holder before removed it: another file may stand there by now
    who = f"process {os.getpid()} on {socket.gethostname()}"
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError):  # of a full disk: it is held without its name
        os.ftruncate(file, 0)
        os.pwrite(file, f"{who}, {doing} since {since}\n".encode(), 0)
    return file


def _said(file: int) -> str:
    """Content that the holder of a lock wrote about itself; "" if that is no plain file."""
    with contextlib.suppress(OSError):
        return os.pread(file, 300, 0).decode("utf8", "replace").strip()
    return ""


def _in_use(folder: object, holder: str) -> UserError:
    return UserError(
        f"{folder} is in use by {holder}; expected one writer at a time: wait for it or end it, or "
        "give another folder."
    )
