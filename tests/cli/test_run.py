"""Commands end bad input with one line and status 2."""

import json
import shutil
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


def test_a_machine_without_memory_is_told_in_one_line():
    for error in ("MemoryError", "MemoryError('Unable to allocate 9 TiB')"):
        result = _command_text(FAILING.format(error=error))
        assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("error: this machine has too little memory (")


def test_a_library_that_panics_is_told_in_one_line():
    kind = "type('PanicException', (BaseException,), {'__module__': 'pyo3_runtime'})"
    result = _command_text(FAILING.format(error=f"{kind}('index out of bounds')"))
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "a library failed (index out of bounds); restore the files" in result.stderr


@pytest.mark.parametrize("error", ["RuntimeError('another')", "ValueError('out of memory')"])
def test_other_errors_keep_their_traceback(error):
    result = _command_text(FAILING.format(error=error))
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def _command_text(program):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )


FILLS = """
import resource, sys
from absl import app
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
import flm_jax.{command} as command
from flm_jax.cli.run import run_cli
run_cli(command.main)
"""


def test_a_full_disk_is_told_in_one_line(tmp_path):
    """Files that cannot grow stand for it; of commands that have no words of their own for it."""
    (tmp_path / "a.txt").write_text("some words\n" * 4000)
    problems = [{"question": f"{n}?", "answer": f"So.\n#### {n}"} for n in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in problems))
    out = f"--out={tmp_path / 'out'}"
    text = f"--source=text --path={tmp_path / 'a.txt'} --split_documents=line --tokenizer=bytes"
    commands = {
        "prepare_data": [*text.split(), out, "--workers=1"],
        "run_benchmark": [f"--data={tmp_path / 'a.jsonl'}", "--task=gsm8k", "--reference", out],
        "convert": [f"--export={tmp_path / 'out'}", "--workdir=tales"],
    }
    for command, flags in commands.items():
        line = [sys.executable, "-c", FILLS.format(command=command), *flags]
        result = subprocess.run(line, capture_output=True, text=True, timeout=120)
        assert result.returncode == 2, result.stderr
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ") and "File too large" in last
        assert "make room" in last or "with room" in last
        assert "Traceback" not in result.stderr, result.stderr
        assert command != "convert" or not (tmp_path / "out").exists(), "it may be run again"
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
