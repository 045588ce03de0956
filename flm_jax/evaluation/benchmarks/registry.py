"""The benchmarks by name."""

from flm_jax.core.errors import one_of, require
from flm_jax.evaluation.benchmarks.base import Benchmark, Choices
from flm_jax.evaluation.benchmarks.code import make_humaneval, make_mbpp
from flm_jax.evaluation.benchmarks.gsm8k import make_gsm8k
from flm_jax.evaluation.benchmarks.mt_bench import make_mt_bench
from flm_jax.evaluation.benchmarks.sandbox import Sandbox

BENCHMARKS = {
    "gsm8k": make_gsm8k,
    "mt_bench": make_mt_bench,
    "humaneval": make_humaneval,
    "mbpp": make_mbpp,
}
WITH_PROGRAMS = ("humaneval", "mbpp")


def make_benchmark(
    name: str, path: str, choices: Choices, sandbox: Sandbox | None = None
) -> Benchmark:
    """A benchmark by name.

    Args:
      path: its data file.
      sandbox: where programs run; of `WITH_PROGRAMS`.

    Raises:
      UserError: an unknown name, no such file, a bad line of it, impossible choices.
    """
    one_of("task", name, BENCHMARKS)
    require(sandbox is not None or name not in WITH_PROGRAMS, f"{name} runs programs in a sandbox.")
    return BENCHMARKS[name](path, choices, sandbox)
