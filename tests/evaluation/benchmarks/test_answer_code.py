"""The code in answers: fences of all kinds, the block that counts, code among prose, futures."""

import pytest

from flm_jax.evaluation.benchmarks.answer_code import (
    answer_code,
    body_among_prose,
    code_among_prose,
    code_blocks,
    defined,
    split_futures,
)

DEF = "def half(x):\n    return x / 2\n"
NAMES = ("half",)


@pytest.mark.parametrize(
    "answer, blocks",
    [
        ("no fence", []),
        ("```py\na\n```\n```\nlonger\n```", ["a\n", "longer\n"]),
        ("~~~python\na\n~~~", ["a\n"]),
        ("~~~\na\n```\nb\n~~~~\n", ["a\n```\nb\n"]),
        ("````\n```\na\n```\n````", ["```\na\n```\n"]),
        ("1. So:\n   ```python\n   if a:\n       b\n\n   ```\n", ["if a:\n    b\n\n"]),
        ("\t```\n\ta\n\t```", ["a\n"]),
        ("  ```\na\n    b\n  ```", ["a\n  b\n"]),
        ("```\n    a\n```", ["    a\n"]),
        ("Here: ```python\na```\nso", ["a\n"]),
        ("```python\na\n  b", ["a\n  b"]),
        ("Use ```x``` or ```y```\nand more", []),
        ("```\r\na\r\n```\r\n", ["a\n"]),
        ("```\n```", [""]),
    ],
)
def test_fences(answer, blocks):
    assert code_blocks(answer) == blocks


LONGER = "for i in range(100):\n    print('a long example of how it is used', half(i))\n"


@pytest.mark.parametrize(
    "answer",
    [
        f"```\n{LONGER}```\nand\n```python\n{DEF}```",
        f"```\n{DEF}```\nand\n```python\n{LONGER}```",
        # One that is Python before a longer attempt that is not.
        f"```\n{DEF}```\n```\ndef half(x):\n    return x / / 2  # which is of course wrong\n```",
        # Indented as a whole.
        "```\n    def half(x):\n        return x / 2\n```",
        "Steps:\n- Halve:\n  ~~~\n  def half(x):\n      return x / 2\n  ~~~\n",
        # Unfenced, with a fenced example.
        f"{DEF}\nAn example:\n```\n>>> half(3)\n1.5\n```",
        "As indented text:\n\n    def half(x):\n        return x / 2\n\nIt halves.",
    ],
)
def test_the_block_that_defines_the_function_is_taken(answer):
    assert answer_code(answer, NAMES).strip() == DEF.strip()


def test_blocks_that_define_nothing():
    """The longest that is Python: a body, of which the header is not."""
    assert answer_code("```\npip install the-thing\n```\n```\n    return x\n```", NAMES) == (
        "    return x\n"
    )
    assert answer_code("```\na\n```\n```\nabc\n```", ()) == "abc\n"
    assert answer_code("It cannot be done.", NAMES) == "It cannot be done."


def test_most_names_win():
    pair = "class Pair:\n    pass\n\n\n"
    answer = f"```\n{DEF}# {'-' * 90}\n```\n```\n{pair}{DEF}```"
    assert answer_code(answer, ("Pair", "half")) == pair + DEF


@pytest.mark.parametrize(
    "code, count",
    [
        (DEF, 1),
        ("async def half(x): pass", 1),
        ("class half: pass", 1),
        ("def halves(x): pass", 0),
        ("class A:\n    def half(self): pass", 0),
        ("# def half", 0),
    ],
)
def test_definitions_stand_at_the_margin(code, count):
    assert defined(code, NAMES) == count


def test_code_is_found_among_prose():
    answer = (
        "Sure! from here on it is easy:\n\n"
        "import math\nfrom functools import (\n    cache,\n)\n"
        "LIMIT = [\n    1,\n]\n"
        "import nothing of this\n"
        "@cache\n"
        f"{DEF}\n"
        "Explanation\n\nclass of problems: easy\n"
        'def more():\n    """It\nsays: more."""\n\n'
        "print(half(input()))\n"
        "half = a function\n"
    )
    want = (
        "import math\nfrom functools import (\n    cache,\n)\n"
        "LIMIT = [\n    1,\n]\n"
        f"@cache\n{DEF}\n"
        'def more():\n    """It\nsays: more."""\n\n'
    )
    assert code_among_prose(answer, NAMES) == want
    assert answer_code(answer, NAMES) == want
    assert code_among_prose("def half(x):\n    return x / / 2\n", NAMES) == ""
    assert code_among_prose("import math\n", NAMES) == ""


def test_a_body_is_found_among_prose():
    assert body_among_prose("The body:\n\n    y = x\n\n    return y\n\nDone.") == (
        "    y = x\n\n    return y\n\n"
    )
    assert body_among_prose("nothing") == "nothing"


def test_futures_are_split_from_what_begins_with_them():
    future = "from __future__ import annotations\n"
    assert split_futures(future + DEF) == (future, DEF)
    text = f'"""Text."""\n# note\n{future}from __future__ import (\n    division,\n)\n{DEF}'
    first, rest = split_futures(text)
    assert first == f"{future}from __future__ import (\n    division,\n)\n"
    assert rest == f'"""Text."""\n# note\n{DEF}'
    for code in (f"import math\n{future}", f"print(1)\n{future}", "def half(:", DEF):
        assert split_futures(code) == ("", code)
