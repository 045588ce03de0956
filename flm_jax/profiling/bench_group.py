"""Cases of the benchmark one after another in one process; see `bench_runs`.

python -m flm_jax.profiling.bench_group SUITE CASE/VARIANT...

Speaks JSON lines: {"begin": CASE/VARIANT}, then {"figures": ...} or {"failed": LINE} for it.
"""

import gc
import json
import statistics
import sys
import time
import traceback
from typing import Any

import jax

from flm_jax.core.errors import UserError, device_memory_error
from flm_jax.profiling.bench_cases import Case, find
from flm_jax.profiling.bench_results import figures
from flm_jax.profiling.bench_worker import peak_mib, prepare

_RUNS = (3, 20)  # fewest and most that are timed
_SECONDS = 3.0  # of timed runs, in between


def one_line(error: Exception) -> str:
    """What went wrong, for the line of a case."""
    known = error if isinstance(error, UserError) else device_memory_error(error)
    text = str(known) if known else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:400]


def measure(case: Case, variant: str) -> dict[str, Any]:
    """Figures of one variant, which leaves nothing of it in the device's memory.

    The peak of a process only rises, and JAX cannot reset it. Where this variant raised it, it is
    its own ("peak_is": "measured"); else an earlier one took more, and the figure is what the
    compiler planned for this one ("planned"), or the earlier peak ("at most") where it did not say.
    """
    before = peak_mib()
    began = time.perf_counter()
    prepared = prepare(case, case.variants[variant])
    said, run, state = prepared.said, prepared.run, prepared.state
    ready = time.perf_counter() - began
    planned = prepared.planned / 2**20
    del prepared
    state = run(state)
    seconds: list[float] = []
    fewest, most = _RUNS
    while len(seconds) < fewest or (len(seconds) < most and sum(seconds) < _SECONDS):
        began = time.perf_counter()
        state = run(state)
        seconds.append(time.perf_counter() - began)
    peak = peak_mib()
    known = "planned" if planned else "at most"
    peak_is = "measured" if peak > before else known
    more = {
        "peak_is": peak_is,
        "planned_mib": planned,
        "ready_seconds": ready,
        "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
    }
    result = {"seconds": seconds, "peak_mib": planned if peak_is == "planned" else peak}
    return figures(case, [result], said | more)


def main() -> None:
    suite, *names = sys.argv[1:]
    for name in names:
        print(json.dumps({"begin": name}), flush=True)
        case_name, variant = name.split("/")
        try:
            told = {"figures": measure(find(suite, case_name), variant)}
        except Exception as error:  # the other cases go on
            traceback.print_exc()
            told = {"failed": one_line(error)}
        print(json.dumps(told), flush=True)
        gc.collect()
        jax.clear_caches()


if __name__ == "__main__":
    main()
