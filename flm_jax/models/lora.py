"""Low-rank adapters and time conditioning on a frozen transformer, without effect at first.

Source: arXiv 2106.09685 (LoRA: W x + alpha / r B A x) and adaLN's shifts, scales and gates (arXiv
2212.09748), as arXiv 2606.27617 adapts a masked diffusion model. B and the maps to shifts, scales
and gates are initialised to zero, and a branch is multiplied by 1 + gate, so that a fresh adapted
network computes exactly what its base computes. The defaults follow that paper's released code;
where its text differs, there is a setting. In a mixture of experts the matrices that every token
passes are adapted, including the shared experts' matrices, but neither routed experts nor routers.

In the parameter tree everything that belongs to adapters is stored under the names of `NAMES`, at
the top or in the blocks; `split` and `join` use these names.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flm_jax.core.errors import require
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params, Times
from flm_jax.models.layers import TimeEmbedding, dropout, modulate

NAMES = ("time", "target_time", "modulation", "lora")
STACKS = ("dense_blocks", "blocks")  # of blocks, as far as a network has them
QKV = ("q", "k", "v")
_FUSED = "qkv"  # name of the LoRA that these three share
# What the time embedding reads.
TIMES = ("gamma", "t", "progress", "none")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Adapters of a frozen network: low-rank updates and time conditioning."""

    rank: int = setting(256, "Rank of LoRA in attention and MLP.", range="[1, inf)")
    alpha: float = setting(512.0, "Scale of that LoRA, multiplied by its rank.")
    head_rank: int = setting(256, "Rank of LoRA on the output head; 0 for none.", range="[0, inf)")
    head_alpha: float = setting(256.0, "Scale of that LoRA, multiplied by its rank.")
    dropout: float = setting(
        0.05, "Dropout rate on the input of LoRA in the blocks; the head has none.", range="[0, 1)"
    )
    cond_dim: int = setting(512, "Hidden width of the time embedding.", range="[1, inf)")
    gates: bool = setting(
        True,
        "Whether the time embedding scales each residual branch by 1 + gate; the paper's text"
        " has no gates.",
    )
    final_norm: bool = setting(
        False,
        "Whether the time embedding also shifts and scales the last norm, as in the paper's text.",
    )
    shared_time: bool = setting(
        False, "Whether one time embedding serves all blocks; else each has its own."
    )
    time: str = setting(
        "gamma",
        "Input of the time embedding: gamma = log noise over signal (of flows that have it; "
        "else the progress), t of the flow's path (the paper's text), or the unmasking "
        "progress in [0, 1]; none for LoRA without time conditioning.",
        choices=TIMES,
    )
    two_time: bool = setting(
        False,
        "Whether a second time, the end of a jump, is embedded beside the first, for flow maps.",
    )
    fused_qkv: bool = setting(
        True, "Whether queries, keys and values share one LoRA; else each has its own."
    )
    base_lr: float = setting(
        0.0,
        "Peak learning rate of the base, which is then trained in float32 except for its "
        "embeddings; 0 for a frozen base.",
        range="[0, inf)",
    )
    base_weight_decay: float = setting(
        0.1, "Weight decay of the base's matrices and of its last norm.", range="[0, inf)"
    )
    time_decays: bool = setting(
        False,
        "Whether config.optim.weight_decay applies to the matrices of the time conditioning, "
        "as in the paper's text.",
    )
    base: str = setting(
        "", "Workdir of the masked diffusion model to adapt; empty for no adapters."
    )
    start: str = setting(
        "", "Workdir whose averaged adapters initialise training; empty for fresh adapters."
    )

    def __post_init__(self):
        require(
            self.timed or not self.two_time,
            "config.adapters.two_time is True and config.adapters.time 'none'; expected gamma, t "
            "or progress: adapters of a flow map are told two times.",
        )

    @property
    def parts(self) -> int:
        """Number of vectors by which time modulates a block: two of shift, scale (and gate)."""
        return 6 if self.gates else 4

    @property
    def timed(self) -> bool:
        """Whether there is time conditioning."""
        return self.time != "none"

    @property
    def block_time(self) -> bool:
        """Whether each block has its own time embedding."""
        return self.timed and not self.shared_time

    @property
    def trunk_time(self) -> bool:
        """Whether there is a time embedding besides the blocks' own."""
        return self.timed and (self.shared_time or self.final_norm)


def add_times(module: nnx.Module, cfg: AdapterConfig, rngs: nnx.Rngs) -> None:
    """Gives a module the time embedding `time`, and for flow maps `target_time`, zero at first."""
    module.time = TimeEmbedding(cfg.cond_dim, rngs)
    if cfg.two_time:
        zeros = nnx.initializers.zeros
        module.target_time = TimeEmbedding(cfg.cond_dim, rngs, out_init=zeros)


def embedded_times(module: nnx.Module, times: tuple[Times, ...], cfg: AdapterConfig) -> jax.Array:
    """Embedding of the time, or of both times, by the embeddings of `add_times`."""
    found = module.time(times[0])
    return jax.nn.silu(found + module.target_time(times[1]) if cfg.two_time else found)


class Condition(NamedTuple):
    """Modulation of one branch of a block by time; None for no change.

    Attributes:
      shift, scale: shift and scale of the normalised input, each [B, 1, D] or [B, L, D].
      gate: gate of the output, which is multiplied by 1 + gate; the same shape.
    """

    shift: jax.Array | None = None
    scale: jax.Array | None = None
    gate: jax.Array | None = None

    def shifted(self, x_BLD: jax.Array) -> jax.Array:
        return x_BLD if self.shift is None else modulate(x_BLD, self.shift, self.scale)

    def gated(self, x_BLD: jax.Array) -> jax.Array:
        return x_BLD if self.gate is None else x_BLD * (1 + self.gate)


def conditions(read: jax.Array, cfg: AdapterConfig) -> tuple[Condition, Condition]:
    """Splits a block's modulation [..., parts * D] into attention's and the MLP's."""
    parts = jnp.split(read, cfg.parts, axis=-1)
    half = cfg.parts // 2
    return Condition(*parts[:half]), Condition(*parts[half:])


class LowRank(nnx.Module):
    """Low-rank map x -> B A x with given input and output widths; B is initialised to zero."""

    def __init__(self, inputs: int, outputs: int, rank: int, dtype, rngs: nnx.Rngs):
        spread = nnx.initializers.normal(inputs**-0.5)
        zeros = nnx.initializers.zeros
        self.a = nnx.Linear(
            inputs, rank, use_bias=False, kernel_init=spread, dtype=dtype, rngs=rngs
        )
        self.b = nnx.Linear(
            rank, outputs, use_bias=False, kernel_init=zeros, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.b(self.a(x))


def adapted_shapes(
    matrices: dict[str, tuple[int, int]], cfg: AdapterConfig
) -> dict[str, tuple[int, int]]:
    """Dict from the names of the matrices that LoRA adapts in a block to (inputs, outputs)."""
    if not cfg.fused_qkv:
        return matrices
    fused = (matrices["q"][0], sum(matrices[name][1] for name in QKV))
    return {_FUSED: fused} | {name: shape for name, shape in matrices.items() if name not in QKV}


class LowRanks(nnx.Module):
    """A `LowRank` for each matrix of a block, or one for queries, keys and values together."""

    def __init__(
        self, matrices: dict[str, tuple[int, int]], cfg: AdapterConfig, dtype, rngs: nnx.Rngs
    ):
        self.cfg = cfg
        q, k, _ = (matrices[name][1] for name in QKV)
        self.ends = (q, q + k)  # of queries and of keys among the outputs of the three
        for name, (inputs, outputs) in adapted_shapes(matrices, cfg).items():
            setattr(self, name, LowRank(inputs, outputs, cfg.rank, dtype, rngs))

    def __call__(
        self, names: tuple[str, ...], x: jax.Array, keys: Mapping[str, Key | None]
    ) -> list[jax.Array]:
        """Updates of the outputs of matrices that share the input x.

        Args:
          names: names of the matrices; queries, keys and values are given together.
          x: input of the matrices.
          keys: dropout key of each name, None for no dropout; three that share a LoRA take the
            first's.
        """
        if names == QKV and self.cfg.fused_qkv:
            return jnp.split(self._update(_FUSED, x, keys[QKV[0]]), self.ends, axis=-1)
        return [self._update(name, x, keys[name]) for name in names]

    def _update(self, name: str, x: jax.Array, key: Key | None) -> jax.Array:
        low = getattr(self, name)(dropout(x, self.cfg.dropout, key))
        return low * (self.cfg.alpha / self.cfg.rank)


class HeadLowRank(nnx.Module):
    """Low-rank update of the output head; the attribute name fixes its parameter path."""

    def __init__(self, dim: int, vocab_size: int, cfg: AdapterConfig, rngs: nnx.Rngs):
        self.head = LowRank(dim, vocab_size, cfg.head_rank, jnp.float32, rngs)


def split(params: Params) -> tuple[Params, Params]:
    """Splits the parameters of an adapted network into (base, adapters)."""
    base = {k: v for k, v in params.items() if k not in NAMES}
    adapters = {k: v for k, v in params.items() if k in NAMES}
    for stack in _stacks(params):
        blocks = params[stack]
        base[stack] = {k: v for k, v in blocks.items() if k not in NAMES}
        adapters[stack] = {k: v for k, v in blocks.items() if k in NAMES}
    return base, adapters


def _stacks(*params: Params) -> list[str]:
    return [stack for stack in STACKS if any(stack in some for some in params)]


def join(base: Params, adapters: Params) -> Params:
    """Joins base and adapters, the inverse of `split`."""
    blocks = {
        stack: base.get(stack, {}) | adapters.get(stack, {}) for stack in _stacks(base, adapters)
    }
    return base | adapters | blocks


def merged(params: Params, cfg: AdapterConfig) -> tuple[Params, Params]:
    """Adds LoRA to the matrices that it adapts.

    Args:
      params: parameters of an adapted network.
      cfg: settings of its adapters.

    Returns:
      Parameters of a base that computes the same function up to rounding, with sums taken in
      float32 and stored in the base's type; and the part that cannot be merged: the time
      conditioning.
    """
    base, adapters = split(params)

    def add(weights: Params, low: Params, scale: float) -> Params:
        def one(kernel, name):
            update = jnp.matmul(low[name]["a"]["kernel"], low[name]["b"]["kernel"])
            return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)

        return weights | {name: {"kernel": one(weights[name]["kernel"], name)} for name in low}

    if cfg.head_rank:
        base = add(base, adapters["lora"], cfg.head_alpha / cfg.head_rank)
    rest = {k: v for k, v in adapters.items() if k not in ("lora", *STACKS)}
    for stack in _stacks(base):
        blocks, inner = base[stack], adapters[stack]
        base |= {stack: add(blocks, _apart(inner["lora"], blocks), cfg.alpha / cfg.rank)}
        rest[stack] = {k: v for k, v in inner.items() if k != "lora"}
    return base, rest


def _apart(low: Params, blocks: Params) -> Params:
    """Splits the LoRA of queries, keys and values into three; returns others unchanged."""
    if _FUSED not in low:
        return low
    q, k = (blocks[name]["kernel"].shape[-1] for name in QKV[:2])
    parts = jnp.split(low[_FUSED]["b"]["kernel"], (q, q + k), axis=-1)
    # All three share A; the columns of B are theirs in the order q, k, v.
    own = {name: {"a": low[_FUSED]["a"], "b": {"kernel": b}} for name, b in zip(QKV, parts)}
    return {name: value for name, value in low.items() if name != _FUSED} | own
