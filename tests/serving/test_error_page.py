"""Requests that are wrong, of all kinds: one error with its status, as a page says."""

import pytest

from helpers.command_server import ROOT
from helpers.error_requests import answers, section


def test_refusals_of_requests_are_those_of_their_page():
    pytest.importorskip("starlette", reason="needs starlette (extra serve)")
    found = answers()
    for one in found:
        assert 400 <= one.status < 600 and one.message.endswith("."), one
        assert "\n" not in one.message and "Traceback" not in one.message, one
    assert {400, 404, 405, 408, 413, 415, 421, 422, 429, 503, 504} == {one.status for one in found}
    assert (ROOT / "docs/reference/errors.md").read_text().endswith(section(found))
