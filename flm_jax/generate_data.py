"""Generates the texts on which a model is aligned; an interrupted run continues when run again.

python -m flm_jax.generate_data --workdir=W --num=10000 --steps=64 \\
    --sampler=confidence --temperature=0 --out=data/own
python -m flm_jax.generate_data --workdir=W --num=10000 --steps=1/1 --answer_length=512 \\
    --chat=questions.jsonl --out=data/own

For a task with problems, the model answers these. In training, `config.data.generated` names the
folder.
"""

from absl import flags

from flm_jax.cli import sampling_flags
from flm_jax.cli.path_flags import DEFINE_path, DEFINE_seed
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.core.errors import require
from flm_jax.core.progress import Progress
from flm_jax.inference import self_generation
from flm_jax.samplers.base import read_steps

flags.adopt_module_key_flags(sampling_flags)
_WORKDIR = DEFINE_path("workdir", "", "Workdir of the model, written by train or convert.")
_OUT = DEFINE_path("out", "", "Folder to write.")
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
_TAIL = flags.DEFINE_bool(
    "count_tail",
    None,
    "Count the tokens after the end of an answer as valid; by default if the model was "
    "trained to fill rows with them.",
)


def main(argv) -> None:
    no_arguments(argv)
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
