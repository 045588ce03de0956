"""Several processes as one run: who they are, and that their clocks agree."""

import os
import socket

import jax

from flm_jax.types import UserError, require

# What jax.distributed.initialize() reads where nothing finds the processes by itself.
_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def expected_processes(env: dict[str, str]) -> int:
    """Processes that the environment announces: 1 for a run by itself.

    Args:
      env: JAX_NUM_PROCESSES with JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID, or what SLURM sets.

    Raises:
      UserError: some of the JAX_ variables are missing, or are not numbers that fit.
    """
    given = {name: env[name] for name in (_ADDRESS, _COUNT, _INDEX) if env.get(name)}
    if given:
        missing = [name for name in (_ADDRESS, _COUNT, _INDEX) if name not in given]
        require(
            not missing,
            f"{', '.join(given)} set but {', '.join(missing)} not; set all three on every process "
            f"(for example {_ADDRESS}=host0:8476 {_COUNT}=2 {_INDEX}=0), or none for one process.",
        )
        numbers = given[_COUNT], given[_INDEX]
        require(
            all(n.isdigit() for n in numbers) and int(numbers[1]) < int(numbers[0]),
            f"got {_COUNT}={numbers[0]} {_INDEX}={numbers[1]}; expected a count and an index "
            "below it.",
        )
        require(
            ":" in given[_ADDRESS],
            f"got {_ADDRESS}={given[_ADDRESS]}; expected HOST:PORT of process 0.",
        )
        return int(numbers[0])
    tasks = env.get("SLURM_NTASKS", "1")
    in_step = "SLURM_PROCID" in env and "SLURM_STEP_NODELIST" in env
    if in_step and tasks.isdigit():
        return int(tasks)
    return 1


def initialize(pod: bool = False, timeout: int = 300) -> None:
    """Joins the other processes of the run; call it before anything touches a device.

    Args:
      pod: True where JAX finds the processes by itself (TPU pods, GKE, SLURM, Open MPI). Without
        it the JAX_ variables of `expected_processes`, or a SLURM step of several tasks, decide;
        a process alone does nothing.
      timeout: seconds to wait for the others.

    Raises:
      UserError: inconsistent variables, or the others did not come in time.
    """
    count = expected_processes(dict(os.environ))
    if count == 1 and not pod:
        return
    explicit = {}
    if os.environ.get(_ADDRESS):
        explicit = {
            "coordinator_address": os.environ[_ADDRESS],
            "num_processes": count,
            "process_id": int(os.environ[_INDEX]),
        }
    try:
        jax.distributed.initialize(**explicit, initialization_timeout=timeout)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{socket.gethostname()} could not join the run ({reason[0][:200] if reason else ''}); "
            f"expected {count if explicit else 'all'} processes at "
            f"{explicit.get('coordinator_address', 'the address that JAX finds')} within "
            f"{timeout} s: start them all, with the same address, on free ports."
        ) from error
