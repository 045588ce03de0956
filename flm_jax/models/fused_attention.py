"""Attention on NVIDIA GPUs by tokamax's kernels, which support soft caps and a backward pass."""

import functools
import importlib
import importlib.util
import logging
import sys
import types

import jax
import jax.numpy as jnp

# Hopper and the data-centre Blackwell: the backward kernels exist for these alone.
_CAPABILITIES = (9.0, 11.0)
_NEEDS = 'Python 3.12 or newer and pip install "flm-jax[cuda]"'
_PROFILER = "xprof.cli.tools.get_kernel_stats_tool"


def _leave_out_profiler() -> None:
    """Replaces XProf by an empty module when tokamax imports it.

    Tokamax needs XProf only to benchmark itself; the package is large and not needed for training.
    """
    if importlib.util.find_spec("xprof") is not None:
        return
    parts = _PROFILER.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        module = sys.modules.setdefault(name, types.ModuleType(name))
        # With a __path__ it counts as a package, so that modules below it can be imported.
        module.__path__ = []
        if end > 1:
            setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], module)


def _expected(record: logging.LogRecord) -> bool:
    """Filter that is False for the message of tokamax about its default tile sizes."""
    return not str(record.msg).startswith("Autotuning cache miss")


@functools.cache
def tokamax():
    """Imports the package without the profiler that it imports for its own benchmarks."""
    if "xprof" not in sys.modules:
        _leave_out_profiler()
    module = importlib.import_module("tokamax")
    logging.getLogger("absl").addFilter(_expected)
    return module


@functools.cache
def why_missing() -> str:
    """Reason why the kernels cannot be used here, as a clause; "" if they can."""
    if importlib.util.find_spec("tokamax") is None:
        return f"tokamax is not installed; it takes {_NEEDS}"
    try:
        tokamax()
    except Exception as error:  # whatever breaks a package of another version
        return f"tokamax cannot be imported ({type(error).__name__}: {error}); it takes {_NEEDS}"
    return ""


def why_not_on(capability: str | None) -> str:
    """Reason why a GPU of this compute capability cannot run the kernels, or "" (also for None)."""
    low, high = _CAPABILITIES
    if capability is None or low <= float(capability) < high:
        return ""
    return f"it needs an NVIDIA GPU of compute capability 9 or 10, this one has {capability}"


def fused_attention(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    *,
    visible_LM: jax.Array | None = None,
    visible_BM: jax.Array | None = None,
    softcap: float,
    causal: bool,
    interpret: bool,
) -> jax.Array:
    """Attention with scaled (K^-1/2) and capped scores, by a kernel that never holds all scores.

    Args:
      q_BLHK, k_BLHK, v_BLHK: queries, keys, values, bfloat16 or float16.
      visible_LM: mask of the keys that each query may attend to, or None for all.
      visible_BM: mask of the keys of each row that may be attended to at all, or None for all.
      softcap: cap of the scores; 0 for none.
      causal: whether each position attends to itself and earlier ones alone.
      interpret: whether tokamax's einsums replace its kernels, on any platform and type.

    Returns:
      [B, L, H, K]. Only reverse mode is supported: the kernel has no forward rule.
    """
    mask = None if visible_LM is None else visible_LM[None, None]
    if visible_BM is not None:
        length = q_BLHK.shape[1]
        seen = jnp.broadcast_to(visible_BM[:, None, None], (len(visible_BM), 1, length, length))
        mask = seen if mask is None else mask & seen
    return tokamax().dot_product_attention(
        q_BLHK,
        k_BLHK,
        v_BLHK,
        mask=mask,
        is_causal=causal,
        logits_soft_cap=softcap or None,
        implementation="xla" if interpret else "mosaic",
    )
