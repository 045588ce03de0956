"""Meshes and sharding rules: sizes, slices, one rule for each parameter, what stays whole."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from flm_jax.build.model import abstract_params, make_network
from flm_jax.config.check import check
from flm_jax.config.training import OptimConfig
from flm_jax.core.errors import UserError
from flm_jax.distributed import sharding
from flm_jax.distributed.sharding import MeshConfig, large_replicated, make_mesh, tree_shardings
from flm_jax.models.dit import DiTConfig, dit
from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.models.lora import AdapterConfig
from flm_jax.models.mixture_of_experts import ExpertsConfig
from flm_jax.training.optim import make_optimizer
from helpers.runs import baseline_config

FSDP = MeshConfig(data=1, fsdp=4, tensor=2)


def shapes(**leaves):
    """One tree of shapes; in names, two underscores stand for a level."""
    tree = {}
    for name, shape in leaves.items():
        *folders, last = name.split("__")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


def test_a_mesh_of_given_devices():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2), jax.devices()[:4])
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert list(mesh.devices.flat) == jax.devices()[:4]


def test_slices_lie_along_the_outer_part_of_the_data_axis():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2, slices=2))
    assert [d.id for d in mesh.devices[:2].flat] == [0, 1, 2, 3]
    with pytest.raises(UserError, match="data 2 does not divide over 4 slices"):
        make_mesh(MeshConfig(data=2, fsdp=4, slices=4))


def test_slices_that_the_devices_do_not_have_are_refused():
    class Fake(types.SimpleNamespace):
        pass

    chips = [Fake(platform="tpu", slice_index=i // 4) for i in range(8)]
    with pytest.raises(UserError, match="lie in 2 slices, config.mesh.slices is 1; set it to 2"):
        make_mesh(MeshConfig(data=8), chips)
    with pytest.raises(UserError, match="lie in 1 slices, config.mesh.slices is 2"):
        make_mesh(MeshConfig(data=4, slices=2), chips[:4])


@pytest.mark.parametrize(
    "cfg, message",
    [
        (MeshConfig(data=3), "needs 3 devices, got 8"),
        (MeshConfig(data=-1, fsdp=-1), "at most one may be -1"),
        (MeshConfig(data=-1, fsdp=16), "needs 0 devices, got 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(cfg, message):
    with pytest.raises(UserError, match=message):
        make_mesh(cfg)


def test_moments_and_average_lie_as_their_parameters():
    tree = {"params": shapes(table=(10, 8)), "opt_state": [{"mu": shapes(table=(10, 8))}]}
    specs = [s.spec for s in jax.tree.leaves(tree_shardings(tree, make_mesh(FSDP)))]
    assert specs == [PartitionSpec("tensor", "fsdp")] * 2


def test_blocks_and_trunk_have_their_own_rules():
    tree = shapes(blocks__modulation__kernel=(2, 8, 8), modulation__kernel=(8, 8))
    placed = tree_shardings(tree, make_mesh(FSDP))
    assert placed["blocks"]["modulation"]["kernel"].spec == PartitionSpec(None, None, "fsdp")
    assert placed["modulation"]["kernel"].spec == PartitionSpec(None, "fsdp")


def test_an_axis_that_does_not_divide_stays_whole():
    placed = tree_shardings(shapes(table=(11, 8)), make_mesh(FSDP))
    assert placed["table"].spec == PartitionSpec(None, "fsdp")


def test_every_parameter_has_a_rule_and_every_rule_a_parameter():
    """Of a DiT with all options, an adapted llama and a mixture of experts, which have all.

    And whatever an optimizer keeps.
    """
    few = (11, 5, 8, 2, 2, 2, 0.0, 0.0, 0.0, "float32", "none", True)
    networks = (
        dit(DiTConfig(*few, cond_dim=6, two_time=True, anchor=True, self_conditioning=True)),
        llama(LlamaConfig(*few, adapters=AdapterConfig(2, 4.0, 2, 2.0, 0.0, 4))),
        llama(LlamaConfig(*few, qk_norm=True, experts=ExpertsConfig(4, 1, 4, 1, 2, 1, 1.0, 1))),
    )
    names = []
    for net in networks:
        params = jax.eval_shape(net.init, jax.random.key(0))
        muon = make_optimizer(OptimConfig(1, 1, "constant", 0, 0, 0, 0, 0, 0, name="muon"), 1)
        tree_shardings(params, make_mesh(FSDP))
        tree_shardings({"opt_state": jax.eval_shape(muon.init, params)}, make_mesh(FSDP))
        leaves = jax.tree_util.tree_leaves_with_path(params)
        names += ["/".join(k.key for k in path) for path, _ in leaves] + ["ns_coeffs"]
    for pattern, _ in sharding._RULES:
        assert any(re.search(pattern, name) for name in names), pattern


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(UserError, match="'blocks/gait/kernel'.*matches no sharding rule"):
        tree_shardings(shapes(blocks__gait__kernel=(2, 8, 8)), make_mesh(FSDP))


def test_a_parameter_with_two_rules_is_refused(monkeypatch):
    rules = (*sharding._RULES, (r"table$", ("embed", "vocab")))
    monkeypatch.setattr(sharding, "_RULES", rules)
    with pytest.raises(UserError, match="'table'.*exactly one rule"):
        tree_shardings(shapes(table=(8, 8)), make_mesh(FSDP))


def test_a_parameter_with_fewer_axes_than_its_rule_is_refused():
    with pytest.raises(UserError, match="'head/kernel'.*of 2 axes"):
        tree_shardings(shapes(head__kernel=(8,)), make_mesh(FSDP))


def test_large_replicated_arrays_are_named():
    mesh = make_mesh(FSDP)
    tree = shapes(table=(11, 6), head__bias=(11,), head__kernel=(8, 10), modulation__bias=(64,))
    placed = jax.tree.map(
        lambda x, s: jax.device_put(np.zeros(x.shape, x.dtype), s), tree, tree_shardings(tree, mesh)
    )
    assert large_replicated(placed, 100) == [("table", 264), ("modulation/bias", 256)]
    assert large_replicated(placed) == []
    alone = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    assert large_replicated(jax.device_put(placed, tree_shardings(tree, alone)), 1) == []


@pytest.mark.parametrize("kind", ["autoregressive", "masked_diffusion"])
def test_every_parameter_has_a_sharding_rule(kind):
    config = check(baseline_config(kind))
    config["model"]["vocab_size"] = 8
    params = abstract_params(
        make_network(config), sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    )
    assert params["anchor"].shape == {"autoregressive": (32,), "masked_diffusion": (2, 32)}[kind]
    assert params["table"].sharding.spec == jax.sharding.PartitionSpec("tensor", "fsdp")
