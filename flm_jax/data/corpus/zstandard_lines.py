"""Lines of texts that Zstandard packed (extra `data`)."""

from collections.abc import Iterable, Iterator
from typing import IO

from flm_jax.core.extras import import_extra

_PACKED_AT_ONCE = 1 << 18  # bytes


class DamagedError(Exception):
    """What was read is not packed by Zstandard, or not whole."""


def unpacked_lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Lines with their LF; `name` is the file's, for messages.

    Raises:
      DamagedError: see there.
      UserError: the package `zstandard` is not installed.
    """
    begun: list[bytes] = []
    for chunk in _chunks(stream, name):
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield b"".join([*begun, line, b"\n"])
            begun = []
        begun.append(rest)
    if last := b"".join(begun):
        yield last


def _chunks(stream: IO[bytes], name: str) -> Iterable[bytes]:
    """What is in the frames: files that were packed in parallel are several."""
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
