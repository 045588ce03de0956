"""What `kill_test.py` kills: a training, a policy, answers to prompts, a benchmark."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT_EVERY = {"training": 20, "policy": 5}  # steps
_STEP = re.compile(r"^step (\d+)/", re.MULTILINE)
_SECONDS = re.compile(rb', "seconds": [0-9.]+(?=})')
_WORDS = ("red", "blue", "small", "old", "round", "cold", "green", "tall")


class LostError(Exception):
    """Something was lost."""


class Case(NamedTuple):
    """What is killed.

    Attributes:
      command: workdir -> the command that is run again and again.
      begun: (kept before, workdir, its output) -> whether its work has begun.
      writes: workdir -> names of what is being written, or was.
      first: at which write of a process it is killed at the latest.
      within: seconds after the begin of a write in which it is killed.
      writing: (workdir, whether it was killed so) -> whether that counts as during a write.
      kept: workdir -> what must be there still after the next kill.
      check: (output, kept before, workdir) raises LostError if a restart lost any of it.
      final: workdir -> all that a finished run leaves, by name.
      shown: workdir -> what is kept, in a word.
      unit: of what is left, for the last line.
    """

    command: Callable[[Path], list[str]]
    begun: Callable[[object, Path, str], bool]
    writes: Callable[[Path], set]
    first: int
    within: float
    writing: Callable[[Path, bool], bool]
    kept: Callable[[Path], object]
    check: Callable[[str, object, Path], None]
    final: Callable[[Path], dict[str, np.ndarray]]
    shown: Callable[[Path], str]
    unit: str


def module(name: str, **flags: object) -> list[str]:
    """The command line of a command of the library."""
    values = [f"--{key}={value}" for key, value in flags.items()]
    return [sys.executable, "-u", "-m", f"flm_jax.{name}", *values]


def configured(values: dict[str, object]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in values.items()]


def make_case(what: str, folder: Path, env: dict[str, str], steps: int) -> Case:
    """A case by name; what it needs is made in `folder`.

    Args:
      what: one of `CASES`.
      folder: of all that is made.
      env: of the processes that make it.
      steps: optimizer steps, or records, of a run.
    """
    return CASES[what](folder, env, steps)


# Runs with checkpoints.
def newest(workdir: Path) -> int | None:
    """The newest complete checkpoint."""
    return max(ocp.utils.checkpoint_steps(epath.Path(workdir / "checkpoints")), default=None)


def saves_under_way(workdir: Path) -> set[str]:
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return {name for name in names if ocp.utils.TMP_DIR_SUFFIX in name}


def final_state(workdir: Path, steps: int) -> dict[str, np.ndarray]:
    """All that the last checkpoint holds, by name."""
    path = epath.Path(workdir / "checkpoints" / str(steps))
    items = ("ema", "train")
    found = {name: ocp.StandardCheckpointHandler().restore(path / name) for name in items}
    flat = ocp.tree.to_flat_dict(found, sep="/")
    arrays = {name: np.asarray(value) for name, value in flat.items() if value is not None}
    meta = ocp.JsonCheckpointHandler().restore(path / "meta")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {
        **arrays,
        "meta": np.array(json.dumps(meta, sort_keys=True)),
        "steps in metrics.jsonl": np.array([json.loads(line)["step"] for line in lines]),
    }


def check_continued(output: str, before: object, workdir: Path) -> None:
    """Raises LostError unless the process went on behind `before`, the newest checkpoint."""
    first = _STEP.search(output)
    if first and int(first[1]) != (before or 0) + 1 and "DAMAGED" not in output:
        raise LostError(f"{workdir} went on with step {first[1]} after {before}:\n{output}")


def _run(command: Callable[[Path], list[str]], steps: int) -> Case:
    return Case(
        command=command,
        begun=lambda before, workdir, output: bool(_STEP.search(output)),
        writes=saves_under_way,
        first=6,
        within=0.05,
        writing=lambda workdir, so: bool(saves_under_way(workdir)),
        kept=newest,
        check=check_continued,
        final=lambda workdir: final_state(workdir, steps),
        shown=lambda workdir: f"step {newest(workdir)}",
        unit="arrays",
    )


def training(folder: Path, env: dict[str, str], steps: int) -> Case:
    """A training, small, so that the starts are most of the time."""
    del folder, env
    values = {
        "data.task_size": 512,
        "model.dim": 16,
        "model.depth": 1,
        "model.heads": 2,
        "model.dropout": 0.1,
        "train.batch": 16,
        "train.steps": steps,
        "train.log_every": 1,
        "train.checkpoint_every": CHECKPOINT_EVERY["training"],
        "eval.every": 0,
        "eval.sample_steps": 2,
    }
    config = ROOT / "configs/phrases/flm.py"
    line = lambda workdir: module("train", config=config, workdir=workdir) + configured(values)
    return _run(line, steps)


def policy(folder: Path, env: dict[str, str], steps: int) -> Case:
    """A policy of step sizes, for a small model of sums."""
    config = ROOT / "configs/x_prediction/sums_base.py"
    values = _SMALL | {"data.task": "arithmetic1", "model.length": 6, "train.steps": 200}
    model = folder / "model"
    _made(module("train", config=config, workdir=model) + configured(values), env)
    values = {
        "model": model,
        "prompts": 100,
        "prompt_batch": 2,
        "group": 4,
        "train.steps": steps,
        "train.log_every": 1,
        "train.checkpoint_every": CHECKPOINT_EVERY["policy"],
    }
    config = ROOT / "configs/x_prediction/sums_policy.py"
    line = lambda workdir: module("train_policy", config=config, workdir=workdir)
    return _run(lambda workdir: line(workdir) + configured(values), steps)


# Records of answers.
_SMALL = {
    "model.dim": 32,
    "model.depth": 1,
    "model.heads": 2,
    "train.batch": 32,
    "train.steps": 20,
    "eval.sample_steps": 2,
}


def _made(command: list[str], env: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")


def _sentences(number: int) -> list[str]:
    rng = random.Random(0)
    return [f"{n} " + " ".join(rng.choices(_WORDS, k=rng.randint(1, 5))) for n in range(number)]


def _lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _byte_model(folder: Path, env: dict[str, str]) -> Path:
    """A model of bytes that has learnt next to nothing."""
    texts = _lines(folder / "texts.jsonl", [{"text": text} for text in _sentences(200)])
    data = folder / "data"
    more = {"source": "jsonl", "path": texts, "tokenizer": "bytes", "valid_fraction": 0.1}
    _made(module("prepare_data", out=data, **more), env)
    values = _SMALL | {"data.task": "", "data.task_prompts": False, "data.path": data}
    values["model.length"] = 128
    config = ROOT / "configs/masked_flow/small_base.py"
    _made(module("train", config=config, workdir=folder / "model") + configured(values), env)
    return folder / "model"


def whole_lines(path: Path) -> list[bytes]:
    """Lines of a file that are complete; none of one that is missing."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def files_of(folder: Path) -> dict[str, np.ndarray]:
    """Bytes of all files in a folder, without the seconds that something took."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    texts = [_SECONDS.sub(b"", path.read_bytes()) for path in paths]
    names = [str(path.relative_to(folder)) for path in paths]
    return {name: np.frombuffer(text, np.uint8) for name, text in zip(names, texts)}


def _records(command: Callable[[Path], list[str]], name: str, key: Callable, total: int) -> Case:
    """Records in the file `name` of a workdir; `key` tells one line from another of `total`."""
    again = lambda workdir: workdir.parent / f"{workdir.name}.{name}"

    def kept(workdir: Path) -> list[bytes]:
        """What is there; a second name of the file shows what is added, even if it is removed."""
        again(workdir).unlink(missing_ok=True)
        if (workdir / name).exists():
            again(workdir).hardlink_to(workdir / name)
        return whole_lines(workdir / name)

    def check(output: str, before: list[bytes], workdir: Path) -> None:
        now = whole_lines(again(workdir)) if before else whole_lines(workdir / name)
        if now[: len(before)] != before:
            raise LostError(f"{workdir / name} lost some of {len(before)} lines:\n{output}")
        twice = len(now) - len({key(json.loads(line)) for line in now})
        if twice:
            raise LostError(f"{workdir / name} got {twice} records twice:\n{output}")
        file = workdir / name
        if before and not (again(workdir).samefile(file) if file.exists() else len(now) == total):
            raise LostError(f"{file} was begun anew after {len(before)} lines:\n{output}")

    return Case(
        command=command,
        begun=lambda before, workdir, output: len(whole_lines(workdir / name)) > len(before),
        # Each length of the file that is seen is that of one write.
        writes=lambda workdir: {len(whole_lines(workdir / name))} - {0},
        first=30,
        within=0.01,
        writing=lambda workdir, so: so,
        kept=kept,
        check=check,
        final=files_of,
        shown=lambda workdir: f"{len(whole_lines(workdir / name))} lines",
        unit="files",
    )


def samples(folder: Path, env: dict[str, str], steps: int) -> Case:
    """`sample --prompts --out`: answers to `steps` prompts, drawn at random."""
    prompts = [{"prompt": text, "answer_length": 8 + len(text) % 9} for text in _sentences(steps)]
    given = {
        "workdir": _byte_model(folder, env),
        "prompts": _lines(folder / "prompts.jsonl", prompts),
        "steps": 4,
        "batch_size": 4,
    }
    key = lambda one: one.get("place", "settings")
    line = lambda workdir: module("sample", out=workdir / "answers.jsonl", **given)
    return _records(line, "answers.jsonl.part", key, 1 + steps)


def benchmark(folder: Path, env: dict[str, str], steps: int) -> Case:
    """`run_benchmark --task=humaneval`: programs of a model, each run in the sandbox."""
    problems = [
        {
            "task_id": f"HumanEval/{n}",
            # What is written stands in a comment, so that some of it passes.
            "prompt": f'def plus_{n}(x):\n    """{text}"""\n    return x + {n}  #',
            "entry_point": f"plus_{n}",
            "canonical_solution": f"    return x + {n}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
        }
        for n, text in enumerate(_sentences(steps // 2))
    ]
    given = {
        "workdir": _byte_model(folder, env),
        "task": "humaneval",
        "data": _lines(folder / "problems.jsonl", problems),
        "samples": 2,
        "steps": 4,
        "batch_size": 4,
        "answer_length": 16,
        "seconds": 20,  # whatever else the machine does
    }
    key = lambda one: (one["id"], one["sample"], one["turn"])
    line = lambda workdir: module("run_benchmark", out=workdir, **given)
    return _records(line, "records.jsonl", key, 2 * len(problems))


CASES = {"training": training, "samples": samples, "benchmark": benchmark, "policy": policy}
