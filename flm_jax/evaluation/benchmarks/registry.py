"""The benchmarks by name."""

from collections.abc import Callable
from typing import NamedTuple

from flm_jax.core.errors import one_of, require
from flm_jax.evaluation.benchmarks.base import Benchmark, Choices
from flm_jax.evaluation.benchmarks.code import make_humaneval, make_mbpp
from flm_jax.evaluation.benchmarks.gsm8k import make_gsm8k
from flm_jax.evaluation.benchmarks.mt_bench import make_mt_bench
from flm_jax.evaluation.benchmarks.sandbox import Sandbox


class Entry(NamedTuple):
    """One benchmark of the registry.

    Attributes:
      make: function from (path of its data, choices, sandbox or None) to a Benchmark.
      programs: whether its answers are programs, which run in a sandbox.
      one_answer: whether each problem has one answer, not several samples.
      styles: names of the available prompt styles; "chat" is the style of questions.
    """

    make: Callable[[str, Choices, Sandbox | None], Benchmark]
    programs: bool = False
    one_answer: bool = False
    styles: tuple[str, ...] = ()


BENCHMARKS: dict[str, Entry] = {
    "gsm8k": Entry(make_gsm8k, styles=("chat", "plain")),
    "mt_bench": Entry(make_mt_bench, one_answer=True, styles=("chat", "vicuna")),
    "humaneval": Entry(make_humaneval, programs=True),
    "mbpp": Entry(make_mbpp, programs=True),
}


def make_benchmark(
    name: str, path: str, choices: Choices, sandbox: Sandbox | None = None
) -> Benchmark:
    """Builds a benchmark by name.

    Args:
      path: path of its data file.
      choices: options of the benchmark.
      sandbox: sandbox for benchmarks with programs.

    Raises:
      UserError: an unknown name, no such file, a bad line in it, or impossible choices.
    """
    one_of("task", name, BENCHMARKS)
    entry = BENCHMARKS[name]
    style = choices.prompt_style
    require(
        style in ("", *entry.styles),
        f"got prompt_style={style!r}; {name} has {', '.join(entry.styles) or 'none to choose'}.",
    )
    require(sandbox is not None or not entry.programs, f"{name} runs programs in a sandbox.")
    return entry.make(path, choices, sandbox)
