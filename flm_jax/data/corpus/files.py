"""Finds the files of a corpus below a folder, and reads them line by line."""

import contextlib
import gzip
import hashlib
import itertools
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import IO, TypeVar

from etils import epath

from flm_jax.core.errors import UserError, require
from flm_jax.core.paths import expanded
from flm_jax.core.progress import Progress, tracked
from flm_jax.core.reading import require_plain
from flm_jax.data.corpus.zstandard_lines import DamagedError, unpacked_lines
from flm_jax.data.text import LONGEST_LINE, line_feeds, split_lines, tidy

_PACKED = (".gz", ".zst")
_ARCHIVE_COPIES = "__MACOSX"
_CHUNK = 1 << 22  # bytes
_MEGABYTE = 10**6
Text = TypeVar("Text")


class Reading:
    """How far the latest pass over some files has come, in bytes as they are stored.

    Args:
      files: files in the order of a pass.
    """

    def __init__(self, files: Iterable[epath.Path]):
        sizes = {str(path): path.stat().length for path in files}
        ends = itertools.accumulate(sizes.values(), initial=0)
        self._starts = dict(zip(sizes, ends))
        self._total, self._done = sum(sizes.values()), 0
        self._start, self._tell = 0, lambda: 0

    def opened(self, path: epath.Path, tell: Callable[[], int]) -> None:
        """Records that a pass has come to a file; `tell` returns the place in it, in bytes."""
        self._start, self._tell = self._starts[str(path)], tell

    def watched(self, texts: Iterable[Text], label: str) -> Iterator[Text]:
        """Yields the texts of one pass, and shows its progress in megabytes."""
        total = self._total // _MEGABYTE
        with Progress(f"{label}, MB" if total else label, total) as bar:
            for text in texts:
                yield text
                bar.done(self._place() // _MEGABYTE)

    def _place(self) -> int:
        with contextlib.suppress(ValueError):  # that the file was closed since
            self._done = self._start + self._tell()
        return self._done


def packed(*suffixes: str) -> tuple[str, ...]:
    """Returns suffixes of file names, and the suffixes of their compressed forms."""
    return tuple(suffix + end for suffix in suffixes for end in ("", *_PACKED))


def walk(
    folder: epath.Path, suffixes: tuple[str, ...], skip: Collection[str] = ()
) -> Iterator[epath.Path]:
    """Yields files below a folder with one of the suffixes, sorted by name at each level.

    Names that begin with a dot, and __MACOSX, are left out: they hold copies that editors and
    archives make. Links are followed, and a target of several links is found once.
    """
    return _below(folder, suffixes, skip, {_real(folder)})


def _below(
    folder: epath.Path, suffixes: tuple[str, ...], skip: Collection[str], found: set[str]
) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir(), key=lambda child: child.name):
        name = path.name
        if name in skip or name.startswith(".") or name == _ARCHIVE_COPIES:
            continue
        is_folder = path.is_dir()
        if not (is_folder or name.endswith(suffixes)):
            continue
        require(path.exists(), f"{path} is a link to nothing; restore what it led to, or remove it")
        if (place := _real(path)) in found:
            continue
        found.add(place)
        if is_folder:
            yield from _below(path, suffixes, skip, found)
        else:
            yield path


def _real(path: epath.Path) -> str:
    """Target of a path; object stores have no links."""
    return os.fspath(path) if "://" in os.fspath(path) else os.path.realpath(path)


def find_files(root: str, suffixes: tuple[str, ...]) -> tuple[list[epath.Path], str, str]:
    """Finds the files to read, an identity of their names and sizes, and a digest of their content.

    The digest needs every file to be read, which takes a small fraction of the time of
    tokenisation.

    Args:
      root: path of a file, or of a folder whose files with one of the suffixes are all read.
      suffixes: suffixes of file names.

    Raises:
      UserError: nothing is there, or the folder has no such file.
    """
    path = epath.Path(expanded(root))
    require(path.exists(), f"--path={root} does not exist; expected a file or a folder")
    files = list(walk(path, suffixes)) if path.is_dir() else [path]
    require(
        bool(files),
        f"--path={root} holds no file ending in {' or '.join(suffixes)}; "
        "expected at least one, in any subfolder",
    )
    for file in files:
        require_plain(file, "a file of texts")
    listing = "\n".join(f"{path.name} {path.stat().length}" for path in files)
    digest = hashlib.sha256(listing.encode()).hexdigest()[:16]
    return files, f"{len(files)} files, names and sizes {digest}", _content(files)


def _content(files: list[epath.Path]) -> str:
    """Digest of the content of the files, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    chunks = sum(-(-path.stat().length // _CHUNK) for path in files)
    for chunk in tracked(_chunks(files), "comparing the files: parts of 4 MiB", chunks):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(files: list[epath.Path]) -> Iterator[bytes]:
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk


def lines(path: epath.Path, reading: Reading | None = None) -> Iterator[str]:
    """Yields lines of a UTF-8 file with their LF, decompressing gzip or Zstandard by its suffix.

    A byte order mark is dropped; CRLF and CR also end a line, and become LF.

    Args:
      path: path of the file.
      reading: pass over files of which this is one, whose progress is shown; None for no such pass.

    Raises:
      UserError: a file that is damaged or not text, or a line of more than `LONGEST_LINE` bytes.
    """
    first = True
    try:
        for content in _content_lines(path, reading):
            line = content.decode("utf8")
            yield from split_lines(tidy(line) if first else line_feeds(line))
            first = False
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error, DamagedError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; expected UTF-8 text, packed if the name ends in "
            f"{' or '.join(_PACKED)}"
        ) from error


def _content_lines(path: epath.Path, reading: Reading | None) -> Iterator[bytes]:
    """Lines of the content of a file, decompressed."""
    with path.open("rb") as stream:
        if reading:
            reading.opened(path, stream.tell)
        if path.name.endswith(".gz"):
            with gzip.open(stream) as unpacked:
                yield from _bounded(unpacked)
        elif path.name.endswith(".zst"):
            yield from unpacked_lines(stream, path.name)
        else:
            yield from _bounded(stream)


def _bounded(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines of a stream; no more than the limit is read from a stream without end."""
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise DamagedError(f"a line has more than {LONGEST_LINE} bytes")
        yield line
