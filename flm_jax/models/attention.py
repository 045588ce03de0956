"""Multi-head attention over [B, L, H, K] as one function, for all kernels."""

import dataclasses
import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from flm_jax.core.errors import UserError, one_of, require
from flm_jax.core.progress import say
from flm_jax.models import fused_attention

_GPU = ("gpu", "cuda")
# kind -> platforms that run it; None for all.
KINDS = {"xla": None, "splash": ("tpu",), "fused": _GPU, "cudnn": _GPU}
# Chosen by the platform: the kernel that caps scores, where there is one.
AUTO = "auto"
_AUTO = {"tpu": "splash", "gpu": "fused", "cuda": "fused"}
# Name of what splash keeps for its backward pass; JAX's names of the forward passes of cuDNN and of
# functions that give their own rules of differentiation and of rematerialisation, as fused does.
_RESIDUALS = "attention"
_FORWARD = ("dot_product_attention_fwd_wrapper", "remat_opt")
_SPLASH_MULTIPLE = 128
_CUDNN_MAX_HEAD = 128
_FUSED_MAX_HEAD = 128  # the sizes of which its tiles are known to fit


@dataclasses.dataclass(frozen=True)
class AttentionPlan:
    """Kernel of attention, and the devices over which it is split.

    Attributes:
      kind: "xla" (einsums, any platform), "splash" (Pallas, TPU), "fused" (Pallas, GPU), "cudnn"
        (GPU).
      mesh: mesh of devices; splash and fused need it, as the compiler cannot partition them.
      batch_axes: mesh axes over which rows are split; used where they divide the batch.
      head_axis: mesh axis over which heads are split, if any.
      interpret: whether Pallas' interpreter runs splash, and einsums replace fused; for tests.
    """

    kind: str = "xla"
    mesh: Mesh | None = None
    batch_axes: tuple[str, ...] = ()
    head_axis: str | None = None
    interpret: bool = False

    @property
    def device(self) -> jax.Device:
        """A device of the mesh, which need not be attached, or the default device."""
        return self.mesh.devices.flat[0] if self.mesh else jax.devices()[0]

    @property
    def platform(self) -> str:
        return self.device.platform


def keep_kernels(primitive, *args, **params) -> bool:
    """Rematerialisation policy that keeps residuals of attention kernels for the backward pass."""
    named = jax.checkpoint_policies.save_only_these_names(_RESIDUALS)
    return primitive.name in _FORWARD or named(primitive, *args, **params)


def available(kind: str, platform: str) -> bool:
    """Whether `platform` runs attention of this kind with the installed packages."""
    if kind == "fused" and fused_attention.why_missing():
        return False
    return kind == AUTO or KINDS[kind] is None or platform in KINDS[kind]


def resolved(plan: AttentionPlan, reverse_only: bool = False, **sizes) -> AttentionPlan:
    """Replaces kind "auto" of a plan: splash on TPUs, fused on GPUs, xla elsewhere.

    Where that kernel does not support the request, it is xla, and a log line says why.

    Args:
      plan: any plan.
      reverse_only: whether derivatives are by reverse mode alone, as kernels need.
      sizes: arguments of `check_attention`.
    """
    if plan.kind != AUTO:
        return plan
    kind = _AUTO.get(plan.platform, "xla") if reverse_only else "xla"
    try:
        check_attention(found := dataclasses.replace(plan, kind=kind), **sizes)
    except UserError as error:
        _say_once(f"attention is computed by XLA instead: {error}")
        return dataclasses.replace(plan, kind="xla")
    return found


@functools.cache
def _say_once(line: str) -> None:
    say(line, sys.stderr)


def check_attention(
    plan: AttentionPlan,
    *,
    length: int,
    heads: int,
    head_dim: int,
    softcap: float,
    dtype,
    block: int = 0,
    hides: bool = False,
) -> None:
    """Refuses requests that the kernel cannot compute; `hides` if some positions are not visible.

    Raises:
      UserError: unknown kind, another platform, or an unsupported length, head size, type or cap.
    """
    kind = plan.kind
    one_of("attention", kind, KINDS)
    require(
        plan.interpret or KINDS[kind] is None or plan.platform in KINDS[kind],
        f"attention {kind!r} runs on {KINDS[kind] and KINDS[kind][0]}, these devices are "
        f"{plan.platform}; set config.model.attention = 'xla'.",
    )
    if kind == "splash":
        require(
            length % _SPLASH_MULTIPLE == 0,
            f"attention 'splash' takes lengths that are multiples of {_SPLASH_MULTIPLE}, got "
            f"{length}; change config.model.length, or set config.model.attention = 'xla'.",
        )
    if kind in ("splash", "fused"):
        ways = plan.mesh.shape[plan.head_axis] if plan.mesh and plan.head_axis else 1
        require(
            heads % ways == 0,
            f"{heads} attention heads do not divide over the {ways} devices of mesh axis "
            f"{plan.head_axis!r}; use a multiple of {ways} heads, or a smaller axis.",
        )
    if kind == "fused":
        _check_fused(plan, head_dim, dtype)
    if kind == "cudnn":
        require(
            not hides,
            "attention 'cudnn' sees all positions of a row, and answers of a given length see no "
            "further; set config.model.attention = 'xla'.",
        )
        require(
            block == 0,
            f"attention 'cudnn' sees all positions or those before, not blocks of {block}; set "
            "config.model.attention = 'xla'.",
        )
        require(
            softcap == 0,
            f"attention 'cudnn' cannot cap scores, got a cap of {softcap}; set "
            "config.model.attention_softcap = 0, or config.model.attention = 'xla'.",
        )
        require(
            jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16),
            f"attention 'cudnn' computes in bfloat16, got {jnp.dtype(dtype).name}; set "
            "config.model.dtype = 'bfloat16', or config.model.attention = 'xla'.",
        )
        require(
            head_dim % 8 == 0 and head_dim <= _CUDNN_MAX_HEAD,
            f"attention 'cudnn' takes head sizes in multiples of 8 up to {_CUDNN_MAX_HEAD}, got "
            f"{head_dim}; change config.model.heads, or set config.model.attention = 'xla'.",
        )


def _check_fused(plan: AttentionPlan, head_dim: int, dtype) -> None:
    xla = "set config.model.attention = 'xla'."
    missing = fused_attention.why_missing()
    require(not missing, f"attention 'fused': {missing}; or {xla}")
    if plan.interpret:
        return
    unable = fused_attention.why_not_on(getattr(plan.device, "compute_capability", None))
    require(not unable, f"attention 'fused' cannot run here: {unable}; {xla}")
    require(
        jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16),
        f"attention 'fused' computes in bfloat16, got {jnp.dtype(dtype).name}; set "
        f"config.model.dtype = 'bfloat16', or {xla}",
    )
    require(
        head_dim <= _FUSED_MAX_HEAD,
        f"attention 'fused' takes head sizes up to {_FUSED_MAX_HEAD}, got {head_dim}; change "
        f"config.model.heads, or {xla}",
    )


def attention(
    q_BLHK: Float[Array, "b l h k"],
    k_BLHK: Float[Array, "b l h k"],
    v_BLHK: Float[Array, "b l h k"],
    *,
    softcap: float = 0.0,
    plan: AttentionPlan = AttentionPlan(),  # noqa: B008  frozen
    causal: bool = False,
    block: int = 0,
    visible_BM: Bool[Array, "b l"] | None = None,
) -> Float[Array, "b l h k"]:
    """Softmax attention with scores scaled by K^-1/2 and a float32 softmax.

    Args:
      q_BLHK, k_BLHK, v_BLHK: queries, keys, values.
      softcap: c > 0 caps the scores as c * tanh(score / c); 0 for none.
      plan: kernel and devices. All kinds agree within rounding.
      causal: whether each position attends to itself and earlier ones alone, not to all.
      block: n > 0: each position attends to its block of n positions and those before; no cudnn.
      visible_BM: further mask of positions that may be attended to, None for all; not in cudnn. The
        output at a position without visible keys is undefined but finite.

    Raises:
      UserError: a shape, type, cap or platform that the chosen kernel does not support.
    """
    _, length, heads, head_dim = q_BLHK.shape
    check_attention(
        plan,
        length=length,
        heads=heads,
        head_dim=head_dim,
        softcap=softcap,
        dtype=q_BLHK.dtype,
        block=block,
        hides=visible_BM is not None,
    )
    qkv = q_BLHK, k_BLHK, v_BLHK
    if plan.kind == "splash":
        return _splash(*qkv, softcap, plan, causal, block, visible_BM)
    if plan.kind == "fused":
        fused = functools.partial(
            fused_attention.fused_attention,
            softcap=softcap,
            causal=causal,
            interpret=plan.interpret,
            visible_LM=jnp.asarray(_blockwise(length, block)) if block and not causal else None,
        )
        return _on_own_rows(fused, plan, *qkv, visible_BM=visible_BM)
    if not softcap and (causal or not block):
        mask = None if visible_BM is None else visible_BM[:, None, None]
        return jax.nn.dot_product_attention(
            *qkv, mask=mask, is_causal=causal, implementation=plan.kind
        )
    block = 1 if causal else block
    visible_BLM = jnp.asarray(_blockwise(length, block))[None] if block else None
    if visible_BM is not None:
        seen_BLM = visible_BM[:, None]
        visible_BLM = seen_BLM if visible_BLM is None else visible_BLM & seen_BLM
    return _capped(*qkv, softcap, visible_BLM)


def cached_attention(
    q_BLHK: Float[Array, "b l h k"],
    k_BMHK: Float[Array, "b m h k"],
    v_BMHK: Float[Array, "b m h k"],
    visible_BLM: Bool[Array, "#b l m"],
    *,
    softcap: float = 0.0,
) -> Float[Array, "b l h k"]:
    """Attention of a few queries to cached keys and values, masked by `visible_BLM`.

    Computed by einsums for all kernels: one query has no score matrix to avoid.
    """
    return _capped(q_BLHK, k_BMHK, v_BMHK, softcap, visible_BLM)


def _capped(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    softcap: float,
    visible_BLM: jax.Array | None = None,
) -> jax.Array:
    scale = q_BLHK.shape[-1] ** -0.5
    scores_BHLM = jnp.einsum(
        "blhk,bmhk->bhlm", q_BLHK * scale, k_BLHK, preferred_element_type=jnp.float32
    )
    if softcap:
        scores_BHLM = softcap * jnp.tanh(scores_BHLM / softcap)
    if visible_BLM is not None:
        # Finite, since a query may see nothing: its weights would be NaN.
        least = jnp.finfo(scores_BHLM.dtype).min
        scores_BHLM = jnp.where(visible_BLM[:, None], scores_BHLM, least)
    weights_BHLM = jax.nn.softmax(scores_BHLM, axis=-1).astype(v_BLHK.dtype)
    return jnp.einsum("bhlm,bmhk->blhk", weights_BHLM, v_BLHK)


def _blockwise(length: int, block: int) -> np.ndarray:
    """Mask [L, L] of the keys of each query: its own block and earlier blocks."""
    number_L = np.arange(length) // block
    return number_L[:, None] >= number_L[None]


def _blocks(length: int) -> splash_kernel.BlockSizes:
    """Tiles of a few MiB of on-chip memory, and one backward kernel that computes scores once."""
    compute = next(n for n in (512, 384, 256, 128) if length % n == 0)
    keys = 2 * compute if length % (2 * compute) == 0 else compute
    return splash_kernel.BlockSizes(
        block_q=compute,
        block_kv=keys,
        block_kv_compute=compute,
        block_q_dkv=compute,
        block_kv_dkv=keys,
        block_kv_dkv_compute=compute,
        use_fused_bwd_kernel=True,
    )


def _splash(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    softcap: float,
    plan: AttentionPlan,
    causal: bool,
    block: int,
    visible_BM: jax.Array | None,
) -> jax.Array:
    """Splash attention on each device's own rows and heads."""

    def local(*qkv_BLHK, visible_BM):
        q_BHLK, k_BHLK, v_BHLK = (x.swapaxes(1, 2) for x in qkv_BLHK)
        heads, length = q_BHLK.shape[1:3]
        if block and not causal:
            mask = splash_mask.NumpyMask(_blockwise(length, block))
        else:
            mask = (splash_mask.CausalMask if causal else splash_mask.FullMask)((length, length))
        kernel = splash_kernel.make_splash_mha_single_device(
            splash_mask.MultiHeadMask([mask] * heads),
            block_sizes=_blocks(length),
            attn_logits_soft_cap=softcap or None,
            residual_checkpoint_name=_RESIDUALS,
            interpret=plan.interpret,
        )

        def one(*qkv_HLK, visible_M):
            # What may not be seen is a segment of its own, which sees itself.
            ids = None if visible_M is None else [visible_M.astype(jnp.int32)] * 2
            return kernel(*qkv_HLK, segment_ids=ids and splash_kernel.SegmentIds(*ids))

        return jax.vmap(one)(q_BHLK, k_BHLK, v_BHLK, visible_M=visible_BM).swapaxes(1, 2)

    # The kernel scales nothing itself; in float32, since K^-1/2 need not be exact in bfloat16.
    scale = q_BLHK.shape[-1] ** -0.5
    q_BLHK = (q_BLHK.astype(jnp.float32) * scale).astype(q_BLHK.dtype)
    return _on_own_rows(local, plan, q_BLHK, k_BLHK, v_BLHK, visible_BM=visible_BM)


def _on_own_rows(
    local: Callable, plan: AttentionPlan, *qkv_BLHK: jax.Array, visible_BM: jax.Array | None
) -> jax.Array:
    """Runs a kernel that the compiler cannot partition on each device's own rows and heads."""
    if plan.mesh is None or plan.mesh.size == 1:
        return local(*qkv_BLHK, visible_BM=visible_BM)
    ways = functools.reduce(lambda n, axis: n * plan.mesh.shape[axis], plan.batch_axes, 1)
    # A few rows that do not divide (samples shown during training) are computed everywhere.
    rows = plan.batch_axes if qkv_BLHK[0].shape[0] % ways == 0 else None
    spec = PartitionSpec(rows, None, plan.head_axis)
    # check_vma: Pallas calls do not declare over which axes their results vary.
    fn = jax.shard_map(
        lambda seen_BM, *qkv_BLHK: local(*qkv_BLHK, visible_BM=seen_BM),
        mesh=plan.mesh,
        in_specs=(PartitionSpec(rows), spec, spec, spec),
        out_specs=spec,
        check_vma=False,
    )
    return fn(visible_BM, *qkv_BLHK)
