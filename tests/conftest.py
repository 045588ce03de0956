"""Set-up shared by all tests: 8 fake devices, checked shapes, no silent rank promotion.

The compilation cache lives in the repository root, where git ignores it, or where
JAX_COMPILATION_CACHE_DIR says; it only saves time.
"""

import gc
import os
from pathlib import Path

import pytest

pytest.register_assert_rewrite("helpers")
from helpers.compiling import FAST  # noqa: E402

# Before JAX starts its backend, which reads the flags once.
_DEVICES = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST} {_DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time here goes into compiling. Environment, so that it holds for processes that the
# tests start as well; a training to the end sets the first one back.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

_LONGEST = (
    "build/test_adapters.py",
    "build/test_uniform_diffusion.py",
    "cli/test_errors.py",
    "cli/test_outputs.py",
    "evaluation/test_compare.py",
    "training/test_masked_distribution_matching.py",
    "training/test_distribution_matching.py",
    "training/test_training.py",
    "training/test_recipes.py",
    "distributed/test_processes.py",
    "training/test_endurance.py",
    "repository/test_notebooks.py",
)
_CHECKED = [f"flm_jax.{name}" for name in ("flows", "denoiser", "losses", "samplers", "models")]
install_import_hook(_CHECKED, "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")


_MOST_MAPPINGS = 20_000  # beyond Linux's 65,530 JAX crashes (docs/reference/versions.md)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_dropped_in_time():
    """After a file of tests, where the programs of this process hold many pieces of memory."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > _MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: minutes of training; run with --slow")


def pytest_collection_modifyitems(config, items):
    # Processes take files in this order: the longest first, so that none is left alone at the end.
    items.sort(key=lambda item: not item.path.as_posix().endswith(_LONGEST))
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
