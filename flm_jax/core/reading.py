"""Reads files and texts of unknown origin: complete up to a bound, or refused in one line."""

import contextlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from flm_jax.core.errors import UserError, is_panic, require
from flm_jax.core.paths import is_remote

MOST_BYTES = 256 << 20  # of a file that is read whole
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # of a pair that says one character, as JSON may
_HALVES = re.compile("[\ud800-\udfff]")  # without its other half, which Python would have joined
_OF_THE_KERNEL = ("/proc/", "/sys/")  # whose files look plain, and may never end
MOST_UNPACKED = 4 << 30  # of arrays that such a file holds


def require_plain(path: epath.PathLike, expected: str) -> None:
    """Refuses folders, pipes, devices and files of the kernel, which may never end.

    The arguments are as in `read_bounded`.

    Raises:
      UserError: the path is one of these, or nothing is there.
    """
    # The `is_file` of epath is true of pipes and devices.
    plain = epath.Path(path).is_file() if is_remote(path) else _is_plain(path)
    require(plain, f"{path} is no plain file; expected {expected}: restore it.")


def _is_plain(path: epath.PathLike) -> bool:
    found = os.path.isfile(path)
    return found and not os.path.realpath(path).startswith(_OF_THE_KERNEL)


def read_bounded(path: epath.PathLike, expected: str, most: int = MOST_BYTES) -> bytes:
    """Reads the content of a file up to a bound.

    Args:
      path: path of the file, which may be in an object store.
      expected: description of the expected content, for messages: "a configuration".
      most: largest accepted size in bytes.

    Raises:
      UserError: no plain file (a folder, a device, a pipe), a larger file, or one that cannot be
        read.
    """
    try:
        require_plain(path, expected)
        with epath.Path(path).open("rb") as opened:
            content = opened.read(most + 1)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error}); expected {expected}: restore it."
        ) from error
    require(
        len(content) <= most,
        f"{path} has more than {most} bytes; expected {expected}: restore it.",
    )
    return content


class NotPlainError(OSError):
    """A pipe, device, socket or link to a folder was found instead of a file or a folder."""


def check_plain(folder: epath.PathLike) -> None:
    """Refuses pipes, devices and sockets below a local folder, since reading them may never end.

    Links to folders are refused too, since their content is not checked; `folder` itself may be a
    link.

    Raises:
      NotPlainError: there is one of these.
    """
    for place, folders, files in [] if is_remote(folder) else os.walk(folder):
        strange = [name for name in files if not _is_plain(os.path.join(place, name))]
        strange += [name for name in folders if os.path.islink(os.path.join(place, name))]
        if strange:
            raise NotPlainError(f"{os.path.join(place, strange[0])} is no plain file")


def loads(text: str | bytes) -> Any:
    """Parses JSON like `json.loads`, but raises ValueError for every bad text."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deeply") from error


def parse_object(content: str | bytes, where: object, expected: str) -> dict[str, Any]:
    """Parses a JSON object.

    Args:
      content: text, or bytes in UTF-8.
      where: place of the text, for messages: a path, or a path and a line.
      expected: description of the expected object: "a configuration".

    Raises:
      UserError: the content is no JSON, or no object.
    """
    try:
        found = loads(content)
    except ValueError as error:
        raise UserError(
            f"{where} is no JSON ({error}); expected {expected}: restore it."
        ) from error
    require(
        isinstance(found, dict),
        f"{where} holds a JSON {type(found).__name__}; expected {expected}, an object: restore it.",
    )
    half = _HALF.search(content if isinstance(content, bytes) else content.encode())
    require(
        not (half and _HALVES.search("".join(_texts(found)))),
        f"{where} holds half of a character, such as \\ud800, which no file can hold; expected "
        f"{expected}: restore it.",
    )
    return found


def _texts(value: Any) -> Iterator[str]:
    """Yields all texts of a JSON value, including keys, with separators between them."""
    for item in (*value, *value.values()) if isinstance(value, dict) else value:
        if isinstance(item, str):
            yield f"{item} "
        elif isinstance(item, (dict, list)):
            yield from _texts(item)


def read_object(path: epath.PathLike, expected: str, most: int = MOST_BYTES) -> dict[str, Any]:
    """Reads a JSON object from a file; arguments and errors as in the two functions above."""
    return parse_object(read_bounded(path, expected, most), path, expected)


def read_arrays(
    path: epath.PathLike, expected: str, mend: str = "restore it"
) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file; arguments are as in `read_bounded`.

    Raises:
      UserError: a file of another format, or one larger than `MOST_UNPACKED` when unpacked.
    """
    content = io.BytesIO(read_bounded(path, expected))
    with named_damage(path, mend):
        with zipfile.ZipFile(content) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
        require(
            size <= MOST_UNPACKED,
            f"{path} holds {size} bytes unpacked; expected {expected}, of at most {MOST_UNPACKED}.",
        )
        with np.load(content) as arrays:
            return dict(arrays)


@contextlib.contextmanager
def named_damage(what: object, mend: str = "restore it") -> Iterator[None]:
    """Turns any error that damaged content causes in libraries and code into one line.

    Args:
      what: label of the content: "tokenizer a/b".
      mend: advice for the user.

    Raises:
      UserError: replaces any other exception; a UserError passes unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{what} is damaged ({reason}); {mend}.") from error
