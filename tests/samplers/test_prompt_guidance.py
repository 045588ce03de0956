"""Classifier-free guidance by prompts on a law of two positions, and what must change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.losses.denoising import DenoisingConfig
from flm_jax.samplers.base import Given
from flm_jax.samplers.euler import EulerConfig
from flm_jax.samplers.flow import check_flow, sample_flow
from flm_jax.samplers.prompt_guidance import prompt_guided
from helpers.law_networks import LINEAR, law_network
from helpers.networks import FLOW, KEY, some_given, tiny_network
from helpers.steering import flow_settings

JOINT = np.array([[0.30, 0.05, 0.05], [0.05, 0.25, 0.10], [0.02, 0.03, 0.15]])
TABLE = np.random.default_rng(2).normal(size=(3, 3)).astype(np.float32)
PROMPT = 1  # the token given at the first position


def pair_network():
    sequences = [[i, j] for i in range(3) for j in range(3)]
    return law_network(sequences, JOINT.ravel(), TABLE, LINEAR, any_order=True)


def prompts(rows):
    mask = jnp.zeros((rows, 2), bool).at[:, 0].set(True)
    return Given(jnp.full((rows, 2), PROMPT, jnp.int32), mask)


def drawn(cfg, steps, rows):
    net = pair_network()
    run = jax.jit(functools.partial(sample_flow, net=net, flow=LINEAR, steps=steps, cfg=cfg))
    return run(KEY, {}, prompts(rows), {})


def tilted(with_prompt, without, w):
    found = with_prompt**w * without ** (1 - w)
    return found / found.sum()


@pytest.mark.parametrize("weak_prompt", ["noised", "free"])
def test_one_step_draws_the_guided_law(weak_prompt):
    """p(x|c)^w p(x)^(1-w), normalised; as a sum of probabilities its positive part."""
    rows, alone, after = 20_000, JOINT.sum(axis=0), JOINT[PROMPT] / JOINT[PROMPT].sum()
    cfg = EulerConfig(temperature=1.0, guidance=2.5, weak_prompt=weak_prompt)
    wants = {
        "default": tilted(after, alone, 2.5),
        "probabilities": np.maximum(2.5 * after - 1.5 * alone, 0.0),
    }
    for guided, want in wants.items():
        samples = drawn(dataclasses.replace(cfg, guided=guided), 1, rows)
        assert int(samples.calls) == 2
        tokens = np.asarray(samples.tokens)
        assert (tokens[:, 0] == PROMPT).all()
        found = np.bincount(tokens[:, 1], minlength=3) / rows
        assert np.abs(found - want / want.sum()).max() < 4 * 0.5 / np.sqrt(rows)


def posterior(y, t, clean=None):
    """p(x_2 | y) in float64, y [2, 3] at time t; with x_1 = `clean` instead of its state."""
    inverse = np.linalg.inv(np.float64(TABLE).T @ np.float64(TABLE))
    away = lambda y: y[None] - t * np.float64(TABLE)
    likely = lambda y: -0.5 * np.einsum("vd,de,ve->v", away(y), inverse, away(y)) / (1 - t) ** 2
    first = np.where(np.arange(3) == clean, 0.0, -1e9) if clean is not None else likely(y[0])
    scores = np.log(JOINT) + first[:, None] + likely(y[1])[None]
    found = np.exp(scores - scores.max()).sum(axis=0)
    return found / found.sum()


@pytest.mark.parametrize("weak_prompt", ["noised", "free"])
def test_the_denoiser_at_any_time_written_out(weak_prompt):
    """Known logits w log p(x | y, c) + (1 - w) log p(x | y), and the state of the weaker call."""
    net, given, t = pair_network(), prompts(4), 0.4
    how = {"weak_prompt": weak_prompt, "product": True}
    guided = prompt_guided(net, {}, 2.0, LINEAR, given, **how)
    xi, y = (jax.random.normal(jax.random.key(k), (4, 2, 3)) for k in (1, 2))
    time = jnp.full(4, t)
    state, delta, (tokens, _) = jax.jit(guided.ask)(xi, y, time, (time, time), KEY)
    blind = np.array(y, np.float64)
    if weak_prompt == "noised":
        blind[:, 0] = t * TABLE[PROMPT] + (1 - t) * np.asarray(xi)[:, 0]
    for row in range(4):
        without = posterior(blind[row], t)
        want = tilted(posterior(blind[row], t, PROMPT), without, 2.0)
        np.testing.assert_allclose(delta[row, 1], want @ TABLE, rtol=0, atol=2e-4)
        assert tokens[row, 1] == want.argmax()
    # What the weaker call sees as free goes on as such; else the prompt stands there.
    want = blind[:, 0] if weak_prompt == "free" else np.tile(TABLE[PROMPT], (4, 1))
    np.testing.assert_allclose(state[:, 0], want, rtol=0, atol=1e-6)


SOLVERS = ("euler", "heun", "adaptive", "marginal_bridge")


@pytest.mark.parametrize("solver", SOLVERS)
def test_guided_prompts_are_never_altered_and_each_call_is_two(solver):
    net, params = tiny_network(False)
    net, given = dataclasses.replace(net, any_order=True), some_given()
    cfg = flow_settings(False, solver, guidance=3.0, weak_prompt="noised")
    run = lambda cfg: jax.jit(functools.partial(sample_flow, net=net, flow=FLOW, steps=6, cfg=cfg))(
        KEY, params, given, {}
    )
    got = run(cfg)
    for tokens in got.steps_tokens:
        np.testing.assert_array_equal(tokens[given.mask], given.tokens[given.mask])
    plain = run(dataclasses.replace(cfg, guidance=1.0))
    assert (got.steps_confidence != plain.steps_confidence).any()
    if solver != "adaptive":
        assert plain.calls is None and int(got.calls) == 12
    if solver == "euler":  # at weight 1 nothing changes, to the bit
        want = run(EulerConfig())
        np.testing.assert_array_equal(plain.steps_confidence, want.steps_confidence)


def test_flows_that_never_saw_what_guides_are_refused():
    cfg = EulerConfig(guidance=2.0, weak_prompt="noised")
    net = tiny_network(False)[0]
    with pytest.raises(UserError, match=r"train it with config.objective.context, 0.5"):
        check_flow(cfg, net, 4, DenoisingConfig())
    net = dataclasses.replace(net, any_order=True)
    with pytest.raises(UserError, match=r"config.objective.context_dropout, 0.1"):
        check_flow(cfg, net, 4, DenoisingConfig(prompt=2))
    check_flow(cfg, net, 4, DenoisingConfig(prompt=2, context_dropout=0.1))
    check_flow(cfg, net, 4, DenoisingConfig(context=0.5))
    drawn = flow_settings(False, "marginal_bridge", guidance=2.0, weak_prompt="free")
    with pytest.raises(UserError, match="expected weak_prompt=noised"):
        check_flow(drawn, net, 4, DenoisingConfig(context=0.5))
    with pytest.raises(UserError, match="expected one of them"):
        EulerConfig(guidance=2.0, weak_prompt="free", weak_dropout=0.1)
