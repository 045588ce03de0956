"""Files that survive a kill or a full disk: JSON lines, atomic writes and figures."""

import contextlib
import io
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from etils import epath

from flm_jax.core.errors import UserError
from flm_jax.core.paths import is_remote
from flm_jax.core.reading import loads


def read_json_lines(path: Path | epath.Path, mend: bool = False) -> list[dict[str, Any]]:
    """Reads records that a program wrote line by line, without a last line that was cut off.

    Args:
      path: path of the file; a missing file has no records.
      mend: whether a torn last line is also cut off the file, so that appended lines stay separate.

    Raises:
      UserError: another damaged line.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if mend and whole != content:
        os.truncate(path, len(whole))
    found = []
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            found.append(loads(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: no JSON ({error}); remove it.") from error
    return found


def to_json(value: Any, **settings: Any) -> str:
    """Returns valid JSON: NaN and infinities, which JSON does not have, become null.

    Args:
      value: dicts, lists, tuples and JSON's own types, with the keys of `json.dumps`.
      settings: keyword arguments of `json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **settings)


def as_json(value: Any) -> Any:
    """Returns a value after a round trip through JSON: tuples are lists, and keys are text."""
    return json.loads(json.dumps(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def nulls_as_nan(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record of `to_json` with its nulls as NaN again."""
    one = lambda value: math.nan if value is None else value
    return {k: [one(x) for x in v] if isinstance(v, list) else one(v) for k, v in record.items()}


def json_lines(records: Iterable[dict[str, Any]]) -> str:
    """Returns records as the text of a JSONL file."""
    return "".join(to_json(record) + "\n" for record in records)


def append_json_line(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Appends lines to a file and returns when they are on the disk."""
    with path.open("a", encoding="utf8") as file:
        file.write(json_lines(records))
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path | epath.Path, content: str | bytes) -> None:
    """Writes a file atomically: after a kill there is the old file or none.

    The content is first written under an unused name, so that no link waiting there is followed.
    """
    data = content.encode("utf8") if isinstance(content, str) else content
    with replacing(path) as temporary, open_new(temporary) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path | epath.Path) -> Iterator[Path | epath.Path]:
    """Yields an unused name beside a path; what is written there replaces the path at the end."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def open_new(path: Path | epath.Path) -> IO[bytes]:
    """Opens a file for writing that must not exist yet, not as a link either.

    Object stores, which have no links, replace what is there.
    """
    if is_remote(path):
        return path.open("wb")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def write_output(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file that a user named, as UTF-8 and atomically, and creates its folder.

    Raises:
      UserError: the storage refuses.
    """
    file = epath.Path(os.path.expanduser(path))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    except OSError as error:
        raise UserError(
            f"{file} could not be written ({error}); expected storage with room: mend that and run "
            "the same command again."
        ) from error


def save_figure(figure, path: epath.Path) -> None:
    from matplotlib import pyplot

    write_figure(figure, path)
    pyplot.close(figure)


def write_figure(figure, path: epath.Path) -> None:
    """Writes a figure as PNG, and creates the folder of the file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_output(path, buffer.getvalue())


class StepLines:
    """File of JSON lines, one record a step; records after `start_step` and torn ones are dropped.

    A resumed run repeats the steps after its checkpoint, whose old lines would appear twice.
    """

    def __init__(self, path: epath.Path, start_step: int):
        self._path = path
        self._remote = is_remote(path)
        with named_errors(path.parent):
            self._text = self._kept(start_step) if path.exists() else ""

    def has(self, step: int, prefix: str) -> bool:
        """Whether the records of `step` at the start had a key with this prefix."""
        found = [json.loads(line) for line in self._text.splitlines()]
        return any(key.startswith(prefix) for r in found if r["step"] == step for key in r)

    def _kept(self, step: int) -> str:
        """Content of the file without lines after `step` and without torn ones."""
        lines = self._path.read_text().splitlines()
        kept = [line for line in lines if (found := _step_of(line)) is not None and found <= step]
        text = "".join(f"{line}\n" for line in kept)
        if len(kept) < len(lines):
            write_whole(self._path, text)
        return text

    def append(self, record: dict[str, Any]) -> None:
        """Appends one record, which has a "step".

        Raises:
          UserError: the disk is full or not writable.
        """
        line = json_lines([record])
        with named_errors(self._path.parent):
            if not self._remote:
                with self._path.open("a") as file:
                    file.write(line)
                return
            self._text += line  # object stores cannot append
            self._path.write_text(self._text)


@contextlib.contextmanager
def named_errors(folder: epath.Path) -> Iterator[None]:
    """Turns errors of a full or broken disk into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"metrics could not be written to {folder} ({error}); checkpoints are intact: make "
            "room or mend the storage, then run the same command to continue."
        ) from error


def _step_of(line: str) -> int | None:
    """Step of a record; None for the torn last line of a killed process, or no record."""
    try:
        step = loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return None
    return step if type(step) is int else None
