"""Builds the network of config.model, from the table of networks."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from flm_jax.build.adapters import adapter_config, exported_tensors
from flm_jax.build.families.flow_map import differentiates_forward
from flm_jax.build.families.registry import check_network, family
from flm_jax.build.flow import any_order, make_flow
from flm_jax.config.schema import settings
from flm_jax.core.errors import one_of, require
from flm_jax.core.network import Network
from flm_jax.core.types import Config, Params, Times
from flm_jax.denoiser.posterior_input import with_posterior
from flm_jax.distributed.sharding import attention_plan, loss_parallel, tree_shardings
from flm_jax.flows.flow import GammaTold
from flm_jax.interop import flm
from flm_jax.models import llama as llamas
from flm_jax.models.attention import AttentionPlan, resolved
from flm_jax.models.causal import causal
from flm_jax.models.dit import DiTConfig, dit
from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.models.lora import AdapterConfig
from flm_jax.models.step_policy import Policy
from flm_jax.models.transformer import TransformerConfig, block_operations


class _Kind(NamedTuple):
    """One network; its settings are in `config.schema.MODELS`.

    Attributes:
      make: function from (settings, attention, config) to a Network.
      adapters: whether a trained network of this kind can be adapted (config.adapters).
      operations: function from settings to a lower bound of operations for a token in the blocks of
        one forward call.
      tensors: function from (config, params) to tensors under the names of its reference.
    """

    make: Callable[[Any, AttentionPlan, Config], Network]
    adapters: bool
    operations: Callable[[Any], int]
    tensors: Callable[[Config, Params], dict[str, np.ndarray]]


def _dit(cfg: DiTConfig, plan: AttentionPlan, config: Config) -> Network:
    learned = getattr(settings(config, "objective"), "weighting", "equal") == "learned"
    cfg = dataclasses.replace(cfg, anchor=family(config).anchored, weighting=learned)
    return dataclasses.replace(dit(cfg, plan), any_order=any_order(config))


def _causal(cfg: TransformerConfig, plan: AttentionPlan, config: Config) -> Network:
    del config
    return causal(cfg, plan)


def _llama(cfg: LlamaConfig, plan: AttentionPlan, config: Config) -> Network:
    adapters = adapter_config(config)
    told = None if adapters is None else _adapters_told(adapters, config, cfg.vocab_size)
    return llama(dataclasses.replace(cfg, adapters=adapters), plan, told)


def _adapters_told(
    adapters: AdapterConfig, config: Config, vocab_size: int
) -> Callable[[Times], Times] | None:
    """Function from network times to the input of adapters' time embedding; None for identity."""
    flow = make_flow(config, vocab_size)
    if adapters.time == "gamma" and isinstance(flow.told, GammaTold):
        return flow.told.gamma
    return flow.t if adapters.time == "t" else None


_NOT_THE_REFERENCE = ("posterior_input", "posterior_skip", "normalised_table")


def _dit_tensors(config: Config, params: Params) -> dict[str, np.ndarray]:
    require(
        not any(config["model"].get(key) for key in _NOT_THE_REFERENCE),
        f"got a model with config.model.{' or '.join(_NOT_THE_REFERENCE)}, which the reference's "
        "network does not know; expected one without, or an --export to a folder.",
    )
    return flm.state_dict_from_params(params, config["model"]["heads"])


MODELS: dict[str, _Kind] = {
    "dit": _Kind(_dit, False, block_operations, _dit_tensors),
    "causal": _Kind(_causal, False, block_operations, _dit_tensors),
    "llama": _Kind(_llama, True, llamas.block_operations, exported_tensors),
}


def network_kind(config: Config) -> _Kind:
    """Returns the entry of MODELS that a configuration names.

    Raises:
      UserError: an unknown network.
    """
    return MODELS[one_of("config.model.name", config["model"]["name"], MODELS)]


def make_network(config: Config, mesh: Mesh | None = None) -> Network:
    """Builds the denoiser of a configuration, whose vocabulary is resolved.

    Args:
      config: complete configuration.
      mesh: devices over which it runs; None for one device.

    Raises:
      UserError: an unknown or impossible value, or a network that the objective does not train.
    """
    kind, adapted = network_kind(config), adapter_config(config) is not None
    cfg = settings(config, "model")
    require(
        kind.adapters or not adapted,
        f"config.adapters.base is set, config.model.name is {config['model']['name']!r}; only "
        "'llama' has adapters.",
    )
    check_network(config, adapted)
    plan = _attention(config, cfg, mesh)
    net = kind.make(dataclasses.replace(cfg, attention=plan.kind), plan, config)
    require(
        0 <= cfg.tokens <= net.vocab_size,
        f"config.model.tokens is {cfg.tokens} of a vocabulary of {net.vocab_size}; set it to 0.",
    )
    net = dataclasses.replace(net, tokens=cfg.tokens % net.vocab_size)
    if mesh is not None and net.loss_tile:
        net = dataclasses.replace(net, parallel=loss_parallel(mesh, net.vocab_size, net.dim))
    read, skip = (getattr(cfg, f"posterior_{use}", False) for use in ("input", "skip"))
    if not (read or skip):
        return net
    flow = make_flow(config, net.vocab_size)
    return with_posterior(net, flow, read=read, skip=skip, dtype=cfg.dtype)


def _attention(config: Config, cfg: TransformerConfig, mesh: Mesh | None) -> AttentionPlan:
    """Plan of attention, with "auto" resolved for these sizes and devices."""
    return resolved(
        attention_plan(cfg.attention, mesh),
        reverse_only=not differentiates_forward(config),
        length=cfg.length,
        heads=cfg.heads,
        head_dim=cfg.head_dim,
        softcap=cfg.attention_softcap,
        dtype=cfg.dtype,
    )


def abstract_params(net: Network | Policy, mesh: Mesh | None = None) -> Params:
    """Shapes of the parameters with their shardings, over a mesh or on one device."""
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, shapes)
    else:
        shardings = tree_shardings(shapes, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
