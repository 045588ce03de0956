"""Samples text from a trained model.

python -m flm_jax.sample --workdir=W --steps=1,2,4,64 --num_samples=8 --out=samples.jsonl
python -m flm_jax.sample --workdir=W --steps=4 --prompt="The string"
python -m flm_jax.sample --workdir=W --steps=4 --infill="The {3} of the {5} is"
python -m flm_jax.sample --workdir=W --steps=16 --live --html=texts.html
python -m flm_jax.sample --workdir=W --steps=64 --prompts=questions.jsonl --chat --out=answers.jsonl
python -m flm_jax.sample --workdir=FMLM --steps=8 --sampler=posterior_refinement
python -m flm_jax.sample --workdir=MDLM --steps=64 --sampler=confidence --block_length=32
python -m flm_jax.sample --workdir=MDLM --steps=1/4 --prompts=asked.jsonl --answer_length=256
python -m flm_jax.sample --workdir=MDLM --steps=16 --sampler=x_prediction --trajectory=path.jsonl
python -m flm_jax.sample --workdir=MLFM --steps=16 --context_guidance=2 --promote=0.05
"""

import jax
from absl import flags
from etils import epath

from flm_jax.build.load import Model, load_model
from flm_jax.cli import process_flags, sampling_flags
from flm_jax.cli.path_flags import DEFINE_output, DEFINE_path, DEFINE_seed
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.core.errors import require
from flm_jax.core.files import json_lines, write_output
from flm_jax.core.progress import Progress
from flm_jax.inference import engine, task_problems, trajectories
from flm_jax.inference.answer_file import described, digest, open_answers
from flm_jax.inference.answers import Answering
from flm_jax.inference.prompts import read_prompts
from flm_jax.metrics.intervals import share_interval
from flm_jax.metrics.text import unigram_entropy
from flm_jax.samplers.base import SamplerConfig, Steps, plain_steps, read_steps

flags.adopt_module_key_flags(sampling_flags)
flags.adopt_module_key_flags(process_flags)
_WORKDIR = DEFINE_path("workdir", "", "Workdir of the model, written by train or convert.")
_STEPS = flags.DEFINE_list(
    "steps",
    ["1"],
    "Step counts of the sampler, separated by commas; for masked diffusion also a "
    "fraction of the tokens to generate, such as 1/4. Autoregressive models ignore it.",
)
_NUM = flags.DEFINE_integer("num_samples", 8, "Number of samples for each step count.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Number of samples drawn at a time.")
_LENGTH = flags.DEFINE_integer(
    "length", 0, "Length of a sample in tokens; 0 is the length of training."
)
_SEED = DEFINE_seed("seed", 0, "Seed of the random draws; the same seed gives the same samples.")
_PROMPT = flags.DEFINE_string("prompt", "", "Text with which every sample begins.")
_INFILL = flags.DEFINE_string(
    "infill", "", "Template to fill in; {n} stands for n tokens to generate."
)
_PROMPTS = DEFINE_path(
    "prompts",
    "",
    "JSONL file of prompts (keys prompt, infill, answer_length); each is answered once.",
)
_CHAT = flags.DEFINE_bool(
    "chat",
    False,
    "Treat prompts as questions in the tokenizer's chat template, or else in the format "
    "of data/chat.py.",
)
_ANSWER = flags.DEFINE_integer(
    "answer_length",
    0,
    "Length of an answer to --prompts in tokens; 0 is all the room that is left.",
)
_PROBLEMS = flags.DEFINE_integer(
    "problems", 0, "Number of problems of the model's task to complete; prints the fraction solved."
)
_OUT = DEFINE_output("out", "", "JSONL file to write the samples to.")
_TRAJECTORY = DEFINE_output(
    "trajectory", "", "JSONL file to write the text after each network call to."
)
_HTML = DEFINE_output(
    "html",
    "",
    "HTML file to write; it shows the samples of the last step count resolve step by step.",
)
_LIVE = flags.DEFINE_bool(
    "live", False, "Show in the terminal how the samples resolve step by step."
)
_SHOW = flags.DEFINE_integer("show", 4, "Number of samples printed for each step count.")


def _write(path: str, lines: list[dict]) -> None:
    if path and jax.process_index() == 0:
        write_output(path, json_lines(lines))
        print(f"wrote {len(lines)} records to {path}")


def _progress(label: str, total: int) -> Progress:
    return Progress(label, total, quiet=jax.process_index() > 0)


def _solve(model: Model, counts: list[Steps], rows: int, sampler: SamplerConfig) -> None:
    task, num = task_problems.task_of(model), _PROBLEMS.value
    for count in counts:
        with _progress(f"{count} steps: problems", num) as bar:
            settings = rows, _SEED.value, sampler, bar.done
            found, calls = task_problems.solve(model, task, num, count, *settings)
        low, high = share_interval(found["solved"], num)
        more = "".join(f", {k} {v:.4f}" for k, v in found.items() if k not in ("solved", "kept"))
        print(
            f"{calls:g} network calls: {found['solved']:.4f} [{low:.4f}, {high:.4f}] of {num} "
            f"problems solved{more}"
        )


def _answer(model: Model, counts: list[Steps], length: int, sampler: SamplerConfig) -> None:
    asked = read_prompts(_PROMPTS.value)
    rows = min(_BATCH.value, len(asked))
    given = rows, _SEED.value, length, _ANSWER.value, _CHAT.value, sampler
    settings = described(model, _WORKDIR.value, Answering(counts[0], *given))
    settings |= {"steps": [plain_steps(count) for count in counts]}
    settings |= {"prompts_sha256": digest(str([one._replace(where="") for one in asked]).encode())}
    records = []
    with open_answers(_OUT.value, settings) as kept:
        for run, count in enumerate(counts):
            if before := kept.done(run):
                print(f"{count} steps: {before} of {len(asked)} answers are there")
            with _progress(f"{count} steps: answers", len(asked)) as bar:
                found = kept.answer(model, asked, Answering(count, *given), run, bar.done)
            print(f"{count} steps: {len(asked)} prompts answered", flush=True)
            for record in found[: _SHOW.value]:
                print(f"  {record['prompt']!r}: {record['answer']!r}")
            records += found
        _write(_OUT.value, records)


def _draw(
    model: Model, counts: list[Steps], rows: int, length: int, sampler: SamplerConfig
) -> None:
    prescribed = _PROMPT.value, _INFILL.value
    given = engine.given_tokens(model, *prescribed, rows, length, _CHAT.value)
    records, paths = [], []
    for count in counts:
        engine.check_given(model, given, count, sampler)
        with _progress(f"{count} steps: samples", _NUM.value) as bar:
            program = engine.prepare(model, given.tokens.shape, count, sampler)
            drawn = program(given, num=_NUM.value, seed=_SEED.value, show=bar.done)
        said, texts = plain_steps(count), [model.tokenizer.decode(row) for row in drawn.tokens]
        per_thousand = 1000.0 * drawn.seconds / drawn.tokens.size
        entropy = unigram_entropy(drawn.tokens)
        print(
            f"{drawn.calls:g} network calls: {_NUM.value} samples, "
            f"{per_thousand:.3f} s per 1000 tokens, unigram entropy {entropy:.3f} nats"
        )
        if _LIVE.value:
            shown = (x[:, : _SHOW.value] for x in (drawn.steps_tokens, drawn.steps_confidence))
            trajectories.in_terminal(model.tokenizer, *shown)
        else:
            for text in texts[: _SHOW.value]:
                print(f"  {text!r}")
        records += [
            {"steps": said, "sample": i, "seed": _SEED.value, "text": t, "tokens": row.tolist()}
            for i, (t, row) in enumerate(zip(texts, drawn.tokens))
        ]
        paths += [{"steps": said} | record for record in engine.trajectory(model, drawn)]
    _write(_OUT.value, records)
    _write(_TRAJECTORY.value, paths)
    if _HTML.value and jax.process_index() == 0:
        shown = drawn.steps_tokens, drawn.steps_confidence
        title = f"{epath.Path(_WORKDIR.value).name}: text in {drawn.calls:g} network calls"
        page = trajectories.to_html(model.tokenizer, *shown, title=title)
        write_output(_HTML.value, page)
        print(f"wrote {_HTML.value}")


def main(argv) -> None:
    no_arguments(argv)
    require(bool(_WORKDIR.value), "no --workdir; expected that of a training run.")
    alone = [f.name for f in (_PROMPT, _INFILL, _PROMPTS, _PROBLEMS) if f.value]
    require(len(alone) <= 1, f"got --{' and --'.join(alone)}; expected one of them.")
    with process_flags.joined():
        model = load_model(_WORKDIR.value, shared=True)
        steps, length = [read_steps(v) for v in _STEPS.value], _LENGTH.value or model.net.max_length
        num = _PROBLEMS.value or _NUM.value
        engine.check_request(model, steps, num, length)
        rows, sampler = min(_BATCH.value, num), sampling_flags.sampler_of(model.config)
        require(rows >= 1, f"got --batch_size={_BATCH.value}; expected at least 1.")
        counts = engine.step_counts(model, steps, length)
        if _PROMPTS.value:
            return _answer(model, counts, length, sampler)
        if _PROBLEMS.value:
            return _solve(model, counts, rows, sampler)
        return _draw(model, counts, rows, length, sampler)


if __name__ == "__main__":
    run_cli(main)
