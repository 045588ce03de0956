"""Errors of users: one line that says what was got, what was expected and how to mend it."""

import difflib
import re
from collections.abc import Collection, Iterable


class UserError(ValueError):
    """Bad input; the message says what was got, what was expected and how to mend it."""


STOPPED_EXIT = 75  # of a command that a signal stopped: run it again to continue


class Stopped(KeyboardInterrupt):
    """A signal stopped the work after it was saved; what follows must not run as if it were done.

    A command exits with status STOPPED_EXIT; in Python this is the interrupt that the user sent.
    """


_LONGEST_NAME = 100


def unknown_name(kind: str, got: str, valid: Iterable[str]) -> UserError:
    """Returns the error of a failed lookup, with the nearest valid name and the complete list."""
    names = sorted(valid)
    got = got if len(got) <= _LONGEST_NAME else f"{got[:_LONGEST_NAME]}..."  # a file's, whole
    near = difflib.get_close_matches(got, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {got!r}; {hint}valid: {', '.join(names)}.")


def require(condition: bool, message: str) -> None:
    """Raises UserError with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


LAST_SEED = 2**32 - 1  # JAX drops what is beyond: 2**32 would be the seed 0


def check_seed(seed: int, name: str = "seed") -> int:
    """Returns the seed itself, if JAX and NumPy can distinguish it from all others.

    Args:
      seed: root of random draws.
      name: name of the argument or key, for the message.

    Raises:
      UserError: not an integer from 0 to 2^32 - 1.
    """
    whole = hasattr(seed, "__index__") and not isinstance(seed, bool)
    require(
        whole and 0 <= seed <= LAST_SEED,
        f"got {name}={seed!r}; expected a whole number from 0 to {LAST_SEED}.",
    )
    return seed


def one_of(kind: str, got: str, valid: Collection[str]) -> str:
    """Returns `got` itself, if it is one of the valid names.

    Args:
      kind: label of the name in the message: "config.objective.name".
      got: the name.
      valid: valid names, or a table whose keys they are.

    Raises:
      UserError: another name; the message has the nearest valid one and the complete list.
    """
    if got not in valid:
        raise unknown_name(kind, got, valid)
    return got


# What XLA and its libraries say when a device has no memory left. The last two are those of a card
# that another process has filled: there is no room for the handles of its libraries.
_NO_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED|OUT_OF_MEMORY|out of memory|failed to allocate"
    r"|failed to create cublas handle|DNN library initialization failed|CUDNN_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust gave up, which Python's `Exception` does not cover."""
    return type(error).__module__ == "pyo3_runtime"


def no_device_error(error: BaseException) -> UserError | None:
    """Returns the error to show if JAX found no device; None for any other error."""
    line = (str(error).splitlines() or [""])[0]
    if not isinstance(error, RuntimeError) or not line.startswith("Unable to initialize backend"):
        return None
    return UserError(f"{line}; set JAX_PLATFORMS to what this machine has, or leave it unset.")


def device_memory_error(error: BaseException) -> UserError | None:
    """Returns the error to show if XLA ran out of a device's memory.

    Args:
      error: any exception; XLA's are RuntimeErrors.

    Returns:
      One line that says what happened and how to mend it; None for any other error.
    """
    text = str(error)
    found = isinstance(error, RuntimeError) and _NO_MEMORY.search(text)
    if not found:
        return None
    lines = text.splitlines()
    line = next((line for line in lines if _NO_MEMORY.search(line)), text).strip()
    return UserError(
        f"the device has no memory left: {line[:300].rstrip('.')}. Another process may hold it: a "
        "JAX process takes three quarters of a GPU at its start unless "
        "XLA_PYTHON_CLIENT_PREALLOCATE=false is set for it, so set that in each process or end the "
        "other one (nvidia-smi lists them). If this process has the device to itself, lower the "
        "batch or set config.model.remat."
    )
