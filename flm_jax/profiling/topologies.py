"""Devices that are not present: TPU slices and GPU hosts for which programs can be compiled."""

import dataclasses
import importlib.util
import math
import re

import jax
from jax.experimental import topologies

from flm_jax.core.errors import UserError, one_of, require

_GIB = 2**30
EXAMPLES = "v5e:4x4, v5p:4x4x4, v6e:16x16, h100:8, h200:8, h200:2x8 (hosts x cards), cpu:8"


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of device.

    Attributes:
      platform: "tpu", "cuda" or "cpu".
      memory: memory in bytes that a program may use on one device; 0 if the host's memory decides.
      bandwidth: bandwidth of that memory in bytes per second; only for GPUs, whose compiler needs
        it.
    """

    platform: str
    memory: int
    bandwidth: int = 0


# TPUs: what their compiler allows. GPUs: the card's memory less what the driver and the runtime
# take (XLA_PYTHON_CLIENT_MEM_FRACTION=.95 leaves as much).
CHIPS = {
    "v4": Chip("tpu", int(30.75 * _GIB)),
    "v5e": Chip("tpu", int(15.75 * _GIB)),
    "v5p": Chip("tpu", int(95.74 * _GIB)),
    "v6e": Chip("tpu", int(31.25 * _GIB)),
    "h100": Chip("cuda", int(0.95 * 79.1 * _GIB), 3_350 * 10**9),
    "h200": Chip("cuda", int(0.95 * 139.8 * _GIB), 4_800 * 10**9),
    "cpu": Chip("cpu", 0),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A family of chips and their arrangement, as in "v5e:4x4"."""

    family: str
    sizes: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.family]


def parse(name: str) -> Topology:
    """Parses FAMILY:NxM...

    Raises:
      UserError: another format, or an unknown family.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    require(bool(match), f"got topology {name!r}; expected FAMILY:SIZES such as {EXAMPLES}.")
    family, sizes = match.groups()
    one_of("kind of chip", family, CHIPS)
    return Topology(family, tuple(int(n) for n in sizes.split("x")))


def devices(topology: Topology, slices: int = 1) -> list[jax.Device]:
    """Returns the devices to compile for; on "cpu" the devices of this process.

    Args:
      topology: topology of one slice, or GPU hosts (hosts x cards per host).
      slices: number of TPU slices of this topology.

    Raises:
      UserError: an arrangement that does not exist; the platform's compiler is not installed.
    """
    chip = topology.chip
    if chip.platform == "cpu":
        count, found = math.prod(topology.sizes), jax.devices("cpu")
        require(
            count <= len(found),
            f"got topology cpu:{count}, this process has {len(found)} CPU devices; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}.",
        )
        return found[:count]
    maker = _tpu if chip.platform == "tpu" else _cuda
    try:
        return maker(topology, slices)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        name = f"{topology.family}:{'x'.join(map(str, topology.sizes))}"
        detail = str(error).splitlines()[0][:200]
        raise UserError(
            f"topology {name!r} with {slices} slices is refused ({detail}); expected one that "
            f"exists, such as {EXAMPLES}."
        ) from error


def _tpu(topology: Topology, slices: int) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError('libtpu, the TPU compiler, is not installed: pip install "flm-jax[tpu]".')
    options = {}
    if math.prod(topology.sizes) == 1:  # by default a host holds four chips
        options["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        options["num_slices"] = slices
    name = f"{topology.family}:{'x'.join(map(str, topology.sizes))}"
    return list(topologies.get_topology_desc(name, "tpu", **options).devices)


def _cuda(topology: Topology, slices: int) -> list[jax.Device]:
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise UserError('the CUDA compiler is not installed: pip install "flm-jax[cuda]".')
    require(len(topology.sizes) <= 2, f"GPU topologies are HOSTSxCARDS, got {topology.sizes}.")
    hosts, cards = (1, *topology.sizes)[-2:]
    layout = f"{slices}x{hosts}x{cards}"
    described = topologies.get_topology_desc(
        "", "cuda", target_config=_card(topology.family, topology.chip), topology=layout
    )
    return list(described.devices)


def _card(name: str, chip: Chip) -> str:
    """Describes a Hopper card in the protocol-buffer text that XLA's GPU compiler reads."""
    numbers = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 2**10,
        "shared_memory_per_block_optin": 227 * 2**10,
        "shared_memory_per_core": 228 * 2**10,
        "threads_per_core_limit": 2048,
        "core_count": 132,
        "fpus_per_core": 128,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "l2_cache_size": 50 * 2**20,
        "clock_rate_ghz": 1.98,
        "memory_bandwidth": chip.bandwidth,
        "device_memory_size": chip.memory,
        "device_address_bits": 64,
    }
    fields = " ".join(f"{key}: {value}" for key, value in numbers.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: 9 minor: 0 }} "
        'device_vendor: "NVIDIA Corporation" driver_version: "12.8.0" runtime_version: "12.8.0" '
        'compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0" '
        f'name: "NVIDIA {name.upper()}" }} platform_name: "CUDA" '
        "dnn_version_info { major: 9 minor: 10 patch: 0 } "
        f'device_description_str: "NVIDIA {name.upper()}"'
    )
