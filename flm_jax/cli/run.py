"""The entry point of every command: bad input becomes one line on stderr and exit status 2.

The same holds for a device without free memory (for example one that another process holds) and for
a full disk.
"""

import errno
import io
import logging as std_logging
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from flm_jax.cli.recipes import unreadable
from flm_jax.core.errors import (
    STOPPED_EXIT,
    Stopped,
    UserError,
    device_memory_error,
    is_panic,
    no_device_error,
    require,
)
from flm_jax.core.paths import expanded
from flm_jax.core.printing import shown
from flm_jax.core.progress import close_all, make_way

USER_ERROR_EXIT = 2
_LONGEST_LINE = 4000
# Of disks that are full, beyond a quota, read-only or broken: what was being written is not there.
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def _fail(error: Exception) -> None:
    text = " ".join(str(error.args[0] if error.args else error).split())
    if len(text) > _LONGEST_LINE:  # of a file's, which may be as long as the file
        text = f"{text[: _LONGEST_LINE // 2]} ... {text[-_LONGEST_LINE // 2 :]}"
    print(f"error: {shown(text)}", file=sys.stderr)
    sys.exit(USER_ERROR_EXIT)


def print_anything() -> None:
    """Makes characters that the terminal or the locale lacks print as "?" instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _at_home(argv: Sequence[str]) -> list[str]:
    """Expands `~` in the file of --config, which ml_collections reads, in a command line."""
    before = ["", *argv]
    found = []
    for last, word in zip(before, argv):
        name, equals, path = word.partition("=")
        if name in ("--config", "-config") and equals:
            word = f"{name}={expanded(path)}"
        elif last in ("--config", "-config"):
            word = expanded(word)
        found.append(word)
    return found


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(_at_home(argv))
    except flags.Error as error:
        return _fail(error)
    except AttributeError as error:  # ml_collections' word for --config.KEY with an unknown KEY
        return _fail(AttributeError(f"unknown config key {error.args[0]}"))
    except OSError as error:  # a missing --config of which a key is set as well
        return _fail(unreadable(error))


def no_arguments(argv: Sequence[str]) -> None:
    """Refuses positional arguments; argv begins with the program name.

    Raises:
      UserError: there are positional arguments.
    """
    require(len(argv) == 1, f"got positional arguments {argv[1:]}; expected flags alone.")


def _showable(record: std_logging.LogRecord) -> bool:
    """Replaces control characters in log records, such as names of unknown files.

    The line of a bar is emptied for the record.
    """
    make_way()
    record.msg, record.args = shown(record.getMessage()), ()
    return True


def _unraisable(problem) -> None:
    """Drops messages of tensorstore about reads and writes that ended after one failed."""
    if "Event loop is closed" not in str(problem.exc_value):
        sys.__unraisablehook__(problem)


def _without_bars(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int | None:
    """Calls `main`, and removes the bar of work that an error ended before the error is printed."""
    try:
        return main(argv)
    finally:
        close_all()


def run_cli(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parses absl flags, runs `main(argv)` and exits; argv holds the positional arguments.

    Args:
      main: function that takes argv (the program name first) and returns the exit status, None for
        0. Bad flags, UserError, a device without free memory (most often a GPU that another process
        holds), a machine without and a full disk end the program with status 2 and one line
        `error: ...` on stderr, and Stopped with status 75; any other exception keeps its traceback.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        # orbax and grain log every file at INFO; --verbosity=0 shows it.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
            # Nor what they log with a traceback, several times over, and raise as well.
            logging.get_absl_logger().addFilter(lambda record: not record.exc_info)
            std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)
            sys.unraisablehook = _unraisable
        try:
            return _without_bars(main, argv)
        except UserError as error:
            return _fail(error)
        except Stopped:  # it was said when that was saved
            return STOPPED_EXIT
        except OSError as error:
            if error.errno not in _STORAGE:
                raise
            return _fail(UserError(f"{error}; make room or mend the storage, then run it again."))
        except RuntimeError as error:
            told = device_memory_error(error) or no_device_error(error)
            if told is None:
                raise
            return _fail(told)
        except MemoryError as error:
            reason = " ".join(str(error).split())[:300] or "no more is to be had"
            return _fail(
                UserError(
                    f"this machine has too little memory ({reason}); expected smaller sizes: lower "
                    "lengths and batches, or mend the file that asks for them."
                )
            )
        except BaseException as error:
            if not is_panic(error):
                raise
            text = " ".join(str(error).split())[:300]
            return _fail(UserError(f"a library failed ({text}); restore the files that it reads."))

    print_anything()
    logging.get_absl_logger().addFilter(_showable)
    app.run(guarded, flags_parser=_parse)
