"""Makes texts of models and files safe to print: none of them controls a terminal."""

_PICTURES = 0x2400  # where Unicode has a sign for each of the first 32 controls
_DELETE, _DELETE_PICTURE = 0x7F, 0x2421
# What turns the direction of writing, begins a line, or is half of a character, which no terminal
# and no file can be given.
_TURNS = {0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_LINES, _HALVES = {0x2028, 0x2029}, range(0xD800, 0xE000)
_OTHERS = {*range(0x80, 0xA0), *_TURNS, *_LINES, *_HALVES}
_NO_SIGN = dict.fromkeys(_OTHERS, "\N{REPLACEMENT CHARACTER}")
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
    return shown(" ".join(str(text).split()), lines=False).replace("\\", "\\\\").replace("|", "\\|")
