"""Code that the transformers share: settings, checks, the stack of blocks, and `Network`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.settings import check_values, setting
from flm_jax.core.types import Key, Params
from flm_jax.models.attention import AUTO, KINDS, AttentionPlan, check_attention
from flm_jax.models.layers import REMAT

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Settings of a transformer: its sizes, and how it is computed."""

    vocab_size: int = setting(
        0,
        "Vocabulary size V; 0 for the size of the data's tokenizer.",
        unit="tokens",
        range="[0, inf)",
    )
    length: int = setting(64, "Sequence length L.", unit="tokens", range="[1, inf)")
    dim: int = setting(128, "Width D.", range="[1, inf)")
    depth: int = setting(2, "Number of blocks.", range="[1, inf)")
    heads: int = setting(
        4, "Number of attention heads; dim / heads must be even.", range="[1, inf)"
    )
    mlp_ratio: int = setting(4, "Ratio of the MLP's hidden width to the width D.", range="[1, inf)")
    dropout: float = setting(0.0, "Dropout rate on both branches of a block.", range="[0, 1)")
    attention_softcap: float = setting(50.0, "Soft cap of attention scores; 0 for none.")
    logit_softcap: float = setting(30.0, "Soft cap of output logits; 0 for none.")
    dtype: str = setting(
        "float32", "Type of the computation; parameters stay float32.", choices=DTYPES
    )
    remat: str = setting(
        "none",
        "Rematerialisation: none, matmuls (of everything but matrix products), or full.",
        choices=REMAT,
    )
    scan_blocks: bool = setting(
        False, "Whether one compiled block is scanned over the depth; else the blocks are unrolled."
    )
    loss_tile: int = setting(
        0,
        "Number of positions per tile of the losses over the vocabulary; 0 for all at once.",
        range="[0, inf)",
    )
    attention: str = setting(
        "xla",
        "Attention kernel: xla; splash on TPUs; fused on GPUs; cudnn on GPUs, without a soft "
        "cap; auto for splash, fused or xla.",
        choices=(AUTO, *KINDS),
    )
    tokens: int = setting(
        0,
        "Number of rows of the vocabulary that stand for tokens; the rows beyond are never "
        "drawn and count in no loss. 0 for the size of the data's tokenizer.",
        unit="tokens",
        range="[0, inf)",
    )

    def __post_init__(self):
        require(
            self.dim % self.heads == 0 and (self.dim // self.heads) % 2 == 0,
            f"config.model.dim {self.dim} over {self.heads} heads must give an even head size.",
        )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


def check_transformer(cfg: TransformerConfig, plan: AttentionPlan, block: int = 0) -> None:
    """Refuses sizes out of range, and attention that cannot run here.

    Args:
      cfg: settings of the transformer.
      plan: plan of attention.
      block: block length of block-causal attention; 0 for attention to all positions.

    Raises:
      UserError: a size that its setting refuses; a kernel that does not support this platform,
        length, head size, type or soft cap.
    """
    check_values(cfg, "config.model")
    check_attention(
        plan,
        length=cfg.length,
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
    """Applies a stack of equal blocks in order.

    Args:
      cfg: settings, for the remat policy and for scanning or unrolling the blocks.
      block: function from (parameters of one block, x [B, L, D], dropout key) to x [B, L, D].
      x_BLD: residual stream.
      blocks: parameters stacked on a leading axis.
      keys: dropout key of each block; None switches dropout off.
    """

    def body(x_BLD, layer):
        return block(layer[0], x_BLD, layer[1]), None

    if cfg.remat != "none":
        # In a scan the compiler cannot merge what is recomputed with the forward pass; unrolled
        # it could.
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
    """Builds the network of a transformer with its head and table under "head" and "table".

    Args:
      cfg: settings of the transformer.
      init, features: fields of `Network`.
      more: further fields of `Network`, and those that differ from the default.
    """
    fields = {
        "readout": lambda params: (params["head"]["kernel"], params["head"]["bias"]),
        "table": lambda params: params["table"].astype(jnp.float32),
        "vocab_size": cfg.vocab_size,
        "dim": cfg.dim,
        "max_length": cfg.length,
        "logit_softcap": cfg.logit_softcap,
        "loss_tile": cfg.loss_tile,
    }
    return Network(init=init, features=features, **(fields | more))


def single_output(params: Params) -> Params:
    """Parameters of the same blocks with one output, 0 at first, in place of the logits.

    The table is not read by the blocks, and one row of it is left.

    Args:
      params: parameters of a network of `as_network`.
    """
    head = {"kernel": jnp.zeros((params["table"].shape[1], 1)), "bias": jnp.zeros(1)}
    return params | {"head": head, "table": params["table"][:1]}


def attention_operations(cfg: TransformerConfig) -> int:
    """Number of operations for a token in attention's two products, over all blocks: 4 L D each."""
    return 4 * cfg.length * cfg.dim * cfg.depth


def block_operations(cfg: TransformerConfig) -> int:
    """Lower bound of operations for a token in the blocks of a DiT or a causal transformer.

    These are 2 for each weight of the matrices, and attention's products; time embeddings and adaLN
    are not counted.
    """
    weights = cfg.depth * (4 + 2 * cfg.mlp_ratio) * cfg.dim**2
    return 2 * weights + attention_operations(cfg)
