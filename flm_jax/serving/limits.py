"""Limits of a server, and the rate at which a client may ask."""

import dataclasses
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from flm_jax.core.errors import require

_MOST_CLIENTS = 10_000  # whose rates are remembered


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a request and of the server.

    Attributes:
      body: largest size of a request's body, in bytes.
      prompt: largest number of characters of a prompt or an infill.
      tokens: largest max_tokens; 0 for the length of the model.
      texts: largest number of texts of a request, prompts times n.
      steps: largest number of network calls of a text that a request may ask for.
      stops: largest number of stop strings.
      waiting: largest number of texts that wait; more are refused with status 503.
      seconds: time after which a request is given up with status 504, and the time for its body
        to arrive.
      rate: number of requests that a client may make in a second, on average; 0 for any number.
      burst: number of requests that a client may make at once when `rate` is given.
    """

    body: int = 1 << 20
    prompt: int = 20_000
    tokens: int = 0
    texts: int = 16
    steps: int = 256
    stops: int = 4
    waiting: int = 256
    seconds: float = 60.0
    rate: float = 0.0
    burst: int = 10

    def __post_init__(self) -> None:
        for name in ("body", "prompt", "texts", "steps", "stops", "waiting", "burst", "seconds"):
            value = getattr(self, name)
            require(value > 0, f"got a limit of {value} for {name}; expected more than 0.")
        for name in ("tokens", "rate"):
            value = getattr(self, name)
            require(value >= 0, f"got a limit of {value} for {name}; expected 0 or more.")


class Rates:
    """Rates of clients: each has `burst` requests, and gets `rate` more in a second.

    Args:
      rate: requests of a client in a second; 0 for any number.
      burst: largest number of requests that a client has saved up.
      clock: function that returns the time in seconds.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> int:
        """Counts a request of a client.

        Returns:
          0 if the client may make it, else the whole number of seconds after which it may.
        """
        if not self._rate:
            return 0
        now = self._clock()
        left, then = self._left.pop(client, (float(self._burst), now))
        left = min(self._burst, left + (now - then) * self._rate)
        allowed = left >= 1.0
        self._left[client] = (left - 1.0 if allowed else left), now
        if len(self._left) > _MOST_CLIENTS:
            self._left.popitem(last=False)
        return 0 if allowed else max(1, math.ceil((1.0 - left) / self._rate))
