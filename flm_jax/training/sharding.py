"""The one place that knows devices: the mesh, and which axis of which array lies along it."""

import dataclasses
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flm_jax.types import Parallel, require

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Parameter path -> logical axes, one rule each; "layer" is the stack of blocks.
_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(^|/)table$", ("vocab", "embed")),
    (r"(^|/)head/kernel$", ("embed", "vocab")),
    (r"(^|/)head/bias$", ("vocab",)),
    (r"blocks/(qkv|mlp_in)/kernel$", ("layer", "embed", "hidden")),
    (r"blocks/(attn_out|mlp_out)/kernel$", ("layer", "hidden", "embed")),
    (r"blocks/modulation/kernel$", ("layer", None, "embed")),
    (r"blocks/mlp_in/bias$", ("layer", "hidden")),
    (r"blocks/(norm1|norm2)/scale$", ("layer", None)),
    (r"blocks/(mlp_out|modulation)/bias$", ("layer", None)),
    (r"(^|/)(time|target_time)/(hidden|out)/(kernel|bias)$", (None,)),
    (r"(^|/)modulation/kernel$", (None, "embed")),
    (r"(^|/)modulation/bias$", (None,)),
    (r"(^|/)norm/scale$", (None,)),
)
_TO_MESH = {"vocab": "tensor", "hidden": "tensor", "embed": "fsdp", "layer": None, None: None}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 in one of them takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(cfg: MeshConfig) -> Mesh:
    """Mesh (data, fsdp, tensor) over all devices of all processes.

    Raises:
      UserError: sizes that do not multiply to the number of devices.
    """
    sizes = [cfg.data, cfg.fsdp, cfg.tensor]
    count = jax.device_count()
    free = [i for i, n in enumerate(sizes) if n == -1]
    fixed = int(np.prod([n for n in sizes if n != -1]))
    require(
        len(free) <= 1 and all(n >= 1 for n in sizes if n != -1),
        f"mesh sizes {dict(zip(AXES, sizes))}: at most one may be -1 and the rest at least 1.",
    )
    if free:
        sizes[free[0]] = count // fixed
    require(
        int(np.prod(sizes)) == count,
        f"mesh {dict(zip(AXES, sizes))} needs {int(np.prod(sizes))} devices, got {count}; "
        "set config.mesh so that the product fits (-1 = the rest).",
    )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def _path_name(path) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Spec of the parameter whose path ends `name`; arrays of fewer axes are replicated."""
    for pattern, axes in _RULES:
        if re.search(pattern, name) and len(axes) <= len(shape):
            wanted = [_TO_MESH[a] for a in axes] + [None] * (len(shape) - len(axes))
            # An axis that does not divide stays whole: jit refuses uneven shards.
            even = [a if a and n % mesh.shape[a] == 0 else None for a, n in zip(wanted, shape)]
            return PartitionSpec(*even)
    require(not shape, f"parameter {name!r} {shape} matches no sharding rule; add one.")
    return PartitionSpec()


def tree_shardings(tree, mesh: Mesh):
    """Shardings of parameters and of all whose paths end in their names (EMA, moments)."""

    def one(path, leaf):
        return NamedSharding(mesh, _spec(_path_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def loss_parallel(mesh: Mesh, vocab_size: int, dim: int) -> Parallel | None:
    """How the tiled losses lie over the mesh, as the head does; None on one device.

    Left to itself the compiler would all-reduce the head's gradient once a tile.
    """
    if mesh.size == 1:
        return None
    return Parallel(
        mesh,
        BATCH_AXES,
        vocab_axis="tensor" if vocab_size % mesh.shape["tensor"] == 0 else None,
        embed_axis="fsdp" if dim % mesh.shape["fsdp"] == 0 else None,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from each process's own rows."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
