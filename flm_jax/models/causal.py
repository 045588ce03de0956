"""The causal transformer of the autoregressive baseline: the DiT's blocks without time.

Pre-LayerNorm blocks with rotary positions, soft-capped attention and tanh-GELU MLP have the sizes
of `dit`, but no adaLN; instead of its gates, output projections are initialised to zero, so that
fresh blocks are identities here as well.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params, Times
from flm_jax.models.attention import (
    AttentionPlan,
    attention,
    cached_attention,
)
from flm_jax.models.functional import pure
from flm_jax.models.layers import dropout, gelu, layer_norm
from flm_jax.models.rotary import rotary_angles, rotate
from flm_jax.models.transformer import (
    TransformerConfig,
    as_network,
    check_transformer,
    run_blocks,
)


class _Block(nnx.Module):
    def __init__(self, cfg: TransformerConfig, plan: AttentionPlan, rngs: nnx.Rngs):
        dtype, dim = jnp.dtype(cfg.dtype), cfg.dim
        zeros = nnx.initializers.zeros
        self.cfg, self.plan = cfg, plan
        self.norm1 = layer_norm(dim, rngs)
        self.norm2 = layer_norm(dim, rngs)
        self.qkv = nnx.Linear(dim, 3 * dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.attn_out = nnx.Linear(
            dim, dim, use_bias=False, kernel_init=zeros, dtype=dtype, rngs=rngs
        )
        self.mlp_in = nnx.Linear(dim, cfg.mlp_ratio * dim, dtype=dtype, rngs=rngs)
        self.mlp_out = nnx.Linear(
            cfg.mlp_ratio * dim, dim, kernel_init=zeros, dtype=dtype, rngs=rngs
        )

    def __call__(self, x_BLD, angles, visible_BL, key: Key | None):
        how = {"softcap": self.cfg.attention_softcap, "plan": self.plan, "visible_BM": visible_BL}
        h_BLHK = attention(*self._heads(x_BLD, angles), causal=True, **how)
        return self._finish(x_BLD, h_BLHK, key)

    def extend(self, x_BLD, angles, cache, position):
        """One position [B, 1, D] after those in the cache (k, v), each [B, M, H, K]."""
        q_BLHK, *new = self._heads(x_BLD, angles)
        cache = tuple(
            jax.lax.dynamic_update_slice_in_dim(old, n, position, 1) for old, n in zip(cache, new)
        )
        seen_BLM = (jnp.arange(cache[0].shape[1]) <= position)[None, None]
        h_BLHK = cached_attention(q_BLHK, *cache, seen_BLM, softcap=self.cfg.attention_softcap)
        return self._finish(x_BLD, h_BLHK, None), cache

    def _heads(self, x_BLD, angles):
        """Returns queries and keys, rotated, and values."""
        cfg = self.cfg
        h_BLD = self.norm1(x_BLD).astype(jnp.dtype(cfg.dtype))
        qkv = self.qkv(h_BLD).reshape(*h_BLD.shape[:2], 3, cfg.heads, cfg.dim // cfg.heads)
        return rotate(qkv[:, :, 0], angles), rotate(qkv[:, :, 1], angles), qkv[:, :, 2]

    def _finish(self, x_BLD, h_BLHK, key: Key | None):
        rate = self.cfg.dropout
        k_attn, k_mlp = (None, None) if key is None else jax.random.split(key)
        x_BLD = x_BLD + dropout(self.attn_out(h_BLHK.reshape(x_BLD.shape)), rate, k_attn)
        h_BLD = self.norm2(x_BLD).astype(jnp.dtype(self.cfg.dtype))
        return x_BLD + dropout(self.mlp_out(gelu(self.mlp_in(h_BLD))), rate, k_mlp)


class _Trunk(nnx.Module):
    """All modules except the blocks; `anchor` is the input before the first token."""

    def __init__(self, cfg: TransformerConfig, rngs: nnx.Rngs):
        dim = cfg.dim
        bound = dim**-0.5
        uniform = lambda shape: nnx.Param(
            jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        )
        self.table = uniform((cfg.vocab_size, dim))
        self.anchor = uniform((dim,))
        self.norm = layer_norm(dim, rngs)
        # Not the table, as in the DiT: a token is no guess at its successor.
        small = nnx.initializers.normal(0.02)
        self.head = nnx.Linear(dim, cfg.vocab_size, kernel_init=small, rngs=rngs)


def causal(cfg: TransformerConfig, plan: AttentionPlan | None = None) -> Network:
    """Builds the network; its features at position l see x_s before l alone.

    The input is shifted by one position after a learnt vector, so that the output at position l is
    the distribution of token l, including the first: alignment and losses are the same as for a
    denoiser.

    Args:
      cfg: sizes; dim divisible by heads, head size even; remat as for the DiT.
      plan: plan of attention in training, of kind cfg.attention; one device by default.

    Returns:
      A network with `cache` and `extend`; times are ignored. Parameters of the blocks are stacked
      on a leading axis of length depth under "blocks".

    Raises:
      UserError: unknown remat policy or attention; attention that cannot run here.
    """
    plan = plan or AttentionPlan(cfg.attention)
    head_dim, dtype = cfg.head_dim, jnp.dtype(cfg.dtype)
    check_transformer(cfg, plan)
    init_trunk, bind_trunk = pure(lambda rngs: _Trunk(cfg, rngs))
    init_block, bind_block = pure(lambda rngs: _Block(cfg, plan, rngs))
    unroll = 1 if cfg.scan_blocks else cfg.depth

    def init(key: Key) -> Params:
        trunk_key, blocks_key = jax.random.split(key)
        blocks = jax.vmap(init_block)(jax.random.split(blocks_key, cfg.depth))
        return init_trunk(trunk_key) | {"blocks": blocks}

    def trunk_of(params: Params) -> nnx.Module:
        return bind_trunk({k: v for k, v in params.items() if k != "blocks"})

    def features(params: Params, x_s, s: Times, t: Times, *, key: Key | None = None, visible=None):
        del s, t
        trunk = trunk_of(params)
        first = jnp.broadcast_to(trunk.anchor[...], (x_s.shape[0], 1, cfg.dim))
        # Shifted by one, so that the features at l see the tokens before l alone.
        x_BLD = jnp.concatenate([first, x_s[:, :-1]], axis=1).astype(dtype)
        angles = rotary_angles(x_s.shape[1], head_dim)

        def block(params, x_BLD, key):
            return bind_block(params)(x_BLD, angles, visible, key)

        keys = None if key is None else jax.random.split(key, cfg.depth)
        x_BLD = run_blocks(cfg, block, x_BLD, params["blocks"], keys)
        return trunk.norm(x_BLD).astype(dtype)

    def cache(rows: int, length: int) -> Params:
        shape = (cfg.depth, rows, length, cfg.heads, head_dim)
        return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}

    def extend(params: Params, cache: Params, x_BD: jax.Array, position: jax.Array):
        trunk = trunk_of(params)
        x_BLD = jnp.where(position == 0, trunk.anchor[...][None], x_BD)[:, None].astype(dtype)
        angles = tuple(
            jax.lax.dynamic_slice_in_dim(a, position, 1)
            for a in rotary_angles(cache["k"].shape[2], head_dim)
        )

        def body(x_BLD, layer):
            block_params, old = layer
            return bind_block(block_params).extend(x_BLD, angles, old, position)

        layers = (params["blocks"], (cache["k"], cache["v"]))
        x_BLD, (k, v) = jax.lax.scan(body, x_BLD, layers, unroll=unroll)
        return trunk.norm(x_BLD).astype(dtype), {"k": k, "v": v}

    return as_network(cfg, init, features, cache=cache, extend=extend, any_length=True)
