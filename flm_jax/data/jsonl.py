"""Reads JSON lines, or one array, with the place of each record, for messages about faults."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from flm_jax.core.errors import UserError, require
from flm_jax.core.paths import expanded
from flm_jax.core.reading import loads
from flm_jax.data.corpus.files import lines
from flm_jax.data.text import Mender, joined, split_lines, tidy


def read_records(path: str, expected: str) -> list[tuple[str, dict[str, Any]]]:
    """Reads (place, object) of every line that is not blank, or of an array's items; also .gz.

    Byte order marks before a line are dropped, and CRLF and CR also end a line; the texts in the
    objects are unchanged, except for lone surrogates: those are read as U+FFFD, with one warning.

    Args:
      path: path of the file.
      expected: description of the lines, for messages: "JSON lines of questions and answers".

    Raises:
      UserError: no such file, no text, no lines, or a line that is no object.
    """
    file = epath.Path(expanded(str(path)))
    require(file.is_file(), f"no file {path}; expected {expected}.")
    found, mender = [], Mender()
    for where, record in _values(file, path):
        require(
            isinstance(record, dict),
            f"{where}: expected an object, one of {expected}, got {type(record).__name__}.",
        )
        found.append((where, mender.record(record, where)))
    require(bool(found), f"{path} has no line; expected {expected}.")
    return found


def _values(file: epath.Path, path: str) -> Iterator[tuple[str, Any]]:
    """Pairs (place, value) of each item of a text that is one JSON array, else of each line."""
    numbered = enumerate(lines(file), 1)  # as in the file; blank ones count
    for number, first in numbered:
        if first.lstrip().startswith("["):
            rest = (line for _, line in numbered)
            whole = joined(itertools.chain([first], rest), path, "write an object a line")
            yield from _items(path, whole) or _lines(path, enumerate(split_lines(whole), number))
        elif first.strip():
            yield from _lines(path, itertools.chain([(number, first)], numbered))


def _items(path: str, text: str) -> list[tuple[str, Any]]:
    """Items of a text that is one JSON array; no items for other texts."""
    try:
        items = loads(text)
    except ValueError:
        return []
    return [(f"{path}, item {number}", item) for number, item in enumerate(items, 1)]


def _lines(path: str, numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[str, Any]]:
    for number, line in numbered:
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, loads(tidy(line))
        except ValueError as error:
            raise UserError(f"{where}: no JSON ({error}).") from error


def text_field(record: dict[str, Any], name: str, where: str) -> str:
    """Returns a field that must be text and not empty."""
    value = record.get(name)
    require(
        isinstance(value, str) and bool(value),
        f"{where}: expected text under {name!r}, got {value!r}; its fields are "
        f"{', '.join(sorted(record)) or 'none'}.",
    )
    return value
