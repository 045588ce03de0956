"""The frontier of a model: quality against entropy as one setting of its sampler changes."""

from collections.abc import Sequence

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


def lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Groups rows by model and number of calls under a title, sorted by entropy.

    Rows of a model that a comparison samples in several ways name the model in `of`. The calls that
    a sampler saves differ between the values of a setting; the requested steps do not.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["model"] != "data":
            calls = row.get("steps", row.get("calls"))
            title = str(row.get("of", row["model"])) + (f", {calls:g} calls" if calls else "")
            found.setdefault(title, []).append(row)
    return {key: sorted(some, key=lambda row: row["entropy_nats"]) for key, some in found.items()}


def draw_frontier(path: epath.Path, rows: Sequence[Row], quality: str) -> None:
    """Plots every line of `rows`, and the data, as PNG.

    Args:
      path: path of the PNG file.
      rows: rows with entropy_nats and the figure; a swept value is printed beside its point.
      quality: one of `QUALITIES`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5.5))
    for number, (title, some) in enumerate(lines(rows).items()):
        x, y = ([row[key] for row in some] for key in ("entropy_nats", quality))
        spread = list(zip(*(errors(row, quality) for row in some)))
        style = {"marker": MARKERS[number % len(MARKERS)], "color": f"C{number % 10}"}
        axis.errorbar(x, y, spread, capsize=3, linewidth=1.8, label=title, **style)
        for row in some:
            if "swept" in row and len(some) > 1:
                at = (row["entropy_nats"], row[quality])
                axis.annotate(
                    f"{row['swept']:g}", at, (4, 4), textcoords="offset points", fontsize=8
                )
    for row in rows:
        if row["model"] == "data":
            point = (row["entropy_nats"], row[quality])
            axis.plot(*point, "*", color="black", markersize=14, label="held-out data")
            axis.axvline(row["entropy_nats"], color="black", linestyle="--", linewidth=0.8)
    if QUALITIES[quality]:
        logarithmic(axis)
    axis.set(xlabel=label("entropy_nats"), ylabel=label(quality))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    save_figure(figure, path)
