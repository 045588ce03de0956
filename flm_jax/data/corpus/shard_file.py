"""A local file of numbers, read piece by piece."""

import os

import numpy as np

from flm_jax.core.errors import require


class ShardFile:
    """The numbers of a local file, read when asked for: `file[3]`, `file[3:7]`.

    Not memory-mapped: under a mapping, a file that is cut short or a disk that fails kills the
    process without a word. Opened for each read (some 4 microseconds), since a corpus may have
    more files than a process may hold open.
    """

    def __init__(self, path: os.PathLike, dtype: np.dtype, length: int):
        self._path = os.fspath(path)
        self._dtype = dtype
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int | slice) -> np.ndarray:
        """Numbers at a place, or from one place to another (no step).

        Raises:
          UserError: the file is gone, cut short or unreadable.
        """
        if not isinstance(place, slice):
            return self[place : place + 1][0]
        start, stop, _ = place.indices(self._length)
        size, offset = max(stop - start, 0) * self._dtype.itemsize, start * self._dtype.itemsize
        got, problem = b"", "it ends before that"
        try:
            file = os.open(self._path, os.O_RDONLY)
            try:
                got = os.pread(file, size, offset)
            finally:
                os.close(file)
        except OSError as error:
            problem = str(error)
        require(
            len(got) == size,
            f"{self._path} cannot be read any more ({problem}); expected {size} bytes at {offset}: "
            "put the file back as it was, then run the same command to continue.",
        )
        return np.frombuffer(got, self._dtype)
