"""Turns pre-tokenised benchmark text back into ordinary English, as for the published models.

The rules belong to the preparation that MDLM (arXiv 2406.07524), Duo (2506.10892) and FLM
(2602.16813) share, in its order and with its gaps: `do n't`, `3 %` and `can not` stay separate in
LM1B, and a full stop after a bracket keeps its space. Better English would give other tokens, and
perplexities of different tokens are not comparable.

Each set is a list of edits that are applied in order, each to the complete text. An edit consumes
what it matches, so that of two marks that share a space the second may keep its own.
"""

import functools
import re
from collections.abc import Callable, Sequence

from flm_jax.core.errors import one_of

Edit = Callable[[str], str]


def _swap(*pairs: tuple[str, str]) -> list[Edit]:
    """Edits that replace all occurrences of a text by another."""

    def edit(old: str, new: str) -> Edit:
        return lambda text: text.replace(old, new)

    return [edit(*pair) for pair in pairs]


def _match(pattern: str, new: str) -> list[Edit]:
    """An edit that replaces the matches of a regular expression."""
    return [functools.partial(re.compile(pattern).sub, new)]


def _closed_up(marks: str) -> list[Edit]:
    """Removes the space before marks that have one on either side."""
    return _swap(*((f" {mark} ", f"{mark} ") for mark in marks))


def _closed_up_at_the_end(mark: str) -> list[Edit]:
    """Removes the space before a mark that may also end the text."""
    return [*_closed_up(mark), *_match(rf" \{mark}$", mark)]


def _brackets(left: str, right: str, inside: str, *, spaces: str) -> list[Edit]:
    """Removes the spaces inside a pair of brackets or quotes around a text `inside`."""
    return _match(f"{left}{spaces}({inside}){spaces}{right}", left[-1] + r"\1" + right[-1])


_LM1B: list[Edit] = [
    *_match("(https?) : / / ", r"\1://"),
    *_match(r" '(?=\w)", "'"),
    # A word, then a full stop: not a bracket or a sign.
    *_match(r" (\w+) \. ", r" \1. "),
    *_match(r" (\w+) \.$", r" \1."),
    *_closed_up_at_the_end("?"),
    *_closed_up_at_the_end("!"),
    *_closed_up(",:;"),
    *_swap((" / ", "/")),
    *_brackets('"', '"', '[^"]+', spaces=" "),
    *_brackets("'", "'", "[^']+", spaces=" "),
    *_brackets(r"\(", r"\)", "[^()]+", spaces=" "),
    *_brackets(r"\[", r"\]", r"[^\[\]]+", spaces=" "),
    *_swap(("$ ", "$"), ("£ ", "£")),
]

_WIKITEXT: list[Edit] = [
    *_swap(("s '", "s'")),
    # Published as it is: meant for years such as '94, it matches only between two slashes.
    *_match("/' [0-9]/", "/'[0-9]/"),
    *_swap((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")),
    *_closed_up(":;.!?,"),
    *_brackets(r"\(", r"\)", r"[^)]*?", spaces=r"\s*"),
    *_brackets(r"\[", r"\]", r"[^\]]*?", spaces=r"\s*"),
    *_brackets(r"\{", r"\}", r"[^}]*?", spaces=r"\s*"),
    *_brackets('"', '"', '[^"]*?', spaces=r"\s*"),
    *_brackets("'", "'", "[^']*?", spaces=r"\s*"),
    # Headings: the longest rule first.
    *_swap(("= = = =", "===="), ("= = =", "==="), ("= =", "==")),
    *_swap((" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"), (" \n", "\n"), ("\n ", "\n")),
    *_swap((" N ", " 1 "), (" 's", "'s")),
]

_PTB: list[Edit] = [
    *_swap((" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/")),
    # Numbers are written N; of several in a row every one.
    *_match(" N(?= )", " 1"),
    *_swap(("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?")),
]

_LAMBADA: list[Edit] = [
    *_swap(("\N{LEFT DOUBLE QUOTATION MARK}", '"'), ("\N{RIGHT DOUBLE QUOTATION MARK}", '"')),
    lambda text: "\n" + text.strip(),
]

_SETS: dict[str, Sequence[Edit]] = {
    "lm1b": _LM1B,
    "wikitext": _WIKITEXT,
    "ptb": _PTB,
    "lambada": _LAMBADA,
    "scientific_papers": [*_WIKITEXT, *_LM1B],
}
DETOKENIZERS = tuple(_SETS)


def get_detokenizer(name: str) -> Callable[[str], str]:
    """Returns the named detokenizer; "" is the identity."""
    if not name:
        return str
    edits = _SETS[one_of("detokenize", name, _SETS)]
    return lambda text: functools.reduce(lambda done, edit: edit(done), edits, text)
