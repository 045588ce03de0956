"""What texts go through as they enter: byte order marks, line ends, halves of characters."""

from collections.abc import Iterable, Iterator
from typing import Any

from absl import logging

from flm_jax.core.errors import UserError

LONGEST_LINE = 1 << 27  # bytes
LONGEST_TEXT = 1 << 28  # characters of a text that is in memory as a whole
_PIECES = 1 << 12

_BYTE_ORDER_MARK = "\ufeff"


def line_feeds(text: str) -> str:
    """The text with a LF for every CRLF and CR."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def tidy(text: str) -> str:
    """The text as an editor shows it: no byte order mark before it, and every line end a LF."""
    return line_feeds(text.removeprefix(_BYTE_ORDER_MARK))


def split_lines(text: str) -> Iterator[str]:
    """Lines with their LF; other signs, such as U+2028, end none, unlike in `str.splitlines`."""
    start = 0
    while start < len(text):
        stop = text.find("\n", start) + 1 or len(text)
        yield text[start:stop]
        start = stop


def joined(pieces: Iterable[str], where: str, mend: str) -> str:
    """A text of pieces, which are not read on where it grows too long.

    Args:
      where: the place of the text, for the message.
      mend: what to do about a longer one.

    Raises:
      UserError: it is longer than `LONGEST_TEXT`.
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
    """Reads lone surrogates as U+FFFD, and warns once, of the first place that has one.

    JSON may hold one half of a pair, as in "\\ud800"; it is no character, and no tokenizer and no
    UTF-8 file can hold it. Two halves that follow each other are read as the character they make.
    """

    def __init__(self) -> None:
        self._told = False

    def text(self, text: str, where: str) -> str:
        """The text without lone surrogates; `where` names its place."""
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
        """A value of JSON whose texts, at any depth, are without lone surrogates."""
        if isinstance(value, str):
            return self.text(value, where)
        if isinstance(value, list):
            return [self.record(item, where) for item in value]
        if isinstance(value, dict):
            return {key: self.record(item, where) for key, item in value.items()}
        return value
