"""Compares models at equal network calls: trains missing ones, measures, writes a report.

All files are in one folder: models/NAME (a workdir each), rows/NAME-STEPS.json, report.md,
report.json and plots. Existing results are not computed again.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath

from flm_jax.build.families.registry import family, objective_name
from flm_jax.build.sampler import choose_sampler, model_sampler, sampler_record
from flm_jax.checkpoints.workdir import latest_step
from flm_jax.config.check import at_home, check
from flm_jax.core.errors import UserError, check_seed, one_of, require, unknown_name
from flm_jax.core.files import nulls_as_nan, read_json_lines, to_json, write_whole
from flm_jax.core.locks import alone_in
from flm_jax.core.paths import check_folder, expanded
from flm_jax.core.printing import cell
from flm_jax.core.progress import Progress
from flm_jax.core.reading import read_object
from flm_jax.data.corpus.prepare import PrepareConfig, prepare
from flm_jax.data.corpus.sources import SourceConfig
from flm_jax.evaluation.frontiers import QUALITIES, draw_frontier
from flm_jax.evaluation.judges import load_judge
from flm_jax.evaluation.measure import measure, measure_data, subject
from flm_jax.evaluation.plots import draw_comparison, draw_schedule, quality_name
from flm_jax.evaluation.tables import Row, table
from flm_jax.evaluation.wording import Wording, documents
from flm_jax.metrics.generative_perplexity import Judge
from flm_jax.metrics.words import word_list
from flm_jax.samplers.base import SamplerConfig
from flm_jax.training.schedule_log import read_schedule
from flm_jax.training.trainer import train_run

_KEYS = ("title", "samples", "batch_size", "seed", "models")
# judge: name of a model of the comparison, or a folder as of `judges.load_judge`; "" for none.
# prepare: arguments of a corpus to prepare for all models, see `_preparation`; {} for none.
# words: whether the share of words that the training texts have is measured; needs `prepare`.
_OPTIONAL = {"judge": "", "prepare": {}, "words": False}
_MODEL_KEYS = ("config", "steps", "teacher")
# ways: {label: {"steps": ..., "sampler": a name, and settings of it}}: the same model sampled
# otherwise. frontier: {setting of the sampler: values}: the same, once for each value, and drawn
# as a line of quality against entropy. start: name of an earlier model, to start from its weights.
_MODEL_OPTIONAL = {"ways": {}, "frontier": {}, "start": ""}


class Entry(NamedTuple):
    """One model of a comparison.

    Attributes:
      name: name of its folder, and its label in the report.
      config: checked training configuration.
      steps: step counts to sample it with; the length for a model without a choice; none for a
        model that is not sampled.
      teacher: name of an earlier entry to distil, or "".
      sampler: settings of its sampler; None for its own sampler.
      of: name of the entry that trains it: its own, or an earlier one that is sampled in another
        way.
      swept: value of the setting that its frontier changes; None elsewhere.
    """

    name: str
    config: dict[str, Any]
    steps: list[int]
    teacher: str
    sampler: SamplerConfig | None
    of: str
    swept: float | None = None


def entries(config: dict[str, Any], folder: epath.Path) -> list[Entry]:
    """Returns the models of a comparison, in its order.

    Raises:
      UserError: unknown or missing keys, a teacher that does not precede its student, step counts
        below 1, or a bad training configuration.
    """
    _check_keys(config, (*_KEYS, *_OPTIONAL), "the comparison")
    check_seed(config["seed"], "config.seed")
    require(bool(config["models"]), "the comparison has no models; add some under config.models.")
    for key in ("samples", "batch_size"):
        require(config[key] >= 1, f"config.{key} is {config[key]}; expected at least 1.")
    found: list[Entry] = []
    for name, given in config["models"].items():
        given = _MODEL_OPTIONAL | dict(given)
        _check_keys(given, (*_MODEL_KEYS, *_MODEL_OPTIONAL), f"config.models.{name}")
        steps, teacher = _steps(given, f"config.models.{name}"), given["teacher"]
        earlier = [entry.of for entry in found]
        trained = check(given["config"])
        for role, other in (("teacher", teacher), ("start", given["start"])):
            if other and other not in earlier:
                raise unknown_name(f"{role} of {name} (a model before it)", other, earlier)
            if other:
                trained["objective"][role] = str(_workdir(folder, other))
        if config["prepare"]:
            trained["data"]["path"] = str(_data(folder))
        if steps and not family(trained).steps_free:
            steps = [trained["model"]["length"]]
        found.append(Entry(name, trained, steps, teacher, None, name))
        own = found[-1]
        found += [_way(own, label, way) for label, way in given["ways"].items()]
        found += [
            _way(own, f"{key}={value:g}", {"steps": steps, key: value})._replace(swept=value)
            for key, values in given["frontier"].items()
            for value in values
        ]
    require(any(e.steps for e in found), "no model of the comparison has steps to sample it with.")
    return found


def _steps(given: dict[str, Any], where: str) -> list[int]:
    steps = list(given["steps"])
    require(
        all(type(n) is int and n >= 1 for n in steps),
        f"{where}.steps is {steps}; expected numbers from 1, such as (1, 4), or none for a model "
        "that only judges or teaches.",
    )
    return steps


def _way(entry: Entry, label: str, given: dict[str, Any]) -> Entry:
    """Returns the model of `entry` with another sampling, under the name "NAME LABEL"."""
    where = f"config.models.{entry.name}.ways.{label}"
    require("steps" in given, f"{where} lacks steps; expected numbers from 1, such as (1, 4).")
    changes = {key: value for key, value in given.items() if key not in ("steps", "sampler")}
    sampler = choose_sampler(entry.config, given.get("sampler", ""), **changes)
    name, steps = f"{entry.name} {label}", _steps(given, where)
    return entry._replace(name=name, steps=steps, sampler=sampler)


def _trained(models: list[Entry]) -> list[Entry]:
    return [entry for entry in models if entry.of == entry.name]


def _check_keys(got: dict[str, Any], valid: tuple[str, ...], where: str) -> None:
    for key in got:
        one_of(f"key of {where}", key, valid)
    missing = [key for key in valid if key not in got]
    require(not missing, f"{where} lacks {', '.join(missing)}; expected {', '.join(valid)}.")


def _workdir(folder: epath.Path, name: str) -> epath.Path:
    return folder / "models" / name


def _data(folder: epath.Path) -> epath.Path:
    return folder / "data"


@alone_in("workdir", "comparing")
def compare_run(config: dict[str, Any], workdir: str) -> int:
    """Trains, measures and reports; continues an earlier call that was stopped.

    Args:
      config: configuration from a file in configs/comparisons, as a plain dict.
      workdir: folder of the comparison.

    Returns:
      0, the exit status of a comparison that is finished.

    Raises:
      Stopped: a signal arrived during training, which saved its step.
      UserError: bad configurations; before anything is trained.
    """
    workdir, config = expanded(workdir), _OPTIONAL | config
    for key in ("judge", "prepare"):
        config[key] = at_home(config[key])
    check_folder(workdir, "--workdir")
    folder = epath.Path(workdir)
    models = entries(config, folder)
    judge = _judge(config["judge"], models, folder)
    preparation = _preparation(config["prepare"], str(_data(folder)))
    require(
        preparation is not None or not config["words"],
        "config.words counts words of the training texts; set config.prepare, or words = False.",
    )
    if preparation:
        prepare(preparation)
    trained = _trained(models)
    for number, entry in enumerate(trained, 1):
        where = _workdir(folder, entry.name)
        if latest_step(where) == entry.config["train"]["steps"]:
            print(f"[{number}/{len(trained)}] {entry.name}: trained", flush=True)
            continue
        print(f"[{number}/{len(trained)}] {entry.name}: training in {where}", flush=True)
        train_run(entry.config, str(where))
    given = {key: config[key] for key in ("samples", "batch_size", "seed")}
    opened = functools.cache(lambda: judge and load_judge(judge))
    listed = functools.cache(
        lambda: Wording(word_list(documents(str(_data(folder))))) if config["words"] else None
    )
    job = _Measuring(folder, given, judge, opened, config["words"], listed)
    rows = [row for entry in models if entry.steps for row in _rows(job, entry)]
    rows.append(_data_row(job, next(entry for entry in models if entry.steps)))
    _write_report(folder, config["title"], models, rows)
    print(f"wrote {folder / 'report.md'}", flush=True)
    return 0


def _preparation(given: dict[str, Any], out: str) -> PrepareConfig | None:
    """Settings in config.prepare, for `SourceConfig` and the tokenizer of `PrepareConfig`."""
    if not given:
        return None
    source = [field.name for field in dataclasses.fields(SourceConfig)]
    tokenizer = ["tokenizer", "vocab_size", "sentencepiece_model"]
    for key in given:
        one_of("key of config.prepare", key, source + tokenizer)
    require(
        bool(given.get("path")) or given.get("source") == "pydoc",
        "this comparison reads files that are not part of it; name them by --config.prepare.path=.",
    )
    cfg = SourceConfig(**{key: given[key] for key in source if key in given})
    return PrepareConfig(cfg, out, **{key: given[key] for key in tokenizer if key in given})


def _judge(name: str, models: list[Entry], folder: epath.Path) -> str:
    """Folder of the judge; "" for none."""
    own = {entry.name: entry for entry in models}
    if not name or name not in own:
        require(
            not name or (epath.Path(name) / "config.json").exists(),
            f"config.judge is {name!r}; expected a model of the comparison "
            f"({', '.join(own)}), a workdir or a GPT-2 folder.",
        )
        return name
    config = own[name].config
    require(
        family(config).likelihood == "exact",
        f"config.judge {name} is a model of objective {objective_name(config)}; expected an "
        "autoregressive one.",
    )
    return str(_workdir(folder, name))


class _Measuring(NamedTuple):
    """Settings that all rows share: samples, batch_size and seed; the judge; the known words."""

    folder: epath.Path
    given: dict[str, int]
    judge: str
    open_judge: Callable[[], Judge | None]
    words: bool
    open_wording: Callable[[], Wording | None]

    def settings(self, trained_steps: int) -> dict[str, Any]:
        """What a row depends on; one with other settings is measured again."""
        judge = {"judge": self.judge, "judge_steps": latest_step(self.judge)} if self.judge else {}
        words = {"words": True} if self.words else {}
        return self.given | {"trained_steps": trained_steps} | judge | words

    def kept(self, name: str, settings: dict[str, Any]) -> Row | None:
        path = self.folder / "rows" / f"{name}.json"
        row = read_object(path, "a row of this command") if path.exists() else {}
        return nulls_as_nan(row) if row.get("settings") == settings else None

    def keep(self, name: str, row: Row) -> Row:
        path = self.folder / "rows" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_json(row) + "\n")
        return row


def _rows(job: _Measuring, entry: Entry) -> list[Row]:
    """Returns a row for each step count, read back if it was measured with the same settings.

    Missing rows are measured together: model, data and likelihood are read and computed once.
    """
    settings = job.settings(entry.config["train"]["steps"])
    if entry.sampler is not None:
        settings |= {"sampler": sampler_record(entry.sampler)}
    found = {steps: job.kept(f"{entry.name}-{steps}", settings) for steps in entry.steps}
    missing = [steps for steps, row in found.items() if row is None]
    if missing:
        print(f"{entry.name}: sampling in {', '.join(map(str, missing))} steps", flush=True)
        workdir = str(_workdir(job.folder, entry.of))
        choose = model_sampler if entry.sampler is None else lambda config: entry.sampler
        how = {"judge": job.open_judge(), "wording": job.open_wording(), "choose": choose}
        how |= job.given
        with Progress(f"{entry.name}: samples", len(missing) * job.given["samples"]) as bar:
            rows = measure(workdir, missing, show=bar.done, **how)
            for steps, row in zip(missing, rows):
                row |= {"model": entry.name, "steps": steps, "settings": settings}
                row |= {} if entry.swept is None else {"of": entry.of, "swept": entry.swept}
                found[steps] = job.keep(f"{entry.name}-{steps}", row)
    return list(found.values())


def _data_row(job: _Measuring, entry: Entry) -> Row:
    """Figures of held-out data, with which the others are compared."""
    settings = job.settings(0)
    row = job.kept("data", settings)
    if row is None:
        what = subject(str(_workdir(job.folder, entry.of)), job.open_judge())
        sizes = job.given["samples"], job.given["batch_size"]
        row = measure_data(what, *sizes, job.open_wording())
        row = job.keep("data", row | {"settings": settings})
    return row


def loss_by_tau(workdir: epath.Path) -> dict[float, float]:
    """Loss of the last evaluation in each bin of the clock (tau: nats/token); {} without one."""
    path = workdir / "metrics.jsonl"
    profile: dict[float, float] = {}
    for record in map(nulls_as_nan, read_json_lines(path)):
        found = {
            float(k.rsplit("_", 1)[1]): v
            for k, v in record.items()
            if k.startswith("eval/nll_at_tau_")
        }
        profile = found or profile
    return profile


def _calls(row: Row) -> str:
    return f", {row['calls']:g} calls" if "calls" in row else ""


def _write_report(folder: epath.Path, title: str, models: list[Entry], rows: list[Row]) -> None:
    trained = _trained(models)
    profiles = {e.name: loss_by_tau(_workdir(folder, e.name)) for e in trained}
    try:
        plain, quality = [row for row in rows if "swept" not in row], quality_name(rows)
        plots = draw_comparison(folder, plain, {k: v for k, v in profiles.items() if v})
        if len(plain) < len(rows) and quality in QUALITIES:
            plots.append("frontier.png")
            draw_frontier(folder / plots[-1], rows, quality)
        for entry in trained:
            if records := read_schedule(_workdir(folder, entry.name)):
                plots.append(f"schedule_{entry.name}.png")
                draw_schedule(folder / plots[-1], records)
    except ImportError as error:
        raise UserError(f"plots need matplotlib ({error}): pip install 'flm-jax[plots]'") from error
    budget = "\n".join(
        f"- {cell(e.name)}: {e.config['train']['steps']:,} steps of "
        + f"{e.config['train']['batch']} rows"
        + (f", from {cell(e.teacher)}" if e.teacher else "")
        for e in trained
    )
    pictures = "\n".join(f"![{name}]({name})" for name in plots)
    samples = [f"- {cell(row['model'])}{_calls(row)}: {row['samples'][0]!r}" for row in rows]
    parts = f"# {cell(title)}", table(rows), pictures, "Training:", budget, "Samples:"
    text = "\n\n".join((*parts, "\n".join(samples)))
    write_whole(folder / "report.md", f"{text}\n")
    report = to_json({"title": title, "rows": rows}, indent=1)
    write_whole(folder / "report.json", f"{report}\n")
