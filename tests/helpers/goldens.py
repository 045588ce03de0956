"""Stored numbers of the published PyTorch code, and what compares with them."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from flm_jax.flows.interpolants.linear import Linear
from flm_jax.flows.noise import states_from_onehot
from flm_jax.interop.flm import params_from_state_dict
from flm_jax.models.dit import DiTConfig, dit

GOLDENS = Path(__file__).parents[1] / "goldens"
TOLERANCE = 2e-5
CONFIG = DiTConfig(
    vocab_size=97,
    length=16,
    dim=64,
    depth=2,
    heads=4,
    cond_dim=32,
    mlp_ratio=4,
    dropout=0.0,
    two_time=False,
    attention_softcap=50.0,
    logit_softcap=30.0,
    dtype="float32",
    remat="none",
    scan_blocks=True,
)


def arrays(name):
    with np.load(GOLDENS / f"{name}.npz") as file:
        return {key: jnp.asarray(file[key]) for key in file}


def golden_network(name, **changes):
    params, sizes = params_from_state_dict(load_file(GOLDENS / f"{name}.safetensors"))
    return dit(dataclasses.replace(CONFIG, **sizes, **changes)), jax.tree.map(jnp.asarray, params)


def gradients(name, weights):
    """Stored gradients as our parameters; the loss weighting, which has none, is ignored."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        found = {k: file[k] * file[f"{k}:step"] for k in file if not k.endswith(":step")}
    buffers = {"rotary_emb.inv_freq": load_file(GOLDENS / weights)["rotary_emb.inv_freq"]}
    return params_from_state_dict(found | buffers)[0]


def assert_close(got, want, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=0, atol=tolerance)


def assert_trees_close(got, want):
    """Every leaf within the tolerance, which is far below the leaf's own size."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for path, leaf in jax.tree.leaves_with_path(want):
        value = got
        for step in path:
            value = value[step.key]
        np.testing.assert_allclose(
            np.asarray(value), leaf, rtol=0, atol=TOLERANCE, err_msg=jax.tree_util.keystr(path)
        )
        assert np.abs(leaf).max() > 20 * TOLERANCE, f"{path}: too small to be tested"


def golden_states(noise, t, tokens, table, kind):
    """The noisy state by either noise, from one and the same eps."""
    if kind == "onehot":
        return states_from_onehot(Linear(), noise, t, tokens, table)[0]
    xi = jnp.matmul(noise, table, precision=jax.lax.Precision.HIGHEST)
    return Linear().at(t, table[tokens], xi)
