"""Makes texts of models and files safe to print: none of them controls a terminal."""

_PICTURES = 0x2400  # where Unicode has a sign for each of the first 32 controls
_DELETE, _DELETE_PICTURE = 0x7F, 0x2421
_TURNS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # of the direction of writing
_NO_SIGN = dict.fromkeys({*range(0x80, 0xA0), *_TURNS}, "\N{REPLACEMENT CHARACTER}")
_SIGNS = {n: chr(_PICTURES + n) for n in range(32)} | {_DELETE: chr(_DELETE_PICTURE)} | _NO_SIGN
_IN_TEXT = {n: sign for n, sign in _SIGNS.items() if chr(n) not in "\n\t"}


def shown(text: str, lines: bool = True) -> str:
    """Replaces each control character of a text by a visible sign.

    Args:
      text: text from a model, a file or another process.
      lines: whether line ends and tabs are kept.
    """
    return text.translate(_IN_TEXT if lines else _SIGNS)


def cell(text: object) -> str:
    """Returns a text as one cell of a Markdown table, in which no character ends the cell."""
    return shown(" ".join(str(text).split()), lines=False).replace("|", "\\|")
