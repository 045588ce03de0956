"""Splits a text into documents at separator lines such as <|endoftext|>."""

import itertools
from collections.abc import Iterator

from absl import logging

from flm_jax.core.errors import require
from flm_jax.data.text import joined, split_lines

_SHORTER = "read parts of it by --split_documents, or name the line between them by --separator"
# Lines that end documents in published corpora.
_CUSTOMARY = ("<|endoftext|>", "<|end_of_text|>", "<|endofdoc|>", "</s>", "<eos>", "[EOS]")


class Separator:
    """Splits texts at separator lines, dropping these and the blank lines around them.

    Without a separator texts are kept in one piece, and a warning reports, once, the first line
    that looks like one.

    Attributes:
      line: separator without the blanks around it; "" for none.
      seen: whether any text had it so far.
    """

    def __init__(self, line: str):
        self.line = line.strip()
        require(
            bool(self.line) == bool(line) and "\n" not in self.line,
            f"separator is {line!r}; expected one line that is not blank, such as <|endoftext|>",
        )
        self.seen = False
        self._told = bool(line)

    def documents(self, lines: Iterator[str], where: str) -> Iterator[Iterator[str]]:
        """Yields the lines of each document, to be consumed one document after the other."""
        if not self.line:
            yield self._watched(lines, where)
            return
        for ends, document in itertools.groupby(lines, key=self._ends):
            if not ends:
                yield document

    def joined(self, document: Iterator[str], where: str) -> str:
        """Joins the lines of a document to a text."""
        text = joined(document, where, _SHORTER)
        return text.strip("\n") if self.line else text

    def texts(self, text: str, where: str) -> Iterator[str]:
        """Yields the documents of a text that is already in memory."""
        wanted = [self.line] if self.line else [] if self._told else _CUSTOMARY
        if not any(mark in text for mark in wanted):
            yield text
        elif self.line:
            for document in self.documents(split_lines(text), where):
                yield self.joined(document, where)
        else:
            for line in split_lines(text):
                self._watch(line, where)
            yield text

    def _ends(self, line: str) -> bool:
        found = line.strip() == self.line
        self.seen |= found
        return found

    def _watched(self, lines: Iterator[str], where: str) -> Iterator[str]:
        for number, line in enumerate(lines, start=1):
            if line[0] in "<[ " and not self._told:
                self._watch(line, f"{where} line {number}")
            yield line

    def _watch(self, line: str, where: str) -> None:
        mark = line.strip()
        if mark in _CUSTOMARY and not self._told:
            self._told = True
            logging.warning(
                "%s: a line is %s, which is read as text; where such lines stand between "
                "documents, pass --separator='%s'.",
                where,
                mark,
                mark,
            )
