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
