"""Trains or distils a model.

python -m flm_jax.train --config=configs/quickstart/flm.py --workdir=runs/flm [--config.KEY=VALUE]

Run again with the same workdir to continue. Exit status: 0 finished, 2 bad input, 75 stopped by
SIGTERM or SIGINT after saving. Several processes train one model: on TPU pods and GKE with
--distributed, as tasks of one SLURM step automatically, elsewhere by JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

from absl import flags

from flm_jax.cli import process_flags
from flm_jax.cli.config_flag import DEFINE_config, given_config
from flm_jax.cli.path_flags import DEFINE_path
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.config.check import check
from flm_jax.core.errors import require
from flm_jax.core.host_memory import tune_malloc
from flm_jax.distributed import processes
from flm_jax.training.trainer import train_run

flags.adopt_module_key_flags(process_flags)
_CONFIG = DEFINE_config()
_WORKDIR = DEFINE_path("workdir", "", "Folder of the run: checkpoints, metrics and samples.")


def main(argv) -> int:
    tune_malloc()
    no_arguments(argv)
    config = check(given_config(_CONFIG))
    require(bool(_WORKDIR.value), "no --workdir; expected the folder of the run")
    processes.initialize(pod=process_flags.POD.value)
    return train_run(config, _WORKDIR.value)


if __name__ == "__main__":
    run_cli(main)
