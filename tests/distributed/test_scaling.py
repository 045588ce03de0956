"""Weak scaling of the compiled train step: what each device computes and sends does not grow.

Two cores cannot show it as time, so the compiled program is asked.
"""

import jax
import numpy as np
import pytest

from flm_jax.distributed import sharding
from flm_jax.profiling import hlo
from flm_jax.profiling.bench_cases import SUITES
from flm_jax.profiling.bench_worker import _config
from flm_jax.training.program import assemble

DEVICES = (1, 2, 4, 8)


def compiled(case, variant):
    """Operations of one device, collectives, and bytes of the parameters.

    One tile alone: the compiler's count takes the body of a loop once.
    """
    config = _config(case, case.variants[variant] | {"loss_tile": case.sizes["length"]})
    mesh = sharding.make_mesh(
        sharding.MeshConfig(**config["mesh"]), jax.devices()[: max(case.devices, 1)]
    )
    program = assemble(config, mesh)
    shape = (case.sizes["batch"], case.sizes["length"])
    rows = sharding.batch_sharding(mesh)
    batch = {
        "tokens": jax.ShapeDtypeStruct(shape, np.int32, sharding=rows),
        "mask": jax.ShapeDtypeStruct(shape, bool, sharding=rows),
    }
    made = program.train_step.lower(program.state, {}, batch).compile()
    found = hlo.collectives(made.as_text())
    assert not found.unknown_loops
    size = sum(4 * x.size for x in jax.tree.leaves(program.state.params))
    return made.cost_analysis()["flops"], found.kinds, size


@pytest.fixture(scope="module")
def measured():
    return {
        (case.devices, variant): compiled(case, variant)
        for case in SUITES["scaling"]
        for variant in case.variants
    }


def test_operations_of_a_device_do_not_grow(measured):
    """Fully sharded, E^T E (and its gradient) is shared as well: less than 15% of the step here."""
    for devices in DEVICES[1:]:
        assert measured[devices, "data"][0] == pytest.approx(measured[1, "data"][0], rel=0.01)
        assert 0.85 < measured[devices, "fsdp"][0] / measured[1, "fsdp"][0] < 1.01


def test_data_parallel_steps_reduce_each_gradient_once(measured):
    """Predicted: an all-reduce of the gradients, as many bytes as the parameters.

    To that come the gradient of E^T E, [D, D], and small sums: the same on any number of devices.
    """
    assert not measured[1, "data"][1]
    for devices in DEVICES[1:]:
        _, kinds, size = measured[devices, "data"]
        assert set(kinds) == {"all-reduce"}
        assert size <= kinds["all-reduce"].bytes < 1.05 * size
        assert kinds["all-reduce"] == measured[2, "data"][1]["all-reduce"]


def test_fully_sharded_steps_gather_parameters_and_reduce_gradients(measured):
    """Predicted: each parameter gathered once forward, once backward; gradients reduced once.

    None of it may grow with the devices, nor may the head be reduced once a tile.
    """
    assert not measured[1, "fsdp"][1]
    first = measured[2, "fsdp"][1]
    for devices in DEVICES[1:]:
        _, kinds, size = measured[devices, "fsdp"]
        assert kinds["all-gather"].bytes <= 2.0 * size
        reduced = kinds["all-reduce"].bytes
        reduced += kinds["reduce-scatter"].bytes if "reduce-scatter" in kinds else 0
        assert reduced <= 1.5 * size
        for kind, now in kinds.items():
            assert now.bytes <= 1.1 * first[kind].bytes
