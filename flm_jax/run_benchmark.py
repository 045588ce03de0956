"""Runs a benchmark: scores answers one by one, continues interrupted runs, prints a table.

python -m flm_jax.run_benchmark --task=gsm8k --data=gsm8k/test.jsonl --workdir=W --steps=128 \\
    --out=DIR
python -m flm_jax.run_benchmark --task=humaneval --data=HumanEval.jsonl.gz --workdir=W --out=DIR \\
    --samples=20 --pass_at=1,10 --temperature=0.8
python -m flm_jax.run_benchmark --task=mbpp --data=mbpp.jsonl --workdir=W --out=DIR
JUDGE_URL=https://host/v1 JUDGE_KEY=... python -m flm_jax.run_benchmark --task=mt_bench \\
    --data=question.jsonl --workdir=W --out=DIR --judge_model=gpt-4o-2024-05-13
python -m flm_jax.run_benchmark --task=mbpp --data=mbpp.jsonl --reference \\
    --out=DIR  # right answers
"""

import contextlib
from pathlib import Path

from absl import flags

from flm_jax.build.families.registry import family
from flm_jax.build.load import Model, load_model
from flm_jax.cli import process_flags, sampling_flags
from flm_jax.cli.path_flags import DEFINE_path, DEFINE_seed
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.core.errors import one_of, require
from flm_jax.core.files import to_json, write_whole
from flm_jax.core.locks import alone
from flm_jax.core.paths import check_folder
from flm_jax.core.progress import Progress
from flm_jax.distributed.agreement import by_first
from flm_jax.evaluation.benchmarks.base import STOP_STRINGS, Choices, Record
from flm_jax.evaluation.benchmarks.registry import BENCHMARKS, make_benchmark
from flm_jax.evaluation.benchmarks.runner import (
    SUMMARY,
    by_key,
    by_model,
    by_reference,
    check_room,
    collect,
    open_folder,
    settings_of,
    summarise,
)
from flm_jax.evaluation.benchmarks.sandbox import ISOLATIONS, Limits, Sandbox, open_sandbox
from flm_jax.evaluation.tables import table
from flm_jax.inference.answer_file import described
from flm_jax.inference.answers import Answering
from flm_jax.inference.prompts import chatty
from flm_jax.samplers.base import read_steps

flags.adopt_module_key_flags(sampling_flags)
flags.adopt_module_key_flags(process_flags)
_TASK = flags.DEFINE_string("task", "", f"Benchmark to run: {', '.join(BENCHMARKS)}.")
_DATA = DEFINE_path("data", "", "Data file of the benchmark.")
_WORKDIR = DEFINE_path("workdir", "", "Workdir of the model, written by train or convert.")
_OUT = DEFINE_path(
    "out", "", "Folder for the records and the summary; a run on the same folder continues."
)
_REFERENCE = flags.DEFINE_bool(
    "reference", False, "Score the reference answers instead of a model's."
)
_STEPS = flags.DEFINE_string(
    "steps",
    "64",
    "Number of steps of the sampler; for masked diffusion also a fraction of the tokens "
    "to generate, such as 1/4. Autoregressive models ignore it.",
)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Number of prompts answered at a time.")
_SEED = DEFINE_seed("seed", 0, "Seed of the random draws.")
_LENGTH = flags.DEFINE_integer(
    "length", 0, "Length of prompt and answer together in tokens; 0 is the length of training."
)
_ANSWER = flags.DEFINE_integer(
    "answer_length", 0, "Length of an answer in tokens; 0 is all the room that is left."
)
_CUT = flags.DEFINE_bool(
    "cut_prompts", False, "Cut the beginning of prompts that leave no room for an answer."
)
_CHAT = flags.DEFINE_bool(
    "chat",
    None,
    "Ask problems as chat questions; by default if the model was trained on exchanges.",
)
_STYLE = flags.DEFINE_string(
    "prompt_style",
    "",
    "Style of prompts: chat or plain (gsm8k), chat or vicuna (mt_bench); by default as "
    "--chat says.",
)
_SAMPLES = flags.DEFINE_integer("samples", 1, "Number of answers to each problem, for pass@k.")
_PASS_AT = flags.DEFINE_list(
    "pass_at", ["1"], "Values of k for pass@k (humaneval, mbpp), separated by commas."
)
_LIMIT = flags.DEFINE_integer("limit", 0, "Number of problems, from the first one on; 0 is all.")
_SHOTS = flags.DEFINE_integer(
    "shots",
    -1,
    "Number of solved examples before each problem (gsm8k, mbpp); -1 is the default, 3 "
    "for mbpp and 0 for gsm8k.",
)
_EXAMPLES = DEFINE_path("examples", "", "File of the solved examples (gsm8k).")
_WHOLE = flags.DEFINE_bool("whole", False, "Use all problems of mbpp, not the test split alone.")
_SECONDS = flags.DEFINE_float(
    "seconds", 3.0, "Time limit of a program in seconds (humaneval, mbpp)."
)
_ISOLATION = flags.DEFINE_string(
    "isolation",
    "namespaces",
    f"Isolation of the programs that are run: {', '.join(ISOLATIONS)}; guard protects less.",
)
_FIRST_TURN = flags.DEFINE_bool("first_turn", False, "Ask the first turn alone (mt_bench).")
_STOPS = flags.DEFINE_list(
    "stop_strings",
    [stop.replace("\n", r"\n") for stop in STOP_STRINGS],
    r"Strings at the first of which an answer ends (mt_bench), separated by commas; \n is "
    r"a line end.",
)
_JUDGE_MODEL = flags.DEFINE_string(
    "judge_model", "", "Name of the judge model (mt_bench); it overrides JUDGE_MODEL."
)
_JUDGE_PROMPTS = DEFINE_path(
    "judge_prompts", "", "File judge_prompts.jsonl of FastChat (mt_bench)."
)
_JUDGE_ANSWERS = DEFINE_path(
    "judge_references", "", "File of reference answers in FastChat's answer format (mt_bench)."
)


def _choices(chat: bool) -> Choices:
    ks = _PASS_AT.value
    require(
        bool(ks) and all(k.isdigit() and 1 <= int(k) <= _SAMPLES.value for k in ks),
        f"got --pass_at={','.join(ks)} with --samples={_SAMPLES.value}; expected numbers from 1 to "
        "that of the samples.",
    )
    numbers = tuple(int(k) for k in ks)
    return Choices(
        chat=chat,
        prompt_style=_STYLE.value,
        shots=_SHOTS.value,
        examples=_EXAMPLES.value,
        pass_at=numbers,
        whole=_WHOLE.value,
        limit=_LIMIT.value,
        first_turn=_FIRST_TURN.value,
        stop_strings=tuple(stop.replace(r"\n", "\n") for stop in _STOPS.value if stop),
        judge_model=_JUDGE_MODEL.value,
        judge_prompts=_JUDGE_PROMPTS.value,
        judge_references=_JUDGE_ANSWERS.value,
    )


def _asked(model: Model | None) -> bool:
    """Whether questions are asked: by the prompt style, or --chat, or the model's training."""
    style, chat = _STYLE.value, _CHAT.value
    require(
        not style or chat in (None, style == "chat"),
        f"got --prompt_style={style} with --{'' if chat else 'no'}chat; leave one of them out.",
    )
    if style or chat is not None:
        return style == "chat" or bool(chat)
    return model is not None and chatty(model)


def _sandbox() -> Sandbox | None:
    if not BENCHMARKS[_TASK.value].programs:
        return None
    sandbox = open_sandbox(Limits(seconds=_SECONDS.value), _ISOLATION.value)
    print(f"programs run in {ISOLATIONS[sandbox.isolation]}")
    return sandbox


def _check() -> None:
    one_of("--task", _TASK.value, BENCHMARKS)
    require(bool(_DATA.value), f"no --data; expected the data file of {_TASK.value}.")
    require(bool(_OUT.value), "no --out; expected a folder for the records.")
    check_folder(_OUT.value, "--out")
    require(
        bool(_WORKDIR.value) != _REFERENCE.value,
        "expected --workdir, of a training run, or --reference, for the right answers.",
    )
    require(_BATCH.value >= 1, f"got --batch_size={_BATCH.value}; expected at least 1.")
    require(
        _SAMPLES.value == 1 or not BENCHMARKS[_TASK.value].one_answer,
        f"got --samples={_SAMPLES.value}; {_TASK.value} has one answer to each question.",
    )


def _answering(model: Model, chat: bool) -> Answering:
    length, sampler = (_LENGTH.value, _ANSWER.value), sampling_flags.sampler_of(model.config)
    steps = read_steps(_STEPS.value)
    return Answering(steps, _BATCH.value, _SEED.value, *length, chat, sampler, _CUT.value)


def main(argv) -> None:
    no_arguments(argv)
    _check()
    with process_flags.joined() as first:
        _run(first)


def _run(first: bool) -> None:
    """Answers and scores; among several processes the `first` one scores and writes."""
    model = None if _REFERENCE.value else load_model(_WORKDIR.value, shared=True)
    choices = _choices(_asked(model))
    sandbox = _sandbox()
    benchmark = make_benchmark(_TASK.value, _DATA.value, choices, sandbox)
    if model is None:
        own, kind = {"reference": True}, "right answers"
        answer = by_reference(benchmark, _BATCH.value, _SAMPLES.value)
    else:
        how, kind = _answering(model, choices.chat), family(model.config).kind(model.net)
        check_room(model, benchmark, how)
        own, answer = described(model, _WORKDIR.value, how), by_model(model, how)
    own = {"task": _TASK.value, "samples": _SAMPLES.value} | own
    folder = Path(_OUT.value)
    with contextlib.ExitStack() as held:
        bar = held.enter_context(Progress("answers", quiet=not first))

        def show(count: int, total: int) -> None:
            bar.done(count, total)
            bar.say(f"{count} of {total} answers")

        def opened() -> list[Record]:
            held.enter_context(alone(folder, "a benchmark"))
            return open_folder(folder, own | settings_of(_DATA.value, choices, sandbox))

        done = by_key(by_first(opened))
        records = collect(benchmark, folder, done, answer, _SAMPLES.value, show, first)
        if not first:
            return
        bar.close()
        row = {"model": _WORKDIR.value or "reference", "kind": kind, "task": _TASK.value}
        row |= summarise(benchmark, records)
        row |= benchmark.finish(records, Path(_WORKDIR.value).name, folder)
        write_whole(folder / SUMMARY, to_json(row, indent=1) + "\n")
    print(table([row]))


if __name__ == "__main__":
    run_cli(main)
