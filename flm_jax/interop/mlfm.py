"""Imports and exports checkpoints of masked language flows in the authors' format (2606.27617).

Adaptation saves the adapters alone, fine-tuning all tensors. The authors' adapters have the default
form of `models.lora`: gates, a time embedding in every block, none on the last norm, and one LoRA
for queries, keys and values, whose rows are ordered as in SMDM's joint matrix.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from flm_jax.core.errors import UserError, require
from flm_jax.core.reading import named_damage
from flm_jax.core.types import Params
from flm_jax.interop.llama import (
    SMDM,
    Imported,
    Layout,
    Part,
    Sizes,
    checked_sizes,
    dense,
    filled,
    gathered,
    smdm_layout,
)
from flm_jax.interop.tensors import TensorFiles, Tensors, check_shapes, some
from flm_jax.interop.torch_files import load_torch, plain
from flm_jax.models.layers import TIME_FEATURES
from flm_jax.models.lora import QKV, AdapterConfig, split

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
LENGTH = 1024  # tokens that they train on, where a file does not tell
_KNOTS = 101
_BLOCK = "model.transformer.h.{}."
_LORAS = {
    "attn.attn": "qkv",
    "attn.proj": "attn_out",
    "mlp.swiglu.w1": "gate",
    "mlp.swiglu.w2": "up",
    "mlp.swiglu.w3": "mlp_out",
}
_LINEARS = {"time_mlp.0": ("time", "hidden"), "time_mlp.2": ("time", "out")}
_LINEARS |= {"adaln_modulation.1": ("modulation",)}
# Keys of the settings that they save -> where they stand in a configuration of ours.
_SETTINGS = {
    "lora_alpha": ("adapters", "alpha"),
    "lora_output_alpha": ("adapters", "head_alpha"),
    "lora_dropout": ("adapters", "dropout"),
    "time_conditioning": ("adapters", "time"),
    "max_length": ("model", "length"),
    "brownian_bridge_sigma": ("flow", "sigma"),
    "gamma_min": ("flow", "law", "low"),
    "gamma_max": ("flow", "law", "high"),
    "gamma_loc": ("flow", "law", "center"),
    "gamma_scale": ("flow", "law", "spread"),
    "loss_diagnostics_gamma_bins": ("flow", "law", "bins"),
    "loss_diagnostic_ema_decay": ("flow", "law", "decay"),
    "gamma_curve_update_rate": ("flow", "law", "knot_rate"),
    "gamma_curve_mask_p_min": ("flow", "law", "ratio_low"),
    "gamma_curve_mask_p_max": ("flow", "law", "ratio_high"),
    "gamma_curve_min_examples": ("flow", "law", "least_examples"),
    "gamma_curve_min_r2": ("flow", "law", "least_r2"),
}
_LAWS = {"generalized_logistic": "logistic", "empirical": "empirical"}
# Keys of the curve of gamma among them.
CURVE = ("gamma_active_piecewise_gamma", "gamma_active_piecewise_cdf")


class Published(NamedTuple):
    """Contents of a published checkpoint.

    Attributes:
      sizes: sizes of the network.
      adapters: parameters of the adapters, float32.
      base: base network, of model.name llama; None if the file holds adapters alone.
      values: values of each configuration group, nested.
      knots: gamma at quantile levels 0, 0.01, ..., 1 of the learnt distribution, [101] float64;
        None if there is none.
      step: training step; 0 if the file does not record it.
    """

    sizes: Sizes
    adapters: Params
    base: Imported | None
    values: dict[str, Any]
    knots: np.ndarray | None
    step: int


def adapters_layout(n: Sizes, cfg: AdapterConfig) -> Layout:
    """Layout of the adapters of a network with these sizes, under the authors' names."""
    fused = n.fused_rows
    widths = {
        "qkv": (n.dim, sum(map(len, fused.values()))),
        "attn_out": (n.dim, n.dim),
        "gate": (n.dim, n.hidden),
        "up": (n.dim, n.hidden),
        "mlp_out": (n.hidden, n.dim),
    }
    outputs = {
        "time_mlp.0": (cfg.cond_dim, TIME_FEATURES),
        "time_mlp.2": (cfg.cond_dim, cfg.cond_dim),
    }
    outputs["adaln_modulation.1"] = (cfg.parts * n.dim, cfg.cond_dim)

    def pair(theirs: str, ours: tuple[str, ...], shape: tuple[int, int], rank: int, block=None):
        inputs, width = shape
        rows = np.concatenate([fused[name] for name in QKV]) if ours[-1] == "qkv" else None
        return {
            f"{theirs}.lora_a.weight": ((rank, inputs), [Part((*ours, "a", "kernel"), block)]),
            f"{theirs}.lora_b.weight": ((width, rank), [Part((*ours, "b", "kernel"), block, rows)]),
        }

    layout: Layout = {}
    for i in range(n.depth):
        at = _BLOCK.format(i)
        for theirs, ours in _LORAS.items():
            path = ("blocks", "lora", ours)
            layout |= pair(f"{at}block.{theirs}", path, widths[ours], cfg.rank, i)
        for theirs, ours in _LINEARS.items():
            shape, path = outputs[theirs], ("blocks", *ours)
            layout[f"{at}{theirs}.weight"] = (shape, [Part((*path, "kernel"), i)])
            layout[f"{at}{theirs}.bias"] = (shape[:1], [Part((*path, "bias"), i)])
    return layout | pair("output_lora", ("lora", "head"), (n.dim, n.vocab), cfg.head_rank)


def base_layout(n: Sizes) -> Layout:
    """Layout of the base network, under the authors' names."""

    def name(smdm: str) -> str:
        found = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)\.weight", smdm)
        if not found:
            return f"model.{smdm}"
        adapted = ".base" if found[2] in _LORAS else ""
        return f"{_BLOCK.format(found[1])}block.{found[2]}{adapted}.weight"

    return {name(smdm): value for smdm, value in smdm_layout(n).items()}


def writes(cfg: AdapterConfig, params: Params) -> bool:
    """Whether the authors' format can hold a network: SMDM's kind, with adapters of their form."""
    own = cfg.gates and cfg.fused_qkv and not (cfg.trunk_time or cfg.two_time)
    return own and "anchor" in params


def state_dict_from_params(
    params: Params, cfg: AdapterConfig, heads: int, kv_heads: int, whole: bool
) -> dict[str, np.ndarray]:
    """Converts an adapted network to the authors' names, the inverse of `read`.

    Args:
      params: parameters of base and adapters together.
      cfg: settings of the adapters, which have the authors' form (`writes`).
      heads, kv_heads: numbers of attention heads, and of key and value heads (0 for the same).
      whole: whether the base is included, as in fine-tuning; else the adapters alone.
    """
    depth, dim, hidden = params["blocks"]["gate"]["kernel"].shape
    n = Sizes(params["table"].shape[0], dim, depth, heads, kv_heads or heads, hidden)
    layout = adapters_layout(n, cfg) | (base_layout(n) if whole else {})
    return gathered(params, layout)


def read(path: str | Path, heads: int | None = None, ema: bool = True) -> Published:
    """Reads a checkpoint of adaptation or of fine-tuning.

    Args:
      path: .pt, .pth or .ckpt in the authors' format; or .safetensors with the tensors alone.
      heads: number of attention heads; by default each has 128 features.
      ema: whether to take the averaged weights, if there are any, as in the authors' evaluations.

    Raises:
      UserError: unreadable files; tensors missing, misshapen or unexpected; an invalid curve of
        gamma.
    """
    tensors, says, step = _opened(Path(path), ema)
    n, cfg = _sizes(tensors, heads)
    values = values_of(says, cfg)
    layout, own = adapters_layout(n, cfg), base_layout(n)
    if own.keys() & tensors.shapes.keys():
        found = dense(tensors, "MLFM", own | layout, n, **SMDM)
        params, adapters = split(found.params)
        base = Imported(params, found.model)
    else:
        wanted = {name: shape for name, (shape, _) in layout.items()}
        check_shapes(tensors.shapes, wanted, f"adapters of MLFM for a network of {n._asdict()}")
        adapters, base = filled(tensors, layout), None
    return Published(n, adapters, base, values, _knots(says), step)


class _Held:
    """Torch tensors in memory with the interface of files; bfloat16 is kept."""

    def __init__(self, tensors: dict[str, Any]):
        self._tensors = tensors
        self.shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        self.dtypes = {name: "BF16" if _half(x) else "F32" for name, x in tensors.items()}

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, array) of every tensor."""
        for name, tensor in self._tensors.items():
            value = tensor.detach().float().cpu().numpy()
            yield name, value.astype(ml_dtypes.bfloat16) if _half(tensor) else value


def _half(tensor: Any) -> bool:
    return str(tensor.dtype) == "torch.bfloat16"


def _opened(path: Path, ema: bool) -> tuple[Tensors, dict[str, Any], int]:
    """Returns tensors, their settings, and the step."""
    require(
        path.is_file() and path.suffix in SUFFIXES,
        f"no file {path} ending in {', '.join(SUFFIXES)}; expected a checkpoint of MLFM.",
    )
    if path.suffix == ".safetensors":
        return TensorFiles(path), {}, 0
    with named_damage(path, "expected a checkpoint of MLFM"):
        return payload_tensors(load_torch(path), ema)


def payload_tensors(
    payload: dict[str, Any], ema: bool = True
) -> tuple[Tensors, dict[str, Any], int]:
    """Returns the tensors of a saved payload, its settings, and the step.

    Args:
      payload: dict in which `model` and `ema_adapter` map names to torch tensors, and `config`
        holds settings.
      ema: whether averaged tensors replace the last ones.

    Raises:
      UserError: a payload without tensors, or averages of tensors that it does not have.
    """
    model, averages = payload.get("model"), (payload.get("ema_adapter") or {}) if ema else {}
    require(
        isinstance(model, dict) and isinstance(averages, dict),
        f"got a checkpoint with the keys {', '.join(map(str, payload))}; expected one of MLFM, "
        "whose key `model` holds tensors.",
    )
    strange = sorted(averages.keys() - model.keys())
    require(
        not strange,
        f"`ema_adapter` holds {len(strange)} tensors{some(strange)} that `model` lacks; expected "
        "averages of its own tensors.",
    )
    return (
        _Held(model | averages),
        dict(plain(payload.get("config")) or {}),
        int(payload.get("step") or 0),
    )


def _sizes(tensors: Tensors, heads: int | None) -> tuple[Sizes, AdapterConfig]:
    """Sizes from the adapters, which every checkpoint holds."""
    at = _BLOCK.format(0)
    names = {
        "a": f"{at}block.attn.attn.lora_a.weight",
        "b": f"{at}block.attn.attn.lora_b.weight",
        "gate": f"{at}block.mlp.swiglu.w1.lora_b.weight",
        "time": f"{at}time_mlp.2.weight",
        "head": "output_lora.lora_b.weight",
    }
    shapes = tensors.shapes
    missing = [name for name in names.values() if len(shapes.get(name, ())) != 2]
    require(
        not missing,
        f"no adapters of MLFM here: no matrix {' or '.join(missing)} among {len(shapes)} tensors"
        f"{some(sorted(shapes))}; expected the names of its authors, LoRA on the head and "
        "modulated blocks (adaln_mode dit) included.",
    )
    found = {key: shapes[name] for key, name in names.items()}
    (rank, dim), (rows, _), (hidden, _) = (found[key] for key in ("a", "b", "gate"))
    pattern = re.escape(_BLOCK).replace(r"\{\}", r"(\d+)")
    depth = len({m[1] for m in (re.match(pattern, name) for name in shapes) if m})
    vocab, head_rank = found["head"]
    n = checked_sizes("MLFM", vocab, dim, depth, heads, (rows - dim) // 2, hidden)
    # Scales of LoRA as they have them, where no settings stand beside the tensors.
    return n, AdapterConfig(
        rank=rank,
        alpha=2.0 * rank,
        head_rank=head_rank,
        head_alpha=float(head_rank),
        cond_dim=found["time"][0],
    )


def values_of(says: dict[str, Any], cfg: AdapterConfig) -> dict[str, Any]:
    """Values of our configuration that follow from the tensors (by `cfg`) and their settings."""
    own = ("rank", "alpha", "head_rank", "head_alpha", "cond_dim")
    values: dict[str, Any] = {
        "adapters": {key: getattr(cfg, key) for key in own},
        "model": {"length": LENGTH},
        "flow": {"law": {}},
    }
    for theirs, (*groups, key) in _SETTINGS.items():
        if says.get(theirs) is not None:
            place = values
            for group in groups:
                place = place[group]
            place[key] = says[theirs]
    if shares := says.get("gamma_active_mixture_weights"):
        require(
            isinstance(shares, list | tuple) and len(shares) == 3 and sum(shares) > 0,
            f"gamma_active_mixture_weights is {shares!r}; expected three weights, not all 0.",
        )
        uniform, normal = (float(share) / sum(shares) for share in shares[:2])
        values["flow"]["law"] |= {"uniform": uniform, "normal": normal}
    if law := _LAWS.get(says.get("gamma_curve_estimator", "")):
        values["flow"]["law"]["learnt"] = law
    return values


def _knots(says: dict[str, Any]) -> np.ndarray | None:
    """Learnt curve at 101 quantile levels, low gamma first; None before the first fit."""
    if says.get(CURVE[0]) is None or len(says[CURVE[0]]) == 0:
        return None
    try:
        gamma, share = (np.asarray(says.get(key), np.float64) for key in CURVE)
    except (TypeError, ValueError) as error:
        raise UserError(f"{' and '.join(CURVE)} are no lists of numbers: {error}.") from error
    require(
        gamma.ndim == 1 and gamma.shape == share.shape and bool(np.all(np.diff(share) > 0)),
        f"{CURVE[0]} has shape {gamma.shape}, {CURVE[1]} {share.shape}; expected two lists of "
        "one length, the second increasing.",
    )
    require(
        bool(np.all(np.isfinite(gamma)) and np.all(np.diff(gamma) >= 0.0)),
        f"{CURVE[0]} holds numbers that fall or are none; expected gamma that rises with "
        f"{CURVE[1]}.",
    )
    return np.interp(np.linspace(0.0, 1.0, _KNOTS), share, gamma)
