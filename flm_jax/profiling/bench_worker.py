"""Runs one variant of a speed benchmark case in its own process; see `bench`.

It prints JSON lines: one when it is compiled, then one for each line read from stdin.
"""

import functools
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from flm_jax.profiling.bench_cases import Case, find

if __name__ == "__main__" and (_devices := find(*sys.argv[1:3]).devices):  # before JAX starts
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={_devices}"
    )

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from flm_jax.build.families.registry import OBJECTIVES  # noqa: E402
from flm_jax.config.check import check  # noqa: E402
from flm_jax.config.schema import base_config  # noqa: E402
from flm_jax.core.host_memory import tune_malloc  # noqa: E402
from flm_jax.denoiser.forward import denoise  # noqa: E402
from flm_jax.distributed import sharding  # noqa: E402
from flm_jax.profiling import aot, flops, hlo  # noqa: E402
from flm_jax.samplers.base import nothing_given  # noqa: E402
from flm_jax.samplers.euler import sample_euler  # noqa: E402
from flm_jax.training.program import assemble  # noqa: E402

_PER_TURN = 3
# Size of the matrices whose product is the ceiling of CPUs, and products before each run.
_CPU_SIZE, _PRODUCTS = 2048, 3


def peak_mib() -> float:
    """Peak memory so far, in MiB: of the accelerator, or of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _config(case: Case, settings: dict) -> dict:
    # A variant's "route", as config.model has a "name" of its own.
    config = base_config(objective=settings.get("route", case.objective))
    config.model.two_time = OBJECTIVES[case.objective].two_time
    config.train.batch = case.sizes["batch"]
    for key, value in (case.sizes | settings).items():
        for group in (config.model, config.mesh, config.flow, config.objective):
            if key in group:
                group[key] = value
    return check(config)


def onehot_euler(key, net, params, flow, steps: int, given):
    """Euler or flow-map steps in R^V, as in the reference: x_t @ E before every call."""
    taus = flow.grid(steps)
    times = flow.t(taus)
    table = net.table(params)
    x_t = jax.random.normal(key, (*given.tokens.shape, net.vocab_size))

    def step(x_s, now):
        tau_s, tau_t, s, t = now
        row = jnp.ones(x_s.shape[0])
        target = tau_t if net.two_time else tau_s
        logits = denoise(net, params, x_s @ table, tau_s * row, target * row)
        delta = jax.nn.softmax(logits, axis=-1)
        return flow.path.step(x_s, delta, s * row, t * row), None

    x_1, _ = jax.lax.scan(step, x_t, (taus[:-1], taus[1:], times[:-1], times[1:]))
    return jnp.argmax(x_1, axis=-1)


def _train_program(case: Case, program, mesh):
    shape = (case.sizes["batch"], case.sizes["length"])
    tokens = jax.random.randint(jax.random.key(1), shape, 0, case.sizes["vocab_size"])
    batch = {"tokens": tokens, "mask": jnp.ones(shape, bool)}
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    traced = program.train_step.trace(program.state, {}, batch)
    compiled = traced.lower().compile()

    def run(state):
        state, metrics = compiled(state, {}, batch)
        jax.block_until_ready(metrics)
        return state

    return traced, compiled, run, lambda: program.initial_state({})


def _sample_program(case: Case, program, mesh, onehot: bool):
    del mesh
    net, flow, steps = program.net, program.flow, case.sizes["steps"]
    first = jax.jit(net.init)
    given = nothing_given(case.sizes["batch"], case.sizes["length"])

    @jax.jit
    def draw(params):
        key = jax.random.key(0)
        if onehot:
            return onehot_euler(key, net, params, flow, steps, given)
        return sample_euler(key, net, params, flow=flow, steps=steps, given=given).tokens

    traced = draw.trace(jax.eval_shape(first, jax.random.key(0)))
    compiled = traced.lower().compile()

    def run(params):
        jax.block_until_ready(compiled(params))
        return params

    return traced, compiled, run, lambda: first(jax.random.key(0))


def _clocks() -> tuple[float, float]:
    """Seconds of the clock, and of processors in all threads of this process."""
    return time.perf_counter(), time.process_time()


@functools.cache
def _product(size: int, dtype: str) -> Callable[[], jax.Array]:
    """A function that multiplies two random matrices.

    A product of constant numbers runs faster than one of real data.
    """
    left, right = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    product = jax.jit(jnp.matmul)
    product(left, right).block_until_ready()
    return lambda: product(left, right)


@functools.cache
def matmul_ceiling(dtype: str) -> float:
    """Operations per second of a large matrix product, the best of several, on one device.

    Accelerators multiply ten times between two readings of the clock, so that starting one is not
    counted.
    """
    host = jax.default_backend() == "cpu"
    size, times = (_CPU_SIZE, 1) if host else (8192, 10)
    product = _product(size, dtype)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready([product() for _ in range(times)])
        seconds.append((time.perf_counter() - began) / times)
    return 2 * size**3 / min(seconds)


class Prepared(NamedTuple):
    """A compiled variant of a case.

    Attributes:
      said: known properties before a run: device, operations, temporaries, collectives, and the
        seconds of compilation.
      planned: memory in bytes that the compiler plans: arguments, outputs and temporaries; 0 for
        unknown.
      dtype: type of its computation.
      run: function that takes one step from the state that the last step returned, and waits for
        it.
      first: function that creates the first state; before it nothing occupies the device's memory.
    """

    said: dict[str, Any]
    planned: int
    dtype: str
    run: Callable
    first: Callable[[], Any]


def prepare(case: Case, settings: dict[str, Any]) -> Prepared:
    """Compiles a variant for the available devices; several threads may do so at once.

    Raises:
      UserError: a configuration that these devices cannot run.
    """
    began = time.perf_counter()
    config = _config(case, settings)
    mesh = sharding.make_mesh(sharding.MeshConfig(**config["mesh"]))
    program = assemble(config, mesh)
    if case.kind == "train":
        traced, compiled, run, first = _train_program(case, program, mesh)
    else:
        onehot = config["flow"]["noise"] == "onehot"
        traced, compiled, run, first = _sample_program(case, program, mesh, onehot)
    kinds = hlo.collectives(compiled.as_text()).kinds
    known = compiled.memory_analysis() is not None  # a program from the cache may not say
    memory = aot.used(compiled, jax.default_backend(), 0) if known else aot.Memory(0)
    said = {
        "device": jax.devices()[0].device_kind,
        "devices": mesh.size,
        "temporaries_mib": memory.temporaries / 2**20,
        "flops": flops.total_flops(traced.jaxpr),
        "collectives": {kind: found._asdict() for kind, found in kinds.items()},
        "ready_seconds": time.perf_counter() - began,
    }
    return Prepared(said, memory.peak, config["model"]["dtype"], run, first)


def _timed(run: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Calls `run`; returns its seconds by both of `_clocks`, and its result."""
    began = _clocks()
    result = jax.block_until_ready(run())
    return tuple(end - start for start, end in zip(began, _clocks())), result


def main() -> None:
    case = find(*sys.argv[1:3])
    if case.kind == "train":
        tune_malloc()  # as `train` does
    prepared = prepare(case, case.variants[sys.argv[3]])
    state = prepared.run(prepared.first())
    said = prepared.said | {"ceiling": matmul_ceiling(prepared.dtype)}
    print(json.dumps(said), flush=True)
    product = _product(_CPU_SIZE, prepared.dtype) if said["device"] == "cpu" else None
    for _ in sys.stdin:
        seconds, products = [], []
        for _ in range(_PER_TURN):
            # Programs beside this one slow both, so that the ratio of neighbours in time counts.
            products += [_timed(product)[0] for _ in range(_PRODUCTS)] if product else []
            spent, state = _timed(lambda before=state: prepared.run(before))
            seconds.append(spent)
        told = {"seconds": [wall for wall, _ in seconds], "peak_mib": peak_mib()}
        if product:
            told |= {"processor": seconds, "products": products, "operations": 2 * _CPU_SIZE**3}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
