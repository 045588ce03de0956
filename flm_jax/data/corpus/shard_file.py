"""Reads a local file of numbers piece by piece."""

import os
from collections.abc import Sequence

import numpy as np

from flm_jax.core.errors import UserError


class ShardFile:
    """Numbers in a local file, read on demand: `file[3]`, `file[3:7]`.

    The file is not memory-mapped: under a mapping, a file that is cut short or a disk that fails
    kills the process without a message. It is opened for each read (about 4 microseconds), since a
    corpus may have more files than a process may hold open.
    """

    def __init__(self, path: os.PathLike, dtype: np.dtype, length: int):
        self._path = os.fspath(path)
        self._dtype = dtype
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int | slice) -> np.ndarray:
        """Returns the number at an index, or the numbers of a slice (no step).

        Raises:
          UserError: the file is missing, cut short or unreadable.
        """
        if not isinstance(place, slice):
            return self[place : place + 1][0]
        start, stop, _ = place.indices(self._length)
        return self.pieces([start], max(stop - start, 0))[0]

    def pieces(self, starts: Sequence[int], length: int) -> np.ndarray:
        """Returns `length` numbers from each start, [len(starts), length]; opens the file once.

        Raises:
          UserError: the file is missing, cut short or unreadable.
        """
        size, width = length * self._dtype.itemsize, self._dtype.itemsize
        offset = 0
        try:
            file = os.open(self._path, os.O_RDONLY)
            try:
                found = []
                for start in starts:
                    offset = int(start) * width
                    found.append(os.pread(file, size, offset))
                    if len(found[-1]) != size:
                        raise OSError("it ends before that")
            finally:
                os.close(file)
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be read any more ({error}); expected {size} bytes at "
                f"{offset}: put the file back as it was, then run the same command to continue."
            ) from error
        return np.frombuffer(b"".join(found), self._dtype).reshape(len(found), length)
