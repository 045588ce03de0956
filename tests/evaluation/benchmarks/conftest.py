"""A sandbox of each isolation, which must leave no folder and no process behind."""

import os
import tempfile
import uuid
from pathlib import Path

import pytest

from flm_jax.evaluation.benchmarks.sandbox import ISOLATIONS
from helpers.sandbox import LIMITS, opened


@pytest.fixture(params=ISOLATIONS, scope="session")
def isolation(request):
    return opened(LIMITS, request.param)


@pytest.fixture
def each_sandbox(isolation, tmp_path, monkeypatch):
    """With an interpreter of a name that finds all its processes, and folders of its own."""
    python = tmp_path / f"python-{uuid.uuid4().hex}"
    python.symlink_to(isolation.python)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield isolation._replace(python=str(python))
        assert not os.listdir(folder), "a working folder is left"
    assert not processes(python.name), "a process is left"


def processes(name):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found
