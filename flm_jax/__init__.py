"""Flow language models and flow maps in JAX and Flax.

`flm_jax.load` opens a trained model; see `flm_jax.inference.language_model`.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# The Cholesky factor of a train step is XLA's one call into OpenBLAS on CPU, whose threads spin
# against XLA's own: one factor of 256 x 256 took 90 ms with two of them, 0.4 ms with one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if TYPE_CHECKING:
    from flm_jax.core.errors import UserError
    from flm_jax.inference.language_model import Generated, LanguageModel, Scores, load

__version__ = "0.1.0"
__all__ = ["Generated", "LanguageModel", "Scores", "UserError", "load"]
_HOMES = {"UserError": "flm_jax.core.errors"}
_MODEL = "flm_jax.inference.language_model"


def __getattr__(name: str) -> Any:
    """Imports public names on first use, so that commands set JAX up before it is imported."""
    if name not in __all__:
        raise AttributeError(f"module 'flm_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, _MODEL)), name)
