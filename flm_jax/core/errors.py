"""User errors: one line that says what was got, what was expected and how to mend it."""

import difflib
from collections.abc import Collection, Iterable


class UserError(ValueError):
    """Bad input from outside: the message says what was got, what was expected, how to mend it."""


def unknown_name(kind: str, got: str, valid: Iterable[str]) -> UserError:
    """Error for a failed lookup, with the nearest valid name and the whole list."""
    names = sorted(valid)
    near = difflib.get_close_matches(got, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {got!r}; {hint}valid: {', '.join(names)}.")


def require(condition: bool, message: str) -> None:
    """Raises UserError with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def one_of(kind: str, got: str, valid: Collection[str]) -> str:
    """`got` itself, where it is one of the valid names.

    Args:
      kind: what the name is of, for the message: "config.objective.name".
      got: the name.
      valid: all that may be given; a table by name serves as well.

    Raises:
      UserError: another name; the message has the nearest valid one and the whole list.
    """
    if got not in valid:
        raise unknown_name(kind, got, valid)
    return got
