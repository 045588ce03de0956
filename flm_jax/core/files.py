"""Files that survive a kill or a full disk: JSON lines, whole-file writes, figures."""

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
    """Records that a program wrote line by line; a last line that was cut off does not count.

    Args:
      path: the file; one that is missing has no records.
      mend: whether a torn last line is also cut off, so that what is appended stands on its own.

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
    """Valid JSON: NaN and infinities, which JSON does not have, become null.

    Args:
      value: dicts, lists, tuples and what JSON knows; keys as of `json.dumps`.
      settings: of `json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **settings)


def as_json(value: Any) -> Any:
    """A value as JSON would give it back: tuples as lists, keys as text."""
    return json.loads(json.dumps(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def nulls_as_nan(record: dict[str, Any]) -> dict[str, Any]:
    """A record that `to_json` wrote, with the figures that were no numbers as NaN again."""
    one = lambda value: math.nan if value is None else value
    return {k: [one(x) for x in v] if isinstance(v, list) else one(v) for k, v in record.items()}


def json_lines(records: Iterable[dict[str, Any]]) -> str:
    """Records as the text of a JSONL file."""
    return "".join(to_json(record) + "\n" for record in records)


def append_json_line(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Adds lines to a file, on the disk before it returns."""
    with path.open("a", encoding="utf8") as file:
        file.write(json_lines(records))
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path | epath.Path, content: str | bytes) -> None:
    """Writes a file that is there whole or not at all: a kill leaves the old one, or none.

    It is first written under a name that nothing has: a link that waits there is not followed.
    """
    data = content.encode("utf8") if isinstance(content, str) else content
    with replacing(path) as temporary, open_new(temporary) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path | epath.Path) -> Iterator[Path | epath.Path]:
    """A name that nothing has beside a path, whose place what is written there takes at the end."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def open_new(path: Path | epath.Path) -> IO[bytes]:
    """A file that must not be there yet, not as a link either, open to be written.

    Object stores, which have no links, replace what is there.
    """
    if is_remote(path):
        return path.open("wb")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def write_output(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file that a user named, as UTF-8, whole or not at all; its folder is made.

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
    """Writes a figure as PNG; the folder of the file is made."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_output(path, buffer.getvalue())


class StepLines:
    """A file of JSON lines, records of steps; those past `start_step`, and torn ones, are dropped.

    A resumed run repeats the steps after its checkpoint: their old lines would stand twice.
    """

    def __init__(self, path: epath.Path, start_step: int):
        self._path = path
        self._remote = is_remote(path)
        with named_errors(path.parent):
            self._text = self._kept(start_step) if path.exists() else ""

    def has(self, step: int, prefix: str) -> bool:
        """Whether a record of `step` that was there at the start has a key that begins so."""
        found = [json.loads(line) for line in self._text.splitlines()]
        return any(key.startswith(prefix) for r in found if r["step"] == step for key in r)

    def _kept(self, step: int) -> str:
        """The file as it is once lines after `step`, and torn ones, are dropped."""
        lines = self._path.read_text().splitlines()
        kept = [line for line in lines if (found := _step_of(line)) is not None and found <= step]
        text = "".join(f"{line}\n" for line in kept)
        if len(kept) < len(lines):
            write_whole(self._path, text)
        return text

    def append(self, record: dict[str, Any]) -> None:
        """Adds one record, which has a "step".

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
    """Tells a full or broken disk in one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"metrics could not be written to {folder} ({error}); checkpoints are intact: make "
            "room or mend the storage, then run the same command to continue."
        ) from error


def _step_of(line: str) -> int | None:
    """The step of a record; None for the torn last line of a killed process, or no record."""
    try:
        step = loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return None
    return step if type(step) is int else None
