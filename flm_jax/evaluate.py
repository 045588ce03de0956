"""Compares models: a table of speed, diversity and loss, and sample texts.

python -m flm_jax.evaluate --model=runs/flm:64 --model=runs/fmlm:1,2,4 --json=report.json
python -m flm_jax.evaluate --workdir=runs/fmlm --steps=1,4 --judge=runs/ar
python -m flm_jax.evaluate --model=published/flm:64 --data=data/text
python -m flm_jax.evaluate --workdir=runs/fmlm --corpus=data/other
python -m flm_jax.evaluate --protocol=reference --model=runs/fmlm:1,4 --judge=gpt2-large
python -m flm_jax.evaluate --protocol=reference --samples=samples.json --length=1024 \\
    --judge=gpt2-large
python -m flm_jax.evaluate --config=configs/comparisons/tasks.py:phrases4 --workdir=runs/compare

The last command trains and measures what is missing, and writes report.md, report.json and plots
into the workdir; if stopped, it continues when run again.
"""

import jax
from absl import flags
from etils import epath

from flm_jax.checkpoints.portable import located
from flm_jax.cli import judging_flags, process_flags, sampling_flags
from flm_jax.cli.config_flag import DEFINE_config, given_config
from flm_jax.cli.path_flags import DEFINE_output, DEFINE_path, DEFINE_seed
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.config.upgrade import read_config
from flm_jax.core.errors import one_of, require
from flm_jax.core.files import to_json, write_output
from flm_jax.core.paths import expanded
from flm_jax.core.printing import cell, shown
from flm_jax.core.progress import Progress
from flm_jax.data.tokenizers.registry import make_tokenizer
from flm_jax.evaluation.compare import compare_run
from flm_jax.evaluation.corpus import corpus_row
from flm_jax.evaluation.features import features_of
from flm_jax.evaluation.judges import load_judge
from flm_jax.evaluation.measure import measure, measure_data, subject
from flm_jax.evaluation.plots import draw_schedule
from flm_jax.evaluation.protocols import FROM_FILE, PROTOCOLS, file_row, reference_rows
from flm_jax.evaluation.questions import answered_rows
from flm_jax.evaluation.sample_files import Kept, read_samples
from flm_jax.evaluation.tables import Row, table
from flm_jax.evaluation.wording import Wording
from flm_jax.metrics.generative_perplexity import Judge
from flm_jax.metrics.reference_perplexity import SAMPLES
from flm_jax.training import schedule_log
from flm_jax.training.schedule_log import read_schedule

flags.adopt_module_key_flags(sampling_flags)
flags.adopt_module_key_flags(process_flags)
flags.adopt_module_key_flags(judging_flags)
_MODELS = flags.DEFINE_multi_string(
    "model", [], "Model and step counts, WORKDIR:STEPS, such as runs/fmlm:1,2,4; may be repeated."
)
_STEPS = flags.DEFINE_list(
    "steps",
    [],
    "Step counts of --workdir, separated by commas; by default eval.sample_steps of its config.",
)
_PROMPTED = flags.DEFINE_integer(
    "prompted",
    0,
    "Number of first tokens of held-out texts that each model continues; adds the column of the "
    "gain under --judge: how much more likely continuations are after their own prompts than after "
    "others, nats/token. 0 for none.",
    lower_bound=0,
)
_QUESTIONS = flags.DEFINE_integer(
    "questions",
    0,
    "Number of held-out questions that each model of config.data.chat answers, instead of samples "
    "from nothing: the table has the share that is right, as its files have it, and how varied the "
    "right answers are. 0 for none.",
    lower_bound=0,
)
_CONFIG = DEFINE_config("A comparison: a file, or a name such as comparisons/tasks.")
_WORKDIR = DEFINE_path(
    "workdir", "", "Workdir of a model; with --config, the folder of the comparison."
)
_PROTOCOL = flags.DEFINE_string(
    "protocol",
    "library",
    f"Protocol by which samples are scored: {' or '.join(PROTOCOLS)}. The published tables"
    " were made by the reference protocol.",
)
_SAMPLES = flags.DEFINE_multi_string(
    "samples",
    [],
    "File of samples (.jsonl or .json), of any project, for the judge to score; may be repeated.",
)
_SAVE = DEFINE_output(
    "save_samples", "", "JSONL file to write the drawn samples to, as text and tokens."
)
_TOKENIZER = DEFINE_path(
    "tokenizer",
    "",
    "Tokenizer of --samples: bytes, hf:NAME_OR_FOLDER or the folder of a saved tokenizer.",
)
_LENGTH = flags.DEFINE_integer(
    "length",
    0,
    "Length in tokens of the samples in --samples, as generated; 0 is the length of the longest.",
)
_NUM = flags.DEFINE_integer(
    "num_samples",
    None,
    f"Number of samples for each row of the table; by default 64, or {SAMPLES} under the "
    "reference protocol.",
)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Number of samples, or validation rows, at a time.")
_SEED = DEFINE_seed("seed", 0, "Seed of the random draws.")
_DATA = DEFINE_path(
    "data",
    "",
    "Prepared folder on which all models are measured, instead of each model's own data.",
)
_CORPUS = DEFINE_path(
    "corpus",
    "",
    "Prepared folder whose likelihood under the models is measured, instead of samples.",
)
_SPLIT = flags.DEFINE_string("split", "valid", "Split of --corpus.")
_SEQUENCES = flags.DEFINE_integer(
    "corpus_sequences", 1024, "Number of sequences of --corpus; 0 is all."
)
_FEW = 64  # samples of a row by the library's protocol, unless others are asked for
_SHOW = flags.DEFINE_integer("show", 2, "Number of samples printed for each row.")
_JSON = DEFINE_output("json", "", "JSON file to write the rows and all samples to.")


def _parse(text: str) -> tuple[str, list[int]]:
    workdir, _, steps = expanded(text).rpartition(":")
    counts = steps.split(",")
    require(
        bool(workdir) and all(c.isdigit() for c in counts),
        f"got --model={text}; expected WORKDIR:STEPS such as runs/fmlm:1,2,4.",
    )
    return workdir, [int(c) for c in counts]


def _models() -> list[tuple[str, list[int]]]:
    """Pairs (workdir, step counts) of every model that the flags name."""
    models = [_parse(text) for text in _MODELS.value]
    if _WORKDIR.value:
        steps = _STEPS.value or [read_config(located(_WORKDIR.value))["eval"]["sample_steps"]]
        models.append(_parse(f"{_WORKDIR.value}:{','.join(map(str, steps))}"))
    return models


def _check(models: list[tuple[str, list[int]]]) -> None:
    """Refuses flags that exclude each other."""
    one_of("protocol", _PROTOCOL.value, PROTOCOLS)
    require(
        bool(models or _SAMPLES.value),
        "expected --model=WORKDIR:STEPS, several times if wanted, or --workdir=WORKDIR, "
        "--samples=FILE, or --config=FILE with --workdir.",
    )
    require(
        bool(judging_flags.JUDGE.value) or not (_SAMPLES.value or _PROTOCOL.value == "reference"),
        "--samples and --protocol=reference need a judge; give --judge, for the published figures "
        "the folder of gpt2-large.",
    )
    require(bool(models) or not _SAVE.value, "got --save_samples and no model to draw them from.")
    require(
        not _PROMPTED.value or bool(judging_flags.JUDGE.value),
        f"got --prompted={_PROMPTED.value} and no judge; give --judge.",
    )
    more = (judging_flags.JUDGE, _SAMPLES, _SAVE, _CORPUS, _DATA, _PROMPTED)
    more = (*more, *judging_flags.OF_TEXTS) if _QUESTIONS.value else ()
    beside = [f"--{flag.name}" for flag in more if flag.value]
    require(
        not beside,
        f"got --questions and {' and '.join(beside)}; with --questions the answers alone are "
        "measured: leave the others out.",
    )
    reference = _PROTOCOL.value == "reference"
    other = [f"--{flag.name}" for flag in (_DATA, *judging_flags.OF_TEXTS, _PROMPTED) if flag.value]
    require(
        not (reference and other),
        f"got {' and '.join(other)} with --protocol=reference, which measures perplexity and "
        "entropy alone; leave it out.",
    )


def _number(default: int) -> int:
    return default if _NUM.value is None else _NUM.value


def _file_rows(judge: Judge) -> list[Row]:
    """Rows for each model and number of calls in the files of samples."""
    name = _TOKENIZER.value
    tokenizer = make_tokenizer(name, documents=lambda: ()) if name else None
    sets = [one for path in _SAMPLES.value for one in read_samples(path, tokenizer)]
    return [file_row(one, _PROTOCOL.value, judge, _LENGTH.value) for one in sets]


def _progress(workdir: str, num: int, steps: list[int]) -> Progress:
    return Progress(f"{workdir}: samples", num * len(steps), quiet=jax.process_index() > 0)


def _model_rows(models: list[tuple[str, list[int]]], judge: Judge | None, kept: Kept) -> list[Row]:
    """Rows of samples that are drawn, and of held-out data."""
    wanted = {"seed": _SEED.value, "batch_size": _BATCH.value, "judge": judge, "kept": kept}
    wanted["choose"] = sampling_flags.sampler_of
    features = features_of(judging_flags.FEATURES.value, judge)
    rows: list[Row] = []
    if _PROTOCOL.value == "reference":
        num = _number(SAMPLES)
        for workdir, steps in models:
            with _progress(workdir, num, steps) as bar:
                rows += reference_rows(workdir, steps, samples=num, show=bar.done, **wanted)
        return rows
    num, wording = _number(_FEW), Wording(*judging_flags.worded(), _DATA.value)
    for workdir, steps in models:
        more = {"samples": num, "data": _DATA.value, "wording": wording, "features": features}
        more["prompted"] = _PROMPTED.value
        with _progress(workdir, num, steps) as bar:
            rows += measure(workdir, steps, show=bar.done, **more, **wanted)
    what = subject(models[0][0], judge, _DATA.value, features)
    if what.data:
        rows.append(measure_data(what, num, _BATCH.value, wording, _PROMPTED.value))
    else:
        print(f"{models[0][0]} names no data: give --data=PREPARED for losses and distances")
    return rows


def _question_rows(models: list[tuple[str, list[int]]]) -> list[Row]:
    """Rows of the answers to held-out questions."""
    num, rows = _QUESTIONS.value, []
    how = {"seed": _SEED.value, "batch_size": _BATCH.value, "choose": sampling_flags.sampler_of}
    for workdir, steps in models:
        with _progress(workdir, num, steps) as bar:
            rows += answered_rows(workdir, steps, questions=num, show=bar.done, **how)
    return rows


def main(argv) -> int:
    no_arguments(argv)
    if _CONFIG.value is not None:
        require(not _MODELS.value, "got --config and --model; expected one of them.")
        require(bool(_WORKDIR.value), "no --workdir; expected the folder of the comparison.")
        return compare_run(given_config(_CONFIG), _WORKDIR.value)
    with process_flags.joined() as first:
        return _table(first)


def _table(first: bool) -> int:
    """Prints the table of the models and of the files of samples; the `first` process writes."""
    models = _models()
    _check(models)
    for workdir, _ in models:
        read_config(located(workdir))  # a wrong name is refused before any model is measured
    if _CORPUS.value:
        settings = dict(split=_SPLIT.value, sequences=_SEQUENCES.value, batch_size=_BATCH.value)
        return _report(
            first, [corpus_row(workdir, _CORPUS.value, **settings) for workdir, _ in models]
        )
    if _QUESTIONS.value:
        return _report(first, _question_rows(models))
    judge = load_judge(judging_flags.JUDGE.value) if judging_flags.JUDGE.value else None
    kept = Kept()
    rows = _file_rows(judge) if judge else []
    rows += _model_rows(models, judge, kept) if models else []
    if _SAVE.value and first:
        kept.write(_SAVE.value)
    # First of all: a workdir may be of another user, where no picture can be put.
    status = _report(first, rows)
    for workdir, _ in models if first else ():
        _draw_schedule(epath.Path(workdir))
    return status


def _draw_schedule(workdir: epath.Path) -> None:
    """Plots the schedule of a model with learnt times, whose workdir alone holds one."""
    if records := read_schedule(workdir):
        try:
            draw_schedule(workdir / "schedule.png", records)
        except ImportError as error:
            print(f"no picture of {workdir / schedule_log.FILE} ({error}); needs the extra plots")
        else:
            print(f"wrote {workdir / 'schedule.png'}")


def _report(first: bool, rows: list[Row]) -> int:
    """Prints a table and some texts, and writes the rows to the files of the flags."""
    print(table(rows))
    for row in rows:
        if "calls" in row or row.get("kind") == FROM_FILE:
            calls = f", {row['calls']:g} network calls" if "calls" in row else ""
            print(f"\n{cell(row['model'])}{calls}:")
            for sample in row["samples"][: _SHOW.value]:
                print(f"  {shown(sample)}")
    if _JSON.value and first:
        write_output(_JSON.value, to_json(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
