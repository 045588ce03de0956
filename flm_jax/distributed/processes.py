"""Joins several processes to one run: how many there are, and how they find each other."""

import os
import socket
import sys
import time

import jax

from flm_jax.core.errors import UserError, require

# What jax.distributed.initialize() reads where nothing finds the processes by itself.
_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def expected_processes(env: dict[str, str]) -> int:
    """Number of processes that the environment announces; 1 for a run by itself.

    Args:
      env: environment variables: JAX_NUM_PROCESSES with JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID,
        or SLURM's.

    Raises:
      UserError: some of the JAX_ variables are missing, or are not matching numbers.
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
    """Joins the other processes of the run; must be called before any use of a device.

    Args:
      pod: whether JAX finds the processes by itself (TPU pods, GKE, SLURM, Open MPI). Otherwise the
        JAX_ variables of `expected_processes`, or a SLURM step of several tasks, decide; a single
        process does nothing.
      timeout: time to wait for the others, in seconds.

    Raises:
      UserError: inconsistent variables, or process 0 did not listen in time.
    """
    count = expected_processes(dict(os.environ))
    if count == 1 and not pod:
        return
    explicit = {}
    if os.environ.get(_ADDRESS):
        address, index = os.environ[_ADDRESS], int(os.environ[_INDEX])
        explicit = {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": index,
        }
        # jaxlib aborts the process when its wait is over: what it waits for is said before.
        print(f"process {index} of {count}: joining at {address}", file=sys.stderr, flush=True)
        if index > 0:
            _await_coordinator(address, timeout)
    try:
        jax.distributed.initialize(**explicit, initialization_timeout=timeout)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{socket.gethostname()} could not join the run ({reason[0][:200] if reason else ''}); "
            "start all processes, with the same coordinator address, on free ports."
        ) from error


def _await_coordinator(address: str, timeout: int) -> None:
    """Waits until process 0 listens.

    Raises:
      UserError: process 0 did not listen within `timeout` seconds.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            require(
                time.monotonic() < deadline,
                f"process 0 does not listen at {address} after {timeout} s ({error}); start it "
                f"with the same {_ADDRESS}, which names its host and a free port that the others "
                "reach.",
            )
        time.sleep(0.2)
