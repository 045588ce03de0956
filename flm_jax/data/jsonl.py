"""JSON lines, or one array, with the place of each, so that a fault can name its file and line."""

import gzip
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from flm_jax.core.errors import UserError, require
from flm_jax.core.paths import expanded
from flm_jax.data.text import Mender, tidy


def read_records(path: str, expected: str) -> list[tuple[str, dict[str, Any]]]:
    """(place, object) of every line that is not blank, or of an array's items; .gz is unpacked.

    Byte order marks before a line are dropped, and CRLF and CR end a line as LF does; the texts in
    the objects are as they were written, but for lone surrogates: those are read as U+FFFD, with
    one warning.

    Args:
      path: of the file.
      expected: what the lines should be, for messages: "JSON lines of questions and answers".

    Raises:
      UserError: no such file, none that can be read as text, no line, or one that is no object.
    """
    file = epath.Path(expanded(str(path)))
    require(file.is_file(), f"no file {path}; expected {expected}.")
    try:
        content = file.read_bytes()
        text = (gzip.decompress(content) if path.endswith(".gz") else content).decode("utf8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected {expected}.") from error
    found, mender = [], Mender()
    for where, record in _items(path, tidy(text)) or _lines(path, tidy(text)):
        require(
            isinstance(record, dict),
            f"{where}: expected an object, one of {expected}, got {type(record).__name__}.",
        )
        found.append((where, mender.record(record, where)))
    require(bool(found), f"{path} has no line; expected {expected}.")
    return found


def _items(path: str, text: str) -> list[tuple[str, Any]]:
    """Items of a text that is one JSON array; none of another."""
    if not text.lstrip().startswith("["):
        return []
    try:
        items = json.loads(text)
    except ValueError:
        return []
    return [(f"{path}, item {number}", item) for number, item in enumerate(items, 1)]


def _lines(path: str, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines: JSON may hold other line ends, such as U+2028, as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(tidy(line))
        except ValueError as error:
            raise UserError(f"{where}: no JSON ({error}).") from error


def text_field(record: dict[str, Any], name: str, where: str) -> str:
    """A field that must be text and not empty."""
    value = record.get(name)
    require(
        isinstance(value, str) and bool(value),
        f"{where}: expected text under {name!r}, got {value!r}; its fields are "
        f"{', '.join(sorted(record)) or 'none'}.",
    )
    return value
