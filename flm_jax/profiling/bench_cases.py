"""The named cases of the speed benchmark; the last variant of each is compared with the others."""

from typing import Any, NamedTuple

# The last variant is the library's own choice; "onehot_plain" is the reference's path: noise in R^V
# and losses over all positions at once.


def _noise(tile: int) -> dict[str, dict[str, Any]]:
    return {
        "onehot_plain": {"noise": "onehot", "loss_tile": 0},
        "onehot": {"noise": "onehot", "loss_tile": tile},
        "projected": {"noise": "projected", "loss_tile": tile},
    }


# One tile of all positions needs more memory, and no sums over tiles.
_WHOLE = {"whole": {"noise": "projected", "loss_tile": 256}}
_LOSS = _WHOLE | _noise(64)
_FEW = _WHOLE | {"projected": {"noise": "projected", "loss_tile": 64}}
_SMALL = {"onehot": {"noise": "onehot"}, "projected": {"noise": "projected"}}
_ROUTES = {
    name: {"route": name, "loss_tile": 64}
    for name in ("lagrangian", "eulerian", "endpoint", "semigroup")
}
_READ = {
    f"{read}_{dtype}": {"posterior_input": read == "posteriors", "dtype": dtype, "loss_tile": 64}
    for dtype in ("bfloat16", "float32")
    for read in ("states", "posteriors")
}
_SAMPLE = {"onehot": {"noise": "onehot"}, "projected": {"noise": "projected", "loss_tile": 32}}


class Case(NamedTuple):
    """One size of a program in several variants.

    Attributes:
      name: unique name.
      kind: "train" (a train step) or "sample" (a sampler call).
      objective: "denoising" or "semigroup"; samplers use a flow map for "semigroup".
      sizes: batch, and any key of config.model; steps for samplers.
      variants: settings of each variant by name: noise, route (instead of the objective), and any
        key of config.model, config.mesh or config.objective.
      devices: number of host devices of the CPU; 0 for the available ones.
      group: name of a group whose cases run one after the other in one process; "" gives each
        variant its own process.
    """

    name: str
    kind: str
    objective: str
    sizes: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    devices: int = 0
    group: str = ""

    @property
    def tokens(self) -> int:
        return self.sizes["batch"] * self.sizes["length"]


def _sizes(vocab_size: int, batch: int, length: int, dim: int, depth: int, **more) -> dict:
    sizes = dict(vocab_size=vocab_size, batch=batch, length=length, dim=dim, depth=depth)
    return sizes | {"heads": 4} | more


_CPU = (
    Case("flm_train_v50257", "train", "denoising", _sizes(50257, 16, 128, 256, 2), _noise(32)),
    Case("flm_train_v30522", "train", "denoising", _sizes(30522, 8, 128, 256, 4), _LOSS),
    Case("flm_train_v50257_long", "train", "denoising", _sizes(50257, 4, 256, 256, 4), _FEW),
    Case("flm_posteriors_v30522", "train", "denoising", _sizes(30522, 8, 128, 256, 4), _READ),
    Case("flm_train_v1024", "train", "denoising", _sizes(1024, 64, 64, 128, 4), _SMALL),
    Case("fmlm_train_v50257", "train", "semigroup", _sizes(50257, 16, 128, 256, 2), _noise(32)),
    # The last variant, to which the others are compared, is the semigroup's.
    Case("fmlm_routes_v30522", "train", "semigroup", _sizes(30522, 8, 128, 256, 4), _ROUTES),
    Case(
        "flm_sample_v50257",
        "sample",
        "denoising",
        _sizes(50257, 16, 128, 256, 2, steps=4),
        _SAMPLE,
    ),
    Case(
        "fmlm_sample_v50257",
        "sample",
        "semigroup",
        _sizes(50257, 16, 128, 256, 2, steps=1),
        _SAMPLE,
    ),
)


def _weak(devices: int) -> Case:
    """Case with the same rows per device on 1, 2, 4 and 8 devices: their work must not grow."""
    size = _sizes(8192, 4 * devices, 128, 128, 2, loss_tile=32)
    meshes = {
        name: {name: -1} | ({"data": 1} if name != "data" else {}) for name in ("data", "fsdp")
    }
    return Case(f"flm_weak_scaling_{devices}", "train", "denoising", size, meshes, devices)


_SCALING = tuple(_weak(devices) for devices in (1, 2, 4, 8))

_OWT = dict(
    vocab_size=50257,
    length=1024,
    dim=768,
    depth=12,
    heads=12,
    dtype="bfloat16",
    scan_blocks=True,
    loss_tile=128,
)
_LM1B = _OWT | dict(vocab_size=30522, length=128)


def _tpu(rows: int) -> tuple[Case, ...]:
    """Cases of the papers' sizes in bf16, with `rows` of 1024 tokens in a step."""
    fast = {"attention": "splash"}
    plain = {"onehot_plain": {"noise": "onehot", "loss_tile": 0, "remat": "full"}}
    train = plain | {
        "full_remat": {"remat": "full"} | fast,
        "matmuls": {"remat": "matmuls"} | fast,
        "no_remat": fast,
    }
    map_ = {"no_remat": {"two_time": True} | fast}
    return (
        Case("flm_train_owt", "train", "denoising", _OWT | {"batch": rows}, train),
        Case("fmlm_train_owt", "train", "semigroup", _OWT | {"batch": rows // 2}, map_),
        Case("flm_train_lm1b", "train", "denoising", _LM1B | {"batch": 8 * rows}, {"all": fast}),
        *(
            Case(
                f"flm_sample_owt_{steps}",
                "sample",
                "denoising",
                _OWT | {"batch": rows, "steps": steps},
                {"onehot": {"noise": "onehot"}, "projected": fast},
            )
            for steps in (1, 4, 64)
        ),
        Case("fmlm_sample_owt_1", "sample", "semigroup", _OWT | {"batch": rows, "steps": 1}, map_),
    )


# cuDNN has no cap of the scores, so its variant is another model. "fused" is the library's own
# choice. "unrolled" writes the blocks out: what a loop over blocks keeps for the backward pass is
# copied into stacks of arrays and out of them, but its program compiles sooner.
_XLA = {"attention": "xla"}
_CUDNN = {"attention": "cudnn", "attention_softcap": 0.0}
_FUSED = {"attention": "fused"}
_UNROLLED = _FUSED | {"scan_blocks": False}
_BOTH = {"xla": _XLA, "cudnn": _CUDNN, "fused": _FUSED}


def _gpu_sample(objective: str, steps: int, variants: dict, group: str) -> Case:
    family = {"denoising": "flm", "semigroup": "fmlm"}[objective]
    sizes = _OWT | {"batch": 32, "steps": steps}
    return Case(f"{family}_sample_owt_{steps}", "sample", objective, sizes, variants, group=group)


def _gpu_train(objective: str, data: str, rows: int, variants: dict, group: str) -> Case:
    family = {"denoising": "flm", "semigroup": "fmlm"}[objective]
    sizes = {"owt": _OWT, "lm1b": _LM1B}[data] | {"batch": rows}
    name = f"{family}_train_{data}_{rows}"
    return Case(name, "train", objective, sizes, variants, group=group)


# In the order of worth; within a group what takes little memory comes early, as the peak of a
# process only rises.
_GPU_QUICK = (
    _gpu_train("denoising", "owt", 16, {"unrolled": _UNROLLED, "fused": _FUSED}, "quick"),
    _gpu_train("denoising", "owt", 32, {"fused": _FUSED}, "quick"),
    _gpu_train("semigroup", "owt", 16, {"fused": _FUSED}, "quick"),
    _gpu_sample("denoising", 4, {"fused": _FUSED}, "quick"),
)
_GPU = (
    _gpu_train(
        "denoising",
        "owt",
        16,
        {"cudnn": _CUDNN, "xla": _XLA, "unrolled": _UNROLLED, "fused": _FUSED},
        "owt",
    ),
    _gpu_train("semigroup", "owt", 16, {"cudnn": _CUDNN, "xla": _XLA, "fused": _FUSED}, "owt"),
    _gpu_train(
        "denoising",
        "owt",
        32,
        {
            "cudnn": _CUDNN,
            "xla_matmuls": _XLA | {"remat": "matmuls"},
            "unrolled": _UNROLLED,
            "fused": _FUSED,
        },
        "owt",
    ),
    _gpu_sample("denoising", 1, _BOTH, "sample"),
    _gpu_sample("denoising", 4, _BOTH, "sample"),
    _gpu_sample("denoising", 64, {"fused": _FUSED}, "sample"),
    _gpu_sample("semigroup", 1, {"fused": _FUSED}, "sample"),
    _gpu_sample("semigroup", 4, {"fused": _FUSED}, "sample"),
    _gpu_train("denoising", "lm1b", 128, _BOTH, "lm1b"),
    _gpu_train("semigroup", "lm1b", 128, {"fused": _FUSED}, "lm1b"),
    _gpu_train("denoising", "lm1b", 256, {"fused": _FUSED}, "lm1b"),
)
_TINY = dict(vocab_size=512, batch=8, length=64, dim=64, depth=2, heads=4, loss_tile=32)


def _smoke(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """Returns the same cases at tiny sizes, to try the benchmark on any machine.

    Only the first case keeps fused attention, so that without a GPU one case fails.
    """
    first, *rest = (case._replace(sizes=case.sizes | _TINY) for case in cases)
    plain = {"attention": "xla"}
    without = lambda case: {name: found | plain for name, found in case.variants.items()}
    return (first, *(case._replace(variants=without(case)) for case in rest))


SUITES = {
    "cpu": _CPU,
    "scaling": _SCALING,
    "gpu": _GPU,
    "gpu_quick": _GPU_QUICK,
    "gpu_smoke": _smoke(_GPU_QUICK),
    "tpu": _tpu(16),
}
# Seconds that a suite may take where --seconds says nothing.
SECONDS = {"gpu": 360, "gpu_quick": 120, "gpu_smoke": 300}


def find(suite: str, name: str) -> Case:
    """Returns a case by name."""
    return next(case for case in SUITES[suite] if case.name == name)
