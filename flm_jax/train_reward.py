"""Trains a reward for --reward: the probability that a text matches a pattern, from clean data.

python -m flm_jax.train_reward --workdir=runs/flm --match="las vegas" --out=runs/reward
python -m flm_jax.sample --workdir=runs/flm --steps=64 --reward=runs/reward --reward_scale=1

Run again with the same arguments to continue. Exit status: 0 finished, 2 bad input, 75 stopped by
SIGTERM or SIGINT after saving.
"""

from absl import flags

from flm_jax.cli.path_flags import DEFINE_path, DEFINE_seed
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.core.errors import require
from flm_jax.training.reward_trainer import train_text_reward

_WORKDIR = DEFINE_path(
    "workdir", "", "Workdir of the model on whose training data the reward is trained."
)
_MATCH = flags.DEFINE_string("match", "", "Regular expression that rewarded texts contain.")
_OUT = DEFINE_path("out", "", "Folder to write the reward to.")
_STEPS = flags.DEFINE_integer("steps", 500, "Number of optimizer steps (Adam).")
_BATCH = flags.DEFINE_integer("batch_size", 256, "Number of texts in a step.")
_LR = flags.DEFINE_float("lr", 1e-3, "Learning rate.")
_SEED = DEFINE_seed("seed", 0, "Seed of the initialisation and of the order of the data.")


def main(argv) -> None:
    no_arguments(argv)
    for name, flag in (("workdir", _WORKDIR), ("match", _MATCH), ("out", _OUT)):
        require(bool(flag.value), f"no --{name}; expected --workdir, --match and --out.")
    done = train_text_reward(
        _WORKDIR.value,
        _MATCH.value,
        _OUT.value,
        steps=_STEPS.value,
        batch=_BATCH.value,
        lr=_LR.value,
        seed=_SEED.value,
    )
    print(
        f"{100 * done.matching:.1f}% of held-out texts match, {100 * done.accuracy:.1f}% are "
        f"classified rightly, loss {done.loss:.4f} nats; wrote {_OUT.value}"
    )


if __name__ == "__main__":
    run_cli(main)
