"""Trains a policy of step sizes for x-prediction, by rewards on problems that the model solves.

python -m flm_jax.train_policy --config=configs/x_prediction/sums_policy.py \\
    --workdir=runs/xflow/policy
python -m flm_jax.sample --workdir=W --steps=2 --sampler=x_prediction --policy=runs/xflow/policy

Run again with the same workdir to continue. Exit status: 0 finished, 2 bad input, 75 stopped by
SIGTERM or SIGINT after saving.
"""

from flm_jax.cli.config_flag import DEFINE_config, given_config
from flm_jax.cli.path_flags import DEFINE_path
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.config.check import check_policy
from flm_jax.core.errors import require
from flm_jax.evaluation.benchmarks.policy_problems import mbpp_problems
from flm_jax.training.policy_trainer import train_policy_run
from flm_jax.training.task_rewards import problems_of_task

_CONFIG = DEFINE_config()
_WORKDIR = DEFINE_path("workdir", "", "Folder of the policy.")


def main(argv) -> int:
    no_arguments(argv)
    config = check_policy(given_config(_CONFIG))
    require(bool(_WORKDIR.value), "no --workdir; expected the folder of the policy.")
    problems = mbpp_problems if config["problems"] else problems_of_task
    return train_policy_run(config, _WORKDIR.value, problems)


if __name__ == "__main__":
    run_cli(main)
