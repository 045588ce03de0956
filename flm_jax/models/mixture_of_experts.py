"""Mixtures of SwiGLU experts: a sigmoid router limited to groups, and experts over sorted tokens.

Sources: arXiv 2412.19437, eq. 12-16 (DeepSeek-V3: weights from the scores, selection by scores plus
a bias that balances loads) and its limit of each token to a few groups of experts, as in LLaDA2.0
(arXiv 2512.15745):

    p = sigmoid(W x);  b = p + bias
    group score = sum of the two largest b of the group; the `active_groups` best groups stay
    T = the `active` largest b in these groups;  g_e = scale p_e / (sum_T p + 1e-20)
    out = sum over e in T of g_e down_e(silu(gate_e x) * up_e x)

The bias enters no weight and hence has no gradient.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flm_jax.core.errors import require
from flm_jax.core.settings import setting
from flm_jax.models import fused_attention
from flm_jax.models.attention import AttentionPlan

# Rows that are multiplied by one expert's matrices at a time.
_LEAST_TILE, _MOST_TILE = 8, 128


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """Settings of a mixture of experts; an instance without experts is false."""

    number: int = setting(
        0, "Number of routed experts of a block; 0 for a plain MLP instead.", range="[0, inf)"
    )
    active: int = setting(8, "Number of routed experts that each token uses.", range="[1, inf)")
    hidden: int = setting(512, "Hidden width of each expert.", range="[1, inf)")
    shared: int = setting(1, "Number of shared experts, which every token uses.", range="[1, inf)")
    groups: int = setting(1, "Number of equal groups of routed experts.", range="[1, inf)")
    active_groups: int = setting(
        1, "Number of groups from which a token may choose.", range="[1, inf)"
    )
    scale: float = setting(
        1.0, "Factor of the routing weights after they are normalised to sum 1.", range="(0, inf)"
    )
    dense_blocks: int = setting(
        1, "Number of first blocks, which have a plain MLP.", range="[0, inf)"
    )
    kernel: str = setting(
        "tiles",
        "Kernel of the product of rows by their experts' matrices: tiles (any platform), or "
        "fused (tokamax's kernel, one NVIDIA GPU).",
        choices=("tiles", "fused"),
    )

    def __bool__(self) -> bool:
        return self.number > 0

    @property
    def shared_hidden(self) -> int:
        """Total width of the shared experts, which are one MLP side by side."""
        return self.shared * self.hidden


def check_experts(cfg: ExpertsConfig, depth: int) -> None:
    """Refuses sizes that do not form a mixture.

    Raises:
      UserError: groups that do not divide the experts, too few experts or groups, or bad blocks.
    """
    where = "config.model.experts"
    require(
        cfg.groups >= 1 and cfg.number % cfg.groups == 0 and cfg.number >= 2 * cfg.groups,
        f"{where}: {cfg.number} experts do not make {cfg.groups} groups of two or more; set "
        f"{where}.groups to a divisor.",
    )
    require(
        1 <= cfg.active_groups <= cfg.groups,
        f"{where}.active_groups is {cfg.active_groups}; expected 1 to {cfg.groups} (groups).",
    )
    most = cfg.active_groups * cfg.number // cfg.groups
    require(
        1 <= cfg.active <= most,
        f"{where}.active is {cfg.active}; expected 1 to {most}, the experts of {cfg.active_groups} "
        "groups.",
    )
    require(
        cfg.hidden >= 1 and cfg.shared >= 1,
        f"{where} has hidden {cfg.hidden} and shared {cfg.shared}; expected at least 1 of each.",
    )
    require(
        0 <= cfg.dense_blocks < depth,
        f"{where}.dense_blocks is {cfg.dense_blocks}; expected 0 to {depth - 1}, with "
        f"{depth} blocks.",
    )


def check_kernel(cfg: ExpertsConfig, plan: AttentionPlan) -> None:
    """Refuses a kernel that cannot run here.

    Args:
      cfg: settings with the kernel.
      plan: plan of the network's attention, for its devices.

    Raises:
      UserError: "fused" without tokamax, without a GPU, or over several devices.
    """
    if cfg.kernel != "fused":
        return
    where, tiles = "config.model.experts.kernel", "set it to 'tiles'"
    missing = fused_attention.why_missing()
    require(not missing, f"{where} is 'fused': {missing}; or {tiles}.")
    require(
        plan.interpret or plan.platform == "gpu",
        f"{where} is 'fused', which runs on GPUs, got {plan.platform}; {tiles}.",
    )
    devices = 1 if plan.mesh is None else plan.mesh.size
    require(devices == 1, f"{where} is 'fused', which runs on one device, got {devices}; {tiles}.")


class Routing(NamedTuple):
    """Experts of each token [N, active], int32, and their weights, float32."""

    experts: jax.Array
    weights: jax.Array


def choose_experts(
    logits_NE: Float[Array, "n e"], bias_E: Float[Array, " e"], cfg: ExpertsConfig
) -> Routing:
    """Chooses the experts of each token from the router's logits, float32.

    Args:
      logits_NE: logits of N tokens and E experts; groups consist of neighbouring experts.
      bias_E: bias added to the scores for the selection alone.
      cfg: settings of the mixture.
    """
    scores_NE = jax.nn.sigmoid(logits_NE)
    biased_NGM = (scores_NE + bias_E[None]).reshape(len(scores_NE), cfg.groups, -1)
    group_NG = jax.lax.top_k(biased_NGM, 2)[0].sum(-1)
    _, kept_NJ = jax.lax.top_k(group_NG, cfg.active_groups)
    kept_NG = jax.nn.one_hot(kept_NJ, cfg.groups, dtype=bool).any(axis=1)
    biased_NE = jnp.where(kept_NG[..., None], biased_NGM, -jnp.inf).reshape(scores_NE.shape)
    _, experts_NA = jax.lax.top_k(biased_NE, cfg.active)
    # The scores, not the biased ones that chose: the bias balances loads and scales no output.
    weights_NA = jnp.take_along_axis(scores_NE, experts_NA, axis=-1)
    total_N1 = weights_NA.sum(-1, keepdims=True) + 1e-20
    return Routing(experts_NA, cfg.scale * weights_NA / total_N1)


class _Tiles(NamedTuple):
    """Rows sorted by expert, with each expert's rows padded to full tiles.

    Attributes:
      place: [N A] int32, indices of the rows among the rows of all tiles.
      expert: [tiles] int32, expert whose rows a tile holds.
      size: number of rows of a tile.
    """

    place: jax.Array
    expert: jax.Array
    size: int


def _tiles(expert_R: Int[Array, " r"], number: int) -> _Tiles:
    """Builds tiles of static number: R rows fill R // size, and each expert has a partial one."""
    rows = len(expert_R)
    # The power of two above the mean number of rows of an expert.
    size = min(max(_LEAST_TILE, 1 << (rows // number).bit_length()), _MOST_TILE)
    counts_E = jnp.bincount(expert_R, length=number)
    order_R = jnp.argsort(expert_R, stable=True)
    # -(-n // size) is n / size, rounded up. Expert e has the tiles from first_E[e] to ends_E[e].
    ends_E = jnp.cumsum(-(-counts_E // size))
    sorted_R = expert_R[order_R]
    within_R = jnp.arange(rows) - (jnp.cumsum(counts_E) - counts_E)[sorted_R]
    first_E = ends_E - -(-counts_E // size)
    place_R = jnp.zeros(rows, jnp.int32).at[order_R].set(size * first_E[sorted_R] + within_R)
    # At least sum_e ceil(n_e / size): there are at most R // size full tiles, and at most one
    # partial tile for each expert.
    tiles = rows // size + min(number, rows)
    # Tiles past the last hold zeros, whichever expert they have.
    expert_T = jnp.searchsorted(ends_E, jnp.arange(tiles), side="right")
    return _Tiles(place_R, jnp.minimum(expert_T, number - 1), size)


@jax.custom_vjp
def _grouped(x_TSK: jax.Array, kernel_EKF: jax.Array, expert_T: jax.Array) -> jax.Array:
    """Multiplies each tile by the matrix of its expert, tile after tile.

    `jax.lax.ragged_dot` computes the same, but off TPUs it copies the rows once for each expert: on
    a CPU it takes 20 to 40 times as long (32 and 64 experts, 128 to 4096 rows) and 10 times the
    memory, on an H200 six times as long (4096 tokens of LLaDA2.0-mini).
    """
    # Cast matrix by matrix: all at once would be a copy of all experts.
    one = lambda tile: tile[0] @ kernel_EKF[tile[1]].astype(x_TSK.dtype)
    return jax.lax.map(one, (x_TSK, expert_T))


def _grouped_forward(x_TSK, kernel_EKF, expert_T):
    return _grouped(x_TSK, kernel_EKF, expert_T), (x_TSK, kernel_EKF, expert_T)


def _grouped_backward(kept, out_TSF):
    """Backward rule; default differentiation would sum arrays of all experts' size per tile."""
    x_TSK, kernel_EKF, expert_T = kept

    def one(sums_EKF, tile):
        x_SK, out_SF, expert = tile
        part_KF = jnp.matmul(x_SK.T, out_SF, preferred_element_type=jnp.float32)
        return sums_EKF.at[expert].add(part_KF), out_SF @ kernel_EKF[expert].astype(out_SF.dtype).T

    zeros_EKF = jnp.zeros(kernel_EKF.shape, jnp.float32)
    sums_EKF, dx_TSK = jax.lax.scan(one, zeros_EKF, (x_TSK, out_TSF, expert_T))
    return dx_TSK, sums_EKF.astype(kernel_EKF.dtype), None


_grouped.defvjp(_grouped_forward, _grouped_backward)


class _Kernels(nnx.Module):
    """Matrices of all experts under one name, [E, inputs, outputs]."""

    def __init__(self, shape: tuple[int, int, int], scale: float, param_dtype, rngs: nnx.Rngs):
        draw = jax.random.normal(rngs.params(), shape, param_dtype)
        self.kernel = nnx.Param((scale * shape[1] ** -0.5 * draw).astype(param_dtype))


class _Router(nnx.Module):
    """Router, always float32: rounding could flip near-ties between experts."""

    def __init__(self, dim: int, number: int, rngs: nnx.Rngs):
        self.kernel = nnx.Param(dim**-0.5 * jax.random.normal(rngs.params(), (dim, number)))
        self.bias = nnx.Param(jnp.zeros(number))


class Experts(nnx.Module):
    """The routed part of a mixture of experts on [B, L, D]; no [tokens, E, D] is ever held."""

    def __init__(
        self, cfg: ExpertsConfig, dim: int, narrow: float, dtype, param_dtype, rngs: nnx.Rngs
    ):
        self.cfg, self.dtype = cfg, dtype
        self.router = _Router(dim, cfg.number, rngs)
        self.gate = _Kernels((cfg.number, dim, cfg.hidden), 1.0, param_dtype, rngs)
        self.up = _Kernels((cfg.number, dim, cfg.hidden), 1.0, param_dtype, rngs)
        self.mlp_out = _Kernels((cfg.number, cfg.hidden, dim), narrow, param_dtype, rngs)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        cfg, dim = self.cfg, x_BLD.shape[-1]
        x_ND = x_BLD.reshape(-1, dim).astype(self.dtype)
        logits_NE = jnp.matmul(
            x_ND.astype(jnp.float32), self.router.kernel[...], precision=jax.lax.Precision.HIGHEST
        )
        choice = choose_experts(logits_NE, self.router.bias[...], cfg)
        rows_RD = jnp.repeat(x_ND, cfg.active, axis=0)
        product = self._fused if cfg.kernel == "fused" else self._tiled
        out_RD = product(rows_RD, choice.experts.reshape(-1))
        out_NAD = out_RD.reshape(-1, cfg.active, dim)
        out_ND = jnp.einsum("na,nad->nd", choice.weights, out_NAD.astype(jnp.float32))
        return out_ND.astype(x_BLD.dtype).reshape(x_BLD.shape)

    def _tiled(self, rows_RD: jax.Array, expert_R: jax.Array) -> jax.Array:
        dim, tiles = rows_RD.shape[1], _tiles(expert_R, self.cfg.number)
        # Padding rows are 0, come out as 0 (no bias), and are not gathered again.
        tiled_PD = jnp.zeros((len(tiles.expert) * tiles.size, dim), rows_RD.dtype)
        tiled_TSD = tiled_PD.at[tiles.place].set(rows_RD).reshape(-1, tiles.size, dim)

        def by(name: str, x_TSK: jax.Array) -> jax.Array:
            return _grouped(x_TSK, getattr(self, name).kernel[...], tiles.expert)

        hidden_TSF = jax.nn.silu(by("gate", tiled_TSD)) * by("up", tiled_TSD)
        return by("mlp_out", hidden_TSF).reshape(-1, dim)[tiles.place]

    def _fused(self, rows_RD: jax.Array, expert_R: jax.Array) -> jax.Array:
        """Computes rows sorted by expert, with one kernel for each product of all of them."""
        order_R = jnp.argsort(expert_R, stable=True)
        sizes_E = jnp.bincount(expert_R, length=self.cfg.number).astype(jnp.int32)

        def by(name: str, x_RK: jax.Array) -> jax.Array:
            kernel_EKF = getattr(self, name).kernel[...].astype(x_RK.dtype)
            return fused_attention.tokamax().ragged_dot(x_RK, kernel_EKF, sizes_E)

        x_RD = rows_RD[order_R]
        hidden_RF = jax.nn.silu(by("gate", x_RD)) * by("up", x_RD)
        out_RD = by("mlp_out", hidden_RF).astype(rows_RD.dtype)
        return jnp.zeros_like(rows_RD).at[order_R].set(out_RD)
