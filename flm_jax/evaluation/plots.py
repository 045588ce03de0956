"""Plots of comparisons, schedules, sweeps and clocks (matplotlib, extra `plots`)."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from flm_jax.core.files import save_figure, write_figure
from flm_jax.flows.clocks import decoding_clock, t_to_tau

Row = dict[str, Any]
# The first that all rows have; and whether its axis is logarithmic.
_QUALITY = {"judge_perplexity": True, "task_valid": False, "kernel_distance": False}
_ENTROPY_NEAR = 0.2  # nats: samples further from the data's entropy do not compare in perplexity
MARKERS = "osD^vPX*"


def quality_name(rows: Sequence[Row]) -> str:
    """Name of the quality figure that a comparison plots."""
    return next((n for n in _QUALITY if all(n in row for row in rows)), "entropy_nats")


def label(name: str) -> str:
    """The title of an axis that shows a figure."""
    return {
        "judge_perplexity": "generative perplexity (by the judge)",
        "task_valid": "share of valid samples",
        "kernel_distance": "kernel distance to held-out data",
        "mauve": "MAUVE against held-out data",
        "entropy_nats": "unigram entropy, nats",
        "calls": "network calls",
        "seconds_per_1000_tokens": "seconds per 1000 tokens",
    }[name]


def draw_comparison(
    folder: epath.Path, rows: Sequence[Row], profiles: dict[str, dict[float, float]]
) -> list[str]:
    """Plots quality against calls and time with the entropy, and loss by tau, as PNG files.

    Args:
      folder: folder of the files.
      rows: rows of `compare`: model, calls, seconds_per_1000_tokens, entropy_nats and figures.
      profiles: dict from a model's name to a dict from tau to nats/token.

    Returns:
      Names of the files.
    """
    import matplotlib

    matplotlib.use("Agg")
    # One look for a model in all pictures.
    models = dict.fromkeys([row["model"] for row in rows if "calls" in row] + list(profiles))
    styles = {
        name: {"marker": MARKERS[place % len(MARKERS)], "color": f"C{place}"}
        for place, name in enumerate(models)
    }
    names = {"quality.png": _quality(rows, styles)}
    if profiles:
        names["loss_by_tau.png"] = _profiles(profiles, styles)
    for name, figure in names.items():
        save_figure(figure, folder / name)
    return list(names)


def _quality(rows: Sequence[Row], styles: dict[str, dict[str, str]]):
    """Plots three panels with one legend: quality by calls and by time, and entropy by calls."""
    from matplotlib import pyplot

    quality = quality_name(rows)
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 5))
    drawn = [row for row in rows if "calls" in row]
    data = next((row for row in rows if "calls" not in row), None)
    panels = (("calls", quality), ("seconds_per_1000_tokens", quality), ("calls", "entropy_nats"))
    for axis, (x, y) in zip(axes, panels):
        for name in dict.fromkeys(row["model"] for row in drawn):
            own = sorted((r for r in drawn if r["model"] == name), key=lambda r: r[x])
            spread = list(zip(*[errors(row, y) for row in own]))
            points = [row[x] for row in own], [row[y] for row in own]
            axis.errorbar(*points, spread, capsize=3, label=name, linewidth=1.8, **styles[name])
        if data:
            axis.axhline(data[y], color="black", linestyle="--", label="held-out data")
        if y == "entropy_nats":
            middle = rows[0]["data_entropy_nats"]
            span = (middle - _ENTROPY_NEAR, middle + _ENTROPY_NEAR)
            axis.axhspan(*span, color="black", alpha=0.08, label=f"data ± {_ENTROPY_NEAR} nats")
        _scales(axis, x, _QUALITY.get(y, False), drawn)
        axis.set(xlabel=label(x), ylabel=label(y))
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    handles, labels = axes[2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    return figure


def _scales(axis, x: str, log_y: bool, rows: Sequence[Row]) -> None:
    from matplotlib import ticker

    axis.set_xscale("log", base=2 if x == "calls" else 10)
    if log_y:
        logarithmic(axis)
    if x == "calls":
        calls = sorted({row["calls"] for row in rows})
        # Calls that were saved put points beside the powers of two: those alone get a number.
        axis.set_xticks([c for c in calls if c == int(c)] or calls)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.grid(alpha=0.3)


def logarithmic(axis) -> None:
    """Gives an axis's y a logarithmic scale with plain numbers."""
    from matplotlib import ticker

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")


def errors(row: Row, name: str) -> tuple[float, float]:
    """Distances of a value to the ends of its interval; 0 without one."""
    low, high = (row.get(f"{name}_{end}", row[name]) for end in ("low", "high"))
    return max(row[name] - low, 0.0), max(high - row[name], 0.0)


def _profiles(profiles: dict[str, dict[float, float]], styles: dict[str, dict[str, str]]):
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4.5))
    for name, profile in profiles.items():
        axis.plot(list(profile), list(profile.values()), label=name, **styles[name])
    axis.set_xlabel("tau (0 noise, 1 data)")
    axis.set_ylabel("denoising loss, nats/token")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    return figure


def draw_schedule(path: epath.Path, records: Sequence[Row]) -> None:
    """Plots a schedule of gamma as PNG: the cross entropy, and the training distribution.

    Args:
      path: path of the PNG file.
      records: records from `schedule_log.read_schedule`, at least one; the first panel shows the
        points of the last one. Records of older versions have quantiles of the learnt distribution
        alone.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    last, drawn = records[-1], [row for row in records if row["ready"] or "mixture" in row]
    left.plot(last["gamma"], last["nats"], "o", markersize=4, color="C0", label="mean of its bin")
    if last["ready"]:
        # The law's distribution function is the cross entropy but for a scale and a shift.
        share = np.interp(last["gamma"], last["quantiles"], last["u"])
        scale, shift = np.polyfit(share, last["nats"], 1)
        label = f"learnt law, R² of the last fit {last['r2']:.3f}" if last["r2"] else "learnt law"
        curve = scale * np.array(last["u"]) + shift
        left.plot(last["quantiles"], curve, color="C1", linewidth=2, label=label)
    left.set(xlabel="gamma (-10 text, 6 mask)", ylabel="cross entropy, nats")
    left.set_title(f"step {last['step']}")
    left.legend()
    for u in (0.1, 0.25, 0.5, 0.75, 0.9):
        points = [np.interp(u, row["u"], row.get("mixture", row["quantiles"])) for row in drawn]
        right.plot([row["step"] for row in drawn], points, "o-", markersize=3, label=f"{u:.0%}")
    weights = " + ".join(
        f"{weight:.0%} {name}"
        for weight, name in zip(last.get("weights", []), ("uniform", "normal", "learnt"))
        if weight
    )
    right.set(xlabel="step", ylabel="gamma")
    right.set_title(f"quantiles of {weights or 'the learnt law'}")
    if drawn:
        right.legend(title="share below")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    save_figure(figure, path)


def draw_sweep(path: epath.Path, rows: Sequence[Row], option: str) -> None:
    """Plots the figures of rows against the values of `option`, one panel each, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["model"] != "data"]
    # A rewarded text is not to follow the law of the data.
    names = ("task_valid", "matching" if "matching" in rows[0] else "task_total_variation")
    names = [name for name in names if name in rows[0]] or ["entropy_nats"]
    names = names + ["judge_perplexity"] * ("judge_perplexity" in rows[0])
    figure, axes = pyplot.subplots(1, len(names), figsize=(5.5 * len(names), 4), squeeze=False)
    for axis, name in zip(axes[0], names):
        for steps in dict.fromkeys(row["steps"] for row in rows):
            own = [row for row in rows if row["steps"] == steps]
            points = [row[option] for row in own], [row[name] for row in own]
            spread = list(zip(*(errors(row, name) for row in own)))
            axis.errorbar(*points, spread, marker="o", capsize=3, label=f"{steps} steps")
        axis.set_xlabel(option.replace("_", " "))
        axis.set_ylabel(name.removeprefix("task_").replace("_", " "))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    save_figure(figure, path)


def draw_clock(path: epath.Path, vocab_sizes: Sequence[int], dim: int | None = None) -> None:
    """Plots tau(t) for several vocabulary sizes as PNG: when tokens become decodable.

    Args:
      path: path of the PNG file.
      vocab_sizes: vocabulary sizes V >= 2, one line each.
      dim: dimension D, to plot the clock of y_t in R^D beside each, dashed.

    Raises:
      UserError: a vocabulary size below 2.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    axis, t = figure.add_subplot(), jnp.linspace(0.0, 1.0, 501)
    for place, vocab_size in enumerate(vocab_sizes):
        tau = t_to_tau(decoding_clock(vocab_size), t)
        axis.plot(np.asarray(t), np.asarray(tau), color=f"C{place}", label=f"V = {vocab_size}")
        if dim is not None and dim < vocab_size:
            tau, label = t_to_tau(decoding_clock(vocab_size, dim), t), f"its y_t in R^{dim}"
            axis.plot(np.asarray(t), np.asarray(tau), "--", color=f"C{place}", label=label)
    axis.set(xlabel="t (0 noise, 1 text)", ylabel="tau (tokens decoded, above chance)")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    write_figure(figure, path)
