"""Writes docs/reference/python.md, the public names of `flm_jax`, from their docstrings.

python -m flm_jax.inference.reference > docs/reference/python.md
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

_HEAD = """# Python

`import flm_jax` gives the names of this page; [getting started](../getting_started.md#from-python)
shows them at work. Everything else may change between versions. Made by
`python -m flm_jax.inference.reference > docs/reference/python.md`.
"""
_ORDER = ("load", "LanguageModel", "Generated", "Scores", "UserError")
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):\n", re.MULTILINE)
_TITLES = {"Args": "Arguments"}
_ITEM = re.compile(r"([\w*, \[\].]+?): (.*)", re.DOTALL)


def page() -> str:
    """Returns the page as Markdown."""
    parts = [_HEAD]
    for name in _ORDER:
        parts += _definition(_node(name))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _node(name: str) -> ast.ClassDef | ast.FunctionDef:
    """Definition of a public name in its file."""
    module = inspect.getmodule(getattr(importlib.import_module("flm_jax"), name))
    assert module is not None and module.__file__ is not None
    for node in ast.parse(Path(module.__file__).read_text(encoding="utf8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
    raise AssertionError(f"{name} is not defined at the top of {module.__file__}")


def _definition(node: ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    yield f"\n## flm_jax.{node.name}\n"
    if isinstance(node, ast.FunctionDef):
        yield _signature(node, f"flm_jax.{node.name}")
    yield _prose(ast.get_docstring(node) or "")
    if isinstance(node, ast.FunctionDef):
        return
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
            marks = {ast.unparse(mark) for mark in one.decorator_list}
            if f"{one.name}.setter" in marks:
                continue
            yield f"\n### {node.name}.{one.name}\n"
            if "property" in marks:
                kind = f": {ast.unparse(one.returns)}" if one.returns else ""
                yield f"```python\n{one.name}{kind}  # a property\n```\n"
            else:
                yield _signature(one, one.name)
            yield _prose(ast.get_docstring(one) or "")


def _signature(node: ast.FunctionDef, name: str) -> str:
    """Signature of a function, on one line or with one argument a line."""
    node.args.args = [arg for arg in node.args.args if arg.arg != "self"]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    args = ast.unparse(node.args).replace("=", " = ")
    call = f"{name}({args}){returns}"
    if len(call) > 90:
        parts = re.split(r", (?![^\[]*\])", args)
        call = f"{name}(\n    " + ",\n    ".join(parts) + f",\n){returns}"
    return f"```python\n{call}\n```\n"


def _prose(text: str) -> str:
    """A docstring as Markdown: its sections become lists."""
    first, *rest = _SECTION.split(text)
    parts = [first.strip()]
    for title, body in zip(rest[::2], rest[1::2]):
        items = re.split(r"\n(?=  \S)", "\n" + body.rstrip())
        lines = [_item(" ".join(item.split())) for item in items if item.strip()]
        parts.append(f"**{_TITLES.get(title, title)}**\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _item(text: str) -> str:
    found = _ITEM.fullmatch(text)
    return f"- `{found[1]}`: {found[2]}" if found else f"- {text}"


if __name__ == "__main__":
    print(page(), end="")
