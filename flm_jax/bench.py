"""Times train steps and samplers and measures their peak memory, variant against variant.

python -m flm_jax.bench --suite=cpu --json=bench.json [--baseline=OLD.json]

Suites: cpu (small models), scaling (1 to 8 host devices), tpu (the papers' sizes in bf16). Each
variant of a case runs in its own process, since peak memory is a property of a process. The
processes start, compile, and then take turns of a few steps each, so that a slow minute of the
machine affects all of them. The report has medians, the ratios of the last variant to the others,
and the ratios of each variant to the file of an earlier run.

gpu and gpu_quick (the papers' sizes in bf16, six minutes and two) instead run a group of cases one
after the other in one process, and print a line when each is done; --seconds limits them. A case
that does not fit or fails costs one line. gpu_smoke is gpu_quick at tiny sizes, for a trial without
a GPU.

Utilisation is the rate of operations of the traced program (matrix products), relative to the rate
of a large matrix product of random numbers in the same dtype, measured in the same process. On CPUs
products and runs take turns, and the ratio of their processor times follows, which programs that
run beside it disturb less.
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from flm_jax.cli.path_flags import DEFINE_output, DEFINE_path
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.core.errors import UserError, one_of, require
from flm_jax.core.files import to_json, write_output
from flm_jax.core.progress import Progress, make_way
from flm_jax.profiling import bench_runs
from flm_jax.profiling.bench_cases import SECONDS, SUITES, Case
from flm_jax.profiling.bench_results import compare, figures, ratios, read_baseline, show

_SUITE = flags.DEFINE_string("suite", "cpu", f"Suite of cases: {', '.join(SUITES)}.")
_JSON = DEFINE_output("json", "", "JSON file to write the results to.")
_ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Number of timed turns of each variant; the gpu suites ignore it."
)
_SECONDS = flags.DEFINE_float(
    "seconds", 0.0, "Time limit of a gpu suite in seconds; 0 is the suite's own."
)
_FILTER = flags.DEFINE_string(
    "filter", "", "Text that the names of the cases to run contain; empty for all cases."
)
_BASELINE = DEFINE_path("baseline", "", "JSON file of an earlier run to compare with.")


class _Worker:
    """A process that holds one compiled variant and times one turn on request."""

    def __init__(self, suite: str, case: Case, variant: str):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flm_jax.profiling.bench_worker", suite, case.name, variant],
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


def measure(
    suite: str, case: Case, rounds: int, turned: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Runs all variants in turn; returns their figures and the ratios of the last to the others.

    Args:
      suite: name of the suite.
      case: one of its cases.
      rounds: number of turns of each variant.
      turned: callback after each turn.
    """
    # On an accelerator variants follow each other: together they would not fit into its memory.
    together = suite in ("cpu", "scaling")
    turns: dict[str, list[dict[str, Any]]] = {variant: [] for variant in case.variants}
    ready = {}
    for group in [list(turns)] if together else [[variant] for variant in turns]:
        workers = {variant: _Worker(suite, case, variant) for variant in group}
        for _ in range(rounds):
            for variant, worker in workers.items():
                turns[variant].append(worker.turn())
                turned()
        for variant, worker in workers.items():
            ready[variant] = worker.ready
            worker.close()
    found = {v: figures(case, results, ready[v]) for v, results in turns.items()}
    *others, best = found
    against = {other: ratios(found[best], found[other]) for other in others}
    return {"case": case.name, "sizes": case.sizes, "variants": found, "ratios": against}


def main(argv) -> None:
    no_arguments(argv)
    require(_ROUNDS.value >= 1, f"got --rounds={_ROUNDS.value}; expected at least 1.")
    one_of("suite", _SUITE.value, SUITES)
    cases = [case for case in SUITES[_SUITE.value] if _FILTER.value in case.name]
    require(bool(cases), f"no case of suite {_SUITE.value} contains --filter={_FILTER.value!r}.")
    baseline = read_baseline(_BASELINE.value) if _BASELINE.value else []
    if cases[0].group:
        _grouped(cases, baseline)
        return
    require(_SECONDS.value == 0, f"--seconds bounds the suites {', '.join(SECONDS)} alone.")
    results, turns = [], itertools.count(1)
    with Progress("turns", sum(len(case.variants) for case in cases) * _ROUNDS.value) as bar:
        for case in cases:
            result = measure(_SUITE.value, case, _ROUNDS.value, lambda: bar.done(next(turns)))
            results.append(result)
            compare([result], baseline)
            make_way()
            show(result)
            _save(results)


def _grouped(cases: list[Case], baseline: list[dict[str, Any]]) -> None:
    suite = _SUITE.value
    got = _SECONDS.value
    require(got >= 0, f"got --seconds={got}; expected a positive number, or 0 for the suite's own.")
    results = bench_runs.run_suite(suite, cases, got or SECONDS[suite], _save)
    compare(results, baseline)
    _save(results)
    for result in results:
        for variant, found in result["variants"].items():
            if r := found.get("against_baseline"):
                told = f"{r['speed']:.2f}x as fast, {r['peak']:.2f}x its peak"
                print(f"{result['case']}/{variant} against the baseline: {told}")
    done, failed = (sum(len(r[kind]) for r in results) for kind in ("variants", "failed"))
    print(f"suite {suite}: {done} measured, {failed} not")


def _save(results: list[dict[str, Any]]) -> None:
    if _JSON.value:
        write_output(_JSON.value, to_json(results, indent=1) + "\n")


if __name__ == "__main__":
    run_cli(main)
