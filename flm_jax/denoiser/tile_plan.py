"""Plans how vocabulary-sized work is cut into tiles and split over devices."""

import dataclasses

import jax
from jax.sharding import PartitionSpec

from flm_jax.core.errors import require
from flm_jax.core.network import Network, Parallel

# Logits that a sampler holds at a time, 16 MiB in float32, and positions of a row of which it holds
# them at least: each tile reads the head once.
_SAMPLED, _LEAST_SAMPLED = 1 << 22, 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """Tiling and partitioning of vocabulary-sized work.

    Attributes:
      tile: number of positions of each row in one tile; 0 for all of them.
      softcap: cap c of logits c * tanh(l / c); 0 for none.
      parallel: mesh axes to split the work over explicitly; None leaves partitioning to the
        compiler.
      columns: number of columns of the heads that stand for tokens, the first ones; 0 for all. See
        `Network.tokens`, and `tiled._aligned`, which adds some.
    """

    tile: int
    softcap: float
    parallel: Parallel | None = None
    columns: int = 0

    @property
    def batch_axes(self) -> tuple[str, ...]:
        return self.parallel.batch_axes if self.parallel else ()

    @property
    def vocab_axes(self) -> tuple[str, ...]:
        return (self.parallel.vocab_axis,) if self.parallel and self.parallel.vocab_axis else ()


def plan_of(net: Network) -> Plan:
    """Returns the plan that a network requests."""
    return Plan(net.loss_tile, net.logit_softcap, net.parallel, net.tokens)


def sampling_tile(rows: int, vocab: int, loss_tile: int) -> int:
    """Number of positions of each row whose logits a sampler holds at a time.

    It is as large as memory allows by default, since users who sample a model with a large
    vocabulary have seldom configured a loss for it.

    Args:
      rows: number of rows of the batch.
      vocab: number of columns of the head.
      loss_tile: upper bound, if not 0; see `Network.loss_tile`.
    """
    fit = max(_LEAST_SAMPLED, _SAMPLED // (rows * vocab))
    return min(loss_tile, fit) if loss_tile else fit


def specs(plan: Plan) -> tuple[PartitionSpec, tuple[PartitionSpec, PartitionSpec]]:
    """PartitionSpecs of [B, ...] arrays and of a head (kernel [D, V], bias [V])."""
    vocab = plan.vocab_axes
    return PartitionSpec(plan.batch_axes), (PartitionSpec(None, vocab), PartitionSpec(vocab))


def check_shapes(parallel: Parallel, features: jax.Array, kernel: jax.Array) -> None:
    shape = parallel.mesh.shape
    columns, num = kernel.shape[1], shape.get(parallel.vocab_axis, 1)
    require(
        columns % num == 0,
        f"vocabulary of {columns} does not divide over the {num} devices of mesh axis "
        f"{parallel.vocab_axis!r}; pad it to a multiple of {num} (vocab_multiple={num}).",
    )
    width, num = kernel.shape[0], shape.get(parallel.embed_axis, 1)
    require(
        width % num == 0,
        f"head width {width} does not divide over the {num} devices of mesh axis "
        f"{parallel.embed_axis!r}; give embed_axis=None.",
    )
    rows, num = features.shape[0], 1
    for axis in parallel.batch_axes:
        num *= shape[axis]
    require(
        rows % num == 0,
        f"batch of {rows} rows does not divide over the {num} devices of mesh axes "
        f"{parallel.batch_axes}; use a multiple of {num}.",
    )
