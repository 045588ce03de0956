"""Ahead-of-time compilation: memory of a device, and the largest batch that fits."""

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from flm_jax.core.errors import require

_USED = re.compile(r"[Uu]sed ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?)")
_EXCEEDS = re.compile(r"\(([\d.]+)([KMG]?)\) exceeds available HBM \(([\d.]+)([KMG]?)\)")
_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


class Job(NamedTuple):
    """A jitted program with the shapes of its arguments, and the devices for it.

    Attributes:
      name: description for users.
      minimum_flops: lower bound of its operations, over all devices.
    """

    name: str
    program: Callable
    args: tuple
    mesh: Mesh
    minimum_flops: int


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of one device, in bytes.

    Attributes:
      peak: largest memory in use at a time; if the compiler refused, what it would have needed.
      arguments, outputs, temporaries: parts of the peak; outputs that reuse arguments count in
        neither.
      limit: memory that a program may use; 0 for unknown.
    """

    peak: int
    arguments: int = 0
    outputs: int = 0
    temporaries: int = 0
    limit: int = 0

    @property
    def fits(self) -> bool:
        return not self.limit or self.peak <= self.limit


def used(compiled, platform: str, limit: int) -> Memory:
    """Returns the memory of a compiled program.

    The TPU compiler reports its peak. The "peak" of other compilers leaves out temporaries or
    arguments: for them everything that lives through the call is summed.
    """
    stats = compiled.memory_analysis()
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    peak = stats.peak_memory_in_bytes
    if platform != "tpu":
        peak = arguments + outputs + temporaries
    return Memory(peak, arguments, outputs, temporaries, limit)


def wanted(message: str, limit: int) -> Memory | None:
    """Memory that a refused program would have needed, parsed from the compiler's message."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = _USED.search(message) or _EXCEEDS.search(message)
    if not found:
        return Memory(limit + 1, limit=limit)
    used, used_unit, of, of_unit = found.groups()
    return Memory(int(float(used) * _SIZES[used_unit]), limit=int(float(of) * _SIZES[of_unit]))


class Compiled(NamedTuple):
    """Result of compilation; `text` is the program of one device, "" if it does not fit."""

    memory: Memory
    text: str
    seconds: float
    refusal: str


def tracing_for(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Context for tracing programs for this mesh: GPU kernels query the default device's kind."""
    device = mesh.devices.flat[0]
    if device.platform not in ("gpu", "cuda") or device.platform == jax.default_backend():
        return contextlib.nullcontext()
    return jax.default_device(device)


def compile_job(job: Job, limit: int) -> Compiled:
    """Compiles for the devices of the arguments' shardings; lack of memory is a result."""
    began = time.perf_counter()
    with tracing_for(job.mesh):
        lowered = job.program.lower(*job.args)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        memory = wanted(str(error), limit)
        if memory is None:
            raise
        seconds = time.perf_counter() - began
        return Compiled(memory, "", seconds, str(error).splitlines()[0][:300])
    seconds = time.perf_counter() - began
    platform = job.mesh.devices.flat[0].platform
    return Compiled(used(compiled, platform, limit), compiled.as_text(), seconds, "")


class Search(NamedTuple):
    """Result of `largest_batch`.

    Attributes:
      rows: largest number of rows per device that fitted; 0 for none.
      too_many: smallest number that did not fit; None if all fitted.
      tried: pairs (rows, memory) of all compilations.
    """

    rows: int
    too_many: int | None
    tried: list[tuple[int, Memory]]


def largest_batch(measure: Callable[[int], Memory], start: int, unit: int, tries: int) -> Search:
    """Searches the largest number of rows per device that fits, with few compilations.

    Peak memory is close to linear in the rows, so each try is where the line through the last two
    peaks meets the limit; a refused program reports what it would have needed, so it counts too.

    Args:
      measure: costly function from rows per device to memory.
      start: first guess.
      unit: number of which rows are multiples.
      tries: largest number of calls of `measure`; the result is exact to 1/16 of itself, or the
        last that fitted.

    Returns:
      A Search; the gap between its rows and too_many bounds its error.
    """
    rows, low, high = max(start // unit, 1) * unit, 0, math.inf
    tried: list[tuple[int, Memory]] = []
    for _ in range(tries):
        memory = measure(rows)
        require(memory.limit > 0, "the largest batch needs a memory limit; these devices have none")
        tried.append((rows, memory))
        low, high = (rows, high) if memory.fits else (low, rows)
        if high - low <= max(unit, low // 16 // unit * unit):
            break
        rows = _next_rows(tried, low, high, unit)
    return Search(low, None if high == math.inf else int(high), tried)


def _next_rows(tried: list[tuple[int, Memory]], low: int, high: float, unit: int) -> int:
    """Next number of rows to try between low, which fits, and high, which does not."""
    (rows, memory), *_ = tried[-1:]
    if len(tried) == 1:
        guess = rows * 2 if memory.fits else rows / 2
    else:
        (other, before) = tried[-2]
        # A step of the secant method; a slope that is not positive says nothing.
        slope = (memory.peak - before.peak) / (rows - other)
        guess = rows + (memory.limit - memory.peak) / slope if slope > 0 else rows * 2
    guess = int(guess) // unit * unit
    top = high - unit if high < math.inf else max(guess, low + unit)
    return int(min(max(guess, low + unit), top))
