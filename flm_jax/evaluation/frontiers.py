"""The frontier of a model: quality against entropy as one setting of its sampler changes."""

from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from flm_jax.core.errors import UserError, require
from flm_jax.core.files import nulls_as_nan, save_figure
from flm_jax.core.paths import expanded
from flm_jax.core.reading import loads, read_bounded
from flm_jax.evaluation.plots import MARKERS, errors, label, logarithmic
from flm_jax.evaluation.tables import Row

# Figure -> whether its axis is logarithmic.
QUALITIES = {
    "judge_perplexity": True,
    "kernel_distance": False,
    "mauve": False,
    "task_valid": False,
}

_SHOWN = 0.5  # nats from the entropy of the data, beyond which texts are another language
_FEW = 12  # lines at most for values beside their points


class Line(NamedTuple):
    """Rows that are drawn as one line: a model and its steps; None for a model without a choice."""

    model: str
    steps: float | None


def read_rows(paths: Sequence[str], quality: str) -> list[Row]:
    """Reads the rows of models in several files, and the first row of held-out data.

    Raises:
      UserError: no such file, no rows, or rows without the figure or the entropy.
    """
    rows: list[Row] = []
    for path in paths:
        place = epath.Path(expanded(path))
        require(place.is_file(), f"no file {path}; expected rows that sweep or evaluate wrote.")
        try:
            found = loads(read_bounded(place, "rows"))
        except ValueError as error:
            raise UserError(f"{path} is no JSON ({error}); expected rows of sweep.") from error
        require(
            isinstance(found, list) and all(isinstance(row, dict) for row in found),
            f"{path} holds no list of rows; expected the file that --json of sweep names.",
        )
        for row in map(nulls_as_nan, found):
            missing = [key for key in ("model", quality, "entropy_nats") if key not in row]
            require(
                not missing,
                f"{path}: a row lacks {', '.join(missing)}; expected rows that were measured with "
                f"{'--judge' if quality == 'judge_perplexity' else 'this figure'}.",
            )
            rows.append(row)
    drawn = [row for row in rows if row["model"] != "data"]
    require(bool(drawn), f"{', '.join(paths)}: no rows of models; expected those of sweep.")
    return drawn + [row for row in rows if row["model"] == "data"][:1]


def lines(rows: Sequence[Row]) -> dict[Line, list[Row]]:
    """Groups rows by model and number of calls, sorted by entropy.

    Rows of a model that a comparison samples in several ways name the model in `of`. The calls that
    a sampler saves differ between the values of a setting; the requested steps do not.
    """
    found: dict[Line, list[Row]] = {}
    for row in rows:
        if row["model"] != "data":
            own = Line(str(row.get("of", row["model"])), row.get("steps", row.get("calls")))
            found.setdefault(own, []).append(row)
    return {key: sorted(some, key=lambda row: row["entropy_nats"]) for key, some in found.items()}


def far(rows: Sequence[Row]) -> list[Row]:
    """Rows of models whose entropy is further than `_SHOWN` nats from that of the data, if any."""
    data = [row["entropy_nats"] for row in rows if row["model"] == "data"]
    models = [row for row in rows if row["model"] != "data"]
    return [row for row in models if data and abs(row["entropy_nats"] - data[0]) > _SHOWN]


def draw_frontier(path: epath.Path, rows: Sequence[Row], quality: str) -> None:
    """Plots every line of `rows`, and the data, as PNG: colours are models, markers are calls.

    Args:
      path: path of the PNG file.
      rows: rows with entropy_nats and the figure; a swept value is printed beside its point where
        there are few lines. Rows of `far` are named above the plot alone.
      quality: one of `QUALITIES`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    left_out = far(rows)
    hidden = set(map(id, left_out))
    drawn = lines([row for row in rows if id(row) not in hidden])
    models, calls = (list(dict.fromkeys(one)) for one in zip(*drawn)) if drawn else ([], [])
    styles = {key: {"color": f"C{number % 10}"} for number, key in enumerate(models)}
    calls = sorted(calls, key=lambda number: number or 0)
    marks = {key: {"marker": MARKERS[number % len(MARKERS)]} for number, key in enumerate(calls)}
    figure, axis = pyplot.subplots(figsize=(8, 5.5))
    for (model, number), some in drawn.items():
        x, y = ([row[key] for row in some] for key in ("entropy_nats", quality))
        spread = list(zip(*(errors(row, quality) for row in some)))
        style = styles[model] | marks[number]
        axis.errorbar(x, y, spread, capsize=3, linewidth=1.4, markersize=5, **style)
        if len(drawn) <= _FEW and len(some) > 1:
            _values(axis, some, quality)
    for model, style in styles.items():
        axis.plot([], [], label=model, linewidth=3, **style)
    for number, style in marks.items():
        title = "calls of the model's own" if number is None else f"{number:g} calls"
        axis.plot([], [], linestyle="", color="gray", label=title, **style)
    for row in rows:
        if row["model"] == "data":
            point = (row["entropy_nats"], row[quality])
            axis.plot(*point, "*", color="black", markersize=14, label="held-out data")
            axis.axvline(row["entropy_nats"], color="black", linestyle="--", linewidth=0.8)
    if QUALITIES[quality]:
        logarithmic(axis)
    axis.set(xlabel=label("entropy_nats"), ylabel=label(quality))
    if left_out:
        names = ", ".join(dict.fromkeys(str(row["model"]) for row in left_out))
        axis.set_title(f"beyond {_SHOWN} nats of the data's entropy: {names}", fontsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    figure.tight_layout()
    save_figure(figure, path)


def _values(axis, some: Sequence[Row], quality: str) -> None:
    """Prints the swept value of each row beside its point."""
    for row in some:
        if "swept" in row:
            at = (row["entropy_nats"], row[quality])
            axis.annotate(f"{row['swept']:g}", at, (4, 4), textcoords="offset points", fontsize=8)
