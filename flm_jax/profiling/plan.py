"""Compiles train steps and samplers for devices that need not be present, and reports.

Nothing runs: arguments are shapes with shardings. Memory per device and collectives come from the
compiler; operations are counted from the traced program (see `flops`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flm_jax.build.adapters import frozen_params, whole_params
from flm_jax.build.families.registry import family
from flm_jax.build.model import abstract_params, make_network, network_kind
from flm_jax.build.sampler import make_sampler
from flm_jax.config.schema import defaults, settings
from flm_jax.config.training import PolicyRunConfig
from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.progress import Progress
from flm_jax.core.types import Config
from flm_jax.distributed import sharding
from flm_jax.inference.step_policy import StepPolicy
from flm_jax.losses.distillation.two_networks import RESIDUAL
from flm_jax.models import step_policy
from flm_jax.profiling import aot, flops, hlo
from flm_jax.samplers import x_prediction
from flm_jax.samplers.base import Given
from flm_jax.samplers.x_prediction import XPredictionConfig
from flm_jax.training.policy_trainer import actor
from flm_jax.training.program import assemble


def resolve(config: Config, vocab_size: int = 0, batch: int = 0) -> Config:
    """Fills in a checked configuration what planning cannot take from data.

    Args:
      config: configuration, as returned by `check`.
      vocab_size: vocabulary size that replaces config.model.vocab_size; 0 keeps it.
      batch: global batch size that replaces config.train.batch; 0 keeps it.

    Raises:
      UserError: there is no vocabulary size.
    """
    vocab_size = vocab_size or config["model"]["vocab_size"]
    require(
        vocab_size > 0,
        "config.model.vocab_size is 0 (that of the data), and planning reads no data; give "
        "--vocab_size, for example 50257 for GPT-2's tokenizer.",
    )
    return config | {
        "model": config["model"] | {"vocab_size": vocab_size},
        "train": config["train"] | {"batch": batch or config["train"]["batch"]},
    }


def _abstract_teacher(config: Config, mesh: Mesh):
    """Shapes of a teacher with the student's sizes, or of the base of adapters; None for none."""
    if config["adapters"]["base"]:
        # The base of a flow map is a masked flow, with adapters of one time.
        maps = family(config).two_time
        objective = defaults("objective", "masked_flow" if maps else "masked_diffusion")
        adapters = config["adapters"] | ({"two_time": False} if maps else {"base": ""})
        net = make_network(config | {"objective": objective, "adapters": adapters}, mesh)
        return net, abstract_params(net, mesh)
    if not config["objective"].get("teacher"):
        return None
    model = config["model"]
    if "two_time" in model:
        model = model | {"two_time": False}
    net = make_network(config | {"model": model}, mesh)
    params = abstract_params(net, mesh)
    if config["objective"].get("residual"):
        params = params | {RESIDUAL: abstract_params(make_network(config, mesh), mesh)}
    return net, params


def train_job(config: Config, mesh: Mesh) -> aot.Job:
    """Returns the train step of a resolved configuration.

    Raises:
      UserError: for everything that `train` refuses.
    """
    teacher = _abstract_teacher(config, mesh)
    made = assemble(config, mesh, teacher)
    shape = (made.cfg.batch, made.net.max_length)
    rows = sharding.batch_sharding(mesh)
    batch = {
        "tokens": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows),
        "mask": jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=rows),
    }
    if family(config).aligned:
        batch |= {"prompt": batch["mask"], "visible": batch["mask"]}
    frozen = frozen_params(config, teacher[1]) if teacher else {}
    args = (made.state, frozen, batch)
    return aot.Job("train step", made.train_step, args, mesh, train_minimum(config))


def sample_job(config: Config, mesh: Mesh, steps: int, rollout: bool = False) -> aot.Job:
    """Returns the sampler of a resolved configuration, for train.batch samples in `steps` calls.

    Args:
      rollout: whether it is the sampler of `train_policy`, with step sizes drawn by a policy.

    Raises:
      UserError: for everything that `train` refuses; a rollout with a sampler other than
        x_prediction.
    """
    require(steps >= 1, f"got {steps} network calls; expected at least 1.")
    teacher = _abstract_teacher(config, mesh)
    made = assemble(config, mesh, teacher)
    params = whole_params(config, made.state.params, teacher[1] if teacher else {})
    shape = (made.cfg.batch, made.net.max_length)
    rows, whole = sharding.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    mask = jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=rows)
    seen = mask if family(config).canvas else None
    given = Given(jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows), mask, seen)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
    if rollout:
        run = jax.jit(_rollout(config, made.net, steps))
    else:
        run = jax.jit(make_sampler(config, made.net, made.flow, steps))
    args, name = (key, params, given), "rollout" if rollout else "sampler"
    return aot.Job(name, run, args, mesh, sample_minimum(config, steps))


def _rollout(config: Config, net: Network, steps: int) -> Callable:
    """Returns (key, parameters, given) -> Rollout with a fresh policy of the default sizes."""
    how = settings(config, "sampler")
    require(
        isinstance(how, XPredictionConfig),
        f"got --rollout for config.sampler.name {config['sampler']['name']!r}; expected "
        "x_prediction.",
    )
    cfg, net = PolicyRunConfig().policy, dataclasses.replace(net, parallel=None)
    made = step_policy.policy(cfg)

    def run(key, params, given):
        act = actor(StepPolicy(cfg, made, made.init(key)))
        more = {"steps": steps, "how": how, "time_conditioning": False}
        return x_prediction.rollout(key, net, params, act, given=given, **more)

    return run


def forward_minimum(config: Config, rows: int, head: bool = True) -> int:
    """Lower bound of operations of one network call on `rows` sequences, with the head or without.

    The operations of the blocks are given by the network (`build.model.MODELS`); the head takes 2
    for each of its weights and each token. Embedding look-ups are not counted.
    """
    cfg = settings(config, "model")
    token = network_kind(config).operations(cfg) + (2 * cfg.dim * cfg.vocab_size if head else 0)
    return rows * cfg.length * token


def train_minimum(config: Config) -> int:
    """Lower bound of a train step: forward and twice that backward; once for a frozen base.

    Distillation adds the work that its family states, see `build.families.base.Work`.
    """
    rows, more = config["train"]["batch"], family(config).work(config)
    adapters = config["adapters"]
    frozen = adapters["base"] and not adapters["base_lr"]
    rows = rows if more.trained_rows is None else more.trained_rows
    own = (2 if frozen else 3) * forward_minimum(config, rows)
    forward = forward_minimum(config, more.forward_rows)
    forward += forward_minimum(config, more.headless_rows, head=False)
    return own + forward + _embedding_minimum(config, more.embedded_rows)


def sample_minimum(config: Config, steps: int) -> int:
    """Lower bound of sampling a flow: network calls, and probabilities @ E between them.

    If the number of steps is only known at run time, the bound covers one step, and the call from
    which tokens are read if there is one: counts take the body of such a loop once.
    """
    rows = config["train"]["batch"]
    if family(config).open_ended:
        return 2 * (forward_minimum(config, rows) + _embedding_minimum(config, rows))
    if isinstance(settings(config, "sampler"), XPredictionConfig):
        return forward_minimum(config, rows)
    return steps * forward_minimum(config, rows) + (steps - 1) * _embedding_minimum(config, rows)


def _embedding_minimum(config: Config, rows: int) -> int:
    model = config["model"]
    return 2 * rows * model["length"] * model["dim"] * model["vocab_size"]


def plan(
    config: Config,
    mesh: Mesh,
    limit: int,
    *,
    sample_steps: int = 0,
    rollout: bool = False,
    tries: int = 0,
    keep: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Compiles the train step, or the sampler, of a configuration and reports its requirements.

    Args:
      config: resolved configuration.
      mesh: devices to compile for.
      limit: memory in bytes that a program may use on one device; 0 for unknown.
      sample_steps: number of network calls of the sampler; 0 for the train step.
      rollout: whether to plan a rollout, with sample_steps; see `sample_job`.
      tries: largest number of compilations in the search for the largest batch; 0 for no search.
      keep: callback that takes the program of one device as text.

    Returns:
      Plain values, for JSON. Bytes are per device, operations the total over devices.

    Raises:
      UserError: for everything that `train` refuses; a batch that does not split evenly over the
        devices.
    """

    def job(rows: int) -> aot.Job:
        wanted = resolve(config, batch=rows * ways)
        if not sample_steps:
            return train_job(wanted, mesh)
        return sample_job(wanted, mesh, sample_steps, rollout)

    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = 1 if sample_steps else row_unit(config)
    rows = _rows(config["train"]["batch"], ways, unit)
    with Progress(f"compiling for {rows} rows a device"):
        first = job(rows)
        made = aot.compile_job(first, limit)
    keep(made.text)
    with Progress("counting operations"):
        result = {"config": config} | _describe(first, rows) | _measured(first, made)
    if tries:
        known = {rows: made.memory}

        def measure(n: int) -> aot.Memory:
            if n not in known:
                told = f"compilation {len(known) + 1} of at most {tries}: {n} rows a device"
                with Progress(told):
                    known[n] = aot.compile_job(job(n), limit).memory
            return known[n]

        search = aot.largest_batch(measure, rows, unit, tries)
        result["largest_batch_per_device"] = search.rows
        result["too_large_batch_per_device"] = search.too_many
        result["tried"] = [{"rows": n, "peak_bytes": m.peak} for n, m in search.tried]
    return result


def _rows(batch: int, ways: int, unit: int) -> int:
    require(
        batch % (ways * unit) == 0,
        f"a batch of {batch} does not give {ways} devices as many rows in multiples of {unit}; "
        f"give --batch a multiple of {ways * unit}.",
    )
    return batch // ways


def _describe(job: aot.Job, rows: int) -> dict[str, Any]:
    with aot.tracing_for(job.mesh):
        counts = flops.count_flops(flops.trace(job.program, *job.args))
    total = sum(n for kind, n in counts.items() if kind != "unknown_loops")
    whole = sharding.large_replicated(job.args)
    return {
        "program": job.name,
        "devices": job.mesh.size,
        "mesh": dict(job.mesh.shape),
        "rows_per_device": rows,
        "flops": {
            "total": total,
            "minimum": job.minimum_flops,
            "ratio": total / job.minimum_flops,
            "kinds": dict(counts),
        },
        "replicated": [{"name": name, "bytes": size} for name, size in whole],
    }


def _measured(job: aot.Job, made: aot.Compiled) -> dict[str, Any]:
    found = hlo.collectives(made.text)
    return {
        "fits": made.memory.fits,
        "memory_bytes": dataclasses.asdict(made.memory),
        "refusal": made.refusal,
        "collectives": {kind: value._asdict() for kind, value in found.kinds.items()},
        "loops_of_unknown_length": found.unknown_loops,
        "compile_seconds": round(made.seconds, 1),
    }


def lines(result: dict[str, Any]) -> list[str]:
    """Formats a report of `plan` for users."""
    memory, work = result["memory_bytes"], result["flops"]
    limit = f" of {memory['limit'] / 2**30:.2f}" if memory["limit"] else ""
    verdict = "fits" if result["fits"] else "DOES NOT FIT"
    out = [
        f"{result['program']} on {result['devices']} devices {result['mesh']}, "
        f"{result['rows_per_device']} rows each, compiled in {result['compile_seconds']:.0f} s",
        f"memory a device: peak {memory['peak'] / 2**30:.2f}{limit} GiB, {verdict} (arguments "
        f"{memory['arguments'] / 2**30:.2f}, temporaries {memory['temporaries'] / 2**30:.2f})",
        f"operations: {work['total']:.4g}, {work['ratio']:.3f} times the least possible",
    ]
    if result["refusal"]:
        out.append(f"the compiler: {result['refusal']}")
    for kind, value in result["collectives"].items():
        out.append(f"{kind}: {value['count']} times, {value['bytes'] / 2**30:.3f} GiB")
    if result["replicated"]:
        names = [f"{r['name']} ({r['bytes'] / 2**20:.1f} MiB)" for r in result["replicated"][:5]]
        out.append(f"whole on every device, {len(result['replicated'])}: {', '.join(names)}")
    if "largest_batch_per_device" in result:
        too_many = result["too_large_batch_per_device"]
        bound = f"{too_many} do not" if too_many else "more were not tried"
        out.append(
            f"largest batch that fits: {result['largest_batch_per_device']} rows a device ({bound})"
        )
    return out


def row_unit(config: Config) -> int:
    """Number of rows of a device of which a batch must be a multiple, to split evenly."""
    return config["train"]["microbatches"] * family(config).row_group(config)
