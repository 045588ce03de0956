"""`python -m flm_jax`: lists the commands and runs one, as the console script `flm` does."""

import sys

from flm_jax.cli.main import main

sys.exit(main())
