"""Samples text from a workdir.

python -m flm_jax.sample --workdir=W --steps=1,2,4,64 --num_samples=8 --out=samples.jsonl
python -m flm_jax.sample --workdir=W --steps=4 --prompt="The string"
python -m flm_jax.sample --workdir=W --steps=4 --infill="The {3} of the {5} is"
python -m flm_jax.sample --workdir=FMLM --steps=8 --refine=topk
python -m flm_jax.sample --workdir=MDLM --steps=64 --method=confidence --block_length=32
python -m flm_jax.sample --workdir=MDLM --steps=16 --method=flow --trajectory=path.jsonl
python -m flm_jax.sample --workdir=MLFM --steps=16 --context_guidance=2 --promote=0.05
"""

import json

from absl import flags
from etils import epath

from flm_jax import build, problems, sampling, sampling_flags
from flm_jax.cli import run_cli
from flm_jax.evals.text import unigram_entropy
from flm_jax.types import require

_WORKDIR = flags.DEFINE_string("workdir", "", "Workdir of train or convert.")
_STEPS = flags.DEFINE_list(
    "steps", ["1"], "Network calls, several counts separated by commas; AR: unused."
)
_NUM = flags.DEFINE_integer("num_samples", 8, "Samples for each step count.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Samples drawn at a time.")
_LENGTH = flags.DEFINE_integer("length", 0, "Tokens per sample; 0 = as trained.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise; the same seed gives the same samples.")
_PROMPT = flags.DEFINE_string("prompt", "", "Text that every sample begins with.")
_INFILL = flags.DEFINE_string("infill", "", "Template; {n} stands for n tokens to write.")
_PROBLEMS = flags.DEFINE_integer(
    "problems", 0, "Complete so many problems of the model's task and say the share solved."
)
_OUT = flags.DEFINE_string("out", "", "JSONL file for the samples.")
_TRAJECTORY = flags.DEFINE_string("trajectory", "", "JSONL file for the text after each call.")
_SHOW = flags.DEFINE_integer("show", 4, "Samples printed for each step count.")


def _counts(values: list[str]) -> list[int]:
    require(
        all(v.lstrip("-").isdigit() for v in values) and bool(values),
        f"got --steps={','.join(values)}; expected whole numbers such as 1,4,64.",
    )
    return [int(v) for v in values]


def main(argv) -> None:
    require(len(argv) == 1, f"got positional arguments {argv[1:]}; expected flags alone.")
    require(bool(_WORKDIR.value), "no --workdir; expected that of a training run.")
    model = build.load_model(_WORKDIR.value)
    steps, length = _counts(_STEPS.value), _LENGTH.value or model.net.max_length
    sampling.check_request(model, steps, _PROBLEMS.value or _NUM.value, length)
    rows = min(_BATCH.value, _PROBLEMS.value or _NUM.value)
    require(rows >= 1, f"got --batch_size={_BATCH.value}; expected at least 1.")
    options = sampling_flags.options()
    if _PROBLEMS.value:
        task = problems.task_of(model)
        for count in sampling.step_counts(model, steps, length):
            share, calls = problems.solve(
                model, task, _PROBLEMS.value, count, rows, _SEED.value, options
            )
            print(f"{calls:g} network calls: {share:.4f} of {_PROBLEMS.value} problems solved")
        return
    given = sampling.given_tokens(model, _PROMPT.value, _INFILL.value, rows, length)
    records, paths = [], []
    for count in sampling.step_counts(model, steps, length):
        drawn = sampling.draw(
            model, given, steps=count, num=_NUM.value, seed=_SEED.value, options=options
        )
        texts = [model.tokenizer.decode(row) for row in drawn.tokens]
        per_thousand = 1000.0 * drawn.seconds / drawn.tokens.size
        entropy = unigram_entropy(drawn.tokens)
        print(
            f"{drawn.calls:g} network calls: {_NUM.value} samples, "
            f"{per_thousand:.3f} s per 1000 tokens, unigram entropy {entropy:.3f} nats"
        )
        for text in texts[: _SHOW.value]:
            print(f"  {text!r}")
        records += [
            {"steps": count, "sample": i, "seed": _SEED.value, "text": t, "tokens": row.tolist()}
            for i, (t, row) in enumerate(zip(texts, drawn.tokens))
        ]
        paths += [{"steps": count} | record for record in sampling.trajectory(model, drawn)]
    for path, lines in ((_OUT.value, records), (_TRAJECTORY.value, paths)):
        if path:
            epath.Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))
            print(f"wrote {len(lines)} records to {path}")


if __name__ == "__main__":
    run_cli(main)
