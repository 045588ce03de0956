"""The diffusion transformer (DiT) of FLM and FMLM, over embedded states.

Source: backbone of arXiv 2602.16813v3 (after arXiv 2212.09748): pre-LayerNorm blocks with
adaLN-zero, rotary positions, soft-capped attention, tanh-GELU MLP; conditioning
c = silu(emb(s) + emb'(t)), where the second embedding exists in two-time networks only and starts
at zero.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flm_jax.models.attention import (
    AttentionPlan,
    attention,
    check_attention,
    rotary_angles,
    rotate,
)
from flm_jax.models.functional import pure
from flm_jax.models.layers import REMAT, dropout, gelu, layer_norm
from flm_jax.types import Key, Network, Params, Times, unknown_name

_TIME_FEATURES = 256
_LOG_LIMIT = 5.0  # no pair of times counts more than e^5 times as much as in the plain mean


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Sizes of a DiT; see flm_jax/defaults.py for units and choices."""

    vocab_size: int
    max_length: int
    dim: int
    depth: int
    heads: int
    cond_dim: int
    mlp_ratio: int
    dropout: float
    two_time: bool
    attention_softcap: float
    logit_softcap: float
    dtype: str
    remat: str
    scan_blocks: bool
    loss_tile: int = 0
    attention: str = "xla"
    position_table: bool = False  # whether a learned vector for each position is added
    weighting: bool = False  # whether a function of the times is trained to weight the loss
    anchor: bool = False  # whether there are embeddings of masked positions besides the table
    self_conditioning: bool = False  # whether an estimate of the clean text is added to the state


def time_features(times: Times) -> Float[Array, "... f"]:
    """[cos, sin] of times * 10000^(-k/128), k = 0..127; float32 [..., 256]."""
    half = _TIME_FEATURES // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = times.astype(jnp.float32)[..., None] * jnp.expand_dims(frequencies, range(times.ndim))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    return x * (1 + scale) + shift


class _TimeEmbedding(nnx.Module):
    """Sinusoidal features, then a two-layer SiLU MLP to cond_dim; float32."""

    def __init__(self, cond_dim: int, *, zero_init: bool, rngs: nnx.Rngs):
        last = nnx.initializers.zeros if zero_init else nnx.initializers.normal(0.02)
        hidden = nnx.initializers.normal(0.02)
        self.hidden = nnx.Linear(_TIME_FEATURES, cond_dim, kernel_init=hidden, rngs=rngs)
        self.out = nnx.Linear(cond_dim, cond_dim, kernel_init=last, rngs=rngs)

    def __call__(self, times: Times) -> jax.Array:
        return self.out(jax.nn.silu(self.hidden(time_features(times))))


class _LogLoss(nnx.Module):
    """Two times -> one number in (-_LOG_LIMIT, _LOG_LIMIT), 0 at first; float32."""

    def __init__(self, cond_dim: int, rngs: nnx.Rngs):
        zeros, small = nnx.initializers.zeros, nnx.initializers.normal(0.02)
        self.hidden = nnx.Linear(2 * _TIME_FEATURES, cond_dim, kernel_init=small, rngs=rngs)
        self.out = nnx.Linear(cond_dim, 1, kernel_init=zeros, rngs=rngs)

    def __call__(self, s: Times, t: Times) -> jax.Array:
        features = jnp.concatenate([time_features(s), time_features(t)], axis=-1)
        out = self.out(jax.nn.silu(self.hidden(features)))[..., 0]
        return _LOG_LIMIT * jnp.tanh(out / _LOG_LIMIT)


class _Block(nnx.Module):
    def __init__(self, cfg: DiTConfig, plan: AttentionPlan, rngs: nnx.Rngs):
        dtype, dim = jnp.dtype(cfg.dtype), cfg.dim
        zeros = nnx.initializers.zeros
        self.cfg, self.plan = cfg, plan
        self.norm1 = layer_norm(dim, rngs)
        self.norm2 = layer_norm(dim, rngs)
        self.qkv = nnx.Linear(dim, 3 * dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.attn_out = nnx.Linear(dim, dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.mlp_in = nnx.Linear(dim, cfg.mlp_ratio * dim, dtype=dtype, rngs=rngs)
        self.mlp_out = nnx.Linear(cfg.mlp_ratio * dim, dim, dtype=dtype, rngs=rngs)
        self.modulation = nnx.Linear(
            cfg.cond_dim, 6 * dim, kernel_init=zeros, dtype=dtype, rngs=rngs
        )

    def __call__(self, x_BLD, cond, angles, key: Key | None):
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        k_attn, k_mlp = (None, None) if key is None else jax.random.split(key)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(cond), 6, axis=-1)
        h_BLD = _modulate(self.norm1(x_BLD).astype(dtype), shift1, scale1)
        qkv = self.qkv(h_BLD).reshape(*h_BLD.shape[:2], 3, cfg.heads, cfg.dim // cfg.heads)
        q_BLHK, k_BLHK, v_BLHK = (qkv[:, :, i] for i in range(3))
        h_BLHK = attention(
            rotate(q_BLHK, angles),
            rotate(k_BLHK, angles),
            v_BLHK,
            softcap=cfg.attention_softcap,
            plan=self.plan,
        )
        h_BLD = self.attn_out(h_BLHK.reshape(h_BLD.shape))
        x_BLD = x_BLD + gate1 * dropout(h_BLD, cfg.dropout, k_attn)
        h_BLD = _modulate(self.norm2(x_BLD).astype(dtype), shift2, scale2)
        h_BLD = self.mlp_out(gelu(self.mlp_in(h_BLD)))
        return x_BLD + gate2 * dropout(h_BLD, cfg.dropout, k_mlp)


class _Trunk(nnx.Module):
    """Everything but the blocks."""

    def __init__(self, cfg: DiTConfig, rngs: nnx.Rngs):
        dim = cfg.dim
        bound = dim**-0.5
        self.table = nnx.Param(
            jax.random.uniform(rngs.params(), (cfg.vocab_size, dim), minval=-bound, maxval=bound)
        )
        self.time = _TimeEmbedding(cfg.cond_dim, zero_init=False, rngs=rngs)
        if cfg.two_time:
            self.target_time = _TimeEmbedding(cfg.cond_dim, zero_init=True, rngs=rngs)
        if cfg.weighting:
            self.weighting = _LogLoss(cfg.cond_dim, rngs)
        self.norm = layer_norm(dim, rngs)
        self.modulation = nnx.Linear(
            cfg.cond_dim, 2 * dim, kernel_init=nnx.initializers.zeros, rngs=rngs
        )
        self.head = nnx.Linear(dim, cfg.vocab_size, kernel_init=nnx.initializers.zeros, rngs=rngs)
        if cfg.self_conditioning:
            zeros = nnx.initializers.zeros
            self.estimate = nnx.Linear(dim, dim, use_bias=False, kernel_init=zeros, rngs=rngs)
        if cfg.position_table:
            rows = 0.02 * jax.random.normal(rngs.params(), (cfg.max_length, dim))
            self.positions = nnx.Param(rows)
        if cfg.anchor:
            # One for each position, equal at first: with rotary positions alone a state that is
            # masked throughout looks the same from every position, and so would be its tokens.
            anchor = jax.random.uniform(rngs.params(), (1, dim), minval=-bound, maxval=bound)
            self.anchor = nnx.Param(jnp.tile(anchor, (cfg.max_length, 1)))


def dit(cfg: DiTConfig, plan: AttentionPlan | None = None) -> Network:
    """Builds the network.

    Args:
      cfg: sizes; dim divisible by heads, head size even; remat in none, matmuls (recompute all but
        matrix products), full.
      plan: how attention runs, of kind cfg.attention; by default on one device.

    Returns:
      Network. Blocks' parameters are stacked on a leading axis of length depth under "blocks".

    Raises:
      UserError: unknown remat policy or attention; attention that cannot run here.
    """
    if cfg.remat not in REMAT:
        raise unknown_name("remat policy", cfg.remat, REMAT)
    plan = plan or AttentionPlan(cfg.attention)
    check_attention(
        plan,
        length=cfg.max_length,
        heads=cfg.heads,
        head_dim=cfg.dim // cfg.heads,
        softcap=cfg.attention_softcap,
        dtype=cfg.dtype,
    )
    init_trunk, bind_trunk = pure(lambda rngs: _Trunk(cfg, rngs))
    init_block, bind_block = pure(lambda rngs: _Block(cfg, plan, rngs))
    dtype = jnp.dtype(cfg.dtype)

    def init(key: Key) -> Params:
        trunk_key, blocks_key = jax.random.split(key)
        blocks = jax.vmap(init_block)(jax.random.split(blocks_key, cfg.depth))
        trunk = init_trunk(trunk_key)
        # The residual stream starts as the state itself: reading it through E^T lets the first
        # gradients already see which token it is near, where a zero head has to find that out.
        trunk["head"]["kernel"] = trunk["table"].T
        return trunk | {"blocks": blocks}

    def trunk_of(params: Params):
        return bind_trunk({k: v for k, v in params.items() if k != "blocks"})

    def features(params: Params, x_s, s: Times, t: Times, *, key: Key | None = None, estimate=None):
        trunk = trunk_of(params)
        cond = trunk.time(s) + (trunk.target_time(t) if cfg.two_time else 0.0)
        cond = jax.nn.silu(cond if cond.ndim == 3 else cond[:, None, :])
        angles = rotary_angles(x_s.shape[1], cfg.dim // cfg.heads)

        def body(x_BLD, layer):
            block_params, layer_key = layer
            return bind_block(block_params)(x_BLD, cond.astype(dtype), angles, layer_key), None

        if cfg.remat != "none":
            body = jax.checkpoint(body, policy=REMAT[cfg.remat], prevent_cse=not cfg.scan_blocks)
        if estimate is not None:
            x_s = x_s + trunk.estimate(estimate)
        if cfg.position_table:
            x_s = x_s + params["positions"][None, : x_s.shape[1]]
        keys = None if key is None else jax.random.split(key, cfg.depth)
        unroll = 1 if cfg.scan_blocks else cfg.depth
        x_BLD, _ = jax.lax.scan(body, x_s.astype(dtype), (params["blocks"], keys), unroll=unroll)
        shift, scale = jnp.split(trunk.modulation(cond), 2, axis=-1)
        return _modulate(trunk.norm(x_BLD), shift, scale).astype(dtype)

    return Network(
        init=init,
        features=features,
        readout=lambda params: (params["head"]["kernel"], params["head"]["bias"]),
        table=lambda params: params["table"],
        vocab_size=cfg.vocab_size,
        dim=cfg.dim,
        max_length=cfg.max_length,
        logit_softcap=cfg.logit_softcap,
        loss_tile=cfg.loss_tile,
        two_time=cfg.two_time,
        self_conditioned=cfg.self_conditioning,
        log_loss=(lambda params, s, t: trunk_of(params).weighting(s, t)) if cfg.weighting else None,
        anchor=(lambda params: params["anchor"]) if cfg.anchor else None,
    )
