"""Nothing that a model, a file or a name says is a command to a terminal, or a row of a table."""

import subprocess
import sys

import numpy as np
import pytest

from flm_jax.cli.run import _fail
from flm_jax.core.errors import UserError, unknown_name
from flm_jax.core.printing import cell, shown
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.evaluation.tables import table
from flm_jax.inference.trajectories import in_terminal
from flm_jax.training.logs import MetricsLog

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\x9b31m\x7f\x00\u202ec\r\n\td"


def test_controls_stand_as_signs():
    assert shown(HOSTILE) == "a␛[2J␛]0;title␇b�31m␡␀�c␍\n\td"
    assert shown(HOSTILE, lines=False).endswith("c␍␊␉d")
    assert all(
        shown(chr(n), lines=False).isprintable() for n in range(0x100) if n not in (0xA0, 0xAD)
    )
    others = "\u200e\u200f\u061c\u2028\u2029\ud800\udcff"  # marks, line ends, halves
    assert shown(others) == "\N{REPLACEMENT CHARACTER}" * len(others)
    plain = "漢字 ну что 🙂 λόγος é ‍"
    assert shown(plain) == plain and len(shown(HOSTILE)) == len(HOSTILE)


def test_what_is_written_and_shown_has_none(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(1, {}, [HOSTILE])
    log.close()
    assert (tmp_path / "samples/1.txt").read_bytes() == (shown(HOSTILE) + "\n").encode()
    tokens, written = np.frombuffer(b"x\x1b[2Jy\n", np.uint8)[None, None].astype(int), []
    in_terminal(ByteTokenizer(), tokens, np.ones(tokens.shape), seconds=0.0, write=written.append)
    assert "x␛[2Jy " in written[0] and "\x1b[2J" not in written[0]


def test_names_add_no_rows_and_no_cells():
    row = {"model": "a |\n| b | c |", "kind": "flow|\x1b[1m", "calls": 1.0, "judge": "x|y\nz"}
    lines = table([row]).split("\n")
    assert len(lines) == 3
    assert lines[2] == r"| a \| \| b \| c \| | flow\|␛[1m | 1 | x\|y z |"
    assert cell(5) == "5"
    # A sign before the bar that escapes it would escape what escapes the bar.
    assert cell("a\\|b\\") == r"a\\\|b" + "\\\\"


def test_error_lines_have_none():
    line = [sys.executable, "-m", "flm_jax.sample", "--workdir=no\x1b[2Jwhere"]
    result = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith("error: no␛[2Jwhere is no workdir")


def test_warnings_have_none(tmp_path):
    """Of commands: they name files."""
    (tmp_path / "a\x1b[2J.jsonl").write_text('{"text": "a\\ud800"}\n' * 3)
    line = [sys.executable, "-m", "flm_jax.prepare_data", "--source=jsonl", "--tokenizer=bytes"]
    line += [f"--path={tmp_path}", f"--out={tmp_path / 'out'}", "--workers=1"]
    result = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and "a␛[2J.jsonl line 1: got a lone" in result.stderr
    assert "\x1b" not in result.stderr + result.stdout


def test_error_lines_end(capsys):
    """Whatever a file holds, of which they tell a part."""
    with pytest.raises(SystemExit):
        _fail(UserError("got " + "x" * 10**7 + "; expected y"))
    line = capsys.readouterr().err
    assert line.startswith("error: got xx") and line.endswith("xx; expected y\n")
    assert len(line) < 5000 and len(str(unknown_name("kind", "x" * 10**7, ["a"]))) < 200
