"""The console script `flm`: lists the commands, or runs one as `python -m` runs its module."""

import ast
import os
import runpy
import sys
from pathlib import Path

from flm_jax.core.errors import unknown_name
from flm_jax.core.printing import shown

_PACKAGE = Path(__file__).parents[1]


def commands() -> dict[str, str]:
    """Returns a dict from each command to the first line of its docstring, sorted by name."""
    found = {}
    for path in sorted(_PACKAGE.glob("*.py")):
        if not path.stem.startswith("_"):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf8"))) or ""
            found[path.stem] = text.partition("\n")[0]
    return found


def overview() -> str:
    """Returns the text that `flm` prints: the usage, then a line for each command."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {says}" for name, says in known.items()]
    usage = "usage: flm COMMAND [--FLAG=VALUE ...]; flm COMMAND --help tells its flags\n"
    return "\n".join([usage, *lines])


def main() -> int:
    """Runs the command that the first word names, with the rest as its arguments.

    Returns:
      0 for the list of commands, 2 for an unknown one; a command exits by itself.
    """
    words = sys.argv[1:]
    if not words or words[0] in ("help", "--help", "-h"):
        print(overview())
        return 0
    name, known = words[0], commands()
    if name not in known:
        print(f"error: {shown(str(unknown_name('command', name, known)))}", file=sys.stderr)
        return 2
    # A console script lacks what `python -m` has: recipes import `configs` from where one stands.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    sys.argv = [f"flm {name}", *words[1:]]
    runpy.run_module(f"flm_jax.{name}", run_name="__main__", alter_sys=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
