"""English text in every Python installation: help topics and docstrings of the standard library."""

import ast
import functools
import importlib
import inspect
import itertools
import re
import sysconfig
from collections.abc import Iterator

from etils import epath

from flm_jax.core.errors import UserError
from flm_jax.data.corpus.files import walk

_STDLIB_SKIP = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
    | {"site-packages", "dist-packages", "lib-dynload", "__pycache__"}
)
_RULE_LINE = re.compile(r"[\W_]{3,}")
_MIN_DOCSTRING = 20  # characters: shorter docstrings ("Init.") are noise as documents


def documents() -> Iterator[str]:
    """Yields the help topics by name, then the docstrings."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise UserError(
            "this Python has no pydoc_data.topics; expected a full standard library: "
            "install one that has it or use another source, such as --source=text"
        ) from error
    for name in sorted(topics):
        yield _prose(topics[name])
    yield from _library_docstrings()


@functools.cache
def _library_docstrings() -> tuple[str, ...]:
    """Docstrings of the library, 2 MB, cached since parsing it again takes seconds a pass."""
    library = epath.Path(sysconfig.get_paths()["stdlib"])
    modules = walk(library, (".py",), _STDLIB_SKIP)
    return tuple(itertools.chain.from_iterable(map(_docstrings, modules)))


def _docstrings(path: epath.Path) -> Iterator[str]:
    """Docstrings of a source file, in order, found without importing it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and deliberately broken files
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node, clean=False)):
            text = _prose(text)
            if len(text) >= _MIN_DOCSTRING:
                yield text


def _prose(text: str) -> str:
    """Dedents a text and drops the rules of punctuation under and between headings."""
    lines = (line.rstrip() for line in inspect.cleandoc(text).split("\n"))
    return "\n".join(line for line in lines if not _RULE_LINE.fullmatch(line.strip())).strip()
