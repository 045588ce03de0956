"""The diffusion transformer (DiT) of FLM and FMLM, over embedded states.

Source: backbone of arXiv 2602.16813v3 (after arXiv 2212.09748): pre-LayerNorm blocks with
adaLN-zero, rotary positions, soft-capped attention, tanh-GELU MLP; conditioning c = silu(emb(s) +
emb'(t)), where the second embedding exists in two-time networks only and is initialised to zero.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params, Times
from flm_jax.models.attention import AttentionPlan, attention
from flm_jax.models.functional import pure
from flm_jax.models.layers import (
    TIME_FEATURES,
    TimeEmbedding,
    dropout,
    gelu,
    layer_norm,
    modulate,
    modulation,
    recomputed,
    rows_dot_general,
    time_features,
)
from flm_jax.models.rotary import rotary_angles, rotate
from flm_jax.models.transformer import (
    TransformerConfig,
    as_network,
    check_transformer,
    run_blocks,
)

_LOG_LIMIT = 5.0  # no pair of times counts more than e^5 times as much as in the plain mean


@dataclasses.dataclass(frozen=True)
class DiTConfig(TransformerConfig):
    """Settings of a DiT.

    Attributes:
      weighting: whether a function of the times is trained to weight the loss; set from the
        objective.
      anchor: whether there are embeddings of masked positions besides the table; set from the
        objective.
    """

    cond_dim: int = setting(128, "Width of the time embedding.", range="[1, inf)")
    two_time: bool = setting(False, "Whether a second time is embedded, as flow maps need.")
    position_table: bool = setting(
        False,
        "Whether a learned embedding of each position is added to the state, besides rotary "
        "positions.",
    )
    posterior_input: bool = setting(
        False,
        "Whether the posterior of each token given its own state, in closed form, replaces "
        "the state as input; for flows that start from noise.",
    )
    posterior_skip: bool = setting(
        False,
        "Whether the logits of that posterior are added to the output and the head is "
        "initialised to zero.",
    )
    normalised_table: bool = setting(
        False,
        "Whether embeddings are normalised to length sqrt(dim), which keeps them from "
        "shrinking together.",
    )
    self_conditioning: bool = setting(
        False, "Whether the network's own estimate of the clean text is added to the state."
    )
    weighting: bool = False
    anchor: bool = False


class _LogLoss(nnx.Module):
    """Map from two times to a number in (-_LOG_LIMIT, _LOG_LIMIT), 0 at first; float32."""

    def __init__(self, cond_dim: int, rngs: nnx.Rngs):
        zeros, small = nnx.initializers.zeros, nnx.initializers.normal(0.02)
        self.hidden = nnx.Linear(2 * TIME_FEATURES, cond_dim, kernel_init=small, rngs=rngs)
        self.out = nnx.Linear(cond_dim, 1, kernel_init=zeros, rngs=rngs)

    def __call__(self, s: Times, t: Times) -> jax.Array:
        features = jnp.concatenate([time_features(s), time_features(t)], axis=-1)
        out = self.out(jax.nn.silu(self.hidden(features)))[..., 0]
        return _LOG_LIMIT * jnp.tanh(out / _LOG_LIMIT)


class _Block(nnx.Module):
    def __init__(self, cfg: DiTConfig, plan: AttentionPlan, rngs: nnx.Rngs):
        dtype, dim = jnp.dtype(cfg.dtype), cfg.dim
        self.cfg, self.plan = cfg, plan
        self.norm1 = layer_norm(dim, rngs)
        self.norm2 = layer_norm(dim, rngs)
        more = {"dtype": dtype, "dot_general": rows_dot_general, "rngs": rngs}
        self.qkv = nnx.Linear(dim, 3 * dim, use_bias=False, **more)
        self.attn_out = nnx.Linear(dim, dim, use_bias=False, **more)
        self.mlp_in = nnx.Linear(dim, cfg.mlp_ratio * dim, **more)
        self.mlp_out = nnx.Linear(cfg.mlp_ratio * dim, dim, **more)
        self.modulation = modulation(cfg.cond_dim, 6 * dim, dtype, rngs)

    def __call__(self, x_BLD, cond, angles, visible_BL, key: Key | None):
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        k_attn, k_mlp = (None, None) if key is None else jax.random.split(key)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(cond), 6, axis=-1)
        # The norms' float32 results, and two arrays of the MLP's width, would be kept for every
        # block: more bytes than all the rest.
        first = recomputed(lambda x, *by: modulate(self.norm1(x).astype(dtype), *by))
        second = recomputed(lambda x, *by: modulate(self.norm2(x).astype(dtype), *by))
        mlp_end = recomputed(lambda h: self.mlp_out(gelu(h)))
        h_BLD = first(x_BLD, shift1, scale1)
        qkv = self.qkv(h_BLD).reshape(*h_BLD.shape[:2], 3, cfg.heads, cfg.head_dim)
        # Split rather than indexed: the gradients are then put side by side, not padded and added.
        q_BLHK, k_BLHK, v_BLHK = (x[:, :, 0] for x in jnp.split(qkv, 3, axis=2))
        h_BLHK = attention(
            rotate(q_BLHK, angles),
            rotate(k_BLHK, angles),
            v_BLHK,
            softcap=cfg.attention_softcap,
            plan=self.plan,
            visible_BM=visible_BL,
        )
        h_BLD = self.attn_out(h_BLHK.reshape(h_BLD.shape))
        x_BLD = x_BLD + gate1 * dropout(h_BLD, cfg.dropout, k_attn)
        h_BLD = mlp_end(self.mlp_in(second(x_BLD, shift2, scale2)))
        return x_BLD + gate2 * dropout(h_BLD, cfg.dropout, k_mlp)


class _Trunk(nnx.Module):
    """All modules except the blocks."""

    def __init__(self, cfg: DiTConfig, rngs: nnx.Rngs):
        dim = cfg.dim
        bound = dim**-0.5
        self.table = nnx.Param(
            jax.random.uniform(rngs.params(), (cfg.vocab_size, dim), minval=-bound, maxval=bound)
        )
        small, zeros = nnx.initializers.normal(0.02), nnx.initializers.zeros
        self.time = TimeEmbedding(cfg.cond_dim, rngs, hidden_init=small, out_init=small)
        if cfg.two_time:
            more = {"hidden_init": small, "out_init": zeros}
            self.target_time = TimeEmbedding(cfg.cond_dim, rngs, **more)
        if cfg.weighting:
            self.weighting = _LogLoss(cfg.cond_dim, rngs)
        self.norm = layer_norm(dim, rngs)
        self.modulation = modulation(cfg.cond_dim, 2 * dim, None, rngs)
        self.head = nnx.Linear(dim, cfg.vocab_size, kernel_init=zeros, rngs=rngs)
        if cfg.self_conditioning:
            self.estimate = nnx.Linear(dim, dim, use_bias=False, kernel_init=zeros, rngs=rngs)
        if cfg.position_table:
            rows = 0.02 * jax.random.normal(rngs.params(), (cfg.length, dim))
            self.positions = nnx.Param(rows)
        if cfg.anchor:
            # One for each position, equal at first: with rotary positions alone a state that is
            # masked throughout looks the same from every position, and so would be its tokens.
            anchor = jax.random.uniform(rngs.params(), (1, dim), minval=-bound, maxval=bound)
            self.anchor = nnx.Param(jnp.tile(anchor, (cfg.length, 1)))


def dit(cfg: DiTConfig, plan: AttentionPlan | None = None) -> Network:
    """Builds the network.

    Args:
      cfg: sizes; dim divisible by heads, head size even; remat in none, matmuls (recompute all but
        matrix products), full.
      plan: plan of attention, of kind cfg.attention; one device by default.

    Returns:
      A network. Parameters of the blocks are stacked on a leading axis of length depth under
      "blocks".

    Raises:
      UserError: unknown remat policy or attention; attention that cannot run here.
    """
    plan = plan or AttentionPlan(cfg.attention)
    check_transformer(cfg, plan)
    init_trunk, bind_trunk = pure(lambda rngs: _Trunk(cfg, rngs))
    init_block, bind_block = pure(lambda rngs: _Block(cfg, plan, rngs))
    dtype = jnp.dtype(cfg.dtype)

    def init(key: Key) -> Params:
        trunk_key, blocks_key = jax.random.split(key)
        blocks = jax.vmap(init_block)(jax.random.split(blocks_key, cfg.depth))
        trunk = init_trunk(trunk_key)
        # The residual stream starts as the state itself: reading it through E^T lets the first
        # gradients already see which token it is near, where a zero head has to find that out; the
        # posterior says it from the start.
        if not cfg.posterior_skip:
            trunk["head"]["kernel"] = trunk["table"].T
        return trunk | {"blocks": blocks}

    def trunk_of(params: Params):
        return bind_trunk({k: v for k, v in params.items() if k != "blocks"})

    def features(
        params: Params,
        x_s,
        s: Times,
        t: Times,
        *,
        key: Key | None = None,
        estimate=None,
        visible=None,
    ):
        trunk = trunk_of(params)
        cond = trunk.time(s) + (trunk.target_time(t) if cfg.two_time else 0.0)
        # Times [B, L] give a row for each position, times [B] one for all.
        cond = jax.nn.silu(cond if cond.ndim == 3 else cond[:, None, :])
        angles = rotary_angles(x_s.shape[1], cfg.head_dim)

        def block(params, x_BLD, key):
            return bind_block(params)(x_BLD, cond.astype(dtype), angles, visible, key)

        if estimate is not None:
            x_s = x_s + trunk.estimate(estimate)
        if cfg.position_table:
            x_s = x_s + params["positions"][None, : x_s.shape[1]]
        keys = None if key is None else jax.random.split(key, cfg.depth)
        x_BLD = run_blocks(cfg, block, x_s.astype(dtype), params["blocks"], keys)
        shift, scale = jnp.split(trunk.modulation(cond), 2, axis=-1)
        return modulate(trunk.norm(x_BLD), shift, scale).astype(dtype)

    def table(params: Params):
        rows = params["table"].astype(jnp.float32)
        if not cfg.normalised_table:
            return rows
        return rows * (cfg.dim**0.5 / jnp.linalg.norm(rows, axis=1, keepdims=True))

    return as_network(
        cfg,
        init,
        features,
        table=table,
        two_time=cfg.two_time,
        self_conditioned=cfg.self_conditioning,
        log_loss=(lambda params, s, t: trunk_of(params).weighting(s, t)) if cfg.weighting else None,
        anchor=(lambda params: params["anchor"]) if cfg.anchor else None,
    )
