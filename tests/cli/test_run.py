"""Commands end bad input with one line and status 2."""

import subprocess
import sys

import pytest


def _command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("flm_jax.sample", "--workdir=nowhere"), "error: nowhere is no workdir"),
        (("flm_jax.train", "--config=configs/phrases/flm.py"), "error: no --workdir"),
        (("flm_jax.sample", "--workdir=w", "--seed=4294967296"), "range [0, 4294967295]"),
        (("flm_jax.sample", "--workdir=w", "--seed=-1"), "range [0, 4294967295]"),
        (("flm_jax.prepare_data", "--source=text", "--path=nowhere", "--out=x"), "error: "),
        (
            ("flm_jax.train", "--config=configs/phrases/flm.py", "--config.optim.lrr=1"),
            "lrr",
        ),
    ],
)
def test_commands_end_with_one_line_and_status_2(arguments, message):
    result = _command(*arguments)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert message in lines[-1] and len(lines) == 1, result.stderr


FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 61203283968 bytes."
BACKEND = f"Unable to initialize backend 'cuda': {FULL}\nsecond line"
FAILING = """
import jax
from flm_jax.cli.run import run_cli
def main(argv):
    raise {error}
run_cli(main)
"""


@pytest.mark.parametrize(
    "error",
    [
        f"RuntimeError({BACKEND!r})",
        f"jax.errors.JaxRuntimeError('{FULL}')",
        "jax.errors.JaxRuntimeError('INTERNAL: failed to create cublas handle')",
    ],
)
def test_a_full_device_is_told_in_one_line(error):
    result = _command_text(FAILING.format(error=error))
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: the device has no memory left: ")
    assert "XLA_PYTHON_CLIENT_PREALLOCATE=false" in result.stderr
    assert "second line" not in result.stderr


@pytest.mark.parametrize("error", ["RuntimeError('another')", "ValueError('out of memory')"])
def test_other_errors_keep_their_traceback(error):
    result = _command_text(FAILING.format(error=error))
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def _command_text(program):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
