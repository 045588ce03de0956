"""Memory of the C library is kept on CPUs alone, and where nobody else has set it."""

import subprocess
import sys
from pathlib import Path

import pytest

from flm_jax.core import host_memory


@pytest.mark.parametrize(
    "platforms, expected", [("cpu", True), ("cuda", False), ("tpu,cpu", False)]
)
def test_accelerators_are_left_alone(platforms, expected):
    assert host_memory.on_cpu({"JAX_PLATFORMS": platforms}) is expected


def test_a_card_is_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(host_memory, "_CARDS", (f"{tmp_path}/card[0-9]",))
    assert host_memory.on_cpu({})
    (tmp_path / "card0").touch()
    assert not host_memory.on_cpu({})


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_environment_comes_first(name):
    assert not host_memory.tune_malloc({"JAX_PLATFORMS": "cpu", name: "1"})


_FAULTS = """
import resource, sys
from flm_jax.core.host_memory import tune_malloc
import numpy as np
if sys.argv[1] == "keep" and not tune_malloc({"JAX_PLATFORMS": "cpu"}):
    sys.exit("no glibc")
np.ones(1 << 25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(1 << 25, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_pages_are_not_cleared_again():
    """Four arrays of 32 MiB: over 4 times 500 faults by default (of huge pages fewer), then few."""
    run = lambda how: subprocess.run(
        [sys.executable, "-c", _FAULTS, how], capture_output=True, text=True
    )
    kept, plain = run("keep"), run("plain")
    if "no glibc" in kept.stderr:
        pytest.skip("another C library")
    assert int(kept.stdout) < 50 or int(kept.stdout) < int(plain.stdout) / 10


_HUGE = """
import re, sys
from flm_jax.core.host_memory import tune_malloc
import numpy as np
if not tune_malloc({"JAX_PLATFORMS": "cpu"}):
    sys.exit("no glibc")
kept = np.ones(1 << 26, np.uint8)
heap = open("/proc/self/smaps").read().split("[heap]")[1:]  # of three kinds of pages
print(sum(int(re.search(r"AnonHugePages:\\s*(\\d+)", part)[1]) for part in heap))
"""


def test_the_heap_is_of_huge_pages():
    """An array of 64 MiB, of whose pages all but the first and last may be huge."""
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text():
        pytest.skip("the kernel gives no huge pages")
    run = subprocess.run([sys.executable, "-c", _HUGE], capture_output=True, text=True)
    if "no glibc" in run.stderr:
        pytest.skip("another C library")
    assert int(run.stdout) > 32 << 10
