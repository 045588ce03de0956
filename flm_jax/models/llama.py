"""LLaMA-style transformers of masked diffusion: SMDM's Diff-LLaMA, LLaDA's and LLaDA2.0's.

Sources: arXiv 2302.13971 (RMSNorm, SwiGLU, rotary positions) as used without a causal mask by SMDM
(arXiv 2410.18514) and LLaDA (arXiv 2502.09992):

    x += attn(norm1 x);  x += mlp_out(silu(gate norm2 x) * up norm2 x);  head(norm x)

No biases; queries may share keys and values in groups; the head is untied; no time is read unless
adapters bring time conditioning (`lora`). LLaDA2.0 (arXiv 2512.15745) also has a norm on each
head's queries and keys, rotates a part of each head, sees blocks causally, and has a mixture of
experts beside the MLP, which is then the shared expert (`mixture_of_experts`).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params, Times
from flm_jax.models import lora
from flm_jax.models.attention import (
    AttentionPlan,
    attention,
    rotary_angles,
    rotate,
)
from flm_jax.models.functional import pure
from flm_jax.models.layers import TimeEmbedding, dropout, modulate, modulation, rms_norm
from flm_jax.models.lora import AdapterConfig
from flm_jax.models.mixture_of_experts import Experts, ExpertsConfig, check_experts
from flm_jax.models.transformer import (
    DTYPES,
    TransformerConfig,
    as_network,
    attention_operations,
    check_transformer,
    run_blocks,
)

# Logit of a mask that is one of the vocabulary's rows: no text holds it.
_NEVER = -1e9


@dataclasses.dataclass(frozen=True)
class LlamaConfig(TransformerConfig):
    """Sizes of the network.

    Attributes:
      adapters: sizes of its adapters, or None; config.adapters decides it.
    """

    kv_heads: int = setting(
        0, "heads of keys and values; 0 for as many as queries have", range="[0, inf)"
    )
    rope_base: float = setting(10_000.0, "base of the rotary frequencies", range="(0, inf)")
    rope_condense: float = setting(1.0, "divisor of positions before rotation", range="(0, inf)")
    rope_dtype: str = setting(
        "float32",
        "type that the tables of the rotation are rounded to; SMDM was trained with bfloat16",
        choices=DTYPES,
    )
    mask_id: int = setting(
        -1,
        "token of masked positions; -1 for an embedding besides the vocabulary",
        range="[-1, inf)",
    )
    param_dtype: str = setting(
        "float32", "type of all parameters but adapters and routers", choices=DTYPES
    )
    mlp_hidden: int = setting(0, "hidden width of the MLP; 0 for mlp_ratio * dim", range="[0, inf)")
    norm_eps: float = setting(1e-5, "constant within the root of all norms", range="(0, inf)")
    qk_norm: bool = setting(False, "whether each head's queries and keys are normalised")
    rotary_share: float = setting(1.0, "fraction of each head that is rotated", range="(0, 1]")
    block_length: int = setting(
        0,
        "block length; a position sees its own block and those before, with 0 all positions",
        unit="tokens",
        range="[0, inf)",
    )
    experts: ExpertsConfig = setting(
        ExpertsConfig(), "mixture of experts in all but the first blocks, as LLaDA2.0 has"
    )
    adapters: AdapterConfig | None = None

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        return self.mlp_hidden or self.mlp_ratio * self.dim

    @property
    def rotated(self) -> int:
        """Features of each head that are rotated."""
        return round(self.rotary_share * self.head_dim)

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Name -> (inputs, outputs) of the matrices of a block without experts."""
        return self.matrices_of(self.hidden)

    def matrices_of(self, hidden: int) -> dict[str, tuple[int, int]]:
        """`matrices` with an MLP of this hidden width."""
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


class _Block(nnx.Module):
    def __init__(
        self,
        cfg: LlamaConfig,
        plan: AttentionPlan,
        experts: ExpertsConfig | None,
        rngs: nnx.Rngs,
    ):
        dtype, param_dtype = jnp.dtype(cfg.dtype), jnp.dtype(cfg.param_dtype)
        self.cfg, self.plan, self.mixed = cfg, plan, bool(experts)
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
            self.lora = lora.LowRanks(cfg.matrices, cfg.adapters, dtype, rngs)
            if not cfg.adapters.shared_time:
                self.time = TimeEmbedding(cfg.adapters.cond_dim, rngs)
            outputs = cfg.adapters.parts * cfg.dim
            self.modulation = modulation(cfg.adapters.cond_dim, outputs, dtype, rngs)

    def __call__(self, x_BLD, times, angles, visible_BL, key: Key | None):
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
        if cfg.adapters:
            embedded = times if cfg.adapters.shared_time else jax.nn.silu(self.time(times))
            first, second = lora.conditions(self.modulation(embedded), cfg.adapters)
        norm1 = first.shifted(self.norm1(x_BLD).astype(dtype))
        h_BLD = self._attend(project(norm1, *lora.QKV), angles, visible_BL)
        (h_BLD,) = project(h_BLD, "attn_out")
        x_BLD = x_BLD + dropout(first.gated(h_BLD), cfg.dropout, keys["attn_drop"])
        norm2 = second.shifted(self.norm2(x_BLD).astype(dtype))
        gate, up = project(norm2, "gate", "up")
        (h_BLD,) = project(jax.nn.silu(gate) * up, "mlp_out")
        if self.mixed:
            h_BLD = h_BLD + self.experts(norm2)
        return x_BLD + dropout(second.gated(h_BLD), cfg.dropout, keys["mlp_drop"])

    def _attend(self, qkv, angles, visible_BL):
        cfg = self.cfg
        q_BLD, k_BLE, v_BLE = qkv

        def heads(x_BLE, number: int):
            return x_BLE.reshape(*x_BLE.shape[:2], number, cfg.head_dim)

        def turned(name: str, x_BLHK):
            # In float32: the angles of late positions need more digits than bfloat16 has.
            wide_BLHK = x_BLHK.astype(jnp.float32)
            if cfg.qk_norm:
                wide_BLHK = (self.q_norm if name == "q" else self.k_norm)(wide_BLHK)
            first, rest = jnp.split(wide_BLHK, [cfg.rotated], axis=-1)
            return jnp.concatenate([rotate(first, angles), rest], axis=-1).astype(x_BLHK.dtype)

        def shared(x_BLGK):
            return jnp.repeat(x_BLGK, cfg.heads // cfg.groups, axis=2)

        q_BLHK = turned("q", heads(q_BLD, cfg.heads))
        k_BLHK = shared(turned("k", heads(k_BLE, cfg.groups)))
        v_BLHK = shared(heads(v_BLE, cfg.groups))
        out_BLHK = attention(
            q_BLHK,
            k_BLHK,
            v_BLHK,
            softcap=cfg.attention_softcap,
            plan=self.plan,
            block=cfg.block_length,
            visible_BM=visible_BL,
        )
        return out_BLHK.reshape(q_BLD.shape)


class _Trunk(nnx.Module):
    """Everything but the blocks."""

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
            self.lora = lora.HeadLowRank(dim, cfg.vocab_size, cfg.adapters, rngs)
            if cfg.adapters.trunk_time:
                self.time = TimeEmbedding(cfg.adapters.cond_dim, rngs)
            if cfg.adapters.final_norm:
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
        require(
            cfg.adapters is None,
            "config.adapters.base is a mixture of experts; adapters are for a llama without.",
        )
    check_transformer(cfg, plan, cfg.block_length)


def llama(
    cfg: LlamaConfig,
    plan: AttentionPlan | None = None,
    told: Callable[[Times], Times] | None = None,
) -> Network:
    """Builds the network.

    Args:
      cfg: sizes; dim divisible by heads, head size even; with cfg.adapters the parameters are those
        of base and adapters together, see `lora.split`.
      plan: how attention runs, of kind cfg.attention; by default on one device.
      told: network times -> what the time embedding of adapters reads; None for the times as they
        are. cfg.adapters.time names it, and who builds a network gives it.

    Returns:
      Network with an anchor, the same one at every position. Times are read by adapters alone.
      Blocks' parameters are stacked on a leading axis under "blocks"; with experts the first ones,
      which have none, under "dense_blocks".

    Raises:
      UserError: unknown remat policy or attention; attention that cannot run here; heads, mask,
        rotary positions or experts that do not fit.
    """
    plan = plan or AttentionPlan(cfg.attention)
    _check(cfg, plan)
    init_trunk, bind_trunk = pure(lambda rngs: _Trunk(cfg, rngs))
    # Name -> (init, bind, where they start and end among the blocks).
    stacks = {"blocks": (*pure(lambda rngs: _Block(cfg, plan, cfg.experts, rngs)), 0, cfg.depth)}
    if cfg.experts and (first := cfg.experts.dense_blocks):
        stacks = {
            "dense_blocks": (*pure(lambda rngs: _Block(cfg, plan, None, rngs)), 0, first),
            "blocks": (*stacks["blocks"][:2], first, cfg.depth),
        }
    dtype = jnp.dtype(cfg.dtype)

    def init(key: Key) -> Params:
        trunk_key, blocks_key = jax.random.split(key)
        keys = jax.random.split(blocks_key, cfg.depth)
        blocks = {
            name: jax.vmap(init_block)(keys[start:end])
            for name, (init_block, _, start, end) in stacks.items()
        }
        return init_trunk(trunk_key) | blocks

    def features(params: Params, x_s, s: Times, t: Times, *, key: Key | None = None, visible=None):
        del t
        trunk = bind_trunk({k: v for k, v in params.items() if k not in stacks})
        angles = rotary_angles(
            x_s.shape[1], cfg.rotated, cfg.rope_base, cfg.rope_condense, cfg.rope_dtype
        )
        times = embedded = None
        if cfg.adapters:
            times = s if s.ndim == 2 else s[:, None]
            times = times if told is None else told(times)
            if cfg.adapters.trunk_time:
                embedded = jax.nn.silu(trunk.time(times))
        read = embedded if cfg.adapters and cfg.adapters.shared_time else times

        keys = None if key is None else jax.random.split(key, cfg.depth)
        x_BLD = x_s.astype(dtype)
        for name, (_, bind_block, start, end) in stacks.items():

            def block(params, x_BLD, key, bind_block=bind_block):
                return bind_block(params)(x_BLD, read, angles, visible, key)

            own = None if keys is None else keys[start:end]
            x_BLD = run_blocks(cfg, block, x_BLD, params[name], own)
        x_BLD = trunk.norm(x_BLD)
        if cfg.adapters and cfg.adapters.final_norm:
            x_BLD = modulate(x_BLD, *jnp.split(trunk.modulation(embedded), 2, axis=-1))
        return x_BLD.astype(dtype)

    return as_network(
        cfg,
        init,
        features,
        readout=lambda params: _readout(cfg, params),
        anchor=lambda params: _anchor(cfg, params),
        lookup=lambda params, tokens: params["table"][tokens].astype(jnp.float32),
        any_length=True,
        block_length=cfg.block_length,
    )


def _readout(cfg: LlamaConfig, params: Params) -> tuple[jax.Array, jax.Array]:
    kernel = params["head"]["kernel"]
    if cfg.adapters:
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
    """Least operations of a token in the blocks, the router's included; LoRA counts nothing."""
    narrow, experts = cfg.groups * cfg.head_dim, cfg.experts
    weights = cfg.depth * 2 * cfg.dim * (cfg.dim + narrow)
    dense = experts.dense_blocks if experts else cfg.depth
    weights += dense * 3 * cfg.dim * cfg.hidden
    if experts:
        active = (experts.shared + experts.active) * experts.hidden
        weights += (cfg.depth - dense) * cfg.dim * (3 * active + experts.number)
    return 2 * weights + attention_operations(cfg)
