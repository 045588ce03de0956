"""docs/guides/extend.md, applied to a copy of the package as a contributor would, and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/guides/extend.md"
BLOCK = re.compile(r"^```(python|diff|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = (
    "--config.train.steps=20 --config.train.batch=64 --config.train.log_every=20 "
    "--config.eval.every=0 --config.eval.batches=1 --config.eval.sample_steps=4 "
    "--config.model.dim=16 --config.model.depth=1 --config.model.heads=2 --config.model.cond_dim=16"
)


def patched(text, hunk):
    """Text with one hunk of a diff applied: lines that stay or go are found, those with + added."""
    lines = hunk.strip("\n").split("\n")
    old = [line[1:] for line in lines if line[0] != "+"]
    new = [line[1:] for line in lines if line[0] != "-"]
    if not old:  # an import: after the first one of the package
        at = re.search(r"^from flm_jax", text, re.MULTILINE).start()
        return text[:at] + "\n".join(new) + "\n" + text[at:]
    before = "\n".join(old) + "\n"
    assert text.count(before) == 1, before
    return text.replace(before, "\n".join(new) + "\n")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package and its configurations with all that the guide adds."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("flm_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("pretrained"))
    for kind, body in BLOCK.findall(GUIDE.read_text()):
        if kind == "python" and body.startswith("# flm_jax/"):
            path, _, code = body.partition("\n")
            (folder / path.removeprefix("# ")).write_text(code)
        if kind == "diff":
            file = folder / re.search(r"^\+\+\+ b/(.*)$", body, re.MULTILINE)[1]
            for hunk in body.split("@@\n")[1:]:
                file.write_text(patched(file.read_text(), hunk))
    return folder


def commands(section):
    """Commands of the bash block below a heading of the guide."""
    part = GUIDE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    text = next(body for kind, body in BLOCK.findall(part) if kind == "bash")
    text = text.replace("\\\n", " ")
    return [line for line in text.split("\n") if line and not line.startswith("#")]


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("A network", "A loss")]


@pytest.mark.parametrize("section", ["A path", "A sampler", *_SLOW])
def test_what_the_guide_adds_trains_samples_and_is_distilled(copy, section):
    for line in commands(section):
        words = line.split()
        assert words[:2] == ["python", "-m"]
        small = SMALL.split() if words[2] == "flm_jax.train" else ["--num_samples=4"]
        done = subprocess.run(
            [sys.executable, *words[1:], *small],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    assert (copy / words[-1].split("=")[-1]).exists() or "calls" in done.stdout


def test_the_midpoint_method_is_of_second_order(copy):
    """On the flow of a known law its error falls by four where its steps halve."""
    code = """
import jax, numpy as np
from flm_jax.samplers.midpoint import MidpointConfig, sample_midpoint
from flm_jax.samplers.base import nothing_given
from helpers.networks import exact_network
net, flow = exact_network()
given = nothing_given(64, 3)
run = lambda steps: np.asarray(jax.jit(lambda key: sample_midpoint(
    key, {}, given, net=net, flow=flow, steps=steps, cfg=MidpointConfig()
).steps_confidence[-1])(jax.random.key(0)))
fine = run(256)
errors = [np.abs(run(steps) - fine).mean() for steps in (16, 32, 64)]
print(errors)
assert errors[1] < errors[0] / 2.5 and errors[2] < errors[1] / 2.5, errors
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{ROOT / 'tests'}"},
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
