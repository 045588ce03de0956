"""Rows of a vocabulary beyond its tokenizer: in no loss, in no gradient, never drawn, loaded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.build.data import resolve_vocabulary
from flm_jax.build.families.flow_map import ROUTES
from flm_jax.build.families.registry import make_objective
from flm_jax.build.flow import make_flow
from flm_jax.build.model import make_network
from flm_jax.build.sampler import choose_sampler, make_sampler
from flm_jax.config.check import check, check_resumable
from flm_jax.config.schema import choose
from flm_jax.core.errors import UserError
from flm_jax.core.network import Parallel
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.denoiser.head import Readout, cross_entropy, summary
from flm_jax.denoiser.mixture import Part, mixture
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen
from flm_jax.losses.masked_flow import BridgeConfig, bridge_loss
from flm_jax.samplers.base import Share, nothing_given
from helpers import masked_flow as adapted
from helpers.runs import tiny_config

ROWS, VOCAB, TOKENS, LENGTH = 4, 12, 7, 4
KEY = jax.random.key(0)
BATCH = {
    "tokens": jax.random.randint(jax.random.key(1), (ROWS, LENGTH), 0, TOKENS),
    "mask": jnp.ones((ROWS, LENGTH), bool),
}


def configured(goal, model=None, flow=None, tile=2, **objective):
    config = tiny_config()
    name = {"autoregressive": "causal"}.get(goal, "dit")
    choose(config, model=name, objective=goal)
    config.model.update({"vocab_size": VOCAB, "tokens": TOKENS, "length": LENGTH, "dim": 8})
    config.model.update({"loss_tile": tile, "dropout": 0.0, **(model or {})})
    config.train.batch = ROWS
    if goal in ROUTES or goal.endswith("_matching"):
        config.model.two_time = True
    if goal.endswith("_matching"):
        config.objective.auxiliary_updates = 1
    config.objective.update(objective)
    config.flow.update(flow or {})
    return check(config)


def params_of(net):
    """Random parameters."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, KEY))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([0.5 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


def lifted(params, by):
    """The bias of padding rows raised: without a mask they would be all of the probability."""
    bias = params["head"]["bias"].at[TOKENS:].add(by)
    return params | {"head": params["head"] | {"bias": bias}}


ORDINARY = [
    ("denoising", {}),
    ("denoising", {"model": {"posterior_skip": True}, "tile": 0}),
    ("denoising", {"prediction": "velocity", "flow": {"noise": "onehot", "clock": "identity"}}),
    ("semigroup", {"form": "mse"}),
    ("lagrangian", {"projection": "entmax15"}),
    ("endpoint", {}),
    ("distribution_matching", {"teacher": "x"}),
    ("reinforce_matching", {"teacher": "x"}),
    ("reinforce_matching", {"teacher": "x", "model": {"posterior_skip": True}, "tile": 0}),
    ("masked_diffusion", {}),
    ("uniform_diffusion", {}),
    ("autoregressive", {}),
]


@pytest.mark.parametrize("goal, how", ORDINARY, ids=str)
def test_padding_counts_in_no_loss_and_no_gradient(goal, how):
    config = configured(goal, **how)
    net, flow = make_network(config), make_flow(config, VOCAB)
    assert net.tokens == TOKENS
    teacher, other = None, {}
    if goal.endswith("_matching"):
        teacher = dataclasses.replace(net, two_time=False)
    objective, params = make_objective(config, net, flow, teacher), params_of(net)
    other = params if teacher else {}

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        frozen = Frozen(other, params, None, other)
        return objective(params, frozen, BATCH, KEY, Rows(0, ROWS))[0]

    low, _ = loss(lifted(params, -20.0))
    high, slope = loss(lifted(params, 20.0))
    np.testing.assert_allclose(high, low, rtol=1e-6)
    assert abs(low) < 1e5
    head = jnp.vstack([slope["head"]["kernel"], slope["head"]["bias"][None]])
    assert (head[:, TOKENS:] == 0).all() and (head[:, :TOKENS] != 0).any()


def test_padding_counts_in_no_loss_of_masked_flows():
    net = dataclasses.replace(adapted.NET, tokens=TOKENS)
    batch = {"tokens": adapted.TOKENS % TOKENS, "mask": jnp.ones(adapted.TOKENS.shape, bool)}
    cfg = BridgeConfig(embedding_weight=1.0)

    @jax.jit
    def loss(lift):
        def readout(params):
            kernel, bias = adapted.NET.readout(params)
            return kernel, bias.at[TOKENS:].add(lift)

        own = dataclasses.replace(net, readout=readout)
        how = {"net": own, "flow": adapted.FLOW, "cfg": cfg, "rows": Rows(0, 4)}
        return bridge_loss(adapted.PARAMS, batch, KEY, **how)[0]

    assert loss(20.0) == loss(-20.0)


SAMPLED = [
    ("denoising", {}, "heun", {"temperature": 3.0}, 2),
    ("denoising", {"prediction": "velocity", "flow": {"noise": "onehot"}}, "euler", {}, 2),
    ("semigroup", {}, "flow_map", {"gamma": 0.5}, 2),
    ("masked_diffusion", {}, "ancestral", {"temperature": 30.0}, 2),
    ("masked_diffusion", {}, "confidence", {"top_p": 0.9}, 2),
    ("masked_diffusion", {}, "x_prediction", {}, Share(1, 1)),
    ("masked_diffusion", {}, "remasking", {"temperature": 30.0}, 2),
    ("uniform_diffusion", {}, "uniform_diffusion", {"temperature": 30.0}, 2),
    ("autoregressive", {}, "autoregressive", {"temperature": 30.0}, LENGTH),
]


@pytest.mark.parametrize("goal, how, name, changes, steps", SAMPLED, ids=str)
def test_padding_is_never_drawn(goal, how, name, changes, steps):
    config = configured(goal, **how)
    net, flow = make_network(config), make_flow(config, VOCAB)
    cfg = choose_sampler(config, name, **changes)
    sample = jax.jit(make_sampler(config, net, flow, steps, cfg))
    params, given = params_of(net), nothing_given(64, LENGTH)
    found = [np.asarray(sample(KEY, lifted(params, by), given).tokens) for by in (20.0, -20.0)]
    np.testing.assert_array_equal(*found)
    assert found[0].max() < TOKENS


def test_a_guided_sum_gives_padding_no_share_of_what_it_lacks():
    """log max(p, 0) is the same for all tokens that p does not have; padding is none of them."""
    net = dataclasses.replace(make_network(configured("denoising")), logit_softcap=0.0)
    features, kernel = jnp.zeros((1, 5, 3)), jnp.zeros((3, VOCAB))
    bias = jnp.where(jnp.arange(VOCAB) == 0, 40.0, -40.0)
    parts = [Part(w, Readout(features, kernel, bias), net) for w in (2.0, -1.0)]
    pick = lambda places, scores: (jnp.argmin(scores, axis=-1), jnp.min(scores, axis=-1))
    least, score = mixture(parts, jnp.eye(VOCAB), pick)[1]
    assert (least == TOKENS).all() and (score == -jnp.inf).all()


def test_padding_is_masked_where_the_vocabulary_lies_over_devices():
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    net = make_network(configured("denoising"))
    over = dataclasses.replace(net, parallel=Parallel(mesh, ("data",), "tensor"))
    features = jax.random.normal(KEY, (ROWS, LENGTH, 8))
    kernel = jax.random.normal(jax.random.key(2), (8, VOCAB)).at[:, TOKENS:].add(9.0)
    weights, table = jnp.ones((ROWS, LENGTH)), jax.random.normal(KEY, (VOCAB, 8))

    def both(net):
        def fn(features, kernel):
            out = Readout(features, kernel, jnp.zeros(VOCAB))
            loss, _ = cross_entropy(out, BATCH["tokens"], weights, net)
            return loss, summary(out, table, net)

        return jax.jit(jax.value_and_grad(fn, (0, 1), has_aux=True))(features, kernel)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), both(net), both(over))
    assert (both(over)[1][1][:, TOKENS:] == 0).all()


def test_a_vocabulary_is_resolved_by_its_tokenizer():
    config, tokenizer = configured("denoising", {"vocab_size": 384, "tokens": 0}), ByteTokenizer()
    found = resolve_vocabulary(config, tokenizer)["model"]
    assert (found["vocab_size"], found["tokens"]) == (384, 260)
    check_resumable(config, config | {"model": found}, "x")
    exact = config | {"model": config["model"] | {"vocab_size": 0}}
    found = resolve_vocabulary(exact, tokenizer)["model"]
    assert (found["vocab_size"], found["tokens"]) == (260, 0)
    wrong = config | {"model": config["model"] | {"tokens": 259}}
    with pytest.raises(UserError, match="tokens is 259, the data's tokenizer has 260 tokens; set"):
        resolve_vocabulary(wrong, tokenizer)
    with pytest.raises(UserError, match="tokens is 13 of a vocabulary of 12; set it to 0"):
        make_network(configured("denoising", {"tokens": 13}))
