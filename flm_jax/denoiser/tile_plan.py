"""How vocabulary-sized work is cut into tiles and laid over devices."""

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
    """How vocabulary-sized work is cut.

    Attributes:
      tile: positions of each row in one tile; 0 for all of them.
      softcap: cap c of logits c * tanh(l / c); 0 for none.
      parallel: mesh axes to work over explicitly; None leaves partitioning to the compiler.
      columns: of the heads that stand for tokens, the first ones; 0 where all do. See
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
    """How a network wants its vocabulary cut."""
    return Plan(net.loss_tile, net.logit_softcap, net.parallel, net.tokens)


def sampling_tile(rows: int, vocab: int, loss_tile: int) -> int:
    """Positions of each row whose logits a sampler holds at a time.

    As many as fit, without being asked: who samples a model of a large vocabulary has seldom
    configured a loss for it.

    Args:
      rows: of the batch.
      vocab: columns of the head.
      loss_tile: of `Network`; where it is set, no more than that.
    """
    fit = max(_LEAST_SAMPLED, _SAMPLED // (rows * vocab))
    return min(loss_tile, fit) if loss_tile else fit


def specs(plan: Plan) -> tuple[PartitionSpec, tuple[PartitionSpec, PartitionSpec]]:
    """Specs of [B, ...] arrays and of a head (kernel [D, V], bias [V])."""
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
