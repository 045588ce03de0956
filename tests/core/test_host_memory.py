"""Memory of the C library is kept on CPUs alone, and where nobody else has set it."""

import subprocess
import sys

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
    assert not host_memory.keep_freed_memory({"JAX_PLATFORMS": "cpu", name: "1"})


_FAULTS = """
import resource, sys
from flm_jax.core.host_memory import keep_freed_memory
import numpy as np
if sys.argv[1] == "keep" and not keep_freed_memory({"JAX_PLATFORMS": "cpu"}):
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
