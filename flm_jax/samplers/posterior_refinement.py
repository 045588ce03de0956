"""Posterior refinement of an any-order flow map (arXiv 2606.24773).

Each round predicts all positions at once, jointly, by a flow map from noise to t = 1 with the fixed
tokens as clean context (per-token times s in {0, 1}); some predictions are fixed, and the rest
starts from noise again. Positions that one round fixes were predicted from the same noise, so they
are consistent as far as the flow map is exact; masked diffusion would draw them independently.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params
from flm_jax.flows.flow import Flow
from flm_jax.flows.masking import highest
from flm_jax.samplers.base import Given, SamplerConfig, Samples
from flm_jax.samplers.euler import carry
from flm_jax.samplers.guidance import plain
from flm_jax.samplers.unmasking import Partial, Seen, even_share, reveal_in_steps
from flm_jax.samplers.watching import watching

BUDGETS = ("topk", "uniform")
SPREADS = ("remaining", "even")
NOISES = ("fresh", "kept")


@dataclasses.dataclass(frozen=True)
class PosteriorRefinementConfig(SamplerConfig):
    """Posterior refinement of an any-order flow map; the step count bounds the network calls."""

    budget: str = setting(
        "topk",
        "Choice of the positions fixed in a round: topk (the most probable predictions) or "
        "uniform (random).",
        choices=BUDGETS,
    )
    spread: str = setting(
        "remaining",
        "Number of positions fixed in a round: remaining (the open positions, spread over the"
        " remaining rounds) or even (the initial number, spread over all rounds, whatever the"
        " threshold fixed).",
        choices=SPREADS,
    )
    tokens: int = setting(
        0,
        "Number of positions fixed in each round instead of the spread, except that the last "
        "round fixes all that are open; 0 for the spread.",
        range="[0, inf)",
    )
    threshold: float = setting(
        0.9,
        "Probability from which predictions are fixed beyond the budget; 1 for none.",
        range="[0, 1]",
    )
    noise: str = setting(
        "fresh",
        "Noise from which the open positions start: fresh in each round, or kept.",
        choices=NOISES,
    )
    flow_steps: int = setting(
        1, "Number of jumps of the flow map in a round, each one network call.", range="[1, inf)"
    )
    until: float = setting(
        1.0,
        "Clock time at which each jump ends: 1 for joint samples, 0 for the most probable "
        "tokens; needs one jump in a round.",
        range="[0, 1]",
    )

    def __post_init__(self):
        super().__post_init__()
        require(
            self.until == 1.0 or self.flow_steps == 1,
            f"sampler.until is {self.until} with flow_steps={self.flow_steps}; several jumps of a "
            "round end at 1: expected one of them at its default.",
        )


def check_any_order(
    cfg: PosteriorRefinementConfig, net: Network, steps: int, objective: Any
) -> None:
    """Refuses flow maps trained without random clean context, and step counts of partial rounds."""
    require(
        net.two_time and objective.context > 0.0,
        "sampler posterior_refinement needs a flow map trained with random clean context; train it "
        "with config.model.two_time = True and config.objective.context > 0.",
    )
    require(
        steps % cfg.flow_steps == 0,
        f"got steps={steps} network calls in rounds of flow_steps={cfg.flow_steps}; expected a "
        f"multiple, such as steps={-(-steps // cfg.flow_steps) * cfg.flow_steps}.",
    )


def sample(
    key: Key,
    params: Params,
    given: Given,
    extra: dict | None = None,
    *,
    net: Network,
    flow: Flow,
    steps: int,
    cfg: PosteriorRefinementConfig,
    **unused: Any,
) -> Samples:
    """Samples with the signature of `samplers.registry.Sampler`; see `sample_refined`."""
    del unused
    flow = flow.settled((extra or {}).get("times"))
    return sample_refined(key, net, params, flow=flow, steps=steps, given=given, cfg=cfg)


def sample_refined(
    key: Key,
    net: Network,
    params: Params,
    *,
    flow: Flow,
    steps: int,
    given: Given,
    cfg: PosteriorRefinementConfig,
) -> Samples:
    """Generates L positions in K / n rounds of n network calls each.

    Of the u open positions of a row, round r of R fixes the most probable ceil(u / (R - r)), and
    all whose predicted token has probability `threshold` or more (arXiv 2606.24773, as in its
    authors' code). The last round fixes the rest.

    Args:
      key: key of the draws; the first round's noise is that of `sample_euler` with this key, and
        with one round so are the samples of its n steps.
      net: an any-order flow map (two times).
      flow: flow whose map it is.
      steps: number K >= 1 of network calls, a multiple of n = cfg.flow_steps; static. With as many
        rounds as free positions, or more, each round fixes one.
      given: prescribed tokens, clean context from the start and never changed.
      cfg: settings. `budget`, the positions that a round fixes: "topk", those whose predicted token
        has the largest probability; "uniform", random ones, which favours no token over another.
        `spread` and `tokens`, the number of positions. `threshold`, as above; a row then ends
        early, and calls without open positions are not made. `noise`: "kept" keeps the noise of the
        first round. `until`: clock time in [0, 1] at which each jump ends, whose denoiser
        delta_0,until gives the tokens: 1 for the tokens to which the noise leads, which are
        consistent; 0 for the most probable token of each position by itself, independent of the
        noise, with its probability as confidence.

    Returns:
      Samples with the tokens after each round; calls is the number of network calls for the batch.
    """
    rounds = steps // cfg.flow_steps
    total = jnp.sum(~given.mask, axis=1)

    def predict(partial: Partial, k):
        # The first noise is that of the plain sampler: one round of either gives the same tokens.
        now = key if cfg.noise == "kept" else jnp.where(k == 0, key, jax.random.fold_in(key, k))
        return _predicted(now, net, params, flow, cfg, partial), None

    def plan(partial: Partial, k):
        count = tokens_of_round(cfg, jnp.sum(partial.masked, axis=1), total, rounds, k)
        # Apart from the keys of the noise, which are folded with rounds below `rounds`.
        order_key = jax.random.fold_in(jax.random.fold_in(key, rounds), k)
        return jnp.any(partial.masked & (count > 0)[:, None]), (count, order_key)

    def reveal(partial: Partial, confidence, details):
        count, order_key = details
        random = jax.random.uniform(order_key, confidence.shape)
        scores = confidence if cfg.budget == "topk" else random
        chosen = highest(scores, partial.masked, count)
        return chosen | (confidence >= cfg.threshold) if cfg.threshold < 1.0 else chosen

    found = reveal_in_steps(given, rounds, predict, plan, reveal)
    calls = jnp.asarray(found.calls) * cfg.flow_steps
    return found._replace(calls=calls)


def _predicted(
    key: Key,
    net: Network,
    params: Params,
    flow: Flow,
    cfg: PosteriorRefinementConfig,
    partial: Partial,
) -> Seen:
    """Predictions of a round at open positions from the noise of `key`: (tokens, confidence)."""
    denoiser = plain(net, params, flow, Given(partial.tokens, ~partial.masked))
    xi = denoiser.noise(key)
    if cfg.flow_steps > 1:
        with watching(None):  # rounds are shown, not the jumps in them
            found = carry(key, xi, denoiser, flow=flow, steps=cfg.flow_steps)
        return found.tokens, found.steps_confidence[-1]
    zero = jnp.zeros(())
    return denoiser.ask(xi, denoiser.start(xi), flow.t(zero), (zero, zero + cfg.until))[2]


def tokens_of_round(
    cfg: PosteriorRefinementConfig,
    left: jax.Array,
    total: jax.Array,
    rounds: int,
    k: jax.Array,
) -> jax.Array:
    """Smallest number of positions that a round fixes in each row, int32 [B], if as many are open.

    Args:
      cfg: spread and tokens.
      left: number of open positions, [B].
      total: number of positions that were open at the start, [B].
      rounds: number of rounds R.
      k: index of the round, from 0.
    """
    if cfg.tokens:
        return jnp.where(k == rounds - 1, left, cfg.tokens)
    if cfg.spread == "even":
        return even_share(total, rounds, k)
    return -(-left // (rounds - k))
