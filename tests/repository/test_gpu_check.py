"""The check of a GPU: what it would run, what it refuses, and how it judges losses."""

import json
from pathlib import Path

import pytest

from helpers.launching import launch, load

ROOT = Path(__file__).parents[2]
PARTS = (
    "wheels",
    "versions",
    "train",
    "attention",
    "experts",
    "goldens",
    "bench_quick",
    "bench",
    "two_processes",
)


@pytest.fixture(scope="module")
def helper():
    return load("gpu_check")


def parts(output):
    return [line[2:].split(",")[0] for line in output.splitlines() if line.startswith("# ")]


def test_a_dry_run_prints_all_parts_within_limits(tmp_path):
    (tmp_path / "grain-0-py3-none-any.whl").touch()
    out, work = tmp_path / "out", tmp_path / "work"
    flags = ("--dry_run", f"--wheels={tmp_path}", f"--out={out}", f"--work={work}")
    done = launch("gpu_check.sh", *flags)
    assert done.returncode == 0, done.stderr
    assert parts(done.stdout) == list(PARTS)
    lines = done.stdout.splitlines()
    assert "XLA_PYTHON_CLIENT_PREALLOCATE=false" in lines[0]
    assert f"JAX_COMPILATION_CACHE_DIR={work}/cache" in lines[0]
    assert f"PYTHONPATH={work}/site:{ROOT}" in lines[0]
    commands = [line for line in lines if "python3" in line]
    assert len(commands) >= 12
    assert all(line.startswith("timeout --kill-after=5 ") for line in commands)
    (install,) = (line for line in lines if "pip install" in line)
    assert (
        f"--no-index --no-deps --no-compile --no-cache-dir --upgrade --target {work}/site"
        in install
    )
    assert not out.exists() and not work.exists()


def test_quick_leaves_the_long_benchmark_out_and_smoke_the_gpu():
    done = launch("gpu_check.sh", "--dry_run", "--quick", "--smoke", "--seconds=100")
    assert parts(done.stdout) == [part for part in PARTS if part != "bench"]
    assert "JAX_PLATFORMS=cpu" in done.stdout and "--suite=gpu_smoke" in done.stdout
    limits = [int(line.split()[-2]) for line in done.stdout.splitlines() if line.startswith("# ")]
    assert max(limits) <= 100


def test_some_parts_alone():
    done = launch("gpu_check.sh", "--dry_run", "--parts=bench,train")
    assert parts(done.stdout) == ["wheels", "train", "bench"]


@pytest.mark.parametrize("script", ["gpu_check.sh", "gpu_wheels.sh"])
def test_help(script):
    done = launch(script, "--help")
    assert done.returncode == 0 and f"bash launch/{script} [--dry_run]" in done.stdout


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("gpu_check.sh", ["--second=5"], "unknown option --second=5; expected --dry_run, --quick"),
        ("gpu_check.sh", ["--seconds=soon"], "got --seconds=soon; expected a positive number"),
        ("gpu_check.sh", ["--wheels=nowhere"], "holds no wheels; make them with"),
        ("gpu_check.sh", ["--parts=train,all"], "got --parts=train,all; expected some of versions"),
        ("gpu_wheels.sh", [], "no folder; expected the one for the wheels"),
        ("gpu_wheels.sh", ["a", "b"], "got two folders, a and b"),
        ("gpu_wheels.sh", ["--out=a"], "unknown option --out=a"),
    ],
)
def test_bad_options_are_refused_in_one_line(script, flags, message):
    done = launch(script, "--dry_run", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr and not done.stdout


def test_wheels_are_downloaded_for_the_image(tmp_path):
    done = launch("gpu_wheels.sh", "--dry_run", str(tmp_path / "wheels"))
    assert (
        "--only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64" in done.stdout
    )
    assert f"-d {tmp_path}/wheels grain array_record" in done.stdout
    (tmp_path / "grain-0.whl").touch()
    assert "holds wheels already" in launch("gpu_wheels.sh", "--dry_run", str(tmp_path)).stderr


def run(folder, name, change=1.0, steps=(1, 10, 20, 30, 40, 50)):
    (folder / name).mkdir()
    lines = [{"step": s, "train/nll_nats_per_token": 2.0 * change} for s in steps]
    lines = [line | {"train/grad_norm": 0.5} for line in lines] + [{"step": 60, "eval/x": 1.0}]
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def test_losses_near_the_cpus_pass(helper, tmp_path, capsys):
    run(tmp_path, "cpu")
    run(tmp_path, "gpu", 1.0005, (1, 10, 20, 30, 40, 41, 50))
    run(tmp_path, "usual", 1.05)
    helper.compare(str(tmp_path / "losses.json"), str(tmp_path))
    said = capsys.readouterr().out
    assert said.startswith("result: gpu: 6 logged steps at most 5.0e-04 from the CPU's")
    found = json.loads((tmp_path / "losses.json").read_text())["differences"]
    assert found["usual"]["largest"] == pytest.approx(0.05)


@pytest.mark.parametrize("change", [1.01, float("nan")])
def test_losses_far_from_the_cpus_fail(helper, tmp_path, capsys, change):
    for name, factor in (("cpu", 1.0), ("gpu", change), ("usual", 1.0)):
        run(tmp_path, name, factor)
    with pytest.raises(SystemExit):
        helper.compare(str(tmp_path / "losses.json"), str(tmp_path))
    assert "too far or too few: gpu" in capsys.readouterr().out
