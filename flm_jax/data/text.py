"""Clean-up of incoming texts: byte order marks, line ends and lone surrogates."""

from collections.abc import Iterable, Iterator
from typing import Any

from absl import logging

from flm_jax.core.errors import UserError

LONGEST_LINE = 1 << 27  # bytes
LONGEST_TEXT = 1 << 28  # characters of a text that is in memory as a whole
_PIECES = 1 << 12

_BYTE_ORDER_MARK = "\ufeff"


def line_feeds(text: str) -> str:
    """Replaces every CRLF and CR of a text by a LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def tidy(text: str) -> str:
    """Removes a leading byte order mark, and replaces every line end by a LF."""
    return line_feeds(text.removeprefix(_BYTE_ORDER_MARK))


def split_lines(text: str) -> Iterator[str]:
    """Yields lines with their LF; unlike `str.splitlines`, other signs such as U+2028 end none."""
    start = 0
    while start < len(text):
        stop = text.find("\n", start) + 1 or len(text)
        yield text[start:stop]
        start = stop


def joined(pieces: Iterable[str], where: str, mend: str) -> str:
    """Joins pieces to a text, and stops reading if it becomes too long.

    Args:
      where: place of the text, for the message.
      mend: advice about a longer one.

    Raises:
      UserError: the text is longer than `LONGEST_TEXT`.
    """
    kept, last, length = [], [], 0
    for piece in pieces:
        last.append(piece)
        length += len(piece)
        if len(last) > _PIECES:  # small ones take many times their length in memory
            kept.append("".join(last))
            last.clear()
        if length > LONGEST_TEXT:
            raise UserError(
                f"{where} is a text of more than {LONGEST_TEXT} characters; expected shorter ones: "
                f"{mend}."
            )
    return "".join([*kept, *last])


class Mender:
    """Replaces lone surrogates by U+FFFD, and warns once, about the first place that has one.

    JSON may hold one half of a pair, as in "\\ud800"; it is no character, and no tokenizer and no
    UTF-8 file can hold it. Two halves that follow each other are read as the character they make.
    """

    def __init__(self) -> None:
        self._told = False

    def text(self, text: str, where: str) -> str:
        """Returns the text without lone surrogates; `where` names its place."""
        try:
            text.encode("utf8")
        except UnicodeEncodeError:
            paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            if not self._told and paired.count("\ufffd") > text.count("\ufffd"):
                self._told = True
                logging.warning(
                    "%s: got a lone surrogate, such as \\ud800, which is no character; it is read "
                    "as U+FFFD, here and wherever else one stands. Write whole characters to mend "
                    "it.",
                    where,
                )
            return paired
        return text

    def record(self, value: Any, where: str) -> Any:
        """Returns a JSON value whose texts, at any depth, have no lone surrogates."""
        if isinstance(value, str):
            return self.text(value, where)
        if isinstance(value, list):
            return [self.record(item, where) for item in value]
        if isinstance(value, dict):
            return {key: self.record(item, where) for key, item in value.items()}
        return value
