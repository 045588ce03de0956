"""Generates the texts on which a model is aligned; an interrupted run continues when run again.

python -m flm_jax.generate_data --workdir=W --num=10000 --steps=64 \\
    --sampler=confidence --temperature=0 --out=data/own
python -m flm_jax.generate_data --workdir=W --num=10000 --steps=1/1 --answer_length=512 \\
    --chat=questions.jsonl --out=data/own
python -m flm_jax.generate_data --exchanges=topics --num=10000 --out=data/topics.jsonl

For a task with problems, the model answers these. In training, `config.data.generated` names the
folder. --exchanges needs no model: it writes a file for `config.data.chat`.
"""

from absl import flags

from flm_jax.cli import sampling_flags
from flm_jax.cli.path_flags import DEFINE_path, DEFINE_seed
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.core.errors import check_seed, require
from flm_jax.core.files import json_lines, write_output
from flm_jax.core.progress import Progress
from flm_jax.data.synthetic_exchanges import EXCHANGES, synthetic_exchanges
from flm_jax.inference import self_generation
from flm_jax.samplers.base import read_steps

flags.adopt_module_key_flags(sampling_flags)
_WORKDIR = DEFINE_path("workdir", "", "Workdir of the model, written by train or convert.")
_OUT = DEFINE_path("out", "", "Folder to write; with --exchanges, a file.")
_NUM = flags.DEFINE_integer("num", 10_000, "Number of texts to generate.")
_STEPS = flags.DEFINE_string(
    "steps",
    "0",
    "Number of network calls; for masked diffusion also a fraction of the tokens to "
    "generate, such as 1/4. 0 is one call for each token.",
)
_BATCH = flags.DEFINE_integer(
    "batch_size",
    256,
    "Number of texts drawn at a time, which is also the number in each part of --out.",
)
_SEED = DEFINE_seed("seed", 1, "Seed of the random draws and of the task's problems.")
_CHAT = DEFINE_path("chat", "", "JSONL file of questions to answer, in the format of data/chat.py.")
_ANSWER = flags.DEFINE_integer(
    "answer_length",
    0,
    "Length of an answer in tokens, after which nothing is seen; 0 is all the room that is left.",
)
_EXCHANGES = flags.DEFINE_string(
    "exchanges",
    "",
    f"Synthetic questions and answers: {', '.join(EXCHANGES)}. --num of them, drawn by --seed, are "
    "written as JSON lines to the file --out; no model is needed.",
)
_TAIL = flags.DEFINE_bool(
    "count_tail",
    None,
    "Count the tokens after the end of an answer as valid; by default if the model was "
    "trained to fill rows with them.",
)


def _write_exchanges() -> None:
    """Writes the exchanges of --exchanges to the file --out."""
    require(not _WORKDIR.value, "got --exchanges and --workdir; expected one of them.")
    require(bool(_OUT.value), "no --out; expected the file to write, such as data/topics.jsonl.")
    check_seed(_SEED.value)
    found = synthetic_exchanges(_EXCHANGES.value, _NUM.value, _SEED.value)
    lines = json_lines({"prompt": one.prompt, "response": one.response} for one in found)
    write_output(_OUT.value, lines)
    print(f"{_OUT.value}: {len(found)} exchanges")


def main(argv) -> None:
    no_arguments(argv)
    if _EXCHANGES.value:
        _write_exchanges()
        return
    for name, flag in (("workdir", _WORKDIR), ("out", _OUT)):
        require(bool(flag.value), f"no --{name}; expected --workdir and --out.")
    with Progress("parts") as bar:

        def show(part: int, parts: int) -> None:
            bar.done(part, parts)
            bar.say(f"part {part}/{parts}")

        done = self_generation.generate(
            _WORKDIR.value,
            _OUT.value,
            num=_NUM.value,
            steps=read_steps(_STEPS.value),
            batch_size=_BATCH.value,
            seed=_SEED.value,
            choose=sampling_flags.sampler_of,
            chat=_CHAT.value,
            answer_length=_ANSWER.value,
            tail=_TAIL.value,
            show=show,
        )
    print(f"{_OUT.value}: {done}")


if __name__ == "__main__":
    run_cli(main)
