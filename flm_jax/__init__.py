"""Flow language models and flow maps in JAX and Flax."""

import os

# The Cholesky factor of a train step is XLA's one call into OpenBLAS on CPU, whose threads spin
# against XLA's own: one factor of 256 x 256 took 90 ms with two of them, 0.4 ms with one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
