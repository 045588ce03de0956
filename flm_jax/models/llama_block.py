"""Settings of a LLaMA-style transformer, and one of its blocks; see `llama`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flm_jax.core.settings import setting
from flm_jax.core.types import Key
from flm_jax.models import lora
from flm_jax.models.attention import AttentionPlan, attention, cached_attention
from flm_jax.models.layers import dropout, modulation, rms_norm
from flm_jax.models.lora import AdapterConfig
from flm_jax.models.mixture_of_experts import Experts, ExpertsConfig
from flm_jax.models.rotary import rotate
from flm_jax.models.transformer import DTYPES, TransformerConfig

# (queries [B, L, H, K], keys and values [B, L, G, K] of as many heads as they have)
# -> (what the queries get [B, L, H, K], whatever is to be kept).
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class LlamaConfig(TransformerConfig):
    """Settings of a LLaMA-style transformer.

    Attributes:
      adapters: settings of its adapters, or None; set from config.adapters.
    """

    kv_heads: int = setting(
        0, "Number of key and value heads; 0 for as many as query heads.", range="[0, inf)"
    )
    rope_base: float = setting(10_000.0, "Base of the rotary frequencies.", range="(0, inf)")
    rope_condense: float = setting(1.0, "Divisor of positions before rotation.", range="(0, inf)")
    rope_dtype: str = setting(
        "float32",
        "Type to which the rotary tables are rounded; SMDM was trained with bfloat16.",
        choices=DTYPES,
    )
    mask_id: int = setting(
        -1,
        "Token of masked positions; -1 for a separate embedding outside the vocabulary.",
        range="[-1, inf)",
    )
    param_dtype: str = setting(
        "float32", "Type of all parameters except adapters and routers.", choices=DTYPES
    )
    mlp_hidden: int = setting(
        0, "Hidden width of the MLP; 0 for mlp_ratio * dim.", range="[0, inf)"
    )
    norm_eps: float = setting(1e-5, "Constant under the root of all norms.", range="(0, inf)")
    qk_norm: bool = setting(False, "Whether each head's queries and keys are normalised.")
    rotary_share: float = setting(1.0, "Fraction of each head that is rotated.", range="(0, 1]")
    block_length: int = setting(
        0,
        "Block length; a position attends to its own block and those before it, with 0 to all"
        " positions.",
        unit="tokens",
        range="[0, inf)",
    )
    experts: ExpertsConfig = setting(
        ExpertsConfig(), "Mixture of experts in all but the first blocks, as in LLaDA2.0."
    )
    adapters: AdapterConfig | None = None

    @property
    def groups(self) -> int:
        """Number of key and value heads."""
        return self.kv_heads or self.heads

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        return self.mlp_hidden or self.mlp_ratio * self.dim

    @property
    def rotated(self) -> int:
        """Number of features of each head that are rotated."""
        return round(self.rotary_share * self.head_dim)

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Dict from the names of the matrices of a block without experts to (inputs, outputs)."""
        return self.matrices_of(self.hidden)

    def matrices_of(self, hidden: int) -> dict[str, tuple[int, int]]:
        """Same as `matrices`, with an MLP of this hidden width."""
        dim, narrow = self.dim, self.groups * self.head_dim
        return {
            "q": (dim, dim),
            "k": (dim, narrow),
            "v": (dim, narrow),
            "attn_out": (dim, dim),
            "gate": (dim, hidden),
            "up": (dim, hidden),
            "mlp_out": (hidden, dim),
        }


class Block(nnx.Module):
    """One block; with or without experts, with or without adapters."""

    def __init__(self, cfg: LlamaConfig, experts: ExpertsConfig | None, rngs: nnx.Rngs):
        dtype, param_dtype = jnp.dtype(cfg.dtype), jnp.dtype(cfg.param_dtype)
        self.cfg, self.mixed = cfg, bool(experts)
        self.norm1 = rms_norm(cfg.dim, rngs, param_dtype, cfg.norm_eps)
        self.norm2 = rms_norm(cfg.dim, rngs, param_dtype, cfg.norm_eps)
        if cfg.qk_norm:
            self.q_norm = rms_norm(cfg.head_dim, rngs, param_dtype, cfg.norm_eps)
            self.k_norm = rms_norm(cfg.head_dim, rngs, param_dtype, cfg.norm_eps)
        # Branches start small, the more so the more of them are added up.
        small = (2 * cfg.depth) ** -0.5
        matrices = cfg.matrices_of(experts.shared_hidden) if experts else cfg.matrices
        for name, (inputs, outputs) in matrices.items():
            narrow = small if name in ("attn_out", "mlp_out") else 1.0
            linear = nnx.Linear(
                inputs,
                outputs,
                use_bias=False,
                kernel_init=nnx.initializers.normal(narrow * inputs**-0.5),
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            setattr(self, name, linear)
        if experts:
            self.experts = Experts(experts, cfg.dim, small, dtype, param_dtype, rngs)
        if cfg.adapters:
            self.lora = lora.LowRanks(matrices, cfg.adapters, dtype, rngs)
            if cfg.adapters.block_time:
                lora.add_times(self, cfg.adapters, rngs)
            if cfg.adapters.timed:
                outputs = cfg.adapters.parts * cfg.dim
                self.modulation = modulation(cfg.adapters.cond_dim, outputs, dtype, rngs)

    def __call__(self, x_BLD, times, angles, attend: Attend, key: Key | None):
        """Returns the residual stream [B, L, D] after the block, and the state that `attend` keeps.

        Args:
          x_BLD: residual stream.
          times: inputs of the adapters' time embedding, one or two; if all blocks share it, what
            it gives; unused without adapters.
          angles: angles of the rotary positions, see `rotate`.
          attend: attention of rotated queries and keys.
          key: key that switches dropout on.
        """
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        keys = dict.fromkeys((*cfg.matrices, "attn_drop", "mlp_drop"))
        if key is not None:
            keys = dict(zip(keys, jax.random.split(key, len(keys))))

        def project(h_BLD, *names: str):
            outs = [getattr(self, name)(h_BLD) for name in names]
            if cfg.adapters:
                outs = [out + low for out, low in zip(outs, self.lora(names, h_BLD, keys))]
            return outs

        first = second = lora.Condition()
        if cfg.adapters and cfg.adapters.timed:
            shared = cfg.adapters.shared_time
            embedded = times if shared else lora.embedded_times(self, times, cfg.adapters)
            first, second = lora.conditions(self.modulation(embedded), cfg.adapters)
        norm1 = first.shifted(self.norm1(x_BLD).astype(dtype))
        h_BLHK, kept = attend(*self._heads(project(norm1, *lora.QKV), angles))
        (h_BLD,) = project(h_BLHK.reshape(x_BLD.shape), "attn_out")
        x_BLD = x_BLD + dropout(first.gated(h_BLD), cfg.dropout, keys["attn_drop"])
        norm2 = second.shifted(self.norm2(x_BLD).astype(dtype))
        gate, up = project(norm2, "gate", "up")
        (h_BLD,) = project(jax.nn.silu(gate) * up, "mlp_out")
        if self.mixed:
            h_BLD = h_BLD + self.experts(norm2)
        return x_BLD + dropout(second.gated(h_BLD), cfg.dropout, keys["mlp_drop"]), kept

    def _heads(self, qkv, angles):
        """Returns queries and keys, normalised and rotated, and values, by heads."""
        cfg = self.cfg
        q_BLHK, k_BLGK, v_BLGK = (x.reshape(*x.shape[:2], -1, cfg.head_dim) for x in qkv)

        def turned(name: str, x_BLHK):
            # In float32: the angles of late positions need more digits than bfloat16 has.
            wide_BLHK = x_BLHK.astype(jnp.float32)
            if cfg.qk_norm:
                wide_BLHK = (self.q_norm if name == "q" else self.k_norm)(wide_BLHK)
            first, rest = jnp.split(wide_BLHK, [cfg.rotated], axis=-1)
            return jnp.concatenate([rotate(first, angles), rest], axis=-1).astype(x_BLHK.dtype)

        return turned("q", q_BLHK), turned("k", k_BLGK), v_BLGK


def _shared(cfg: LlamaConfig, x_BLGK: jax.Array) -> jax.Array:
    """Repeats keys or values, once for each query head."""
    return jnp.repeat(x_BLGK, cfg.heads // cfg.groups, axis=2)


def whole(cfg: LlamaConfig, plan: AttentionPlan, visible_BM: jax.Array | None) -> Attend:
    """Attention among all positions of a row; returns keys and values as its state."""

    def attend(q_BLHK, k_BLGK, v_BLGK):
        out_BLHK = attention(
            q_BLHK,
            _shared(cfg, k_BLGK),
            _shared(cfg, v_BLGK),
            softcap=cfg.attention_softcap,
            plan=plan,
            block=cfg.block_length,
            visible_BM=visible_BM,
        )
        return out_BLHK, (k_BLGK, v_BLGK)

    return attend


def cached(
    cfg: LlamaConfig,
    plan: AttentionPlan,
    length: int,
    places_BW: jax.Array | None,
    visible_BM: jax.Array | None,
) -> Callable[[tuple[jax.Array, jax.Array], jax.Array], Attend]:
    """Attention of some positions of each row to the full row, whose keys and values are cached.

    Args:
      cfg: settings of the network.
      plan: plan of attention for calls on all positions; calls on some are computed by einsums.
      length: number of positions M of a row.
      places_BW: indices of the positions in their row; None for all.
      visible_BM: mask of positions that may be attended to; None for all.

    Returns:
      A function from (keys and values of all blocks, [depth, B, M, G, K] each, index of the block)
      to attention, whose state is the cache with the entries of these positions replaced.
    """
    if places_BW is None:
        every = whole(cfg, plan, visible_BM)

        def attend_all(q_BLHK, k_BLGK, v_BLGK, kept, number):
            out, new = every(q_BLHK, k_BLGK, v_BLGK)
            return out, tuple(old.at[number].set(own) for old, own in zip(kept, new))

        return lambda kept, number: functools.partial(attend_all, kept=kept, number=number)

    seen_BWM = _seen(cfg, places_BW, length, visible_BM)
    rows_B1 = jnp.arange(len(places_BW))[:, None]

    def attend(q_BWHK, k_BWGK, v_BWGK, kept, number):
        new = (k_BWGK, v_BWGK)
        # JAX drops places past the row, those of a window that reaches beyond its end.
        kept = tuple(old.at[number, rows_B1, places_BW].set(own) for old, own in zip(kept, new))
        k_BMHK, v_BMHK = (_shared(cfg, jnp.take(x, number, axis=0)) for x in kept)
        out = cached_attention(q_BWHK, k_BMHK, v_BMHK, seen_BWM, softcap=cfg.attention_softcap)
        return out, kept

    return lambda kept, number: functools.partial(attend, kept=kept, number=number)


def _seen(cfg: LlamaConfig, places_BW: jax.Array, length: int, visible_BM) -> jax.Array:
    """Mask of the positions of its row that each position attends to, [B, W, M]."""
    seen_BWM = jnp.ones((1, 1, length), bool)
    if cfg.block_length:
        block_M = jnp.arange(length) // cfg.block_length
        seen_BWM = (places_BW // cfg.block_length)[..., None] >= block_M[None, None]
    if visible_BM is not None:
        seen_BWM = seen_BWM & visible_BM[:, None]
    return jnp.broadcast_to(seen_BWM, (*places_BW.shape, length))
