"""Likelihood on held-out data: exact for autoregressive models, a bound for masked diffusion."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.core.errors import check_seed
from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.distributed.agreement import in_turn
from flm_jax.flows.masking import after, highest, random_subset
from flm_jax.losses.autoregressive import next_token_loss
from flm_jax.losses.base import row_means
from flm_jax.losses.masked_diffusion import MaskedConfig, masked_loss_at

# row_nll(params, batch, tau [B], key) -> (nll [B] in nats/token, scored [B]), as of `denoising`.
RowNll = Callable[..., tuple[jax.Array, jax.Array]]


class Likelihood(NamedTuple):
    """Negative log-likelihood of a corpus, or a bound on it.

    Attributes:
      nats_per_token: total over all tokens that are scored, divided by their number.
      standard_error: standard error over sequences, from the choice of sequences and the draws.
      tokens, sequences, draws: numbers of tokens, sequences and draws.
    """

    nats_per_token: float
    standard_error: float
    tokens: int
    sequences: int
    draws: int

    @property
    def perplexity(self) -> float:
        """Perplexity exp(nats_per_token); comparable only between models of one tokenizer."""
        return float(np.exp(self.nats_per_token))


def make_autoregressive_nll(net: Network) -> RowNll:
    """Returns row_nll(params, batch, tau, key): the exact mean of -log p(x_l | x_<l)."""

    def row_nll(params: Params, batch: dict[str, jax.Array], tau: jax.Array, key: Key):
        del tau, key
        weights = batch["mask"].astype(jnp.float32)
        _, nll = next_token_loss(params, batch["tokens"], weights, net=net)
        return row_means(nll, weights)

    return row_nll


def make_masked_nll(net: Network, cfg: MaskedConfig) -> RowNll:
    """Returns row_nll(params, batch, tau, key), an unbiased estimate of the NELBO over tau.

    Here tau ~ U(0, 1). The integral over t of the continuous-time NELBO equals the mean over n ~
    U{1..L} of L/n times the cross entropy summed over n hidden positions chosen uniformly (arXiv
    2502.09992v3, eq. 6): the same bound, without t near 0 where 1/t is unbounded. n = ceil((1 -
    tau) L), so that tau = 0 hides everything, as in a flow. Positions that are not valid are hidden
    like the others and do not count, as in training. With cfg.prompt, or prompts in the batch, all
    this applies to the positions after the prompt. With "visible" in the batch, [B, L], the other
    positions do not belong to the row, and the estimate of a row is the same as without them.
    """

    def row_nll(params: Params, batch: dict[str, jax.Array], tau: jax.Array, key: Key):
        tokens = batch["tokens"]
        free = after(cfg.prompt, batch["mask"])
        if "prompt" in batch:
            free = free & ~batch["prompt"].astype(bool)
        if "visible" in batch:
            free = free & batch["visible"]
        if "prompt" in batch or "visible" in batch:
            length = jnp.maximum(jnp.sum(free, axis=1), 1)
        else:
            length = tokens.shape[1] - cfg.prompt
        count = jnp.clip(jnp.ceil((1.0 - tau) * length), 1, length).astype(jnp.int32)
        if "prompt" in batch:
            masked = highest(jax.random.uniform(key, free.shape), free, count)
        elif "visible" in batch:
            # The smallest numbers, which `random_subset` takes as well.
            masked = highest(-jax.random.uniform(key, free.shape), free, count)
        else:
            masked = jnp.pad(random_subset(key, count, length), ((0, 0), (cfg.prompt, 0)))
        t = count / length
        valid = batch["mask"] * free
        weights = valid.astype(jnp.float32) * masked / t[:, None]
        seen = batch.get("visible")
        _, nll = masked_loss_at(params, tokens, masked, t, weights, net=net, cfg=cfg, visible=seen)
        return row_means(nll * weights, valid)

    return row_nll


def sequence_nats(
    row_nll: RowNll,
    params: Params,
    batches: Iterable[dict[str, jax.Array]],
    *,
    draws: int = 1,
    seed: int = 1,
    share: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood, or a bound on it, of each sequence that has a token to score.

    Args:
      row_nll: jitted function from `make_autoregressive_nll` (one draw is exact) or
        `make_masked_nll`.
      batches: batches with "tokens" int32 [B, L] and "mask" [B, L].
      draws: number of draws of tau for each sequence, one in each equal part of [0, 1).
      seed: seed of the draws.
      share: whether each process of a run does a part of the batches, see
        `distributed.agreement.in_turn`.

    Returns:
      Nats and number of tokens that are scored (of a prompt that the objective leaves clean, none),
      float64 [N] each.
    """
    check_seed(seed)
    rng, root = np.random.default_rng(seed), jax.random.key(seed)
    totals, counts = [], []

    def drawn():
        for index, batch in enumerate(batches):
            rows = batch["tokens"].shape[0]
            # Stratified over the draws of a sequence.
            taus = [(draw + rng.random(rows)) / draws for draw in range(draws)]
            yield index, batch, np.asarray(taus, np.float32)

    def one(item) -> tuple[np.ndarray, np.ndarray]:
        index, batch, taus = item
        own = jax.random.fold_in(root, index)
        found = [
            row_nll(params, batch, tau, jax.random.fold_in(own, draw))
            for draw, tau in enumerate(taus)
        ]
        nats, scored = zip(*jax.device_get(found))
        return np.stack(nats), scored[0]

    for found, scored in in_turn(drawn(), one, share):
        mean = sum(each.astype(np.float64) / draws for each in found)
        count = scored.astype(np.float64)
        totals.append((mean * count)[count > 0])
        counts.append(count[count > 0])
    return np.concatenate(totals), np.concatenate(counts)


def likelihood(
    row_nll: RowNll,
    params: Params,
    batches: Iterable[dict[str, jax.Array]],
    *,
    draws: int = 1,
    seed: int = 1,
    share: bool = False,
) -> Likelihood:
    """Mean over the valid tokens of a corpus; arguments are as in `sequence_nats`.

    Returns:
      A Likelihood; its standard error is that of a ratio of means over sequences.
    """
    how = {"draws": draws, "seed": seed, "share": share}
    total, count = sequence_nats(row_nll, params, batches, **how)
    value = total.sum() / count.sum()
    # The ratio's linearisation: its error is the sum of total_i - value count_i over the count.
    spread = np.sqrt(np.sum((total - value * count) ** 2)) / count.sum()
    return Likelihood(float(value), float(spread), int(count.sum()), len(count), draws)
