"""Device meshes and sharding: no other module maps array axes to mesh axes."""

import dataclasses
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flm_jax.core.errors import UserError, require
from flm_jax.core.network import Parallel
from flm_jax.core.settings import setting
from flm_jax.models.attention import AttentionPlan

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Parameter path -> logical axes; exactly one rule each. "layer" is the stack of blocks.
_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(^|/)table$", ("vocab", "embed")),
    (r"(^|/)head/kernel$", ("embed", "vocab")),
    (r"(^|/)head/bias$", ("vocab",)),
    # What enters a branch is split by columns, what leaves it by rows: between them activations
    # stay split, and a branch takes one sum over the tensor axis.
    (r"blocks/(qkv|mlp_in|q|k|v|gate|up)/kernel$", ("layer", "embed", "hidden")),
    (r"blocks/(attn_out|mlp_out)/kernel$", ("layer", "hidden", "embed")),
    (r"blocks/modulation/kernel$", ("layer", None, "embed")),
    (r"blocks/mlp_in/bias$", ("layer", "hidden")),
    (r"blocks/(norm1|norm2|q_norm|k_norm)/scale$", ("layer", None)),
    # Experts stay together: a token's may be any.
    (r"blocks/experts/(gate|up)/kernel$", ("layer", None, "embed", "hidden")),
    (r"blocks/experts/mlp_out/kernel$", ("layer", None, "hidden", "embed")),
    (r"blocks/experts/router/kernel$", ("layer", "embed", None)),
    (r"blocks/experts/router/bias$", ("layer", None)),
    (r"blocks/(mlp_out|modulation)/bias$", ("layer", None)),
    (r"(^|/)(time|target_time|weighting)/(hidden|out)/(kernel|bias)$", (None,)),
    (r"(^|(?<!blocks)/)modulation/kernel$", (None, "embed")),
    (r"(^|/)estimate/kernel$", (None, "embed")),
    (r"(^|(?<!blocks)/)modulation/bias$", (None,)),
    (r"(^|/)norm/scale$", (None,)),
    (r"(^|/)ns_coeffs$", (None,)),  # Muon's constants
    (r"(^|/)(anchor|positions)$", (None,)),
    (r"blocks/lora/(qkv|q|k|v|gate|up)/a/kernel$", ("layer", "embed", None)),
    (r"blocks/lora/(qkv|q|k|v|gate|up)/b/kernel$", ("layer", None, "hidden")),
    (r"blocks/lora/(attn_out|mlp_out)/a/kernel$", ("layer", "hidden", None)),
    (r"blocks/lora/(attn_out|mlp_out)/b/kernel$", ("layer", None, "embed")),
    (r"(^|/)lora/head/a/kernel$", ("embed", None)),
    (r"(^|/)lora/head/b/kernel$", (None, "vocab")),
)
_TO_MESH = {"vocab": "tensor", "hidden": "tensor", "embed": "fsdp", "layer": None, None: None}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis, over all slices; -1 in one axis is the rest."""

    data: int = setting(
        -1, "Number of devices over which the batch alone is split; -1 for all that remain."
    )
    fsdp: int = setting(1, "Number of devices over which batch and parameters are split.")
    tensor: int = setting(1, "Number of devices over which heads, MLP and vocabulary are split.")
    slices: int = setting(
        1,
        "Number of groups of devices with fast links inside (TPU slices); the data axis spans"
        " them.",
    )


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh (data, fsdp, tensor) over all devices of all processes, or given ones.

    Args:
      cfg: sizes of the mesh.
      devices: devices, which may belong to a topology that is not attached; all attached ones by
        default.

    Raises:
      UserError: sizes that do not multiply to the number of devices; slices that the devices do not
        have, or that the data axis does not span evenly.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes(cfg, len(devices))
    found = len({getattr(d, "slice_index", 0) for d in devices})
    require(
        found == cfg.slices or (found == 1 and devices[0].platform != "tpu"),
        f"the devices lie in {found} slices, config.mesh.slices is {cfg.slices}; "
        f"set it to {found}.",
    )
    if cfg.slices > 1:
        grid = _over_slices(sizes, cfg.slices, devices, apart=found > 1)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _sizes(cfg: MeshConfig, count: int) -> tuple[int, ...]:
    sizes = [cfg.data, cfg.fsdp, cfg.tensor]
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
    return tuple(sizes)


def _over_slices(sizes: tuple[int, ...], slices: int, devices: list, apart: bool) -> np.ndarray:
    """Arranges devices with the slices along the outermost part of the data axis."""
    require(
        sizes[0] % slices == 0,
        f"config.mesh.data {sizes[0]} does not divide over {slices} slices: gradients alone may "
        f"cross slow links; make it a multiple of {slices}.",
    )
    if not apart:  # hosts and fake devices have no slices, but come in order
        return np.array(devices).reshape(sizes)
    inside = (sizes[0] // slices, *sizes[1:])
    return mesh_utils.create_hybrid_device_mesh(
        inside, (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def _path_name(path) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _rule(name: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
    """Logical axes of the parameter whose path ends in `name`."""
    if not shape or name.startswith("tracked/"):  # statistics are small: whole everywhere
        return ()
    found = [(pattern, axes) for pattern, axes in _RULES if re.search(pattern, name)]
    if len(found) != 1:
        which = " and ".join(repr(pattern) for pattern, _ in found)
        raise UserError(
            f"parameter {name!r} {shape} matches {which or 'no sharding rule'}; it must match "
            "exactly one rule of flm_jax/distributed/sharding.py."
        )
    axes = found[0][1]
    require(
        len(axes) <= len(shape),
        f"parameter {name!r} {shape} matches sharding rule {found[0][0]!r} of {len(axes)} axes; "
        "give it a rule of its own.",
    )
    return axes


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """PartitionSpec of a parameter; trailing axes beyond its rule are replicated."""
    axes = _rule(name, shape)
    wanted = [_TO_MESH[a] for a in axes] + [None] * (len(shape) - len(axes))
    # An axis that does not divide stays whole: jit refuses uneven shards.
    return PartitionSpec(
        *(a if a and n % mesh.shape[a] == 0 else None for a, n in zip(wanted, shape))
    )


def tree_shardings(tree, mesh: Mesh):
    """Shardings of parameters, and of trees whose paths end in their names (EMA, moments)."""

    def one(path, leaf):
        return NamedSharding(mesh, _spec(_path_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def large_replicated(tree, threshold: int = 2**20) -> list[tuple[str, int]]:
    """Names and sizes in bytes of arrays that are replicated on several devices, largest first.

    Args:
      tree: tree of arrays, or of shapes with shardings.
      threshold: smallest size in bytes of a reported array.
    """
    found = [
        (_path_name(path), x.size * x.dtype.itemsize)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if len(x.sharding.device_set) > 1 and x.sharding.is_fully_replicated
    ]
    return sorted((f for f in found if f[1] >= threshold), key=lambda f: (-f[1], f[0]))


def attention_plan(kind: str, mesh: Mesh | None) -> AttentionPlan:
    """Plan of attention over the mesh: rows split like the batch, heads like the columns of qkv."""
    if mesh is None:
        return AttentionPlan(kind)
    return AttentionPlan(kind, mesh, BATCH_AXES, "tensor" if mesh.shape["tensor"] > 1 else None)


def loss_parallel(mesh: Mesh, vocab_size: int, dim: int) -> Parallel | None:
    """Plan of the tiled losses over the mesh, split like the head; None on one device.

    The compiler alone would all-reduce the head's gradient for every tile.
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
    """Sharding of the rows of a batch over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Rows of a global batch on this process's devices, in order; all rows for one process.

    Two processes that split a tensor axis between them hold, and read, the same rows.
    """
    index = batch_sharding(mesh).addressable_devices_indices_map((batch,))
    # A set, since devices along the tensor axis hold the same rows.
    parts = {(rows.indices(batch)[:2]) for (rows,) in index.values()}
    return np.concatenate([np.arange(*part) for part in sorted(parts)])


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh, rows: np.ndarray, total: int):
    """Builds global arrays [total, ...] from this process's rows.

    Args:
      batch: arrays [len(rows), ...].
      rows: indices of these rows in the global batch, from `local_rows`.
    """
    sharding = batch_sharding(mesh)

    def place(local: np.ndarray) -> jax.Array:
        def shard(index):
            first, last, _ = index[0].indices(total)
            # `rows` ascend, and a device's own are consecutive among them.
            start = int(np.searchsorted(rows, first))
            return local[start : start + last - first]

        return jax.make_array_from_callback((total, *local.shape[1:]), sharding, shard)

    return {name: place(local) for name, local in batch.items()}


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding with the same values on every device, which any host of a run may read."""
    return NamedSharding(mesh, PartitionSpec())
