"""Files and texts that others wrote: read whole up to a bound, and refused in one line."""

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

from flm_jax.core.errors import UserError, require
from flm_jax.core.paths import is_remote

MOST_BYTES = 256 << 20  # of a file that is read whole
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # of a pair that says one character, as JSON may
_HALVES = re.compile("[\ud800-\udfff]")  # without its other half, which Python would have joined
MOST_UNPACKED = 4 << 30  # of arrays that such a file holds


def require_plain(path: epath.PathLike, expected: str) -> None:
    """Refuses folders, pipes and devices, which may give no end; arguments as of `read_bounded`.

    Raises:
      UserError: it is one, or nothing is there.
    """
    # The `is_file` of epath is true of pipes and devices.
    plain = epath.Path(path).is_file() if is_remote(path) else os.path.isfile(path)
    require(plain, f"{path} is no plain file; expected {expected}: restore it.")


def read_bounded(path: epath.PathLike, expected: str, most: int = MOST_BYTES) -> bytes:
    """The content of a file.

    Args:
      path: of the file, which may be in an object store.
      expected: what should stand there, for messages: "a configuration".
      most: bytes that it may have.

    Raises:
      UserError: no plain file (a folder, a device, a pipe), a larger one, or one that the storage
        does not give.
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
    """A pipe, a device, a socket or a link to a folder stands where a file or a folder should."""


def check_plain(folder: epath.PathLike) -> None:
    """Refuses pipes, devices and sockets below a local folder: a read may wait on them for ever.

    Links to folders are refused too, since they are not looked through; `folder` may be one.

    Raises:
      NotPlainError: there is one.
    """
    for place, folders, files in [] if is_remote(folder) else os.walk(folder):
        strange = [name for name in files if not os.path.isfile(os.path.join(place, name))]
        strange += [name for name in folders if os.path.islink(os.path.join(place, name))]
        if strange:
            raise NotPlainError(f"{os.path.join(place, strange[0])} is no plain file")


def loads(text: str | bytes) -> Any:
    """As `json.loads`, where all that is wrong with a text is a ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deeply") from error


def parse_object(content: str | bytes, where: object, expected: str) -> dict[str, Any]:
    """A JSON object.

    Args:
      content: text, or bytes in UTF-8.
      where: what is parsed, for messages: a path, or a path and a line.
      expected: what it should be: "a configuration".

    Raises:
      UserError: no JSON, or no object.
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
    """All texts of a JSON value, keys among them, each with something between it and the next."""
    for item in (*value, *value.values()) if isinstance(value, dict) else value:
        if isinstance(item, str):
            yield f"{item} "
        elif isinstance(item, (dict, list)):
            yield from _texts(item)


def read_object(path: epath.PathLike, expected: str, most: int = MOST_BYTES) -> dict[str, Any]:
    """A JSON file that holds an object; errors and arguments as of its two parts above."""
    return parse_object(read_bounded(path, expected, most), path, expected)


def read_arrays(
    path: epath.PathLike, expected: str, mend: str = "restore it"
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file; arguments as of `read_bounded`.

    Raises:
      UserError: another file, or one that would be larger than `MOST_UNPACKED` unpacked.
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
    """Tells what libraries and code make of damaged content, whatever they raise, in one line.

    Args:
      what: what is read: "tokenizer a/b".
      mend: what to do then.

    Raises:
      UserError: in the place of any other exception; those that are one pass.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{what} is damaged ({reason}); {mend}.") from error
