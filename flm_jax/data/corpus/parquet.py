"""Reads texts of parquet files (extra `data`), a few rows at a time."""

import contextlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from flm_jax.core.errors import UserError, one_of, require
from flm_jax.core.extras import import_extra
from flm_jax.core.paths import expanded
from flm_jax.data.corpus.files import Reading
from flm_jax.data.text import LONGEST_TEXT

_ROWS_AT_ONCE = 1024


def texts(path: epath.Path, key: str, reading: Reading | None = None) -> Iterator[tuple[str, str]]:
    """Yields (place, text) of every row of a file.

    Args:
      path: path of the file.
      key: name of the column with the texts.
      reading: pass over files of which this is one, whose progress is shown; None for no such pass.

    Raises:
      UserError: no parquet file, no such column, or one that holds values other than text.
    """
    arrow, parquet = _packages("source 'parquet'")
    number = 0
    with _named_damage(path, arrow), path.open("rb") as stream:
        file = parquet.ParquetFile(stream)
        _check_column(path, key, file.schema_arrow, arrow.types)
        if reading:
            size, count = path.stat().length, max(file.metadata.num_rows, 1)
            reading.opened(path, lambda: size * number // count)
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[key]):
            for item in batch.column(0):  # one by one: all may be the same long one
                number += 1
                yield (where := f"{path} row {number}"), _text(item, where, key)


def _text(item: Any, where: str, key: str) -> str:
    """Text in an Arrow scalar, which may be an entry of a dictionary."""
    item = getattr(item, "value", item)
    require(item.is_valid, f"{where}: {key!r} holds null; expected a string")
    content = memoryview(item.as_buffer())
    require(
        len(content) <= LONGEST_TEXT,
        f"{where} is a text of more than {LONGEST_TEXT} bytes; expected shorter ones",
    )
    try:
        return str(content, "utf8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is no text ({error}); expected UTF-8") from error


def records(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, row) of every row of a file.

    Raises:
      UserError: no parquet file.
    """
    arrow, parquet = _packages(path)
    number, file = 0, epath.Path(expanded(path))
    require(file.is_file(), f"no file {path}; expected a parquet file.")
    with _named_damage(path, arrow), file.open("rb") as stream:
        for batch in parquet.ParquetFile(stream).iter_batches(_ROWS_AT_ONCE):
            for place in range(batch.num_rows):
                number += 1
                (row,) = batch.slice(place, 1).to_pylist()
                yield f"{path}, row {number}", row


def rows(path: epath.Path) -> int:
    """Number of rows of a file, from its footer alone.

    Raises:
      UserError: no parquet file.
    """
    arrow, parquet = _packages("source 'hf'")
    with _named_damage(path, arrow), path.open("rb") as stream:
        return parquet.ParquetFile(stream).metadata.num_rows


def _packages(what: str) -> tuple[Any, Any]:
    return import_extra("pyarrow", "data", what), import_extra("pyarrow.parquet", "data", what)


@contextlib.contextmanager
def _named_damage(path: object, arrow: Any) -> Iterator[None]:
    """Turns pyarrow's errors about a damaged file, or too little memory, into one line."""
    try:
        yield
    except (arrow.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} cannot be read ({reason}); expected a whole parquet file"
        ) from error


def _check_column(path: epath.Path, key: str, schema: Any, types: Any) -> None:
    one_of(f"text_key of {path}", key, schema.names)
    kind = schema.field(key).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    require(
        types.is_string(kind) or types.is_large_string(kind),
        f"{path}: column {key!r} holds {kind}; expected string: name the texts with --text_key",
    )
