"""A teacher guided by its clean context: the target in closed form, and what it is asked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.build.families.flow import check_guidance
from flm_jax.build.families.flow_map import ROUTES
from flm_jax.config.check import check
from flm_jax.config.schema import choose
from flm_jax.core.errors import UserError
from flm_jax.denoiser.head import Readout
from flm_jax.losses.base import Frozen
from flm_jax.losses.distillation import base
from flm_jax.losses.distillation.base import diagonal_loss_at, distillation_loss
from flm_jax.losses.distillation.distribution_matching import (
    Answers,
    Blind,
    MatchingConfig,
    answers,
    matching_loss_at,
)
from flm_jax.losses.distillation.semigroup import SemigroupConfig
from helpers.law_networks import LINEAR, law_network
from helpers.networks import EIGHT_ROWS, FLOW, KEY, random_batch, random_params, tiny_network
from helpers.runs import tiny_config

JOINT = np.array([[0.30, 0.05, 0.05], [0.05, 0.25, 0.10], [0.02, 0.03, 0.15]])
TABLE = np.random.default_rng(2).normal(size=(3, 3)).astype(np.float32)


def test_the_target_is_the_guided_law():
    """At t = 0 the teacher knows p(x | c) and p(x): cross entropy to p(x|c)^w p(x)^(1-w)."""
    sequences = [[i, j] for i in range(3) for j in range(3)]
    net = law_network(sequences, JOINT.ravel(), TABLE, LINEAR, any_order=True)
    student = dataclasses.replace(
        net,
        features=lambda p, y, s, t, *, key=None: jnp.broadcast_to(p["z"][None, None], (4, 2, 3)),
        table=lambda p: jnp.asarray(TABLE),
    )
    logits, prompt = jnp.asarray([0.3, -0.2, 0.9]), np.array([0, 1, 2, 1])
    noise = jax.random.normal(KEY, (4, 2, 3))
    seen = noise.at[:, 0].set(TABLE[prompt])
    tau = jnp.zeros((4, 2)).at[:, 0].set(1.0)
    given = {"net": student, "teacher": (net, {})}
    weights = jnp.zeros((4, 2)).at[:, 1].set(0.25)
    views, tokens = (seen, seen), jnp.zeros((4, 2), jnp.int32)
    for w in (1.0, 2.5):
        blind = None if w == 1.0 else (noise, jnp.zeros(4), w)
        run = jax.jit(functools.partial(diagonal_loss_at, blind=blind, **given))
        _, values = run({"z": logits}, views, tau, tokens, weights)
        want = (JOINT[prompt] / JOINT[prompt].sum(1, keepdims=True)) ** w * JOINT.sum(0) ** (1 - w)
        want = want / want.sum(1, keepdims=True)
        np.testing.assert_allclose(values[:, 1], -want @ jax.nn.log_softmax(logits), atol=2e-4)


def test_matching_draws_to_the_guided_law():
    """An auxiliary that knows p(x|c)^w p(x)^(1-w) has no gap to the teacher guided by w alone."""
    sequences = [[i, j] for i in range(3) for j in range(3)]
    net = law_network(sequences, JOINT.ravel(), TABLE, LINEAR, any_order=True)
    prompt, w = np.array([0, 1, 2, 1]), 2.5
    want = (JOINT[prompt] / JOINT[prompt].sum(1, keepdims=True)) ** w * JOINT.sum(0) ** (1 - w)
    known = jnp.broadcast_to(jnp.log(jnp.asarray(want, jnp.float32))[:, None], (4, 2, 3))
    auxiliary = dataclasses.replace(net, features=lambda p, *rest, key=None: p["logits"])
    noise = jax.random.normal(KEY, (4, 2, 3))
    tau = jnp.zeros((4, 2)).at[:, 0].set(1.0)
    out = Readout(known, jnp.eye(3), jnp.zeros(3))
    seen, weights = noise.at[:, 0].set(TABLE[prompt]), jnp.ones((4, 2)).at[:, 0].set(0.0) / 4
    found = Answers(out, noise, seen, tau, tau, tau, weights, 4.0)
    how = {"net": auxiliary, "flow": LINEAR, "row_weighting": "kl"}

    def run(blind):
        at = found._replace(blind=blind)
        return jax.jit(lambda: matching_loss_at(at, {"logits": known}, (net, {}), **how))()[1][0]

    np.testing.assert_allclose(run(Blind(noise, jnp.zeros(4), w, True))[:, 1], 0.0, atol=2e-3)
    assert (run(None)[:, 1] > 0.1).all()


def test_the_noised_context_of_matching_has_the_noise_of_the_rest():
    net, params = tiny_network(True)
    cfg = MatchingConfig(teacher="t", context=1.0, guidance=2.0)
    how = {"net": net, "flow": FLOW}
    batch, teacher = random_batch(), (net, params)
    run = lambda cfg: jax.jit(
        lambda: answers(params, teacher, batch, KEY, EIGHT_ROWS, cfg=cfg, **how)
    )()
    found = run(cfg)
    z, tau, weight, _ = found.blind
    clean = np.asarray(found.tau_t) == 1.0
    assert (
        clean.any() and weight == 2.0 and run(dataclasses.replace(cfg, guidance=1.0)).blind is None
    )
    np.testing.assert_array_equal(np.asarray(z)[~clean], np.asarray(found.z)[~clean])
    assert (np.asarray(z)[clean] != np.asarray(found.z)[clean]).all()
    rows = np.broadcast_to(np.asarray(tau)[:, None], clean.shape)
    np.testing.assert_array_equal(rows[~clean], np.asarray(found.tau_t)[~clean])


def test_what_guides_sees_the_same_noise_and_nothing_clean(monkeypatch):
    """At weight 1 nothing else is asked."""
    net, teacher = tiny_network(True)[0], tiny_network(False)[0]
    params, theirs = random_params(net), random_params(teacher, seed=3)
    frozen, batch = Frozen(theirs, params), random_batch()
    cfg = SemigroupConfig(teacher="t", context=1.0, diagonal=1.0, guidance=2.0)

    def asked(cfg):
        """The loss, and what the teacher is asked with it."""
        found = []

        def spy(params, views, tau, tokens, weights, **how):
            found.extend([views[1], tau, how.get("blind")])
            return diagonal_loss_at(params, views, tau, tokens, weights, **how)

        monkeypatch.setattr(base, "diagonal_loss_at", spy)
        how = {"net": net, "flow": FLOW, "cfg": cfg, "teacher": teacher}
        how["route"] = ROUTES["semigroup"](cfg)
        return distillation_loss(params, frozen, batch, KEY, EIGHT_ROWS, **how)[0], found

    run = lambda cfg: jax.jit(functools.partial(asked, cfg))()
    guided, (seen, tau, (blind, tau_blind, weight)) = run(cfg)
    plain, (_, _, none) = run(dataclasses.replace(cfg, guidance=1.0))
    clean = np.asarray(tau) == 1.0
    assert clean.any() and not clean.all() and weight == 2.0 and none is None
    np.testing.assert_array_equal(np.asarray(blind)[~clean], np.asarray(seen)[~clean])
    assert (np.asarray(blind)[clean] != np.asarray(seen)[clean]).all()
    rows = np.broadcast_to(np.asarray(tau_blind)[:, None], clean.shape)
    np.testing.assert_array_equal(rows[~clean], np.asarray(tau)[~clean])
    assert guided != plain


def test_guidance_without_what_it_needs_is_refused():
    student, teacher = tiny_config(), tiny_config()
    choose(student, objective="semigroup")
    student.model.two_time, student.objective.guidance = True, 2.0
    with pytest.raises(UserError, match="nothing is clean"):
        check_guidance(check(student), check(teacher))
    student.objective.context = teacher.objective.context = 0.5
    check_guidance(check(student), check(teacher))
    teacher.objective.prompt = 2
    with pytest.raises(UserError, match="never saw a text without its prompt"):
        check_guidance(check(student), check(teacher))
