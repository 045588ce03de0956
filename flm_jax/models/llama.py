"""LLaMA-style transformers of masked diffusion: SMDM's Diff-LLaMA, LLaDA and LLaDA2.0.

Sources: arXiv 2302.13971 (RMSNorm, SwiGLU, rotary positions) as used without a causal mask by SMDM
(arXiv 2410.18514) and LLaDA (arXiv 2502.09992):

    x += attn(norm1 x);  x += mlp_out(silu(gate norm2 x) * up norm2 x);  head(norm x)

There are no biases; groups of queries may share keys and values; the head is untied; time is an
input only if adapters bring time conditioning (`lora`). LLaDA2.0 (arXiv 2512.15745) also has a norm
on each head's queries and keys, rotates a part of each head, has block-causal attention, and has a
mixture of experts beside the MLP, which is then the shared expert (`mixture_of_experts`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params, Times
from flm_jax.models import lora
from flm_jax.models.attention import AttentionPlan
from flm_jax.models.functional import pure
from flm_jax.models.layers import modulate, modulation, rms_norm
from flm_jax.models.llama_block import Block, LlamaConfig, cached, whole
from flm_jax.models.mixture_of_experts import ExpertsConfig, check_experts, check_kernel
from flm_jax.models.rotary import rotary_angles
from flm_jax.models.transformer import (
    as_network,
    attention_operations,
    check_transformer,
    run_blocks,
)

# Logit of a mask that is one of the vocabulary's rows: no text holds it.
_NEVER = -1e9


class _Trunk(nnx.Module):
    """All modules except the blocks."""

    def __init__(self, cfg: LlamaConfig, rngs: nnx.Rngs):
        dim, param_dtype = cfg.dim, jnp.dtype(cfg.param_dtype)

        def normal(*shape: int):
            return nnx.Param(dim**-0.5 * jax.random.normal(rngs.params(), shape, param_dtype))

        self.table = normal(cfg.vocab_size, dim)
        if cfg.mask_id < 0:
            self.anchor = normal(1, dim)
        self.norm = rms_norm(dim, rngs, param_dtype, cfg.norm_eps)
        self.head = nnx.Linear(
            dim,
            cfg.vocab_size,
            use_bias=False,
            kernel_init=nnx.initializers.normal(dim**-0.5),
            param_dtype=param_dtype,
            rngs=rngs,
        )
        if cfg.adapters:
            if cfg.adapters.head_rank:
                self.lora = lora.HeadLowRank(dim, cfg.vocab_size, cfg.adapters, rngs)
            if cfg.adapters.trunk_time:
                lora.add_times(self, cfg.adapters, rngs)
            if cfg.adapters.trunk_time and cfg.adapters.final_norm:
                self.modulation = modulation(cfg.adapters.cond_dim, 2 * dim, jnp.float32, rngs)


def _check(cfg: LlamaConfig, plan: AttentionPlan) -> None:
    require(
        cfg.heads % cfg.groups == 0,
        f"{cfg.heads} heads do not share {cfg.groups} heads of keys and values evenly; set "
        "config.model.kv_heads to a divisor.",
    )
    require(
        -1 <= cfg.mask_id < cfg.vocab_size,
        f"config.model.mask_id is {cfg.mask_id}; expected -1 (a row of its own) or a token "
        f"of the {cfg.vocab_size}.",
    )
    require(
        cfg.rope_base > 1.0 and cfg.rope_condense > 0.0,
        f"got rope_base {cfg.rope_base}, rope_condense {cfg.rope_condense}; expected more than 1 "
        "and more than 0.",
    )
    require(
        0.0 < cfg.rotary_share <= 1.0 and cfg.rotated >= 2 and cfg.rotated % 2 == 0,
        f"config.model.rotary_share is {cfg.rotary_share}, {cfg.rotated} of "
        f"{cfg.head_dim} features of a head; expected an even number of them, at least 2.",
    )
    require(
        cfg.block_length >= 0 and cfg.mlp_hidden >= 0 and cfg.norm_eps > 0.0,
        f"config.model has block_length {cfg.block_length}, mlp_hidden {cfg.mlp_hidden}, "
        f"norm_eps {cfg.norm_eps}; expected none below 0, and norm_eps above it.",
    )
    if cfg.experts:
        check_experts(cfg.experts, cfg.depth)
        check_kernel(cfg.experts, plan)
    check_transformer(cfg, plan, cfg.block_length)


def llama(
    cfg: LlamaConfig,
    plan: AttentionPlan | None = None,
    told: Callable[[Times], Times] | None = None,
) -> Network:
    """Builds the network.

    Args:
      cfg: sizes; dim divisible by heads, head size even; with cfg.adapters the parameters hold base
        and adapters together, see `lora.split`.
      plan: plan of attention, of kind cfg.attention; one device by default.
      told: function from network times to the input of the adapters' time embedding; None for the
        times themselves. cfg.adapters.time names it, and who builds a network gives it.

    Returns:
      A network with an anchor, the same one at every position. Only adapters read times. Parameters
      of the blocks are stacked on a leading axis under "blocks"; with experts the first blocks,
      which have none, are under "dense_blocks".

    Raises:
      UserError: unknown remat policy or attention; attention that cannot run here; heads, mask,
        rotary positions or experts that do not fit.
    """
    plan = plan or AttentionPlan(cfg.attention)
    _check(cfg, plan)
    two_time = bool(cfg.adapters and cfg.adapters.two_time)
    init_trunk, bind_trunk = pure(lambda rngs: _Trunk(cfg, rngs))
    stacks = _stacks(cfg)
    dtype = jnp.dtype(cfg.dtype)

    def init(key: Key) -> Params:
        trunk_key, blocks_key = jax.random.split(key)
        keys = jax.random.split(blocks_key, cfg.depth)
        blocks = {
            name: jax.vmap(one.init)(keys[one.start : one.end]) for name, one in stacks.items()
        }
        return init_trunk(trunk_key) | blocks

    def start(params: Params, *times: Times):
        trunk = bind_trunk({k: v for k, v in params.items() if k not in stacks})
        return trunk, *_times(cfg, trunk, told, *times)

    def features(params: Params, x_s, s: Times, t: Times, *, key: Key | None = None, visible=None):
        trunk, read, embedded = start(params, s, t)
        angles, attend = _angles(cfg, x_s.shape[1]), whole(cfg, plan, visible)
        keys = None if key is None else jax.random.split(key, cfg.depth)
        x_BLD = x_s.astype(dtype)
        for name, one in stacks.items():

            def block(params, x_BLD, key, bind=one.bind):
                return bind(params)(x_BLD, read, angles, attend, key)[0]

            own = None if keys is None else keys[one.start : one.end]
            x_BLD = run_blocks(cfg, block, x_BLD, params[name], own)
        return _finished(cfg, trunk, x_BLD, embedded)

    def window(params: Params, cache: Params, x, s: Times, *, places=None, visible=None):
        trunk, read, embedded = start(params, s)
        attention = cached(cfg, plan, cache["k"].shape[2], places, visible)
        angles = _angles(cfg, cache["k"].shape[2])
        if places is not None:
            angles = tuple(table[places] for table in angles)
        # The cache is carried, where a scan updates it in place; as its input and output it would
        # be copied.
        carry = (x.astype(dtype), (cache["k"], cache["v"]))
        for name, one in stacks.items():

            def block(carry, layer, bind=one.bind):
                params, number = layer
                x_BWD, kept = carry
                return bind(params)(x_BWD, read, angles, attention(kept, number), None), None

            layers = (params[name], jnp.arange(one.start, one.end))
            unroll = 1 if cfg.scan_blocks else one.end - one.start
            carry, _ = jax.lax.scan(block, carry, layers, unroll=unroll)
        x_BWD, (k, v) = carry
        return _finished(cfg, trunk, x_BWD, embedded), {"k": k, "v": v}

    def cache(rows: int, length: int) -> Params:
        shape = (cfg.depth, rows, length, cfg.groups, cfg.head_dim)
        return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}

    return as_network(
        cfg,
        init,
        features,
        readout=lambda params: _readout(cfg, params),
        anchor=lambda params: _anchor(cfg, params),
        lookup=lambda params, tokens: params["table"][tokens].astype(jnp.float32),
        two_time=two_time,
        any_length=True,
        block_length=cfg.block_length,
        # Nothing samples a flow map by windows, which would need a second time.
        cache=None if two_time else cache,
        window=None if two_time else window,
    )


class _Stack(NamedTuple):
    """Equal consecutive blocks; `start` and `end` are their bounds among all blocks."""

    init: Callable[[Key], Params]
    bind: Callable[[Params], nnx.Module]
    start: int
    end: int


def _stacks(cfg: LlamaConfig) -> dict[str, _Stack]:
    """Stacks of blocks by the names of their parameters, in order."""

    def stack(experts: ExpertsConfig | None, start: int, end: int) -> _Stack:
        return _Stack(*pure(lambda rngs: Block(cfg, experts, rngs)), start, end)

    if cfg.experts and (first := cfg.experts.dense_blocks):
        return {
            "dense_blocks": stack(None, 0, first),
            "blocks": stack(cfg.experts, first, cfg.depth),
        }
    return {"blocks": stack(cfg.experts, 0, cfg.depth)}


def _times(cfg: LlamaConfig, trunk: nnx.Module, told, *times: Times):
    """Input of the blocks' modulation, and the embedding of times; None each if unused."""
    if not (cfg.adapters and cfg.adapters.timed):
        return None, None
    times = tuple(s if s.ndim == 2 else s[:, None] for s in times)
    times = times if told is None else tuple(told(s) for s in times)
    embedded = None
    if cfg.adapters.trunk_time:
        embedded = lora.embedded_times(trunk, times, cfg.adapters)
    return embedded if cfg.adapters.shared_time else times, embedded


def _angles(cfg: LlamaConfig, length: int) -> tuple[jax.Array, jax.Array]:
    return rotary_angles(length, cfg.rotated, cfg.rope_base, cfg.rope_condense, cfg.rope_dtype)


def _finished(cfg: LlamaConfig, trunk: nnx.Module, x_BLD: jax.Array, embedded) -> jax.Array:
    """Returns the last hidden states, normalised."""
    x_BLD = trunk.norm(x_BLD)
    if cfg.adapters and cfg.adapters.trunk_time and cfg.adapters.final_norm:
        x_BLD = modulate(x_BLD, *jnp.split(trunk.modulation(embedded), 2, axis=-1))
    return x_BLD.astype(jnp.dtype(cfg.dtype))


def _readout(cfg: LlamaConfig, params: Params) -> tuple[jax.Array, jax.Array]:
    kernel = params["head"]["kernel"]
    if cfg.adapters and cfg.adapters.head_rank:
        low = params["lora"]["head"]
        scale = cfg.adapters.head_alpha / cfg.adapters.head_rank
        update = jnp.matmul(low["a"]["kernel"], low["b"]["kernel"])
        kernel = kernel.astype(jnp.float32) + scale * update
    bias = jnp.zeros(cfg.vocab_size, jnp.float32)
    return kernel, bias if cfg.mask_id < 0 else bias.at[cfg.mask_id].set(_NEVER)


def _anchor(cfg: LlamaConfig, params: Params) -> jax.Array:
    row = params["anchor"] if cfg.mask_id < 0 else params["table"][cfg.mask_id][None]
    return jnp.broadcast_to(row.astype(jnp.float32), (cfg.length, cfg.dim))


def block_operations(cfg: LlamaConfig) -> int:
    """Lower bound of operations for a token in the blocks, with the router's but without LoRA's."""
    narrow, experts = cfg.groups * cfg.head_dim, cfg.experts
    weights = cfg.depth * 2 * cfg.dim * (cfg.dim + narrow)
    dense = experts.dense_blocks if experts else cfg.depth
    weights += dense * 3 * cfg.dim * cfg.hidden
    if experts:
        active = (experts.shared + experts.active) * experts.hidden
        weights += (cfg.depth - dense) * cfg.dim * (3 * active + experts.number)
    return 2 * weights + attention_operations(cfg)
