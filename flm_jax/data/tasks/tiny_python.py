"""Exact results of one-line Python functions of x, without running them.

Programs that a model wrote are never run in this process: they are parsed by `ast`, checked by
`compile`, and evaluated node by node. The language consists of one variable, positive numbers, the
operators + - * += -= *=, brackets, `;`, `return` and comments. Its values are integers and the
empty tuple, both with Python's own operators; whatever else Python accepts with these words (calls,
unknown names) raises in Python and is a failure here.
"""

import ast
import functools
import operator
import warnings
from collections.abc import Sequence

_BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
_UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}

Tests = Sequence[tuple[int, int]]


class _FailedError(Exception):
    """The program would raise here."""


def passes(body: str, tests: Tests) -> bool:
    """Whether `def f(x): BODY` is Python, and f(x) equals the value of every test.

    Args:
      body: statements, separated by `;`, and possibly a comment.
      tests: pairs of x and f(x).

    Returns:
      True or False; False as well for code that is not Python, raises or returns nothing.
    """
    statements = _statements(body)
    return statements is not None and all(_call(statements, x) == value for x, value in tests)


@functools.lru_cache(maxsize=1 << 15)
def _statements(body: str) -> list[ast.stmt] | None:
    """Statements of the function; None if Python refuses the text."""
    if "\n" in body or "\r" in body:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "'int' object is not callable"
            tree = ast.parse(f"def f(x): {body}")
            compile(tree, "f", "exec")  # some errors are found here alone
    except (SyntaxError, ValueError):
        return None
    return tree.body[0].body


def _call(statements: list[ast.stmt], x: int):
    """Evaluates f(x); None if it raises or returns nothing."""
    value = x
    try:
        for statement in statements:
            match statement:
                case ast.Return(value=None):
                    return None
                case ast.Return(value=node):
                    return _value(node, value)
                case ast.AugAssign(target=ast.Name(id="x"), op=op, value=node):
                    value = _binary(op, value, _value(node, value))
                case ast.Expr(value=node):
                    _value(node, value)
                case _:
                    return None
    except (_FailedError, TypeError):
        return None
    return None


def _value(node: ast.expr, x):
    match node:
        case ast.Constant(value=int() as number) if type(number) is int:
            return number
        case ast.Name(id="x"):
            return x
        case ast.Tuple(elts=[]):
            return ()
        case ast.BinOp(left=left, op=op, right=right):
            return _binary(op, _value(left, x), _value(right, x))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand, x))
    raise _FailedError


def _binary(op: ast.operator, left, right):
    if type(op) not in _BINARY:
        raise _FailedError
    return _BINARY[type(op)](left, right)
