"""The launchers: clean to shellcheck, dry runs, refusals, and what they do with lost machines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(ROOT.glob("launch/*.sh"))
TRAIN = ("--", "--config=configs/owt/flm.py", "--workdir=gs://bucket/a run")
TPU = ("--name=flm", "--zone=us-west4-a", "--type=v5litepod-16")
GKE = ("--cluster=pods", *TPU)


def launch(script, *flags, path=None):
    env = os.environ | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    command = ["bash", str(ROOT / "launch" / f"{script}.sh"), *flags]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


def fake(folder, name, body):
    """A program that notes its arguments in NAME.log, one call a line, before `body`."""
    program = folder / name
    program.write_text(f'#!/usr/bin/env bash\necho "$*" >> {folder}/{name}.log\n{body}\n')
    program.chmod(0o755)


def calls(folder, name):
    return (folder / f"{name}.log").read_text().splitlines()


def test_shellcheck():
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("shellcheck is not installed (extra dev)")
    done = subprocess.run([program, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("script", "flags", "expected"),
    [
        ("single_node", ["--extra=cuda"], "python -m flm_jax.train --config=configs/owt/flm.py"),
        ("slurm", ["--nodes=4", "--gpus=8"], "#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=8\n"),
        ("tpu_pod", TPU, "queued-resources create flm --node-id=flm --zone=us-west4-a"),
        ("gke", GKE, "xpk workload create --cluster=pods --workload=flm"),
    ],
)
def test_dry_run_prints_and_does_nothing(script, flags, expected, tmp_path):
    for name in ("gcloud", "xpk", "sbatch", "python3.11", "python3"):
        fake(tmp_path, name, "exit 1")
    done = launch(script, "--dry_run", *flags, *TRAIN, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert "a\\ run" in done.stdout or "a\\\\\\ run" in done.stdout  # one argument still
    assert not list(tmp_path.glob("*.log"))


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("single_node", ["--extra=cuda"], "no flags for flm_jax.train"),
        ("single_node", ["--extra=rocm", *TRAIN], "expected cuda, tpu or none"),
        ("slurm", ["--node=2", *TRAIN], "unknown option --node=2; expected --dry_run or one of"),
        ("slurm", ["--nodes=two", *TRAIN], "got two; expected a positive number"),
        ("tpu_pod", ["--name=flm", *TRAIN], "no --zone"),
        ("tpu_pod", ["--name", *TRAIN], "--name has no value"),
        ("tpu_pod", [*TPU, "--", "--workdir=runs/a"], "no --workdir=gs://"),
        ("gke", [*GKE, "--slices=2", *TRAIN], "add --config.mesh.slices=2"),
    ],
)
def test_bad_options_are_refused_in_one_line(script, flags, message):
    done = launch(script, "--dry_run", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not done.stdout


def test_a_lost_slice_is_asked_for_again(tmp_path):
    """The first slice is refused, the second dies under the run, the third finishes it."""
    fake(
        tmp_path,
        "gcloud",
        f"""cd {tmp_path}
        made=$(grep -c ' create ' gcloud.log)
        case "$*" in
          *describe*)
            if [ "$made" = 1 ]; then echo FAILED
            elif [ "$made" = 2 ] && grep -q 'command=.*train' gcloud.log; then echo SUSPENDED
            else echo ACTIVE; fi ;;
          *train*) [ "$made" = 3 ] ;;
        esac""",
    )
    done = launch("tpu_pod", *TPU, *TRAIN, path=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = calls(tmp_path, "gcloud")
    assert sum(" create " in line for line in said) == 3
    assert sum("flm_jax.train --distributed" in line for line in said) == 2
    assert " delete " in said[-1]  # nothing is left running


def test_a_failing_command_does_not_loop(tmp_path):
    fake(tmp_path, "gcloud", 'case "$*" in *describe*) echo ACTIVE ;; *train*) exit 2 ;; esac')
    done = launch("tpu_pod", *TPU, *TRAIN, path=tmp_path)
    assert done.returncode == 2
    assert "the training command failed" in done.stderr
    assert " delete " in calls(tmp_path, "gcloud")[-1]


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (75, True), (2, False)])
def test_the_batch_script_requeues_a_stopped_run(tmp_path, status, requeued):
    batch = launch("slurm", "--dry_run", *TRAIN).stdout.split("<<'END'\n")[1].split("END\n")[0]
    fake(tmp_path, "srun", f"exit {status}")
    fake(tmp_path, "scontrol", "")
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash"], input=batch, env=env, text=True, capture_output=True)
    assert done.returncode == status
    assert (tmp_path / "scontrol.log").exists() == requeued
    assert "flm_jax.train --config=configs/owt/flm.py" in calls(tmp_path, "srun")[0]
