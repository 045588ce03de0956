"""Times train steps and samplers and their peak memory, variant against variant.

python -m flm_jax.bench --suite=cpu --json=bench.json

Each variant of a case lives in a process of its own (peak memory is a property of a process). Both
are started, compile, and then take turns, a few steps each, so that a slow minute of the machine
falls on all. Medians are reported, and the last variant's ratios to the others.
"""

import json
import os
import statistics
import subprocess
import sys
from typing import Any

from absl import flags
from etils import epath

from flm_jax.bench_cases import SUITES, Case
from flm_jax.cli import run_cli
from flm_jax.types import UserError, require, unknown_name

_SUITE = flags.DEFINE_string("suite", "cpu", f"Which cases: {', '.join(SUITES)}.")
_JSON = flags.DEFINE_string("json", "", "File for the results.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each variant.")
_FILTER = flags.DEFINE_string("filter", "", "Only cases whose name contains this.")


class _Worker:
    """A process that holds one compiled variant and times one turn on request."""

    def __init__(self, case: Case, variant: str):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flm_jax.bench_worker", case.name, variant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
        )
        self._name = f"{case.name}/{variant}"
        self.ready = self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise UserError(
                f"bench worker {self._name} ended with status {self._process.wait()}; "
                "its error is above (out of memory?)."
            )
        return json.loads(line)

    def turn(self) -> dict[str, Any]:
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Runs all variants in turn; figures of each, and the ratios of the last to the others."""
    workers = {variant: _Worker(case, variant) for variant in case.variants}
    turns: dict[str, list[dict[str, Any]]] = {variant: [] for variant in workers}
    for _ in range(rounds):
        for variant, worker in workers.items():
            turns[variant].append(worker.turn())
    for worker in workers.values():
        worker.close()
    figures = {}
    for variant, results in turns.items():
        seconds = [s for r in results for s in r["seconds"]]
        figures[variant] = {
            "median_seconds": statistics.median(seconds),
            "runs": len(seconds),
            "tokens_per_second": case.tokens / statistics.median(seconds),
            "peak_mib": results[-1]["peak_mib"],
            "temporaries_mib": workers[variant].ready["temporaries_mib"],
        }
    *others, best = figures
    ratios = {
        other: {
            "speed": figures[other]["median_seconds"] / figures[best]["median_seconds"],
            "peak": figures[best]["peak_mib"] / figures[other]["peak_mib"],
        }
        for other in others
    }
    return {"case": case.name, "sizes": case.sizes, "variants": figures, "ratios": ratios}


def _print(result: dict[str, Any]) -> None:
    print(result["case"])
    for variant, f in result["variants"].items():
        print(
            f"  {variant:<22} {f['median_seconds'] * 1e3:9.1f} ms  "
            f"{f['tokens_per_second']:10,.0f} tokens/s  peak {f['peak_mib']:6.0f} MiB  "
            f"(temporaries {f['temporaries_mib']:.0f} MiB)"
        )
    last = list(result["variants"])[-1]
    for other, r in result["ratios"].items():
        print(f"  {last} against {other}: {r['speed']:.2f}x as fast, {r['peak']:.2f}x its peak")


def main(argv) -> None:
    require(len(argv) == 1, f"got positional arguments {argv[1:]}; expected flags alone.")
    require(_ROUNDS.value >= 1, f"got --rounds={_ROUNDS.value}; expected at least 1.")
    if _SUITE.value not in SUITES:
        raise unknown_name("suite", _SUITE.value, SUITES)
    cases = [case for case in SUITES[_SUITE.value] if _FILTER.value in case.name]
    require(bool(cases), f"no case of suite {_SUITE.value} contains --filter={_FILTER.value!r}.")
    results = []
    for case in cases:
        results.append(measure(case, _ROUNDS.value))
        _print(results[-1])
        if _JSON.value:
            epath.Path(_JSON.value).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    run_cli(main)
