"""Paths that users name: expands `~`, and refuses what cannot be written before any work."""

import os
import tempfile
from pathlib import Path

from flm_jax.core.errors import UserError, require

_HF = "hf:"  # before a name of the hub, or before a folder


def expanded(path: str) -> str:
    """Replaces `~` and `~user` in a path by the home folder, also after "hf:"."""
    if path.startswith(f"{_HF}~"):
        return _HF + os.path.expanduser(path.removeprefix(_HF))
    return os.path.expanduser(path)


def hub_name(name: str) -> tuple[str, str | None]:
    """Splits OWNER/NAME@REVISION (branch, tag or commit); without a revision it is None."""
    name, _, revision = name.partition("@")
    return name, revision or None


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in an object store, whose folders need not be created."""
    return "://" in str(path)


def check_file(path: str, name: str) -> None:
    """Refuses the path of a file that could not be written later; nothing is created yet.

    Args:
      path: path of the file, without `~`; "" and paths of object stores pass.
      name: name of the flag or argument, for the message.

    Raises:
      UserError: there is a folder of this name, or the file's folder cannot be created or written
        to.
    """
    if path and not is_remote(path):
        _check(Path(path), f"{name}={path}", "a file", Path.is_dir)


def check_folder(path: str | os.PathLike[str], name: str) -> None:
    """Refuses the path of a folder that could not be created or written to; nothing is created yet.

    Args:
      path: path of the folder, without `~`; "" and paths of object stores pass.
      name: name of the flag or argument, for the message.

    Raises:
      UserError: there is a file at or above the path, or the storage refuses.
    """
    if str(path) and not is_remote(path):
        _check(Path(path), f"{name}={path}", "a folder", lambda p: p.exists() and not p.is_dir())


def _check(path: Path, got: str, wanted: str, other) -> None:
    try:
        require(not other(path), f"got {got}, which is no {wanted[2:]}; give another path.")
        if path.exists() and not path.is_dir():
            if not os.access(path, os.W_OK):
                raise PermissionError(f"{path} is not writable")
            return
        above = next(p for p in (path, *path.absolute().parents) if p.exists())
        with tempfile.TemporaryDirectory(prefix=".flm_jax-", dir=above):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"got {got}, which cannot be written ({reason}); expected {wanted} in a folder that "
            "exists or can be made: give another path, or mend the storage."
        ) from error
