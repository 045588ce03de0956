"""Imports and exports weights of SMDM's Diff-LLaMA and of LLaDA.

Torch stores linear weights as (out, in), this library as (in, out); torch numbers the blocks, this
library stacks them. SMDM keeps queries, keys and values in one matrix, group by group: the queries
of a group, its key, its value. Its mask is the last row of the embedding, here an anchor besides
the table. LLaDA's mask is a token like any other.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from flm_jax.core.errors import require
from flm_jax.core.progress import Progress
from flm_jax.core.reading import read_object
from flm_jax.core.types import Params
from flm_jax.interop.tensors import TensorFiles, Tensors, check_shapes, flip, get, put, some
from flm_jax.models import lora

_HEAD_DIM = 128  # of all published models, where nothing tells the number of heads
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Values of config.model that SMDM's tensors do not tell; it rounds its rotary tables in training.
SMDM = {"length": 2048, "rope_base": 10_000.0, "rope_dtype": "bfloat16", "mask_id": -1}
# What config.json of a LLaDA folder must say where it says anything.
_LLADA_SAYS = {
    "activation_type": "silu",
    "block_type": "llama",
    "layer_norm_type": "rms",
    "rms_norm_eps": 1e-5,
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "weight_tying": False,
    "scale_logits": False,
    "input_emb_norm": False,
}


class Imported(NamedTuple):
    """Weights of a network whose model.name is llama.

    Attributes:
      params: nested dict of arrays, bfloat16 if the files hold nothing else, else float32.
      model: values of config.model.
    """

    params: Params
    model: dict[str, Any]


class Part(NamedTuple):
    """Place of a tensor's rows in the parameter tree.

    Attributes:
      path: path of the parameter.
      block: index of the block, (block, expert) for experts, or None outside the blocks.
      rows: rows of the tensor, None for all.
    """

    path: tuple[str, ...]
    block: int | tuple[int, ...] | None = None
    rows: np.ndarray | slice | None = None

    @property
    def index(self) -> tuple[int, ...]:
        """Index of leading axes for `block`."""
        return () if self.block is None else tuple(np.atleast_1d(self.block).tolist())


# Their name -> (its shape, its parts).
Layout = dict[str, tuple[tuple[int, ...], list[Part]]]


class Sizes(NamedTuple):
    """Sizes of a network; `groups` counts key and value heads, `hidden` is the MLP's width."""

    vocab: int
    dim: int
    depth: int
    heads: int
    groups: int
    hidden: int

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def fused_rows(self) -> dict[str, np.ndarray]:
        """Rows of queries, keys and values in SMDM's joint matrix."""
        # Group by group: the queries of a group, then its key and its value.
        rows = np.arange((self.heads + 2 * self.groups) * self.head_dim)
        grouped = rows.reshape(self.groups, self.heads // self.groups + 2, self.head_dim)
        found = {"q": grouped[:, :-2], "k": grouped[:, -2], "v": grouped[:, -1]}
        return {name: index.ravel() for name, index in found.items()}


def smdm_layout(n: Sizes) -> Layout:
    """Layout of SMDM's Diff-LLaMA."""
    layout = {
        "transformer.wte.weight": (
            (n.vocab + 1, n.dim),
            [
                Part(("table",), rows=slice(0, n.vocab)),
                Part(("anchor",), rows=slice(n.vocab, n.vocab + 1)),
            ],
        ),
        "transformer.ln_f.weight": ((n.dim,), [Part(("norm", "scale"))]),
        "lm_head.weight": ((n.vocab, n.dim), [Part(("head", "kernel"))]),
    }
    for i in range(n.depth):

        def part(name, block=i, rows=None):
            leaf = "scale" if name.startswith("norm") else "kernel"
            return Part(("blocks", name, leaf), block, rows)

        block = {
            "norm_1": ((n.dim,), [part("norm1")]),
            "attn.attn": (
                (n.dim + 2 * n.groups * n.head_dim, n.dim),
                [part(name, rows=rows) for name, rows in n.fused_rows.items()],
            ),
            "attn.proj": ((n.dim, n.dim), [part("attn_out")]),
            "norm_2": ((n.dim,), [part("norm2")]),
            "mlp.swiglu.w1": ((n.hidden, n.dim), [part("gate")]),
            "mlp.swiglu.w2": ((n.hidden, n.dim), [part("up")]),
            "mlp.swiglu.w3": ((n.dim, n.hidden), [part("mlp_out")]),
        }
        layout |= {f"transformer.h.{i}.{name}.weight": value for name, value in block.items()}
    return layout


def _llada_layout(n: Sizes) -> Layout:
    narrow = n.groups * n.head_dim
    layout = {
        "model.transformer.wte.weight": ((n.vocab, n.dim), [Part(("table",))]),
        "model.transformer.ln_f.weight": ((n.dim,), [Part(("norm", "scale"))]),
        "model.transformer.ff_out.weight": ((n.vocab, n.dim), [Part(("head", "kernel"))]),
    }
    block = {
        "attn_norm": ((n.dim,), "norm1"),
        "q_proj": ((n.dim, n.dim), "q"),
        "k_proj": ((narrow, n.dim), "k"),
        "v_proj": ((narrow, n.dim), "v"),
        "attn_out": ((n.dim, n.dim), "attn_out"),
        "ff_norm": ((n.dim,), "norm2"),
        "ff_proj": ((n.hidden, n.dim), "gate"),
        "up_proj": ((n.hidden, n.dim), "up"),
        "ff_out": ((n.dim, n.hidden), "mlp_out"),
    }
    for i in range(n.depth):
        for theirs, (shape, ours) in block.items():
            leaf = "scale" if ours.startswith("norm") else "kernel"
            name = f"model.transformer.blocks.{i}.{theirs}.weight"
            layout[name] = (shape, [Part(("blocks", ours, leaf), i)])
    return layout


def _find_sizes(
    files: TensorFiles, what: str, names: tuple[str, str, str], block: str, heads: int | None
) -> Sizes:
    """Sizes from the embedding, the gate of block 0 and its keys (for SMDM fused with the rest)."""
    shapes = files.shapes
    missing = [name for name in names if len(shapes.get(name, ())) != 2]
    require(
        not missing,
        f"no {what} network here: no matrix {' or '.join(missing)} among {len(shapes)} tensors"
        f"{some(sorted(shapes))}; expected the names of {what}.",
    )
    (vocab, dim), (hidden, _), (keys, _) = (shapes[name] for name in names)
    found = {m[1] for m in (re.match(block, name) for name in shapes) if m}
    if what == "SMDM":
        # A row of the embedding is the mask's; of dim + 2 k fused rows k are keys.
        return checked_sizes(what, vocab - 1, dim, len(found), heads, (keys - dim) // 2, hidden)
    return checked_sizes(what, vocab, dim, len(found), heads, keys, hidden)


def checked_sizes(
    what: str, vocab: int, dim: int, depth: int, heads: int | None, keys: int, hidden: int
) -> Sizes:
    """Sizes inferred from tensors, with `keys` rows of keys; heads have 128 features if None.

    Raises:
      UserError: a number of heads that does not fit.
    """
    heads = heads or max(dim // _HEAD_DIM, 1)
    require(
        dim % (2 * heads) == 0,
        f"width {dim} does not split into {heads} heads of even size; give the number (--heads).",
    )
    groups = keys // (dim // heads)
    require(
        groups > 0 and heads % groups == 0 and hidden % dim == 0,
        f"{what} tensors with {heads} heads of {dim // heads}, {keys} rows of keys and an MLP of "
        f"{hidden} for width {dim}: expected keys that heads share evenly and a multiple of the "
        "width; give the number of heads (--heads).",
    )
    return Sizes(vocab, dim, depth, heads, groups, hidden)


def _count(rows: np.ndarray | slice) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _is_wide(part: Part) -> bool:
    """Whether a part is float32 whatever the other types: routers and adapters."""
    return "router" in part.path or any(name in part.path for name in lora.NAMES)


def filled(files: Tensors, layout: Layout) -> Params:
    """Builds parameters, with only one tensor of the files in memory at a time.

    Parameters are bfloat16 if the files hold nothing else, else float32; routers and adapters are
    always float32.

    Args:
      files: tensors that the layout names, and no others; their shapes are already checked.
      layout: place of each tensor's parts.
    """
    wide = {name for name, (_, parts) in layout.items() if any(map(_is_wide, parts))}
    half = {kind for name, kind in files.dtypes.items() if name not in wide} == {"BF16"}
    dtype, params = _BFLOAT16 if half else np.dtype(np.float32), {}
    leads: dict[tuple[str, ...], tuple[int, ...]] = {}
    for part in (part for _, parts in layout.values() for part in parts):
        sizes = tuple(i + 1 for i in part.index)
        leads[part.path] = tuple(map(max, sizes, leads.get(part.path, sizes)))
    for shape, parts in layout.values():
        for part in parts:
            # A stack is allocated once, for its first member, with the sizes of all.
            if any(part.index):
                continue
            rows = shape if part.rows is None else (_count(part.rows), *shape[1:])
            rows = rows[::-1] if part.path[-1] == "kernel" else rows
            own = np.dtype(np.float32) if _is_wide(part) else dtype
            put(params, part.path, np.empty((*leads[part.path], *rows), own))
    with Progress("tensors", len(layout)) as bar:
        for done, (name, value) in enumerate(files.items(), 1):
            for part in layout[name][1]:
                rows = value if part.rows is None else value[part.rows]
                get(params, part.path)[(*part.index, ...)] = flip(rows, part.path)
            bar.done(done)
    return params


def imported(files: Tensors, what: str, layout: Layout, n, **more) -> Imported:
    """Reads files with a layout after checking their shapes.

    A bfloat16 network also computes in bfloat16, as in its authors' code.

    Args:
      what: description of the network, for the error.
      n: sizes, of which vocab, dim, depth, heads and groups are used.
      more: further values of config.model.

    Raises:
      UserError: tensors missing, misshapen or unexpected.
    """
    wanted = {name: shape for name, (shape, _) in layout.items()}
    check_shapes(files.shapes, wanted, what)
    params = filled(files, layout)
    kind = params["table"].dtype.name
    model = {
        "name": "llama",
        "vocab_size": n.vocab,
        "dim": n.dim,
        "depth": n.depth,
        "heads": n.heads,
        "attention_softcap": 0.0,
        "logit_softcap": 0.0,
        "kv_heads": n.groups,
        "param_dtype": kind,
        "dtype": kind,
        "scan_blocks": True,
    }
    return Imported(params, model | more)


def dense(files: Tensors, name: str, layout: Layout, n: Sizes, **more) -> Imported:
    """Reads a network without experts of the kind `name`; see `imported`."""
    what, ratio = f"a {name} network of {n._asdict()}", n.hidden // n.dim
    return imported(files, what, layout, n, mlp_ratio=ratio, **more)


def read_smdm(path: str | Path, heads: int | None = None) -> Imported:
    """Reads Diff-LLaMA of SMDM (arXiv 2410.18514) from its .safetensors file.

    Args:
      path: path of the file.
      heads: number of attention heads; by default each has 128 features.

    Raises:
      UserError: unreadable files; tensors missing, misshapen or unexpected.
    """
    files = TensorFiles(path)
    names = (
        "transformer.wte.weight",
        "transformer.h.0.mlp.swiglu.w1.weight",
        "transformer.h.0.attn.attn.weight",
    )
    n = _find_sizes(files, "SMDM", names, r"transformer\.h\.(\d+)\.", heads)
    return dense(files, "SMDM", smdm_layout(n), n, **SMDM)


def read_llada(path: str | Path, heads: int | None = None) -> Imported:
    """Reads LLaDA-8B (arXiv 2502.09992) from its folder of shards, index and config.json.

    Args:
      path: the folder, or one .safetensors file beside a config.json.
      heads: number of attention heads; by default as in config.json, or else with 128 features
        each.

    Raises:
      UserError: unreadable files; tensors missing, misshapen or unexpected; a config.json of
        another architecture.
    """
    files = TensorFiles(path)
    says = read_json(files.folder / "config.json")
    wrong = differing(says, _LLADA_SAYS)
    require(not wrong, f"{files.folder / 'config.json'} is not LLaDA's: {', '.join(wrong)}.")
    block = "model.transformer.blocks.0."
    names = (
        "model.transformer.wte.weight",
        f"{block}ff_proj.weight",
        f"{block}k_proj.weight",
    )
    n = _find_sizes(
        files,
        "LLaDA",
        names,
        r"model\.transformer\.blocks\.(\d+)\.",
        heads or says.get("n_heads"),
    )
    mask = says.get("mask_token_id", 126336)
    require(
        0 <= mask < n.vocab,
        f"the mask is token {mask} and the embedding has {n.vocab} rows; expected a config.json "
        "whose mask_token_id is one of them.",
    )
    llama = {"rope_base": float(says.get("rope_theta", 500_000.0)), "mask_id": mask}
    length = int(says.get("max_sequence_length", 4096))
    return dense(files, "LLaDA", _llada_layout(n), n, length=length, **llama)


def differing(says: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Lists the values of a config.json that differ from the wanted ones."""
    return [f"{k} {says[k]!r} instead of {v!r}" for k, v in wanted.items() if says.get(k, v) != v]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file, {} if it is missing; raises UserError for other content."""
    if not path.exists():
        return {}
    return read_object(path, "a model's config.json")


def state_dict_from_params(params: Params, heads: int, kv_heads: int) -> dict[str, np.ndarray]:
    """Converts `models.llama` parameters (no adapters) to SMDM's names, or LLaDA's if no anchor.

    Args:
      params: base parameters.
      heads, kv_heads: numbers of attention heads, and of key and value heads (0 for the same).

    Returns:
      A dict from their names to arrays in torch's layout and the parameters' type, C-contiguous.
    """
    depth, dim, hidden = params["blocks"]["gate"]["kernel"].shape
    n = Sizes(params["table"].shape[0], dim, depth, heads, kv_heads or heads, hidden)
    return gathered(params, smdm_layout(n) if "anchor" in params else _llada_layout(n))


def gathered(params: Params, layout: Layout) -> dict[str, np.ndarray]:
    """Collects tensors from parameters with a layout, the inverse of `imported`."""
    host: dict[tuple[str, ...], np.ndarray] = {}
    state = {}
    for theirs, (shape, parts) in layout.items():
        for part in parts:
            if part.path not in host:
                host[part.path] = np.asarray(get(params, part.path))
            value = host[part.path]
            value = flip(value[(*part.index, ...)], part.path)
            target = state.setdefault(theirs, np.empty(shape, value.dtype))
            target[... if part.rows is None else part.rows] = value
    return state
