"""Extracts the code of an answer: fenced blocks, or code among prose.

The fenced block that counts is the one that defines what the tests call; a model may show an
example, a command or an earlier attempt in other blocks.
"""

import ast
import re
import textwrap
import warnings
from collections.abc import Sequence

# What opens a block: at the beginning of a line, also indented, or behind words.
_OPENS = re.compile(r"^(?P<indent>[ \t]*)(?P<words>.*?)(?P<fence>`{3,}|~{3,})[^`~]*$")
_STARTS = re.compile(
    r"(?:async +def|def|class|import|from)\b|@|[A-Za-z_][\w.]*(?:\[[^\]]*\])? *(?::[^=]+)?=[^=]"
)
# Lines that are indented, with the empty ones between them.
_INDENTED = re.compile(r"(?:^[ \t]+\S.*(?:\n|\Z)(?:[ \t]*\n)*)+", re.MULTILINE)
_MOST_JOINED = 40  # pieces of a text that together may be one statement


def code_blocks(answer: str) -> list[str]:
    """Returns the contents of fenced blocks, ``` or ~~~, without the indentation of their fences.

    A fence that is not closed reaches to the end.
    """
    blocks: list[str] = []
    lines: list[str] | None = None
    for line in answer.replace("\r\n", "\n").split("\n"):
        if lines is None:
            opens = _OPENS.match(line)
            if opens and opens["fence"] not in opens["words"]:
                fence, lines = opens["fence"], []
                indent = 0 if opens["words"] else len(opens["indent"])
                closes = re.compile(rf"(.*?){fence[0]}{{{len(fence)},}}[ \t]*")
        elif last := closes.fullmatch(line):
            lines += [last[1]] if last[1].strip() else []
            blocks.append("".join(f"{_unindented(one, indent)}\n" for one in lines))
            lines = None
        else:
            lines.append(line)
    if lines is not None:
        blocks.append("\n".join(_unindented(one, indent) for one in lines))
    return blocks


def _unindented(line: str, most: int) -> str:
    """Removes up to `most` characters of leading white space from a line."""
    return line[min(most, len(line) - len(line.lstrip(" \t"))) :]


def answer_code(answer: str, names: Sequence[str]) -> str:
    """Returns the code of an answer.

    It is the fenced block that defines most of `names`; among several, one that is Python, and
    among those the longest. If none defines any, it is the indented lines or lines among prose that
    do; else the longest block, and without a block the complete answer.

    Args:
      answer: text of the answer.
      names: names of the functions and classes that the tests call.
    """
    blocks = code_blocks(answer)
    best = max(blocks, key=lambda block: _worth(block, names), default=None)
    if best is not None and defined(best, names):
        return best
    runs = [textwrap.dedent(run) for run in _INDENTED.findall(answer)]
    for other in (code_among_prose(answer, names), *runs):
        if defined(other, names):
            return other
    return answer if best is None else best


def _worth(block: str, names: Sequence[str]) -> tuple[int, bool, int]:
    return defined(block, names), parsed(textwrap.dedent(block)) is not None, len(block)


def defined(code: str, names: Sequence[str]) -> int:
    """Number of the names that are top-level functions or classes of some code."""
    return sum(
        bool(re.search(rf"^(?:(?:async +)?def|class) +{re.escape(name)}\b", code, re.MULTILINE))
        for name in names
    )


def parsed(code: str) -> ast.Module | None:
    """Returns the syntax tree, or None for text that is not Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes and the like
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def code_among_prose(answer: str, names: Sequence[str]) -> str:
    """Returns top-level imports, definitions and assignments in their order, without prose.

    Returns:
      The code, or "" if it defines none of `names`.
    """
    if not defined(answer, names):
        return ""
    pieces = re.split(r"(?m)^(?=\S)", answer.replace("\r\n", "\n"))
    found, place = [], 0
    while place < len(pieces):
        size = _statement(pieces, place) if _STARTS.match(pieces[place]) else 0
        found += pieces[place : place + size]
        place += size or 1
    code = "".join(piece if piece.endswith("\n") else f"{piece}\n" for piece in found)
    return code if defined(code, names) else ""


def body_among_prose(answer: str) -> str:
    """Returns the first indented lines of an answer, or the complete answer if none are."""
    found = _INDENTED.search(answer)
    return found[0] if found else answer


def _statement(pieces: Sequence[str], place: int) -> int:
    """Number of pieces from `place` on that form one statement; 0 if they form none."""
    for size in range(1, min(_MOST_JOINED, len(pieces) - place) + 1):
        if parsed("".join(pieces[place : place + size])) is not None:
            return size
    return 0


def split_futures(code: str) -> tuple[str, str]:
    """Splits code into its first lines `from __future__ import ...` and the other lines.

    They must come first in a program; elsewhere they are kept in place, as an error of the code.
    """
    tree = parsed(code)
    lines, taken = code.splitlines(keepends=True), set()
    for node in tree.body if tree else ():
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            taken |= set(range(node.lineno - 1, node.end_lineno or node.lineno))
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            break
    first = "".join(line for i, line in enumerate(lines) if i in taken)
    return first, "".join(line for i, line in enumerate(lines) if i not in taken)
