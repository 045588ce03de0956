"""Encodes parts of a text as within it, around gaps that are still to be generated."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# What stands for the unknown text: a sign that no word has, then some that split words.
_STAND_INS = ("\ufdd1", "x", "q", "0", "~")


def encoded_in_context(backend: Any, parts: Sequence[str]) -> list[np.ndarray] | None:
    """Ids of each part, int32, encoded with a stand-in for the unknown text between them.

    A part after a gap thus does not begin a text: a tokenizer that puts a space before a text puts
    none there, and one that marks continued words marks it.

    Args:
      backend: tokenizer of the package `tokenizers`, with exact offsets of tokens.
      parts: parts of one text.

    Returns:
      The ids; None if tokens would extend over the ends of parts with every stand-in.
    """
    for stand_in in _STAND_INS:
        text, spans = parts[0], [(0, len(parts[0]))]
        for part in parts[1:]:
            start = len(text) + len(stand_in)
            text += stand_in + part
            spans.append((start, start + len(part)))
        found = backend.encode(text, add_special_tokens=False)
        cut = _cut(found, spans)
        if cut is not None:
            return cut
    return None


def _cut(found: Any, spans: Sequence[tuple[int, int]]) -> list[np.ndarray] | None:
    """Splits tokens by the span that contains them; None if one crosses a span's end."""
    ids: list[list[int]] = [[] for _ in spans]
    for number, (start, stop) in zip(found.ids, found.offsets):
        for own, (first, last) in zip(ids, spans):
            if first <= start and stop <= last and start < last:
                own.append(number)
            elif start < last and stop > first:
                return None
    return [np.array(own, np.int32) for own in ids]
