"""Texts of parquet files (extra `data`), read some rows at a time."""

from collections.abc import Iterator
from typing import Any

from etils import epath

from flm_jax.core.errors import UserError, one_of, require
from flm_jax.core.extras import import_extra
from flm_jax.core.paths import expanded

_ROWS_AT_ONCE = 1024


def texts(path: epath.Path, key: str) -> Iterator[tuple[str, str]]:
    """(place, text) of every row of a file.

    Args:
      path: of the file.
      key: of the column that holds the texts.

    Raises:
      UserError: no parquet file, no such column, or one that holds other things than texts.
    """
    arrow, parquet = (
        import_extra(name, "data", "source 'parquet'") for name in ("pyarrow", "pyarrow.parquet")
    )
    number = 0
    try:
        with path.open("rb") as stream:
            file = parquet.ParquetFile(stream)
            _check_column(path, key, file.schema_arrow, arrow.types)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[key]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    where = f"{path} row {number}"
                    require(text is not None, f"{where}: {key!r} holds null; expected a string")
                    yield where, text
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} cannot be read ({reason}); expected a whole parquet file"
        ) from error


def records(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of every row of a file.

    Raises:
      UserError: no parquet file.
    """
    arrow, parquet = (
        import_extra(name, "data", f"{path}") for name in ("pyarrow", "pyarrow.parquet")
    )
    number, file = 0, epath.Path(expanded(path))
    require(file.is_file(), f"no file {path}; expected a parquet file.")
    try:
        with file.open("rb") as stream:
            for batch in parquet.ParquetFile(stream).iter_batches(_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} cannot be read ({reason}); expected a whole parquet file"
        ) from error


def rows(path: epath.Path) -> int:
    """Rows of a file, by its footer alone.

    Raises:
      UserError: no parquet file.
    """
    arrow, parquet = (
        import_extra(name, "data", "source 'hf'") for name in ("pyarrow", "pyarrow.parquet")
    )
    try:
        with path.open("rb") as stream:
            return parquet.ParquetFile(stream).metadata.num_rows
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
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
