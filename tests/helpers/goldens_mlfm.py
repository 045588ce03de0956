"""Stored numbers of the authors' code of masked language flows; see goldens_mlfm/README.md."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from flm_jax.build.flow import make_flow
from flm_jax.build.model import make_network
from flm_jax.config.schema import base_config, settings
from flm_jax.flows.gamma_state import state_of_knots
from flm_jax.interop import mlfm
from flm_jax.models.lora import join

GOLDENS = Path(__file__).parents[1] / "goldens_mlfm"
SIGMA = 0.2
EOS = 2


def arrays(name):
    """The arrays of NAME.npz; floats as float32."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        found = {key: file[key] for key in file}
    floats = lambda x: x.astype(np.float32) if x.dtype.kind == "f" else x
    return {key: jnp.asarray(floats(value)) for key, value in found.items()}


def record(name):
    """The contents of NAME.json."""
    return json.loads((GOLDENS / f"{name}.json").read_text())


def assert_close(got, want, atol, rtol=0.0):
    """Equal within a tolerance, positions that are not numbers included."""
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=atol, rtol=rtol)


@functools.cache
def adapted():
    """(network, parameters) of the authors' tiny adapted model, through the importer."""
    params = join(_published().base.params, _published().adapters)
    return make_network(_config()), jax.tree.map(jnp.asarray, params)


def bridge(law=""):
    """The flow of their configurations: sigma 0.2, gamma in [-10, 6].

    Args:
      law: "sft" or "pre" for the law of fine-tuning or adaptation at the curve that the sampler's
        numbers were made with; empty for one that has learnt nothing.
    """
    config = _config()
    if law == "sft":
        config["flow"]["law"] |= {"uniform": 0.1, "normal": 0.0}
    flow = make_flow(config, 61)
    return (
        flow.settled(state_of_knots(arrays("time_grids")[f"{law}_knots"], flow.times.cfg))
        if law
        else flow
    )


def stored_gradients(name, grads):
    """(ours, stored) gradients by the authors' names, of the parameters that are stored."""
    want = load_file(GOLDENS / f"{name}.safetensors")
    cfg = settings(_config(), "adapters")
    found = mlfm.state_dict_from_params(jax.device_get(grads), cfg, 2, 2, whole=True)
    return {key: found[key] for key in want}, want


@functools.cache
def _published():
    return mlfm.read(GOLDENS / "model_adapted.safetensors", 2)


def _config():
    published = _published()
    config = base_config(model="llama", objective="masked_flow").to_dict()
    config["model"] |= published.base.model | published.values["model"] | {"length": 64}
    config["adapters"] |= published.values["adapters"] | {"base": "beside"}
    return config
