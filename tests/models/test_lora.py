"""Adapters: fresh ones change nothing, trained ones reach everything, merged ones agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.models.llama import llama
from flm_jax.models.lora import AdapterConfig, adapted_shapes, join, merged, split
from helpers.llada2 import MIXTURE
from helpers.llama import CONFIG, logits

ADAPTERS = AdapterConfig(4, 8.0, 3, 3.0, 0.1, 6)
# As the authors' code has them, as their text has them, and as this library had them before.
FORMS = {
    "code": ADAPTERS,
    "text": dataclasses.replace(ADAPTERS, gates=False, final_norm=True),
    "older": dataclasses.replace(
        ADAPTERS, gates=False, final_norm=True, shared_time=True, fused_qkv=False
    ),
}
BASE = llama(CONFIG)
NETS = {
    name: llama(dataclasses.replace(CONFIG, adapters=adapters)) for name, adapters in FORMS.items()
}


def random_like(net, scale=0.3, seed=5):
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draws = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
    return tree.unflatten([d.astype(x.dtype) for d, x in zip(draws, leaves)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_fresh_adapters_change_no_bit(form, dtype):
    base = llama(dataclasses.replace(CONFIG, dtype=dtype))
    adapted = llama(dataclasses.replace(CONFIG, dtype=dtype, adapters=FORMS[form]))
    params = base.init(jax.random.key(3))
    adapters = split(adapted.init(jax.random.key(4)))[1]
    got = logits(adapted, join(params, adapters), 0.7, key=jax.random.key(1))
    np.testing.assert_array_equal(got, logits(base, params))


@pytest.mark.parametrize("form", FORMS)
def test_adapters_reach_every_matrix_and_norm(form):
    """A change of any one leaf of the adapters changes the logits; A alone does so beside B."""
    net = NETS[form]
    params = random_like(net)
    _, adapters = split(params)
    before = logits(net, params)
    for path, _ in jax.tree_util.tree_leaves_with_path(adapters):

        def bump(p, x, wanted=path):
            return x + 0.1 if p == wanted else x

        changed = jax.tree_util.tree_map_with_path(bump, params)
        assert np.abs(logits(net, changed) - before).max() > 1e-5, path
    names = adapted_shapes(CONFIG.matrices, FORMS[form])
    assert set(adapters["blocks"]["lora"]) == set(names) and set(adapters["lora"]) == {"head"}
    assert set(adapters) == {"blocks", "lora"} | (
        set() if form == "code" else {"time", "modulation"}
    )
    assert ("time" in adapters["blocks"]) == (form != "older")


@pytest.mark.parametrize("part", range(6))
def test_each_part_of_the_modulation_does_what_its_place_says(part):
    """Shift, scale, gate of attention, then of the MLP: each against the same done by weights."""
    zero = jax.tree.map(jnp.zeros_like, split(random_like(NETS["code"]))[1])
    params = join(random_like(BASE), zero)
    place = slice(part * CONFIG.dim, (part + 1) * CONFIG.dim)
    bias = params["blocks"]["modulation"]["bias"]
    params["blocks"]["modulation"]["bias"] = bias.at[..., place].set(0.5)
    got = logits(NETS["code"], params)
    base, _ = split(params)
    blocks = base["blocks"]
    kind = part % 3
    if kind == 0:  # a shift has no counterpart among the base's weights
        assert np.abs(got - logits(BASE, base)).max() > 1e-3
        return
    norm, out = ("norm1", "attn_out") if part < 3 else ("norm2", "mlp_out")
    name, leaf = (norm, "scale") if kind == 1 else (out, "kernel")
    changed = {"blocks": blocks | {name: {leaf: 1.5 * blocks[name][leaf]}}}
    # Products taken in another order: float32 alone differs.
    np.testing.assert_allclose(got, logits(BASE, base | changed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_times_are_read_through_adapters_alone(form):
    net = NETS[form]
    params = random_like(net)
    assert np.abs(logits(net, params, 0.2) - logits(net, params, 0.8)).max() > 1e-3
    base, _ = split(params)
    np.testing.assert_array_equal(logits(BASE, base, 0.2), logits(BASE, base, 0.8))


def test_the_time_embedding_reads_what_it_is_told():
    params = random_like(NETS["code"])
    told = llama(dataclasses.replace(CONFIG, adapters=ADAPTERS), told=lambda tau: 6.0 - 16.0 * tau)
    np.testing.assert_array_equal(
        logits(told, params, 0.25), logits(NETS["code"], params, 6.0 - 16.0 * 0.25)
    )


@pytest.mark.parametrize("form", FORMS)
def test_split_and_join_are_inverse(form):
    params = random_like(NETS[form])
    base, adapters = split(params)
    assert jax.tree.structure(base) == jax.tree.structure(
        jax.eval_shape(BASE.init, jax.random.key(0))
    )
    again = join(base, adapters)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, again, params))


@pytest.mark.parametrize("form", FORMS)
def test_merging_gives_the_same_function(form):
    """With the time conditioning at zero the merged base alone is the adapted network."""
    params = random_like(NETS[form])

    def still(path, x):
        return jnp.zeros_like(x) if "modulation" in jax.tree_util.keystr(path) else x

    params = jax.tree_util.tree_map_with_path(still, params)
    base, rest = merged(params, FORMS[form])
    _, adapters = split(params)
    want = {**adapters, "blocks": {k: v for k, v in adapters["blocks"].items() if k != "lora"}}
    del want["lora"]
    assert jax.tree.structure(rest) == jax.tree.structure(want)
    np.testing.assert_allclose(logits(BASE, base), logits(NETS[form], params), atol=2e-4)


# LoRA alone, of a mixture of experts: as it is aligned for decoding as a flow.
PLAIN = dataclasses.replace(ADAPTERS, head_rank=0, time="none", fused_qkv=False)
MIXED = dataclasses.replace(CONFIG, experts=MIXTURE)


@pytest.mark.parametrize("adapters", [PLAIN, ADAPTERS], ids=["plain", "code"])
def test_a_mixture_is_adapted_where_every_token_passes(adapters):
    base, net = llama(MIXED), llama(dataclasses.replace(MIXED, adapters=adapters))
    params = base.init(jax.random.key(3))
    fresh = join(params, split(net.init(jax.random.key(4)))[1])
    before = logits(base, params)
    np.testing.assert_array_equal(logits(net, fresh, 0.7), before)
    own = split(random_like(net))[1]
    timed = {"modulation", "time"} if adapters.timed else set()
    names = set(adapted_shapes(MIXED.matrices, adapters))
    for stack in ("dense_blocks", "blocks"):
        assert set(own[stack]) == {"lora"} | timed and set(own[stack]["lora"]) == names
    assert own["blocks"]["lora"]["up"]["b"]["kernel"].shape[-1] == MIXTURE.shared_hidden
    assert ("lora" in own) == bool(adapters.head_rank)
    params = join(params, own)
    wanted = logits(net, params)
    still = [p for p, _ in jax.tree_util.tree_leaves_with_path(own) if "lora" in str(p)]
    for path in still:
        nudge = lambda p, x, path=path: x + 0.1 if p == path else x
        changed = jax.tree_util.tree_map_with_path(nudge, params)
        assert np.abs(logits(net, changed) - wanted).max() > 1e-5, path
    if adapters.timed:
        return
    np.testing.assert_array_equal(logits(net, params, 0.2), wanted)
    whole, rest = merged(params, adapters)
    assert not jax.tree.leaves(rest)
    # Experts are chosen by scores that differ in their last digits: few tokens may change theirs.
    gap = np.abs(logits(base, whole) - wanted).max(axis=-1)
    assert np.median(gap) < 2e-4
