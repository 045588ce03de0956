"""Compares models at equal network calls: trains what is missing, measures, writes a report.

Everything lies in one folder: models/NAME (a workdir each), rows/NAME-STEPS.json, report.md,
report.json and plots. What is there already is not done again.
"""

import json
from typing import Any, NamedTuple

from etils import epath

from flm_jax import trainer
from flm_jax.config import check
from flm_jax.families import family
from flm_jax.measure import Row, measure, table
from flm_jax.plots import draw_comparison
from flm_jax.training.checkpoint import latest_step
from flm_jax.types import UserError, require, unknown_name

_KEYS = ("title", "samples", "batch_size", "seed", "models")
_MODEL_KEYS = ("config", "steps", "teacher")


class Entry(NamedTuple):
    """One model of a comparison.

    Attributes:
      name: its folder's name and its label in the report.
      config: a checked training configuration.
      steps: numbers of steps to sample it with; the length where a model has no choice.
      teacher: name of an earlier entry to distil, or "".
    """

    name: str
    config: dict[str, Any]
    steps: list[int]
    teacher: str


def entries(config: dict[str, Any], folder: epath.Path) -> list[Entry]:
    """The models of a comparison, in its order.

    Raises:
      UserError: unknown or missing keys, a teacher that does not stand before its student, step
        counts below 1, a bad training configuration.
    """
    _check_keys(config, _KEYS, "the comparison")
    require(bool(config["models"]), "the comparison has no models; add some under config.models.")
    for key in ("samples", "batch_size"):
        require(config[key] >= 1, f"config.{key} is {config[key]}; expected at least 1.")
    found: list[Entry] = []
    for name, given in config["models"].items():
        _check_keys(given, _MODEL_KEYS, f"config.models.{name}")
        steps, teacher = list(given["steps"]), given["teacher"]
        require(
            bool(steps) and all(type(n) is int and n >= 1 for n in steps),
            f"config.models.{name}.steps is {steps}; expected numbers from 1, such as (1, 4).",
        )
        earlier = [entry.name for entry in found]
        if teacher and teacher not in earlier:
            raise unknown_name(f"teacher of {name} (a model before it)", teacher, earlier)
        trained = check(given["config"])
        if teacher:
            trained["objective"]["teacher"] = str(_workdir(folder, teacher))
        if not family(trained).steps_free:
            steps = [trained["model"]["length"]]
        found.append(Entry(name, trained, steps, teacher))
    return found


def _check_keys(got: dict[str, Any], valid: tuple[str, ...], where: str) -> None:
    for key in got:
        if key not in valid:
            raise unknown_name(f"key of {where}", key, valid)
    missing = [key for key in valid if key not in got]
    require(not missing, f"{where} lacks {', '.join(missing)}; expected {', '.join(valid)}.")


def _workdir(folder: epath.Path, name: str) -> epath.Path:
    return folder / "models" / name


def run(config: dict[str, Any], workdir: str) -> int:
    """Trains, measures and reports; continues where an earlier call was stopped.

    Args:
      config: of a file configs/compare_*.py, as a plain dict.
      workdir: folder of the comparison.

    Returns:
      0, or the exit status of a training that was stopped.

    Raises:
      UserError: bad configurations; before anything is trained.
    """
    folder = epath.Path(workdir)
    models = entries(config, folder)
    for number, entry in enumerate(models, 1):
        where = _workdir(folder, entry.name)
        if latest_step(where) == entry.config["train"]["steps"]:
            print(f"[{number}/{len(models)}] {entry.name}: trained", flush=True)
            continue
        print(f"[{number}/{len(models)}] {entry.name}: training in {where}", flush=True)
        status = trainer.run(entry.config, str(where))
        if status:
            return status
    rows = [row for entry in models for row in _rows(folder, entry, config)]
    _write_report(folder, config["title"], models, rows)
    print(f"wrote {folder / 'report.md'}", flush=True)
    return 0


def _rows(folder: epath.Path, entry: Entry, config: dict[str, Any]) -> list[Row]:
    """A row for each number of steps, read back where it was measured with the same settings.

    What is missing is measured together: model, data and likelihood are read and computed once.
    """
    given = {key: config[key] for key in ("samples", "batch_size", "seed")}
    settings = given | {"trained_steps": entry.config["train"]["steps"]}
    paths = {steps: folder / "rows" / f"{entry.name}-{steps}.json" for steps in entry.steps}
    found = {steps: json.loads(path.read_text()) for steps, path in paths.items() if path.exists()}
    found = {steps: row for steps, row in found.items() if row.get("settings") == settings}
    missing = [steps for steps in entry.steps if steps not in found]
    if missing:
        print(f"{entry.name}: sampling in {', '.join(map(str, missing))} steps", flush=True)
        workdir = str(_workdir(folder, entry.name))
        for steps, row in zip(missing, measure(workdir, missing, **given)):
            row |= {"model": entry.name, "settings": settings}
            paths[steps].parent.mkdir(parents=True, exist_ok=True)
            paths[steps].write_text(json.dumps(row) + "\n")
            found[steps] = row
    return [found[steps] for steps in entry.steps]


def loss_by_tau(workdir: epath.Path) -> dict[float, float]:
    """The last evaluation's loss in each bin of the clock (tau: nats/token); {} without one."""
    path = workdir / "metrics.jsonl"
    profile: dict[float, float] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        found = {
            float(k.rsplit("_", 1)[1]): v
            for k, v in json.loads(line).items()
            if k.startswith("eval/nll_at_tau_")
        }
        profile = found or profile
    return profile


def _write_report(folder: epath.Path, title: str, models: list[Entry], rows: list[Row]) -> None:
    profiles = {e.name: loss_by_tau(_workdir(folder, e.name)) for e in models}
    try:
        plots = draw_comparison(folder, rows, {k: v for k, v in profiles.items() if v})
    except ImportError as error:
        raise UserError(f"plots need matplotlib ({error}): pip install 'flm-jax[plots]'") from error
    budget = "\n".join(
        f"- {e.name}: {e.config['train']['steps']:,} steps of {e.config['train']['batch']} rows"
        + (f", from {e.teacher}" if e.teacher else "")
        for e in models
    )
    pictures = "\n".join(f"![{name}]({name})" for name in plots)
    samples = "\n".join(
        f"- {row['model']}, {row['calls']:g} calls: {row['samples'][0]!r}" for row in rows
    )
    text = f"# {title}\n\n{table(rows)}\n\n{pictures}\n\nTraining:\n\n{budget}\n\nSamples:\n\n"
    (folder / "report.md").write_text(f"{text}{samples}\n")
    (folder / "report.json").write_text(json.dumps({"title": title, "rows": rows}, indent=1) + "\n")
