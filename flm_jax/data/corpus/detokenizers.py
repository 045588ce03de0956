"""Turns pre-tokenised benchmark text back into ordinary English."""

import re
from collections.abc import Callable

from flm_jax.core.errors import one_of

# LM1B is distributed as Penn-Treebank-like tokens separated by spaces: "it 's here , he said ."
_LM1B_RULES: tuple[tuple[str, str], ...] = (
    (r"\b(https?) : / / ", r"\1://"),
    (r" (n't|'(?:s|S|re|ve|ll|d|m|t))\b", r"\1"),
    (r"\b(can) (not)\b", r"\1\2"),
    (r"``|''", '"'),
    (r'" ([^"]*?) ?"(?=\W|$)', r'"\1"'),
    (r"(?<!\w)' ([^']*?) '(?!\w)", r"'\1'"),
    (r"([(\[{]) ", r"\1"),
    (r" ([)\]}])", r"\1"),
    (r"([$£€#]) (?=\d)", r"\1"),
    (r"(?<=\d) %", "%"),
    (r" ([.,;:?!]+)(?=\s|$|[\"')\]])", r"\1"),
    (r"(?<=\w) / (?=\w)", "/"),
    (r"(?<=\ws) '(?= )", "'"),
)
_LM1B = tuple((re.compile(pattern), replacement) for pattern, replacement in _LM1B_RULES)


def detokenize_lm1b(text: str) -> str:
    """Undoes LM1B's tokenisation: spaces before punctuation, split contractions, loose quotes.

    The inverse is not unique (a quote may open or close); what is ambiguous is left as it was.
    """
    for pattern, replacement in _LM1B:
        text = pattern.sub(replacement, text)
    return text


DETOKENIZERS: dict[str, Callable[[str], str]] = {"lm1b": detokenize_lm1b}


def get_detokenizer(name: str) -> Callable[[str], str]:
    """The named detokenizer; "" names the identity."""
    if not name:
        return str
    one_of("detokenize", name, DETOKENIZERS)
    return DETOKENIZERS[name]
