"""Trains a policy of step sizes for --method=flow, by rewards on the problems of a model's task.

python -m flm_jax.train_policy --config=configs/x_prediction/sums_policy.py \
    --workdir=runs/xflow/policy
python -m flm_jax.sample --workdir=W --steps=2 --method=flow --policy=runs/xflow/policy

Run again with the same workdir to continue. Exit status: 0 finished, 2 bad input, 75 stopped by
SIGTERM or SIGINT after saving.
"""

from ml_collections import config_flags

from flm_jax.cli.path_flags import DEFINE_path
from flm_jax.cli.run import given_config, no_arguments, run_cli
from flm_jax.config.check import check
from flm_jax.config.schema import policy_config
from flm_jax.core.errors import require
from flm_jax.training.policy_trainer import train_policy_run

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with get_config().")
_WORKDIR = DEFINE_path("workdir", "", "Folder of the policy.")


def main(argv) -> int:
    no_arguments(argv)
    config = check(given_config(_CONFIG), policy_config)
    require(bool(_WORKDIR.value), "no --workdir; expected the folder of the policy.")
    return train_policy_run(config, _WORKDIR.value)


if __name__ == "__main__":
    run_cli(main)
