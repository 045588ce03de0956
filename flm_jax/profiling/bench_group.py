"""Runs cases of the speed benchmark one after the other in one process; see `bench_runs`.

python -m flm_jax.profiling.bench_group SUITE CASE/VARIANT...

It prints JSON lines: {"begin": CASE/VARIANT}, then {"figures": ...} or {"failed": LINE} for it.

Several cases are compiled at once, each in its own thread, and timed afterwards: compilation takes
longer than the measurement, and each uses few of a machine's cores.
"""

import concurrent.futures
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
from flm_jax.profiling.bench_worker import Prepared, matmul_ceiling, peak_mib, prepare

_RUNS = (3, 20)  # fewest and most that are timed
_SECONDS = 2.0  # of timed runs, in between
_AT_ONCE = 5  # compiled together
# Seconds after which those that are ready are timed beside the compilation of the others.
_PATIENCE = 80.0


def one_line(error: Exception) -> str:
    """Describes an error in one line."""
    known = error if isinstance(error, UserError) else device_memory_error(error)
    text = str(known) if known else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:400]


def measure(case: Case, prepared: Prepared) -> dict[str, Any]:
    """Measures one compiled variant, and frees its device memory afterwards.

    The peak of a process only rises, and JAX cannot reset it. If this variant raised it, it is the
    variant's own ("peak_is": "measured"); else an earlier variant needed more, and the figure is
    the compiler's plan for this one ("planned"), or the earlier peak ("at most") without a plan.
    """
    ceiling = matmul_ceiling(prepared.dtype)
    before = peak_mib()
    run, planned = prepared.run, prepared.planned / 2**20
    state = run(prepared.first())
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
        "ceiling": ceiling,
        "peak_is": peak_is,
        "planned_mib": planned,
        "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
    }
    result = {"seconds": seconds, "peak_mib": planned if peak_is == "planned" else peak}
    return figures(case, [result], prepared.said | more)


def _measured(case: Case, waiting: concurrent.futures.Future) -> dict[str, Any]:
    try:
        return {"figures": measure(case, waiting.result())}
    except Exception as error:  # the other cases go on
        traceback.print_exc()
        return {"failed": one_line(error)}


def _batch(suite: str, names: list[str], pool: concurrent.futures.Executor) -> None:
    """Compiles some variants together, then measures them one by one."""
    pairs = [name.split("/") for name in names]
    cases = [find(suite, case) for case, _ in pairs]
    waiting = [pool.submit(prepare, c, c.variants[v]) for c, (_, v) in zip(cases, pairs)]
    concurrent.futures.wait(waiting, timeout=_PATIENCE)
    for name, case in zip(names, cases):
        print(json.dumps({"begin": name}), flush=True)
        print(json.dumps(_measured(case, waiting.pop(0))), flush=True)
        gc.collect()
    jax.clear_caches()


def main() -> None:
    suite, *names = sys.argv[1:]
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(names), _AT_ONCE):
            _batch(suite, names[start : start + _AT_ONCE], pool)


if __name__ == "__main__":
    main()
