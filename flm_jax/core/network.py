"""The interface between networks and the code that calls them."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import AxisType, Mesh

from flm_jax.core.errors import one_of, require
from flm_jax.core.types import Key, Params


@dataclasses.dataclass(frozen=True)
class Parallel:
    """Mesh axes over which vocabulary-sized work is split explicitly, by `shard_map`.

    Attributes:
      mesh: the mesh of the arrays, with Auto axes.
      batch_axes: axes over which rows [B, ...] are split; () where rows are replicated.
      vocab_axis: axis over which V of the head and the embedding table is split; None where it is
        replicated.
      embed_axis: axis of batch_axes over which D of the stored head is split as well (FSDP), so
        that its gradient is scattered over it; None where it is replicated.
    """

    mesh: Mesh
    batch_axes: tuple[str, ...]
    vocab_axis: str | None = None
    embed_axis: str | None = None

    def __post_init__(self) -> None:
        axes = (*self.batch_axes, *([self.vocab_axis] if self.vocab_axis else []))
        for axis in axes:
            one_of("mesh axis", axis, self.mesh.axis_names)
        require(len(set(axes)) == len(axes), f"mesh axes {axes}: each may be used once.")
        require(
            self.embed_axis is None or self.embed_axis in self.batch_axes,
            f"embed_axis {self.embed_axis!r}: expected None or one of {self.batch_axes}.",
        )
        require(
            all(kind == AxisType.Auto for kind in self.mesh.axis_types),
            f"mesh axis types {self.mesh.axis_types}: expected Auto; give "
            "jax.make_mesh(..., axis_types=(AxisType.Auto, ...)).",
        )


class Evidence(NamedTuple):
    """Posterior of each token given its own state: the softmax of features times kernel.

    Attributes:
      features: function from (table [V, D], states [B, L, D], network times [B] or [B, L]) to [B,
        L, k].
      kernel: function from the table to [k, V].
      dtype: type in which the network reads the posterior's mean, as the states it replaces.
    """

    features: Callable[..., jax.Array]
    kernel: Callable[[jax.Array], jax.Array]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Network:
    """A denoiser as pure functions; the only form in which a model reaches losses and samplers.

    Attributes:
      init: function from a key to parameters (nested dict of float32 arrays).
      features: (params, x_s [B, L, D], s, t, *, key=None, visible=None) -> last hidden states [B,
        L, D]; s and t are network times (the clock tau), [B] or [B, L]; a key switches dropout on;
        `visible` [B, L] is the mask of positions that may be attended to, None for all, and outputs
        at the other positions are undefined. Self-conditioned networks also take estimate=delta @ E
        [B, L, D], an earlier output; zeros, or None, for none. Losses and samplers call
        `denoiser.forward`.
      readout: function from params to (kernel [D, V], bias [V]) of the head.
      table: function from params to the embedding table E [V, D], float32.
      lookup: (params, tokens) -> E[tokens] [..., D], float32, for tables that are stored in 16 bits
        and need not be cast entirely; None for rows of `table`. See `denoiser.forward.embedded`.
      logit_softcap: cap c of logits c * tanh(l / c); 0 for none.
      two_time: whether t is used (a flow map) or ignored (an ordinary denoiser).
      tokens: number of rows of the vocabulary that stand for tokens, the first ones; 0 for all. The
        other rows pad it to a size that divides well, and have no probability.
      loss_tile: number of positions of each row whose logits the losses hold at a time; 0 for all.
      parallel: mesh axes for the losses; None leaves their partitioning to the compiler.
      any_order: whether training had clean tokens, at time 1, beside noisy ones.
      self_conditioned: whether an estimate of the clean text is an input besides the state.
      evidence: posterior of each token given its own state alone (see `flows.posterior`); None
        where neither input nor output uses it.
      posterior_input: whether features take E^T p of that posterior instead of x_s;
        `denoiser.forward` computes it.
      posterior_skip: whether the logits of that posterior are added to the head's.
      any_length: whether rows may be shorter than max_length, although training had rows of
        max_length.
      log_loss: (params, s [B], t [B]) -> float32 [B], a trained function of the network times that
        weights the loss (see `losses.time_weighting`); None for equal weights.
      block_length: n > 0 for a network whose positions attend to their own block of n positions,
        counted from the start of a row, and to the blocks before; 0 where they attend to all.
      anchor: function from params to embeddings [max_length, D] of masked positions, one for each;
        only for networks of masked diffusion.
      cache: (rows, length) -> empty cache of keys and values, [blocks, B, ...], for `extend` or
        `window`; None for networks that have neither.
      window: (params, cache, x [B, W, D], s, *, places=None, visible=None) -> (features [B, W, D],
        cache): features of the positions `places` [B, W] of each row, None for all, in states x.
        These positions attend to each other and to the other positions in the cache, where their
        own entries are replaced. Times s and `visible` have the meaning they have for `features`.
      extend: (params, cache, x [B, D], position) -> (features [B, 1, D] at `position`, cache); x is
        the state at position - 1, and is not read where position = 0. Only for causal networks,
        whose features at position l see x_s at the positions before l alone, and no times.
    """

    init: Callable[[Key], Params]
    features: Callable[..., jax.Array]
    readout: Callable[[Params], tuple[jax.Array, jax.Array]]
    table: Callable[[Params], jax.Array]
    vocab_size: int
    dim: int
    max_length: int
    logit_softcap: float = 0.0
    two_time: bool = False
    tokens: int = 0
    loss_tile: int = 0
    parallel: Parallel | None = None
    any_order: bool = False
    self_conditioned: bool = False
    any_length: bool = False
    block_length: int = 0
    evidence: Evidence | None = None
    posterior_input: bool = False
    posterior_skip: bool = False
    log_loss: Callable[..., jax.Array] | None = None
    lookup: Callable[[Params, jax.Array], jax.Array] | None = None
    anchor: Callable[[Params], jax.Array] | None = None
    cache: Callable[[int, int], Params] | None = None
    extend: Callable[..., tuple[jax.Array, Params]] | None = None
    window: Callable[..., tuple[jax.Array, Params]] | None = None

    @property
    def token_count(self) -> int:
        """Number of rows of the vocabulary that stand for tokens."""
        return self.tokens or self.vocab_size
