"""A bounded sample of a corpus's lines, to train a tokenizer on."""

import hashlib
from collections.abc import Iterable

_WHOLE = 1 << 64


def sample_lines(lines: Iterable[str], characters: int) -> list[str]:
    """All lines, or a sample of them with about `characters` characters, in their order.

    A hash ranks the indices of the lines, so that no period of the corpus aligns with it; the
    choice depends on indices and lengths alone. At most the same number of characters again is held
    for other lines at any time.

    Args:
      lines: lines, read once.
      characters: number of characters, at least 1; the last line of the sample may exceed it.
    """
    kept: list[tuple[int, int, str]] = []  # rank, number, line
    held, limit = 0, _WHOLE
    for number, line in enumerate(lines):
        rank = _rank(number)
        if rank < limit:
            kept.append((rank, number, line))
            held += len(line)
        if held > 2 * characters:
            kept = _first(sorted(kept), characters)
            # From here on a line of higher rank cannot be in the sample.
            held, limit = sum(len(line) for *_, line in kept), kept[-1][0]
    if held > characters:
        kept = _first(sorted(kept), characters)
    return [line for *_, line in sorted(kept, key=lambda one: one[1])]


def _first(kept: list[tuple[int, int, str]], characters: int) -> list[tuple[int, int, str]]:
    """First lines, as many as reach the number of characters."""
    left = characters
    for count, (*_, line) in enumerate(kept, start=1):
        left -= len(line)
        if left <= 0:
            return kept[:count]
    return kept


def _rank(number: int) -> int:
    digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
