"""Docstrings, settings and flags are full sentences in the terms of the field."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [path for part in ("flm_jax", "configs") for path in sorted((ROOT / part).rglob("*.py"))]
SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises):$")
ENTRY = re.compile(r"([*\w.]+(?:, [*\w.]+)*): (.*)")
# Fragments that leave out the noun or the verb, and coinages for terms of the field.
BANNED = [
    *(
        "so many",
        "as of",
        "those of",
        "in the place of",
        "told",
        "tells?",
        "where it has",
        "nudged?",
    ),
    *("(?:the|a|no|of the) shares? of", "in shares", "(?:at|of) a share", "stays? whole", "behind"),
]
FRAGMENT = re.compile(rf"\b(?:{'|'.join(BANNED)})\b".replace(" ", r"\s+"), re.IGNORECASE)
# An argument is named by a noun phrase: "seed: seed of the draws", not "seed: of the draws".
NO_NOUN = re.compile(r"(?:of|as|its|to|in|on|at|by|where|when|how|what|which|see|likewise)\b")
# Where a call has its help, if that is not the third argument.
PLACES = {"setting": 1, "DEFINE_config": 0, "DEFINE_enum": 3}
CODE = re.compile(r"`[^`]*`|\"[^\"]*\"")


def sentences(text):
    """Faults of a text that must start with a capital and end with a stop."""
    text = text.strip()
    if not re.match(r"[A-Z`\"]", text):
        yield "has no capital"
    if not text.endswith((".", ":")):
        yield "has no stop"
    yield from fragments(text)


def fragments(text):
    for found in FRAGMENT.findall(CODE.sub("", text)):
        yield f"says {found!r}"


def entries(text):
    """(section, name, description) of the entries of Args, Attributes and Raises."""
    section, found = "", []
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip())
        if not indent and line:
            match = SECTION.match(line)
            section = match[1] if match else ""
        elif section in ("Args", "Attributes", "Raises") and indent == 2:
            match = ENTRY.match(line.strip())
            found.append([section, *(match.groups() if match else ("", line.strip()))])
        elif section and found and indent > 2:
            found[-1][2] += " " + line.strip()
    return found


def docstring_faults(text):
    """What is wrong with a docstring."""
    summary, _, rest = text.partition("\n\n")
    if "\n" in summary:
        yield "has a summary of several lines"
    yield from sentences(summary)
    prose = [line for line in rest.split("\n") if not line.startswith("    ")]
    yield from fragments(re.sub(r"(?m)^  [*\w., ]+: ", "", "\n".join(prose)))
    for section, name, description in entries(text):
        if not description.endswith("."):
            yield f"{name}: has no stop"
        if section != "Raises" and NO_NOUN.match(description):
            yield f"{name}: has no noun"


def documented(tree):
    """(name, docstring) of a module and of its classes and functions."""

    def below(node, prefix):
        for one in node.body:
            if not isinstance(one, (ast.ClassDef, ast.FunctionDef)):
                continue
            if text := ast.get_docstring(one):
                yield f"{prefix}{one.name}", text
            if isinstance(one, ast.ClassDef):
                yield from below(one, f"{prefix}{one.name}.")

    if text := ast.get_docstring(tree):
        yield "module", text
    yield from below(tree, "")


def helps(tree):
    """(name, help) of the flags and settings that a module defines; holes of f-strings are X."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        place = PLACES.get(name, 2 if name.startswith("DEFINE_") else -1)
        if 0 <= place < len(node.args):
            text = node.args[place]
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            if all(isinstance(part, (ast.Constant, ast.FormattedValue)) for part in parts):
                said = (part.value if isinstance(part, ast.Constant) else "X" for part in parts)
                yield f"{name} at line {node.lineno}", "".join(said)


def faults(source):
    """What is wrong with the language of a module."""
    tree = ast.parse(source)
    for name, text in documented(tree):
        yield from (f"{name}: {fault}" for fault in docstring_faults(text))
    for name, text in helps(tree):
        yield from (f"{name}: {fault}" for fault in sentences(text))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_helps_are_sentences(path):
    assert not list(faults(path.read_text()))


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('"""the module."""', "module: has no capital"),
        ('"""The module"""', "module: has no stop"),
        ('"""The first line\nand its end."""', "module: has a summary of several lines"),
        ('def f():\n    """Draws so many texts."""', "f: says 'so many'"),
        ('class C:\n    """C."""\n    def f():\n        """Told the time."""', "C.f: says 'Told'"),
        ('def f(n):\n    """F.\n\n    Args:\n      n: of the noise.\n    """', "f: n: has no noun"),
        ('def f(n):\n    """F.\n\n    Args:\n      n: a number\n    """', "f: n: has no stop"),
        ('flags.DEFINE_seed("seed", 0, "Seed")', "DEFINE_seed at line 1: has no stop"),
        ('x = setting(0, "number of texts.")', "setting at line 1: has no capital"),
        ('x = setting(0, f"Those of {y}.")', "setting at line 1: says 'Those of'"),
    ],
)
def test_the_check_bites(source, fault):
    assert fault in list(faults(source))


@pytest.mark.parametrize(
    "source",
    [
        'def f(told):\n    """Uses `those of`.\n\n    Args:\n      told: time input.\n    """',
        "def f():\n    so_many = 'told'",
        'flags.DEFINE_string("a", "", f"One of {x}.")',
    ],
)
def test_the_check_leaves_code_alone(source):
    assert not list(faults(source))
