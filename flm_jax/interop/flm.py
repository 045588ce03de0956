"""Imports and exports weights of the PyTorch FLM / FMLM networks (arXiv 2602.16813v3).

Torch stores linear weights as (out, in), this library as (in, out); torch numbers the blocks, this
library stacks them.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging

from flm_jax.core.errors import require
from flm_jax.core.types import Params
from flm_jax.interop.tensors import check_shapes, flip, get, put, some
from flm_jax.models.dit import DiTConfig, dit

State = dict[str, np.ndarray]

_LINEAR = {"weight": "kernel", "bias": "bias"}
_TIME_MLP = {
    f"mlp.{i}.{theirs}": f"{name}/{ours}"
    for i, name in ((0, "hidden"), (2, "out"))
    for theirs, ours in _LINEAR.items()
}
_TRUNK = {
    "vocab_embed.embedding": "table",
    **{f"sigma_map.{theirs}": f"time/{ours}" for theirs, ours in _TIME_MLP.items()},
    "output_layer.norm_final.weight": "norm/scale",
    **{f"output_layer.adaLN_modulation.{a}": f"modulation/{b}" for a, b in _LINEAR.items()},
    **{f"output_layer.linear.{a}": f"head/{b}" for a, b in _LINEAR.items()},
}
_SECOND_TIME = {
    f"sigma_map_prime.{theirs}": f"target_time/{ours}" for theirs, ours in _TIME_MLP.items()
}
_BLOCK = {
    "norm1.weight": "norm1/scale",
    "attn_qkv.weight": "qkv/kernel",
    "attn_out.weight": "attn_out/kernel",
    "norm2.weight": "norm2/scale",
    **{f"mlp.0.{a}": f"mlp_in/{b}" for a, b in _LINEAR.items()},
    **{f"mlp.2.{a}": f"mlp_out/{b}" for a, b in _LINEAR.items()},
    **{f"adaLN_modulation.{a}": f"modulation/{b}" for a, b in _LINEAR.items()},
}
ROTARY = "rotary_emb.inv_freq"
LOSS_HEAD = "learnable_loss_weighting."
_PREFIXES = ("module.", "backbone.", "_orig_mod.")
_ROTARY_BASE = 10_000.0


def _table(depth: int, two_time: bool) -> Iterator[tuple[str, tuple[str, ...], int | None]]:
    """Map (their name, our path, block or None) of every parameter, for both directions."""
    for theirs, ours in (_TRUNK | (_SECOND_TIME if two_time else {})).items():
        yield theirs, tuple(ours.split("/")), None
    for i in range(depth):
        for theirs, ours in _BLOCK.items():
            yield f"blocks.{i}.{theirs}", ("blocks", *ours.split("/")), i


def _bare(name: str) -> str:
    """Name without wrappers' prefixes, in whatever order they are nested."""
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def backbone_names(state: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the network's tensor names with their bare names, in order, and the ignored names.

    The tensors of a teacher are ignored and, in a file that marks the network by `backbone.`, all
    tensors outside it.

    Raises:
      UserError: two tensors have the same name once prefixes are gone.
    """
    names = list(state)
    marked = [name for name in names if name.removeprefix("module.").startswith("backbone.")]
    kept: dict[str, str] = {}
    for name in marked or names:
        bare = _bare(name)
        if not bare.startswith("teacher"):
            twice = bare in kept.values()
            require(not twice, f"two tensors are called {bare!r} once prefixes are stripped.")
            kept[name] = bare
    return kept, [name for name in names if name not in kept]


def backbone_tensors(state: State) -> tuple[State, list[str]]:
    """Returns the tensors of the network under bare names, and the names of the ignored ones.

    Ignored are the tensors of the loss weighting, and the ones that `backbone_names` ignores.
    """
    named, ignored = backbone_names(state)
    weighting = [name for name, bare in named.items() if bare.startswith(LOSS_HEAD)]
    kept = {bare: state[name] for name, bare in named.items() if name not in weighting}
    return kept, ignored + weighting


def infer_sizes(state: State, heads: int | None = None) -> dict[str, Any]:
    """Infers the sizes of the network from its tensors (bare names).

    Args:
      state: tensors under bare names.
      heads: number of attention heads, needed if the file lacks `rotary_emb.inv_freq`.

    Returns:
      A dict of vocab_size, dim, depth, heads, cond_dim, mlp_ratio and two_time.

    Raises:
      UserError: a tensor that determines a size is missing, or the number of heads is unknown or
        wrong.
    """
    telling = ("vocab_embed.embedding", "sigma_map.mlp.2.weight", "blocks.0.mlp.0.weight")
    missing = [name for name in telling if name not in state or state[name].ndim != 2]
    require(
        not missing,
        f"no FLM network here: no matrix {' or '.join(missing)} among {len(state)} tensors"
        f"{some(sorted(state))}; expected the names of the PyTorch FLM backbone.",
    )
    vocab_size, dim = state[telling[0]].shape
    blocks = {m[1] for m in (re.match(r"blocks\.(\d+)\.", name) for name in state) if m}
    if ROTARY in state:
        # One frequency for each pair of a head's features.
        found = dim // (2 * state[ROTARY].size)
        require(heads in (None, found), f"heads={heads} given, but the file has {found} heads.")
        heads = found
    require(heads is not None, f"the file has no {ROTARY}: give the number of heads.")
    require(
        heads > 0 and dim % (2 * heads) == 0,
        f"width {dim} does not split into {heads} heads of even size.",
    )
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "depth": len(blocks),
        "heads": heads,
        "cond_dim": state[telling[1]].shape[0],
        "mlp_ratio": state[telling[2]].shape[0] // dim,
        "two_time": any(name.startswith("sigma_map_prime.") for name in state),
    }


def _expected_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Dict from their names to their shapes for a network of these sizes."""
    cfg = DiTConfig(**sizes, length=1, scan_blocks=True)
    tree = jax.eval_shape(dit(cfg).init, jax.random.key(0))
    shapes = {}
    for theirs, path, block in _table(sizes["depth"], sizes["two_time"]):
        shape = get(tree, path).shape[0 if block is None else 1 :]
        shapes[theirs] = shape[::-1] if path[-1] == "kernel" else shape
    return shapes


def _check(state: State, sizes: dict[str, Any]) -> None:
    """Raises one UserError that lists missing, misshapen and unexpected tensors."""
    found = {name: value.shape for name, value in state.items() if name != ROTARY}
    check_shapes(found, _expected_shapes(sizes), f"an FLM network of sizes {sizes}")


def params_from_state_dict(state: State, heads: int | None = None) -> tuple[Params, dict[str, Any]]:
    """Converts PyTorch FLM weights to parameters of `flm_jax.models.dit`.

    Args:
      state: dict from name to array; prefixes of Lightning, DDP and torch.compile are stripped;
        tensors of a teacher and of the loss weighting are ignored, and logged.
      heads: number of attention heads, needed if the file lacks `rotary_emb.inv_freq`.

    Returns:
      Parameters (nested dict of float32 NumPy arrays, blocks stacked under "blocks") and sizes, see
      `infer_sizes`.

    Raises:
      UserError: tensors are missing, misshapen or unexpected, or sizes cannot be determined.
    """
    state, ignored = backbone_tensors(state)
    if ignored:
        logging.info("ignored %d tensors%s", len(ignored), some(ignored))
    sizes = infer_sizes(state, heads)
    _check(state, sizes)
    params, stacks = {}, {}
    for theirs, path, block in _table(sizes["depth"], sizes["two_time"]):
        value = np.ascontiguousarray(flip(np.asarray(state[theirs], np.float32), path))
        if block is None:
            put(params, path, value)
        else:
            stacks.setdefault(path, []).append(value)
    for path, values in stacks.items():
        put(params, path, np.stack(values))
    return params, sizes


def state_dict_from_params(params: Params, heads: int | None = None) -> State:
    """Converts parameters to PyTorch FLM weights, the inverse of `params_from_state_dict`.

    Args:
      params: parameters of `flm_jax.models.dit`.
      heads: number of attention heads; if given, the buffer `rotary_emb.inv_freq` is added, from
        which the number of heads can be inferred.

    Returns:
      A dict from the reference's names to float32 arrays in torch's layout, C-contiguous.

    Raises:
      UserError: learned positions or self-conditioning, which the reference does not have.
    """
    for key, own in (("positions", "position_table"), ("estimate", "self_conditioning")):
        require(
            key not in params,
            f"got a model with config.model.{own}, which the reference's files cannot hold; "
            "expected one without.",
        )
    depth = params["blocks"]["qkv"]["kernel"].shape[0]
    host: dict[tuple[str, ...], np.ndarray] = {}
    state = {}
    for theirs, path, block in _table(depth, "target_time" in params):
        if path not in host:
            host[path] = np.asarray(get(params, path), np.float32)
        value = host[path] if block is None else host[path][block]
        state[theirs] = np.ascontiguousarray(flip(value, path))
    if heads:
        head_dim = params["table"].shape[1] // heads
        powers = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
        state[ROTARY] = (1.0 / _ROTARY_BASE**powers).astype(np.float32)
    return state
