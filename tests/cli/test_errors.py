"""Input that is wrong, of all kinds: one line, status 2, nothing left behind, as a page tells."""

import sys

from helpers.command_server import ROOT
from helpers.error_cases import PYTHON, page, tried


def test_errors_are_those_of_their_page():
    rows = tried()
    assert len(rows) >= 120
    for row in rows:
        said = row.outcome.err
        assert row.outcome.status == 2 and row.line.startswith("error: "), (row.command, said)
        assert "Traceback" not in said and said.count("\n") <= 3, (row.command, said)
    told = (ROOT / "docs/reference/errors.md").read_text()
    if sys.version.startswith(f"{PYTHON}."):
        assert told.startswith(page(rows))
    for row in rows:  # messages of Python itself differ between its versions
        assert f"| `{row.command}`" in told, row.command
