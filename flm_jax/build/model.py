"""config.model becomes a network: the table of networks, and what each reads of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from flm_jax.build.adapters import adapter_config, exported_tensors
from flm_jax.build.families.base import OPTIONAL_KEYS
from flm_jax.build.families.flow_map import FORWARD_MODE
from flm_jax.build.families.registry import check_network, family
from flm_jax.build.flow import make_clock
from flm_jax.config.schema import base_config
from flm_jax.core.errors import one_of, require
from flm_jax.core.network import Network
from flm_jax.core.types import Config, Params
from flm_jax.distributed.sharding import attention_plan, loss_parallel, tree_shardings
from flm_jax.flows.clocks import tau_to_t
from flm_jax.interop import flm
from flm_jax.models import llama as llamas
from flm_jax.models.attention import AUTO, KINDS, AttentionPlan, resolved
from flm_jax.models.causal import causal
from flm_jax.models.dit import DiTConfig, dit
from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.models.mixture_of_experts import ExpertsConfig
from flm_jax.models.step_policy import Policy
from flm_jax.models.transformer import TransformerConfig, block_operations

# Keys that the DiT alone reads, with the value that switches each off; workdirs may be older.
_DIT_KEYS = {"position_table": False, "self_conditioning": False, "posterior_input": False}
NEW_MODEL_KEYS = {"attention": "xla"} | _DIT_KEYS
_PARAM_DTYPES = ("float32", "bfloat16")


class _Kind(NamedTuple):
    """One network.

    Attributes:
      make: (sizes, attention, config) -> Network; sizes are the keys of config.model that all
        networks read, and those of `own`.
      own: keys of config.model that it reads and others refuse, with what switches each off.
      adapters: whether a trained one can be adapted (config.adapters).
      operations: config.model -> least operations of a token in the blocks of one forward call.
      tensors: (config, params) -> tensors under the names of its reference.
    """

    make: Callable[[Config, AttentionPlan, Config], Network]
    own: dict[str, Any]
    adapters: bool
    operations: Callable[[Config], int]
    tensors: Callable[[Config, Params], dict[str, np.ndarray]]


def _dit(sizes: Config, plan: AttentionPlan, config: Config) -> Network:
    aim, by_posterior = OPTIONAL_KEYS | config["objective"], sizes.pop("posterior_input")
    weighting = one_of("config.objective.weighting", aim["weighting"], ("equal", "learned"))
    more = {"anchor": family(config).anchored, "weighting": weighting == "learned"}
    net = dit(DiTConfig(max_length=sizes.pop("length"), **more, **sizes), plan)
    if by_posterior:
        times = functools.partial(tau_to_t, make_clock(config, net.vocab_size))
        net = dataclasses.replace(net, interpolant_time=times)
    return dataclasses.replace(net, any_order=aim["context"] > 0.0 or aim["prompt"] > 0)


def _causal(sizes: Config, plan: AttentionPlan, config: Config) -> Network:
    del config
    require(
        not sizes["two_time"], "a causal network has no times; set config.model.two_time = False."
    )
    del sizes["two_time"], sizes["cond_dim"]
    return causal(TransformerConfig(max_length=sizes.pop("length"), **sizes), plan)


def _llama(sizes: Config, plan: AttentionPlan, config: Config) -> Network:
    defaults, given = base_config().to_dict()["model"]["llama"], config["model"].get("llama", {})
    more = defaults | given
    experts = defaults["experts"] | given.get("experts", {})
    more["experts"] = ExpertsConfig(**experts) if experts["number"] else None
    require(
        not sizes["two_time"], "a llama network has one time; set config.model.two_time = False."
    )
    one_of("config.model.llama.param_dtype", more["param_dtype"], _PARAM_DTYPES)
    del sizes["two_time"], sizes["cond_dim"]
    more["adapters"] = adapter_config(config)
    return llama(LlamaConfig(max_length=sizes.pop("length"), **sizes, **more), plan)


def _dit_tensors(config: Config, params: Params) -> dict[str, np.ndarray]:
    require(
        not config["model"].get("posterior_input"),
        "got a model with config.model.posterior_input, which the reference's network does not "
        "know; expected one without, or an --export to a folder.",
    )
    return flm.state_dict_from_params(params, config["model"]["heads"])


MODELS: dict[str, _Kind] = {
    "dit": _Kind(_dit, _DIT_KEYS, False, block_operations, _dit_tensors),
    "causal": _Kind(_causal, {}, False, block_operations, _dit_tensors),
    "llama": _Kind(_llama, {}, True, llamas.block_operations, exported_tensors),
}


def network_kind(config: Config) -> _Kind:
    """The entry of MODELS that a configuration names.

    Raises:
      UserError: no such network.
    """
    return MODELS[one_of("config.model.name", config["model"]["name"], MODELS)]


def make_network(config: Config, mesh: Mesh | None = None) -> Network:
    """The denoiser of a configuration with its vocabulary resolved.

    Args:
      config: complete but for keys that a workdir may be too old to have.
      mesh: the devices that it runs over; None for one.

    Raises:
      UserError: an unknown or impossible value, or a network that the objective does not train.
    """
    sizes = NEW_MODEL_KEYS | config["model"]
    one_of("config.model.attention", sizes["attention"], (AUTO, *KINDS))
    kind, adapted = network_kind(config), adapter_config(config) is not None
    name = sizes.pop("name")
    sizes.pop("llama", None)
    for key, off in _DIT_KEYS.items():
        if key not in kind.own:
            require(
                sizes.pop(key) == off,
                f"config.model.{key} is for 'dit' alone, got model.name {name!r}; set it to False.",
            )
    require(
        kind.adapters or not adapted,
        f"config.adapters.base is set, config.model.name is {name!r}; only 'llama' has adapters.",
    )
    _check_sizes(sizes)
    check_network(config, adapted)
    plan = _attention(config, sizes, mesh)
    net = kind.make(sizes | {"attention": plan.kind}, plan, config)
    if mesh is None or not net.loss_tile:
        return net
    return dataclasses.replace(net, parallel=loss_parallel(mesh, net.vocab_size, net.dim))


def _attention(config: Config, sizes: Config, mesh: Mesh | None) -> AttentionPlan:
    """How attention runs, "auto" resolved for these sizes and devices."""
    return resolved(
        attention_plan(sizes["attention"], mesh),
        reverse_only=config["objective"]["name"] not in FORWARD_MODE,
        length=sizes["length"],
        heads=sizes["heads"],
        head_dim=sizes["dim"] // sizes["heads"],
        softcap=sizes["attention_softcap"],
        dtype=sizes["dtype"],
    )


def _check_sizes(sizes: Config) -> None:
    one_of("config.model.dtype", sizes["dtype"], ("float32", "bfloat16"))
    require(
        sizes["dim"] % sizes["heads"] == 0 and (sizes["dim"] // sizes["heads"]) % 2 == 0,
        f"config.model.dim {sizes['dim']} over {sizes['heads']} heads must give an even head size.",
    )
    for key in ("dim", "depth", "heads", "length"):
        require(sizes[key] >= 1, f"config.model.{key} must be at least 1, got {sizes[key]}.")
    require(
        0.0 <= sizes["dropout"] < 1.0,
        f"config.model.dropout is {sizes['dropout']}, not in [0, 1).",
    )


def abstract_params(net: Network | Policy, mesh: Mesh | None = None) -> Params:
    """Shapes of the parameters, with shardings: over a mesh, or one device."""
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: device, shapes)
    else:
        shardings = tree_shardings(shapes, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
