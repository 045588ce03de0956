"""Reads lines of texts compressed by Zstandard (extra `data`)."""

import io
from collections.abc import Iterable, Iterator
from typing import IO

from flm_jax.core.extras import import_extra
from flm_jax.data.text import LONGEST_LINE

# Bytes that become at most 128 MiB: four of them may stand for 128 KiB.
_PACKED_AT_ONCE = 1 << 12


class DamagedError(Exception):
    """The input is not compressed by Zstandard, or is truncated."""


def unpacked_lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Yields lines with their LF, of at most `LONGEST_LINE` bytes; `name` is for messages.

    Raises:
      DamagedError: the input is not Zstandard, or is truncated.
      UserError: the package `zstandard` is not installed.
    """
    begun: list[bytes] = []
    length = 0  # of what is begun
    for chunk in _chunks(stream, name):
        for line in io.BytesIO(chunk):  # one by one: a few bytes may stand for millions of them
            begun.append(line)
            length += len(line)
            if length > LONGEST_LINE:
                raise DamagedError(f"a line has more than {LONGEST_LINE} bytes")
            if line.endswith(b"\n"):
                yield b"".join(begun)
                begun, length = [], 0
    if last := b"".join(begun):
        yield last


def _chunks(stream: IO[bytes], name: str) -> Iterable[bytes]:
    """Content of the frames; files compressed in parallel have several."""
    zstandard = import_extra("zstandard", "data", name)
    frame = None
    while data := stream.read(_PACKED_AT_ONCE):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(data)
            except zstandard.ZstdError as error:
                raise DamagedError(str(error)) from error
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise DamagedError("it ends before what is packed in it does")
