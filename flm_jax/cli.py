"""What every command line shares: a UserError becomes one line on stderr and exit status 2."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from flm_jax.types import UserError

USER_ERROR_EXIT = 2


def run_cli(main: Callable[[Sequence[str]], None]) -> None:
    """Parses absl flags, runs `main(argv)` and exits; argv holds the positional arguments.

    Args:
      main: takes argv (the program name first). Raising UserError ends the program with status 2
        and one line `error: ...` on stderr; any other exception keeps its traceback.
    """

    def guarded(argv: Sequence[str]) -> None:
        # orbax and grain log every file at INFO; --verbosity=0 shows it.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        try:
            main(argv)
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(USER_ERROR_EXIT)

    app.run(guarded)
