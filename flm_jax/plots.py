"""Pictures of comparisons (matplotlib, extra `plots`)."""

from collections.abc import Sequence
from typing import Any

from etils import epath

Row = dict[str, Any]
_QUALITY = ("task_valid", "kernel_distance", "entropy_nats")  # the first that all rows have


def quality_name(rows: Sequence[Row]) -> str:
    """The measure of quality that a comparison is drawn by."""
    return next((n for n in _QUALITY if all(n in row for row in rows)), "entropy_nats")


def draw_comparison(
    folder: epath.Path, rows: Sequence[Row], profiles: dict[str, dict[float, float]]
) -> list[str]:
    """Draws quality against calls and time, entropy beside it, and loss by tau, as PNG files.

    Args:
      folder: where to.
      rows: of `compare`: model, calls, seconds_per_1000_tokens, entropy_nats and measures.
      profiles: model name -> tau -> nats/token.

    Returns:
      Names of the files.
    """
    import matplotlib  # the extra `plots`

    matplotlib.use("Agg")
    names = {"quality.png": _quality(rows)}
    if profiles:
        names["loss_by_tau.png"] = _profiles(profiles)
    for name, figure in names.items():
        _save(figure, folder / name)
    return list(names)


def _quality(rows: Sequence[Row]):
    from matplotlib import pyplot

    quality = quality_name(rows)
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5))
    panels = (
        ("calls", quality, "network calls", quality.replace("_", " ")),
        ("seconds_per_1000_tokens", quality, "seconds per 1000 tokens", quality.replace("_", " ")),
        ("calls", "entropy_nats", "network calls", "unigram entropy, nats"),
    )
    for axis, (x, y, x_label, y_label) in zip(axes, panels):
        for name in dict.fromkeys(row["model"] for row in rows):
            own = sorted((r for r in rows if r["model"] == name), key=lambda r: r["calls"])
            errors = [_errors(row, y) for row in own]
            points = [row[x] for row in own], [row[y] for row in own]
            axis.errorbar(*points, list(zip(*errors)), marker="o", capsize=3, label=name)
        axis.set_xscale("log", base=2 if x == "calls" else 10)
        if x == "calls":
            axis.set_xticks(sorted({row["calls"] for row in rows}), minor=False)
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        axis.grid(alpha=0.3)
    axes[2].axhline(rows[0]["data_entropy_nats"], color="black", linestyle="--", label="data")
    for axis in (axes[0], axes[2]):
        axis.legend()
    return figure


def _errors(row: Row, name: str) -> tuple[float, float]:
    """Distances of a value to the ends of its interval; 0 without one."""
    low, high = (row.get(f"{name}_{end}", row[name]) for end in ("low", "high"))
    return max(row[name] - low, 0.0), max(high - row[name], 0.0)


def _profiles(profiles: dict[str, dict[float, float]]):
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4.5))
    for name, profile in profiles.items():
        axis.plot(list(profile), list(profile.values()), marker="o", label=name)
    axis.set_xlabel("tau (0 noise, 1 data)")
    axis.set_ylabel("denoising loss, nats/token")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def _save(figure, path: epath.Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)
