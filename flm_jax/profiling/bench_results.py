"""Figures of speed benchmarks: medians, utilisation, ratios, comparison with an earlier run."""

import statistics
from typing import Any

from etils import epath

from flm_jax.core.errors import require
from flm_jax.core.reading import loads, read_bounded
from flm_jax.profiling.bench_cases import Case


def figures(case: Case, results: list[dict[str, Any]], ready: dict[str, Any]) -> dict[str, Any]:
    """Figures of a variant from its turns and from the record of its worker."""
    seconds = [s for r in results for s in r["seconds"]]
    median = statistics.median(seconds)
    ready = ready | _in_turns(results, ready)
    return ready | {
        "median_seconds": median,
        "runs": len(seconds),
        "tokens_per_second": case.tokens / median,
        "peak_mib": results[-1]["peak_mib"],
        "utilisation": ready["flops"] / median / ready["ceiling"] / _cards(ready),
    }


def _in_turns(results: list[dict[str, Any]], ready: dict[str, Any]) -> dict[str, float]:
    """Ceiling from products that took turns with the runs, and utilisation of processor time.

    Both are medians. Nothing where the worker multiplied no matrices between runs.
    """
    if not all("products" in r for r in results):
        return {}
    walls, processors = zip(*(pair for r in results for pair in r["products"]))
    processor = statistics.median(spent for r in results for _, spent in r["processor"])
    operations = results[0]["operations"]
    rate = operations / statistics.median(processors)
    return {
        "ceiling": operations / statistics.median(walls),
        "processor_seconds": processor,
        "processor_utilisation": ready["flops"] / processor / rate,
    }


def _cards(ready: dict[str, Any]) -> int:
    """Number of devices with their own arithmetic units; fake host devices share the cores."""
    return 1 if ready["device"] == "cpu" else ready["devices"]


def ratios(new: dict[str, Any], old: dict[str, Any]) -> dict[str, float]:
    """Ratio of the speeds of a new and an old variant, and of their peak memory."""
    return {
        "speed": old["median_seconds"] / new["median_seconds"],
        "peak": new["peak_mib"] / old["peak_mib"],
    }


def compare(results: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> None:
    """Adds to each variant its ratios to the earlier one of the same case, sizes and device."""
    before = {(r["case"], v): (r, f) for r in baseline for v, f in r["variants"].items()}
    for result in results:
        for variant, found in result["variants"].items():
            old, then = before.get((result["case"], variant), ({}, {}))
            same = old.get("sizes") == result["sizes"] and then["device"] == found["device"]
            if same:
                found["against_baseline"] = ratios(found, then)


def read_baseline(path: str) -> list[dict[str, Any]]:
    """Reads the results of an earlier run.

    Raises:
      UserError: no such file, or not one of this command.
    """
    file = epath.Path(path)
    require(file.exists(), f"--baseline={path} does not exist; expected the --json of a run.")
    try:
        results = loads(read_bounded(file, "results of a run"))
        good = isinstance(results, list) and all(
            {"device", "median_seconds", "peak_mib"} <= f.keys()
            for r in results
            for f in r["variants"].values()
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        good = False
    require(good, f"--baseline={path} holds no results of this benchmark; make one with --json.")
    return results


def line(name: str, f: dict[str, Any]) -> str:
    """Formats one line about a variant that ran in the process of its group."""
    return (
        f"{name}: {f['median_seconds'] * 1e3:.1f} ms, {f['tokens_per_second']:,.0f} tokens/s, "
        f"{f['utilisation']:.0%} of {f['ceiling'] / 1e12:.3g} TFLOP/s, "
        f"peak {f['peak_mib']:,.0f} MiB ({f['peak_is']}), "
        f"{f['runs']} runs within {f['spread']:.0%}, ready in {f['ready_seconds']:.0f} s"
    )


def _processor(f: dict[str, Any]) -> str:
    """What a line says about processor time, which other programs disturb less."""
    if "processor_seconds" not in f:
        return ""
    return f"; processor time {f['processor_seconds']:.2f} s, {f['processor_utilisation']:.0%}"


def show(result: dict[str, Any]) -> None:
    """Prints the figures of a case."""
    print(result["case"])
    for variant, f in result["variants"].items():
        print(
            f"  {variant:<14} {f['median_seconds'] * 1e3:9.1f} ms  "
            f"{f['tokens_per_second']:10,.0f} tokens/s  peak {f['peak_mib']:6.0f} MiB  "
            f"(temporaries {f['temporaries_mib']:.0f} MiB)  "
            f"{f['utilisation']:.0%} of {f['ceiling'] / 1e12:.3g} TFLOP/s{_processor(f)}"
        )
        if f["devices"] > 1:
            moved = ", ".join(
                f"{c['count']} {kind} {c['bytes'] / 2**20:.1f} MiB"
                for kind, c in f["collectives"].items()
            )
            each = f["flops"] / f["devices"] / 1e9
            print(f"    {f['devices']} devices, {each:.3f} GFLOP each; {moved}")
        if "against_baseline" in f:
            r = f["against_baseline"]
            print(f"    against the baseline: {r['speed']:.2f}x as fast, {r['peak']:.2f}x its peak")
    last = list(result["variants"])[-1]
    for other, r in result["ratios"].items():
        print(f"  {last} against {other}: {r['speed']:.2f}x as fast, {r['peak']:.2f}x its peak")
