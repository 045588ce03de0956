"""What the transformers share: sizes, checks, the stack of blocks, and the form of a network."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.core.errors import one_of
from flm_jax.core.network import Network
from flm_jax.core.types import Config, Key, Params
from flm_jax.models.attention import AttentionPlan, check_attention
from flm_jax.models.layers import REMAT


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer; see flm_jax/config/schema.py for units and choices."""

    vocab_size: int
    max_length: int
    dim: int
    depth: int
    heads: int
    mlp_ratio: int
    dropout: float
    attention_softcap: float
    logit_softcap: float
    dtype: str
    remat: str
    scan_blocks: bool
    loss_tile: int = 0
    attention: str = "xla"

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


def check_transformer(cfg: TransformerConfig, plan: AttentionPlan, block: int = 0) -> None:
    """Refuses an unknown remat policy, and attention that cannot run here.

    Args:
      cfg: sizes.
      plan: how attention runs.
      block: positions see their own block of this length and those before; 0 sees all.

    Raises:
      UserError: either of the two.
    """
    one_of("remat policy", cfg.remat, REMAT)
    check_attention(
        plan,
        length=cfg.max_length,
        heads=cfg.heads,
        head_dim=cfg.head_dim,
        softcap=cfg.attention_softcap,
        dtype=cfg.dtype,
        block=block,
    )


def run_blocks(
    cfg: TransformerConfig,
    block: Callable[[Params, jax.Array, Key | None], jax.Array],
    x_BLD: jax.Array,
    blocks: Params,
    keys: jax.Array | None,
) -> jax.Array:
    """Applies a stack of equal blocks, one after the other.

    Args:
      cfg: for its remat policy, and whether the blocks are one loop or written out.
      block: (parameters of one, x [B, L, D], dropout key) -> x [B, L, D].
      x_BLD: the residual stream.
      blocks: parameters stacked on a leading axis.
      keys: a dropout key for each; None switches dropout off.
    """

    def body(x_BLD, layer):
        return block(layer[0], x_BLD, layer[1]), None

    if cfg.remat != "none":
        body = jax.checkpoint(body, policy=REMAT[cfg.remat], prevent_cse=not cfg.scan_blocks)
    depth = jax.tree.leaves(blocks)[0].shape[0]
    unroll = 1 if cfg.scan_blocks else depth
    return jax.lax.scan(body, x_BLD, (blocks, keys), unroll=unroll)[0]


def as_network(
    cfg: TransformerConfig,
    init: Callable[[Key], Params],
    features: Callable[..., jax.Array],
    **more: Any,
) -> Network:
    """The network of a transformer whose head and table lie under "head" and "table".

    Args:
      cfg: sizes.
      init, features: see `Network`.
      more: further fields of `Network`, and those that differ.
    """
    fields = {
        "readout": lambda params: (params["head"]["kernel"], params["head"]["bias"]),
        "table": lambda params: params["table"].astype(jnp.float32),
        "vocab_size": cfg.vocab_size,
        "dim": cfg.dim,
        "max_length": cfg.max_length,
        "logit_softcap": cfg.logit_softcap,
        "loss_tile": cfg.loss_tile,
    }
    return Network(init=init, features=features, **(fields | more))


def attention_operations(model: Config) -> int:
    """Operations of a token in attention's two products, over all blocks: 4 L D each."""
    return 4 * model["length"] * model["dim"] * model["depth"]


def block_operations(model: Config) -> int:
    """Least operations of a token in the blocks of a DiT or a causal transformer.

    2 for each weight of the matrices, and attention's products; time embeddings and adaLN count
    nothing.

    Args:
      model: config.model.
    """
    weights = model["depth"] * (4 + 2 * model["mlp_ratio"]) * model["dim"] ** 2
    return 2 * weights + attention_operations(model)
