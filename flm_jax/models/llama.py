"""Bidirectional LLaMA-style transformers of masked diffusion: SMDM's Diff-LLaMA and LLaDA's.

Sources: arXiv 2302.13971 (RMSNorm, SwiGLU, rotary positions) as used without a causal mask by SMDM
(arXiv 2410.18514) and LLaDA (arXiv 2502.09992):

    x += attn(norm1 x);  x += mlp_out(silu(gate norm2 x) * up norm2 x);  head(norm x)

No biases; queries may share keys and values in groups; the head is untied; no time is read unless
adapters bring time conditioning (`adapters`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from flm_jax.models import adapters as lora
from flm_jax.models.adapters import AdapterConfig, modulate
from flm_jax.models.attention import (
    AttentionPlan,
    attention,
    check_attention,
    rotary_angles,
    rotate,
)
from flm_jax.models.functional import pure
from flm_jax.models.layers import REMAT, dropout, rms_norm
from flm_jax.types import Key, Network, Params, Times, require, unknown_name

# Logit of a mask that is one of the vocabulary's rows: no text holds it.
_NEVER = -1e9


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the network; see flm_jax/defaults.py for units and choices.

    Attributes:
      kv_heads: heads of keys and values; 0 for as many as queries have.
      rope_base: base of rotary frequencies; rope_condense: what positions are divided by.
      mask_id: row of the table that masked positions show, which is never predicted; -1 for an
        embedding of its own besides the table.
      param_dtype: of all but adapters, which are float32.
    """

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
    kv_heads: int = 0
    rope_base: float = 10_000.0
    rope_condense: float = 1.0
    mask_id: int = -1
    param_dtype: str = "float32"
    adapters: AdapterConfig | None = None

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Name -> (inputs, outputs) of the matrices of a block."""
        dim, narrow, hidden = self.dim, self.groups * self.head_dim, self.mlp_ratio * self.dim
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
    def __init__(self, cfg: LlamaConfig, plan: AttentionPlan, rngs: nnx.Rngs):
        dtype, param_dtype = jnp.dtype(cfg.dtype), jnp.dtype(cfg.param_dtype)
        self.cfg, self.plan = cfg, plan
        self.norm1 = rms_norm(cfg.dim, rngs, param_dtype)
        self.norm2 = rms_norm(cfg.dim, rngs, param_dtype)
        for name, (inputs, outputs) in cfg.matrices.items():
            # Branches start small, the more so the more of them are added up.
            narrow = (2 * cfg.depth) ** -0.5 if name in ("attn_out", "mlp_out") else 1.0
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
        if cfg.adapters:
            self.lora = lora.LowRanks(cfg.matrices, cfg.adapters, dtype, rngs)
            self.modulation = lora.modulation(cfg.adapters.cond_dim, 4 * cfg.dim, dtype, rngs)

    def __call__(self, x_BLD, cond, angles, key: Key | None):
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        keys = dict.fromkeys((*cfg.matrices, "attn_drop", "mlp_drop"))
        if key is not None:
            keys = dict(zip(keys, jax.random.split(key, len(keys))))

        def project(name: str, h_BLD):
            out = getattr(self, name)(h_BLD)
            return out + self.lora(name, h_BLD, keys[name]) if cfg.adapters else out

        norm1 = self.norm1(x_BLD).astype(dtype)
        if cfg.adapters:
            shift1, scale1, shift2, scale2 = jnp.split(self.modulation(cond), 4, axis=-1)
            norm1 = modulate(norm1, shift1, scale1)
        h_BLD = project("attn_out", self._attend(project, norm1, angles))
        x_BLD = x_BLD + dropout(h_BLD, cfg.dropout, keys["attn_drop"])
        norm2 = self.norm2(x_BLD).astype(dtype)
        if cfg.adapters:
            norm2 = modulate(norm2, shift2, scale2)
        h_BLF = jax.nn.silu(project("gate", norm2)) * project("up", norm2)
        return x_BLD + dropout(project("mlp_out", h_BLF), cfg.dropout, keys["mlp_drop"])

    def _attend(self, project, h_BLD, angles):
        cfg = self.cfg

        def heads(name: str, number: int):
            return project(name, h_BLD).reshape(*h_BLD.shape[:2], number, cfg.head_dim)

        def turned(x_BLHK):
            # In float32: the angles of late positions need more digits than bfloat16 has.
            return rotate(x_BLHK.astype(jnp.float32), angles).astype(x_BLHK.dtype)

        def shared(x_BLGK):
            return jnp.repeat(x_BLGK, cfg.heads // cfg.groups, axis=2)

        q_BLHK = turned(heads("q", cfg.heads))
        k_BLHK, v_BLHK = shared(turned(heads("k", cfg.groups))), shared(heads("v", cfg.groups))
        out_BLHK = attention(q_BLHK, k_BLHK, v_BLHK, softcap=cfg.attention_softcap, plan=self.plan)
        return out_BLHK.reshape(h_BLD.shape)


class _Trunk(nnx.Module):
    """Everything but the blocks."""

    def __init__(self, cfg: LlamaConfig, rngs: nnx.Rngs):
        dim, param_dtype = cfg.dim, jnp.dtype(cfg.param_dtype)

        def normal(*shape: int):
            return nnx.Param(dim**-0.5 * jax.random.normal(rngs.params(), shape, param_dtype))

        self.table = normal(cfg.vocab_size, dim)
        if cfg.mask_id < 0:
            self.anchor = normal(1, dim)
        self.norm = rms_norm(dim, rngs, param_dtype)
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
            self.time = lora.TimeEmbedding(cfg.adapters, rngs)
            self.modulation = lora.modulation(cfg.adapters.cond_dim, 2 * dim, jnp.float32, rngs)


def _check(cfg: LlamaConfig, plan: AttentionPlan) -> None:
    if cfg.remat not in REMAT:
        raise unknown_name("remat policy", cfg.remat, REMAT)
    require(
        cfg.heads % cfg.groups == 0,
        f"{cfg.heads} heads do not share {cfg.groups} heads of keys and values evenly; set "
        "config.model.llama.kv_heads to a divisor.",
    )
    require(
        -1 <= cfg.mask_id < cfg.vocab_size,
        f"config.model.llama.mask_id is {cfg.mask_id}; expected -1 (a row of its own) or a token "
        f"of the {cfg.vocab_size}.",
    )
    require(
        cfg.rope_base > 1.0 and cfg.rope_condense > 0.0,
        f"got rope_base {cfg.rope_base}, rope_condense {cfg.rope_condense}; expected more than 1 "
        "and more than 0.",
    )
    check_attention(
        plan,
        length=cfg.max_length,
        heads=cfg.heads,
        head_dim=cfg.head_dim,
        softcap=cfg.attention_softcap,
        dtype=cfg.dtype,
    )


def llama(cfg: LlamaConfig, plan: AttentionPlan | None = None) -> Network:
    """Builds the network.

    Args:
      cfg: sizes; dim divisible by heads, head size even; with cfg.adapters the parameters are those
        of base and adapters together, see `adapters.split`.
      plan: how attention runs, of kind cfg.attention; by default on one device.

    Returns:
      Network with an anchor, the same one at every position. Times are read by adapters alone.
      Blocks' parameters are stacked on a leading axis of length depth under "blocks".

    Raises:
      UserError: unknown remat policy or attention; attention that cannot run here; heads, mask or
        rotary positions that do not fit.
    """
    plan = plan or AttentionPlan(cfg.attention)
    _check(cfg, plan)
    init_trunk, bind_trunk = pure(lambda rngs: _Trunk(cfg, rngs))
    init_block, bind_block = pure(lambda rngs: _Block(cfg, plan, rngs))
    dtype = jnp.dtype(cfg.dtype)

    def init(key: Key) -> Params:
        trunk_key, blocks_key = jax.random.split(key)
        blocks = jax.vmap(init_block)(jax.random.split(blocks_key, cfg.depth))
        return init_trunk(trunk_key) | {"blocks": blocks}

    def features(params: Params, x_s, s: Times, t: Times, *, key: Key | None = None):
        del t
        trunk = bind_trunk({k: v for k, v in params.items() if k != "blocks"})
        angles = rotary_angles(x_s.shape[1], cfg.head_dim, cfg.rope_base, cfg.rope_condense)
        cond = None
        if cfg.adapters:
            cond = trunk.time(s if s.ndim == 2 else s[:, None])

        def body(x_BLD, layer):
            block_params, layer_key = layer
            return bind_block(block_params)(x_BLD, cond, angles, layer_key), None

        if cfg.remat != "none":
            body = jax.checkpoint(body, policy=REMAT[cfg.remat], prevent_cse=not cfg.scan_blocks)
        keys = None if key is None else jax.random.split(key, cfg.depth)
        unroll = 1 if cfg.scan_blocks else cfg.depth
        x_BLD, _ = jax.lax.scan(body, x_s.astype(dtype), (params["blocks"], keys), unroll=unroll)
        x_BLD = trunk.norm(x_BLD)
        if cfg.adapters:
            x_BLD = modulate(x_BLD, *jnp.split(trunk.modulation(cond), 2, axis=-1))
        return x_BLD.astype(dtype)

    return Network(
        init=init,
        features=features,
        readout=lambda params: _readout(cfg, params),
        table=lambda params: params["table"].astype(jnp.float32),
        vocab_size=cfg.vocab_size,
        dim=cfg.dim,
        max_length=cfg.max_length,
        logit_softcap=cfg.logit_softcap,
        loss_tile=cfg.loss_tile,
        anchor=lambda params: _anchor(cfg, params),
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
    return jnp.broadcast_to(row.astype(jnp.float32), (cfg.max_length, cfg.dim))
