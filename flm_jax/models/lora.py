"""Low-rank adapters and time conditioning on a frozen transformer, zero at first.

Source: arXiv 2106.09685 (LoRA: W x + alpha / r B A x) and adaLN's shift and scale (arXiv
2212.09748) on each norm, as arXiv 2606.27617 adapts a masked diffusion model. B and the maps to
shift and scale start at zero, so that a fresh adapted network computes exactly what its base does.

In the tree of parameters everything that belongs to adapters lies under the names of `NAMES`, at
the top or in the blocks; `split` and `join` go by these names.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params
from flm_jax.models.layers import dropout

NAMES = ("time", "modulation", "lora")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Adapters of a frozen network: low-rank updates and time conditioning."""

    rank: int = setting(256, "rank of LoRA on attention and MLP", range="[1, inf)")
    alpha: float = setting(512.0, "scale of that LoRA times its rank")
    head_rank: int = setting(256, "rank of LoRA on the output head", range="[1, inf)")
    head_alpha: float = setting(256.0, "scale of that LoRA times its rank")
    dropout: float = setting(
        0.05, "dropout rate on the input of LoRA in the blocks; the head has none", range="[0, 1)"
    )
    cond_dim: int = setting(512, "hidden width of the time embedding", range="[1, inf)")
    base: str = setting("", "workdir of the masked diffusion model to adapt; empty for no adapters")
    start: str = setting(
        "", "workdir whose averaged adapters training starts from; empty for fresh ones"
    )


class LowRank(nnx.Module):
    """x -> B A x, of inputs and outputs as given; B is zero at first."""

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


class LowRanks(nnx.Module):
    """One `LowRank` for each named matrix."""

    def __init__(
        self, shapes: dict[str, tuple[int, int]], cfg: AdapterConfig, dtype, rngs: nnx.Rngs
    ):
        self.cfg = cfg
        for name, (inputs, outputs) in shapes.items():
            setattr(self, name, LowRank(inputs, outputs, cfg.rank, dtype, rngs))

    def __call__(self, name: str, x: jax.Array, key: Key | None) -> jax.Array:
        low = getattr(self, name)(dropout(x, self.cfg.dropout, key))
        return low * (self.cfg.alpha / self.cfg.rank)


class HeadLowRank(nnx.Module):
    """`LowRank` of the head, by the name that it has among parameters."""

    def __init__(self, dim: int, vocab_size: int, cfg: AdapterConfig, rngs: nnx.Rngs):
        self.head = LowRank(dim, vocab_size, cfg.head_rank, jnp.float32, rngs)


def split(params: Params) -> tuple[Params, Params]:
    """Parameters of an adapted network as (base, adapters)."""
    blocks = params["blocks"]
    base = {k: v for k, v in params.items() if k not in NAMES}
    adapters = {k: v for k, v in params.items() if k in NAMES}
    base["blocks"] = {k: v for k, v in blocks.items() if k not in NAMES}
    adapters["blocks"] = {k: v for k, v in blocks.items() if k in NAMES}
    return base, adapters


def join(base: Params, adapters: Params) -> Params:
    """The inverse of `split`."""
    return base | adapters | {"blocks": base["blocks"] | adapters["blocks"]}


def merged(params: Params, cfg: AdapterConfig) -> tuple[Params, Params]:
    """LoRA added to the matrices it adapts.

    Args:
      params: of an adapted network.
      cfg: its adapters.

    Returns:
      A base of the same function up to rounding, sums taken in float32 and kept in the base's type,
      and what cannot be merged: the time conditioning.
    """
    base, adapters = split(params)

    def add(weights: Params, low: Params, scale: float) -> Params:
        def one(kernel, name):
            update = jnp.matmul(low[name]["a"]["kernel"], low[name]["b"]["kernel"])
            return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)

        return weights | {name: {"kernel": one(weights[name]["kernel"], name)} for name in low}

    blocks = add(base["blocks"], adapters["blocks"]["lora"], cfg.alpha / cfg.rank)
    base = add(base, adapters["lora"], cfg.head_alpha / cfg.head_rank) | {"blocks": blocks}
    rest = {k: adapters[k] for k in ("time", "modulation")}
    return base, rest | {"blocks": {"modulation": adapters["blocks"]["modulation"]}}
