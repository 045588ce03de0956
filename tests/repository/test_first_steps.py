"""The commands of README and of getting started, at small sizes, print what stands beside them."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.compiling import FAST
from helpers.small_python import smaller

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```bash\n(.*?)```\n```text\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d[\d.,:]*")


def steps(page, section):
    """(commands, lines of output) of each step of a section that shows both."""
    section = (ROOT / page).read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    for commands, output in BLOCK.findall(section):
        lines = re.sub(r"\\\n\s*", " ", commands).strip().splitlines()
        yield lines, [line for line in output.splitlines() if line.strip() not in ("", "...")]


def form(line):
    """A line without its figures, and of a text that it shows the kind alone."""
    shown = re.match(r"(\s+(?:\| )?)['\"]", line)
    return shown.group(1) + "TEXT" if shown else NUMBER.sub("#", line)


def run(line, folder):
    program, dash_m, module, *flags = shlex.split(line)
    assert (program, dash_m) == ("python", "-m"), line
    flags += smaller(module.removeprefix("flm_jax."), flags)
    env = os.environ | {"XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", module, *flags],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the reader's text, and the quickstart's runs played by those of that text."""
    folder = tmp_path_factory.mktemp("first")
    pages = sorted((ROOT / "docs").rglob("*.md"))
    (folder / "book.txt").write_text("".join(page.read_text() for page in pages))
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "runs").mkdir()
    (folder / "runs/quickstart").symlink_to("book")
    return folder


def test_the_commands_print_what_the_page_shows(folder):
    found = steps("docs/getting_started.md", "First steps")
    found = sorted(found, key=lambda step: "runs/quickstart/" in "".join(step[0]))
    assert len(found) == 4
    for commands, expected in found:
        printed = "".join(run(line, folder) for line in commands)
        forms = [form(line) for line in printed.splitlines()]
        for line in expected:
            assert form(line) in forms, f"{line}\nis not printed by\n{commands}\nbut\n{printed}"
    page = (folder / "texts.html").read_text()
    frames = json.loads(page.split("const frames = ")[1].split(";\n")[0])
    assert [len(sample) for sample in frames] == [16, 16, 16]


def test_the_model_that_ships_writes_what_readme_shows(tmp_path):
    """Texts of the same kind: their words differ where a processor rounds otherwise."""
    ((commands, expected),) = steps("README.md", "Sixty seconds")
    printed = "".join(run(line, tmp_path) for line in commands).splitlines()
    for line in expected:
        wanted = ".*".join(map(re.escape, form(line).split("...")))
        assert any(re.fullmatch(wanted, form(found)) for found in printed), line
    assert sum(line.startswith("  'Once upon a time") for line in printed) == 8
