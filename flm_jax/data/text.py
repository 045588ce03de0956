"""What texts go through as they enter: byte order marks and line ends."""

from collections.abc import Iterator

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
