"""Alignment of a masked diffusion model, compared with its base."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.head import logits, token_nll
from flm_jax.flows.masking import free_positions, hide_independently, written_positions
from flm_jax.losses.alignment import AlignmentConfig, aligned_at

# params, batch, key -> sums over positions by name, and how many positions they are over.
Figures = Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]


def make_alignment_figures(net: Network, cfg: AlignmentConfig) -> Figures:
    """Returns figures(params, batch, key) -> (sums, counts), to be jitted.

    A fraction of the positions is masked, on a grid over the rows. The names are
    `masked_squared_distance` and `unmasked_squared_distance` (of expected embeddings to E[x], over
    coordinates) and `masked_nll_nats`.
    """

    def figures(params: Params, batch: dict[str, jax.Array], key: Key):
        tokens, counted = batch["tokens"], free_positions(batch, 0)
        share = (jnp.arange(tokens.shape[0]) + 0.5) / tokens.shape[0]
        hidden = hide_independently(key, share, written_positions(batch, 0))
        masked, t = counted & hidden, jnp.where(hidden, 0.0, 1.0)
        seen = batch.get("visible")
        distance, out = aligned_at(params, tokens, t, net=net, cfg=cfg, visible=seen)
        nll = token_nll(logits(out, net), tokens)
        parts = {
            "masked_squared_distance": (distance, masked),
            "unmasked_squared_distance": (distance, counted & ~masked),
            "masked_nll_nats": (nll, masked),
        }
        sums = {name: jnp.sum(jnp.where(where, x, 0.0)) for name, (x, where) in parts.items()}
        return sums, {name: jnp.sum(where) for name, (_, where) in parts.items()}

    return figures


def compare_with_base(
    figures: Figures, params: Params, base: Params, batches: Iterable[dict], key: Key
) -> dict[str, float]:
    """Means per token over batches, NAME of the model and base_NAME of its base; equal masks."""
    totals: dict[str, np.ndarray] = {}
    for index, batch in enumerate(batches):
        for prefix, tree in (("", params), ("base_", base)):
            sums, counts = figures(tree, batch, jax.random.fold_in(key, index))
            for name, value in sums.items():
                pair = np.array([float(value), float(counts[name])])
                totals[prefix + name] = totals.get(prefix + name, 0.0) + pair
    return {f"{name}_per_token": float(s / max(n, 1.0)) for name, (s, n) in totals.items()}
