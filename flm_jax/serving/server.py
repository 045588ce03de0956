"""A process that serves: its address, its signals, its warm-up and its end."""

import contextlib
import dataclasses
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence

from flm_jax.core.errors import UserError, require
from flm_jax.core.extras import import_extra
from flm_jax.inference.rows import Kind, RowSampler
from flm_jax.samplers.base import Steps
from flm_jax.serving.batches import Programs, Worker
from flm_jax.serving.completions import Completions, Served
from flm_jax.serving.http import make_app
from flm_jax.serving.limits import Limits

_SIGNALS = signal.SIGTERM, signal.SIGINT
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_LAST_SECONDS = 5.0  # for what a request takes after its texts


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
      host: name or address of an interface.
      port: port; 0 for a free one.
      connections: largest number of connections; more are refused with a plain status 503.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    connections: int = 1000


def batch_sizes(most: int) -> list[int]:
    """Returns the powers of two below `most`, and `most`.

    Raises:
      UserError: `most` is below 1.
    """
    require(most >= 1, f"got a batch of {most} rows; expected at least 1.")
    return [*(1 << k for k in range((most - 1).bit_length())), most]


def open_socket(address: Address) -> socket.socket:
    """Takes an address, on which nothing listens yet: clients are refused until the server is up.

    Raises:
      UserError: the address is taken, or is none of this machine.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, place = found[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(
            f"cannot listen at {address.host}:{address.port} ({error}); expected an address of "
            "this machine and a free port: give --host and --port."
        ) from error
    return made


def warm_up(
    sampler: RowSampler,
    served: Served,
    steps: Sequence[Steps],
    sizes: Sequence[int],
    show: Callable[[int], None] = lambda done: None,
) -> list[int]:
    """Compiles the programs of whole rows, and returns the batch sizes that round alike.

    Args:
      sampler: compiler and runner of rows.
      served: model and sampler.
      steps: step counts to compile.
      sizes: batch sizes in ascending order.
      show: callback that takes the number of programs done.
    """
    length = served.model.net.max_length
    kept = list(sizes)
    for number, count in enumerate(steps):
        kind, before = Kind(length, False, count, served.sampler), number * len(sizes)
        count_up = lambda done, before=before: show(before + done)
        alike = sampler.agreeing(kind, sizes, count_up)
        kept = [size for size in kept if size in alike]
    return kept


@contextlib.contextmanager
def quiet_stop() -> Iterator[None]:
    """Ends the process with status 0 at SIGTERM and SIGINT while the block lasts."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(0)

    before = [signal.signal(one, stop) for one in _SIGNALS]
    try:
        yield
    finally:
        for one, handler in zip(_SIGNALS, before):
            signal.signal(one, handler)


def serve(
    served: Served,
    programs: Programs,
    sizes: Sequence[int],
    limits: Limits,
    listening: socket.socket,
    *,
    connections: int = 1000,
    log: bool = False,
    ready: Callable[[], None] = lambda: None,
) -> Completions:
    """Answers requests until SIGTERM or SIGINT; then takes no more, and answers those in flight.

    Args:
      served: model, and what is offered of it.
      programs: compiler and runner of rows, see `Worker`.
      sizes: batch sizes in ascending order.
      limits: limits of requests.
      listening: socket from `open_socket`.
      connections: largest number of connections.
      log: whether each request is logged.
      ready: callback once requests are answered.

    Returns:
      What answered them, with its counts.

    Raises:
      UserError: the extra `serve` is not installed.
    """
    uvicorn = import_extra("uvicorn", "serve", "the server")
    worker = Worker(programs, sizes, limits.waiting)
    completions = Completions(served, worker, limits)
    host = listening.getsockname()[0]
    names = _LOOPBACK if host in _LOOPBACK else ()
    config = uvicorn.Config(
        make_app(completions, names),
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="info" if log else "warning",
        access_log=log,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=connections,
        timeout_graceful_shutdown=int(limits.seconds + _LAST_SECONDS),
    )

    class Server(uvicorn.Server):
        """A server that says when it is up."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    # The server raises a signal that stopped it once more when all is answered.
    before = [signal.signal(one, lambda number, frame: None) for one in _SIGNALS]
    try:
        Server(config).run([listening])
    finally:
        for one, handler in zip(_SIGNALS, before):
            signal.signal(one, handler)
    if not worker.close(limits.seconds + _LAST_SECONDS):
        logging.getLogger(__name__).warning("a batch was still running at the end")
    return completions
