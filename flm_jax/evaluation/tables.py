"""Formats rows of figures as Markdown."""

from collections.abc import Sequence
from typing import Any

from flm_jax.core.printing import cell

Row = dict[str, Any]
_APART = ("model", "kind", "calls", "samples", "settings", "data_entropy_nats")
_APART += ("steps", "of", "swept")


def _cell(row: Row, name: str) -> str:
    """Formats a figure of a row, with its interval if it has one."""
    if name not in row:
        return ""
    if isinstance(row[name], str):
        return cell(row[name])
    if f"{name}_low" not in row:
        return f"{row[name]:.4g}"
    return f"{row[name]:.4g} [{row[f'{name}_low']:.4g}, {row[f'{name}_high']:.4g}]"


def with_interval(name: str, found: tuple[float, float, float]) -> Row:
    """Dict of a figure and the bounds of its interval, named as in rows."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), found))


def table(rows: Sequence[Row]) -> str:
    """Formats rows as a Markdown table with every figure that any of them has."""
    # Of all rows: without a valid sample there is no perplexity, for example.
    names = dict.fromkeys(k for row in rows for k in row if k not in _APART)
    numbers = [k for k in names if not k.endswith(("_low", "_high"))]
    lines = [
        "| model | kind | calls | " + " | ".join(n.replace("_", " ") for n in numbers) + " |",
        "|---|---|---|" + "---|" * len(numbers),
    ]
    for row in rows:
        cells = [_cell(row, name) for name in ("model", "kind", "calls", *numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
