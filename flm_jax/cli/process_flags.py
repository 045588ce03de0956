"""Commands that run in several processes: they share the work, the first one prints and writes."""

import contextlib
import os
from collections.abc import Iterator

import jax
from absl import flags

from flm_jax.distributed import processes
from flm_jax.distributed.agreement import wait_for_all

POD = flags.DEFINE_bool("distributed", False, "Join the processes that JAX finds (TPU pod, GKE).")


@contextlib.contextmanager
def joined() -> Iterator[bool]:
    """Joins the other processes of a command before JAX is used, see `processes.initialize`.

    Yields:
      Whether this is the first process, which alone may write; the output of the others is dropped.
      At the end every process waits for the first.

    Raises:
      UserError: the processes do not find each other.
    """
    processes.initialize(pod=POD.value)
    if jax.process_index() == 0:
        yield True
    else:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield False
    wait_for_all("the end of a command")
