"""Blocks written beside cached keys and values: the same tokens, and fewer operations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.build.sampler import choose_sampler, make_sampler
from flm_jax.config.check import check
from flm_jax.config.schema import base_config
from flm_jax.core.errors import UserError
from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.models.mixture_of_experts import ExpertsConfig
from flm_jax.profiling.flops import total_flops
from flm_jax.samplers.base import Given, Share
from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.masked_diffusion import sample_confident
from flm_jax.samplers.windows import BlocksConfig
from flm_jax.samplers.x_prediction import XPredictionConfig, sample_x_prediction
from helpers.llada2 import MIXTURE

VOCAB, LENGTH, BLOCK = 23, 14, 3
STEPS = Share(2, 3)
SIZES = LlamaConfig(
    vocab_size=VOCAB,
    length=LENGTH,
    dim=32,
    depth=2,
    heads=4,
    kv_heads=2,
    qk_norm=True,
    attention_softcap=0.0,
    logit_softcap=0.0,
    scan_blocks=True,
)
CAUSAL = llama(dataclasses.replace(SIZES, block_length=BLOCK, experts=MIXTURE))
BOTH_WAYS = llama(SIZES)
TOKENS = jax.random.randint(jax.random.key(3), (5, LENGTH), 0, VOCAB)
FREE = [
    range(1, LENGTH),  # where all are hidden, all are equal, and rounding decides
    range(4, LENGTH),
    [1, 2, *range(7, 11)],  # a block in between is given
    range(9, LENGTH - 2),  # and what stands behind is not seen
    [],
]
KNOWN = np.array([[place not in free for place in range(LENGTH)] for free in FREE])
VISIBLE = np.ones(KNOWN.shape, bool)
VISIBLE[3, -2:] = False
GIVEN = Given(TOKENS, jnp.asarray(KNOWN), jnp.asarray(VISIBLE))


@functools.cache
def random_params(net):
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0)))
    draw = np.random.default_rng(1).standard_normal
    return tree.unflatten([0.4 * draw(x.shape).astype(np.float32) for x in leaves])


def confident(net, given, temperature=0.0, steps=STEPS, **blocks):
    how = dict(steps=steps, choice=Choice(temperature, 1.0), blocks=BlocksConfig(BLOCK, **blocks))
    run = lambda params, given: sample_confident(
        jax.random.key(5), net, params, given=given, time_conditioning=False, **how
    )
    return jax.device_get(jax.jit(run)(random_params(net), given))


def flowing(net, given, steps=STEPS, **blocks):
    how = dict(steps=steps, how=XPredictionConfig(BLOCK, **blocks), time_conditioning=False)
    run = lambda params, given: sample_x_prediction(net, params, given=given, **how)
    return jax.device_get(jax.jit(run)(random_params(net), given))


METHODS = {
    "greedy": confident,
    "drawn": functools.partial(confident, temperature=1.0),
    "early": functools.partial(confident, threshold=0.5),
    "flow": flowing,
}


@pytest.mark.parametrize("name", METHODS)
def test_blocks_seen_causally_are_cached_exactly(name):
    """Token for token, with experts, prompts of several lengths and given blocks in between."""
    want = METHODS[name](CAUSAL, GIVEN, cache="none")
    got = METHODS[name](CAUSAL, GIVEN)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    assert got.calls == want.calls > 4
    np.testing.assert_array_equal(got.tokens[KNOWN], TOKENS[KNOWN])
    assert len(np.unique(got.tokens[~KNOWN])) > 4


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("name", ["drawn", "flow"])
def test_a_cache_made_anew_each_call_changes_nothing(name, cache):
    want = METHODS[name](BOTH_WAYS, GIVEN, cache="none")
    got = METHODS[name](BOTH_WAYS, GIVEN, cache=cache, refresh=1)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    rare = METHODS[name](BOTH_WAYS, GIVEN, cache=cache)
    assert np.abs(rare.steps_confidence - got.steps_confidence).max() > 1e-3
    np.testing.assert_array_equal(rare.tokens[KNOWN], TOKENS[KNOWN])
    # A row by itself: when others begin blocks, and how far their windows reach, is theirs alone.
    rest = jnp.asarray([0, 2, 3])
    others = GIVEN._replace(mask=GIVEN.mask.at[rest].set(True))
    alone = METHODS[name](BOTH_WAYS, others, cache=cache)
    np.testing.assert_array_equal(alone.tokens[1], rare.tokens[1])


def test_a_threshold_ends_blocks_early():
    """All is written within the budget; a threshold of 0 writes a block a call, 1 changes none."""
    blocks, one_by_one = 5, Share(1, 1)
    calls = []
    for least in (0.0, 0.15, 1.0):
        out = confident(CAUSAL, GIVEN, steps=one_by_one, threshold=least)
        np.testing.assert_array_equal(out.tokens[0], out.steps_tokens[-1][0])
        flow = flowing(CAUSAL, GIVEN, one_by_one, step_size=1 / 256, threshold=least)
        calls.append((int(out.calls), int(flow.calls)))
    assert calls[0] == (blocks, blocks) and calls[2] == (13, 13), calls
    assert blocks < calls[1][0] < 13 and blocks < calls[1][1] < 13, calls


def calls_of(cfg, width):
    """Programs with the arguments of one call: of a whole row, and of a block beside its cache."""
    net, length = llama(cfg), cfg.length
    params = jax.eval_shape(net.init, jax.random.key(0))
    states = lambda number: jax.ShapeDtypeStruct((1, number, cfg.dim), jnp.float32)
    s, places = (jax.ShapeDtypeStruct(*x) for x in (((1,), jnp.float32), ((1, width), jnp.int32)))
    cache = jax.eval_shape(lambda: net.cache(1, length))
    whole = lambda p, x, s: net.features(p, x, s, s)
    block = lambda p, c, x, s, places: net.window(p, c, x, s, places=places)
    yield whole, (params, states(length), s)
    yield block, (params, cache, states(width), s, places)


def test_a_block_of_32_in_a_row_of_1024_costs_less_than_a_tenth():
    """By the compiler; with experts, whose loops it takes once, from the traced program."""
    cfg = dataclasses.replace(SIZES, length=1024, block_length=32, scan_blocks=False)
    compiled = [jax.jit(fn).lower(*args).compile() for fn, args in calls_of(cfg, 32)]
    whole, block = (program.cost_analysis()["flops"] for program in compiled)
    assert block < whole / 10
    many = ExpertsConfig(number=256, groups=8, active_groups=4)
    cfg = dataclasses.replace(cfg, experts=many)
    whole, block = (total_flops(jax.make_jaxpr(fn)(*args)) for fn, args in calls_of(cfg, 32))
    assert block < whole / 10


BAD = [
    (CAUSAL, dict(cache="prefix", block_length=4), "block_length=4; expected a multiple of 3"),
    (CAUSAL, dict(cache="dual", block_length=3), "expected cache=prefix, which is exact there"),
    (CAUSAL, dict(cache="prefix", block_length=3, refresh=2), "refresh=2 for a model that sees"),
    (BOTH_WAYS, dict(cache="dual"), "block_length=0; expected 1 or more"),
    (dataclasses.replace(BOTH_WAYS, window=None), dict(cache="dual", block_length=2), "no llama"),
    (BOTH_WAYS, dict(block_length=99), "block_length=99; expected 0"),
]


@pytest.mark.parametrize("net, changes, message", BAD)
def test_caches_that_do_not_fit_are_refused(net, changes, message):
    config = check(base_config(objective="masked_diffusion"))
    for name in ("confidence", "x_prediction"):
        with pytest.raises(UserError, match=message):
            make_sampler(config, net, None, 8, choose_sampler(config, name, **changes))


def test_a_model_that_is_told_the_time_has_no_cache():
    config = base_config(objective="masked_diffusion")
    config.objective.time_conditioning = True
    sampler = choose_sampler(check(config), "confidence", cache="prefix", block_length=3)
    with pytest.raises(UserError, match="that is told the time; expected a llama"):
        make_sampler(check(config), CAUSAL, None, 8, sampler)
