"""Runs a training run from its configuration."""

import contextlib
import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from flm_jax.build.adapters import (
    frozen_params,
    started_params,
    starting_adapters,
    whole_params,
)
from flm_jax.build.data import open_data, resolve_vocabulary
from flm_jax.build.families import x_prediction
from flm_jax.build.families.registry import family, teacher_folder
from flm_jax.build.load import (
    Model,
    check_adapted_tokenizer,
    check_teacher,
    load_model,
    resolve_adapted,
    starting_params,
)
from flm_jax.build.residual import residual_params
from flm_jax.build.times import check_continuable
from flm_jax.checkpoints.config_file import write_config
from flm_jax.checkpoints.state import TrainState
from flm_jax.checkpoints.workdir import Checkpoints
from flm_jax.config.check import check_resumable
from flm_jax.config.schema import settings
from flm_jax.config.upgrade import read_config
from flm_jax.core.errors import check_seed, require
from flm_jax.core.locks import alone
from flm_jax.core.network import Network
from flm_jax.core.paths import check_folder, expanded
from flm_jax.core.progress import Progress, say
from flm_jax.data import loading
from flm_jax.data.chat import cropped
from flm_jax.data.pipeline import make_iterator
from flm_jax.data.tokenizers.registry import load_tokenizer
from flm_jax.distributed import sharding
from flm_jax.models.lora import join
from flm_jax.training.evaluator import make_evaluator
from flm_jax.training.loop import Loop, Run
from flm_jax.training.optim import rate_change
from flm_jax.training.program import assemble
from flm_jax.training.schedule_log import schedule_recorder


def train_run(config: dict[str, Any], workdir: str) -> int:
    """Trains, or continues, the run of `config` in `workdir`.

    Returns:
      0, the exit status of a run that is finished.

    Raises:
      Stopped: SIGTERM or SIGINT (in a notebook, an interrupt) arrived; its step was saved.
      UserError: bad configuration, data, teacher or workdir; before anything is compiled.
    """
    began = time.monotonic()
    check_seed(config["seed"], "config.seed")
    workdir = expanded(workdir)
    check_folder(workdir, "--workdir")
    first = jax.process_index() == 0
    with alone(workdir, "training") if first else contextlib.nullcontext():
        with Progress("preparing the run", quiet=not first):
            run, checkpoints = _run(config, workdir, began)
        with Loop(run, settings(config, "train"), workdir, checkpoints) as loop:
            loop.train()
    return 0


def _run(config: dict[str, Any], workdir: str, began: float) -> tuple[Run, Checkpoints]:
    """Run of a configuration, new or continued, and its checkpoints; `began` in seconds."""
    data = open_data(config)
    base = config["adapters"]["base"]
    if base:
        config = resolve_adapted(config, read_config(base), data.tokenizer)
    config = resolve_vocabulary(config, data.tokenizer)
    mesh = sharding.make_mesh(settings(config, "mesh"))
    saved = _check_workdir(workdir, config, data.tokenizer)
    teacher = None
    if teacher_folder(config) or base:
        attention = config["model"]["attention"]
        teacher = load_model(base or teacher_folder(config), mesh, attention)
        if base:
            check_adapted_tokenizer(config, data.tokenizer, teacher.tokenizer)
        else:
            check_teacher(config, data.tokenizer, teacher)
    frozen = {} if teacher is None else teacher.params
    frozen = frozen | residual_params(config, data.tokenizer, mesh)
    program = assemble(config, mesh, teacher and (teacher.net, frozen))
    # Of a base that is trained the state holds its own copy.
    frozen, whole = frozen_params(config, frozen), frozen
    start = starting_params(config, data.tokenizer, mesh)
    net, cfg = program.net, program.cfg
    _write_workdir(workdir, config, data.tokenizer)
    rows = sharding.local_rows(mesh, cfg.batch)
    batches = make_iterator(
        data.train,
        global_batch=cfg.batch,
        seed=config["seed"],
        threads=config["data"]["threads"],
        prefetch=config["data"]["prefetch"],
        rows=rows,
        prefix_crop=config["data"]["prefix_crop"],
    )
    checkpoints = Checkpoints(workdir, cfg.keep_checkpoints)
    state = program.initial_state(whole, start)
    found, spent = checkpoints.restore(state), 0.0
    if found is None:
        state = _started(config, state, teacher, sharding.replicated(mesh))
    else:
        state, meta = found
        batches.set_state(meta["iterator"])
        spent = meta.get("seconds", 0.0)
        if jax.process_index() == 0:
            say(f"continuing {workdir} from step {int(state.step)}")
            moved = rate_change(saved or config, config, int(state.step))
            if moved and not program.rate:
                say(moved, sys.stderr)
    if family(config).renewal(config):
        frozen = {}  # the state has its own copy, which is renewed
    del teacher, whole  # of a base that is trained, the memory of what the state has a copy of
    _describe(net, state, data, mesh)
    to_global = functools.partial(sharding.global_batch, mesh=mesh, rows=rows, total=cfg.batch)
    if config["data"]["chat"] and jax.process_count() == 1:  # several would need to agree
        whole_batch = to_global
        to_global = lambda batch: whole_batch(cropped(batch))
    base_params = None
    if family(config).aligned:
        base_params = x_prediction.base_params(config, state.params, frozen)
    evaluate = make_evaluator(config, net, program.flow, data, to_global, rows, mesh, base_params)
    run = Run(
        state=state,
        train_step=program.train_step,
        frozen=frozen,
        batches=batches,
        to_global=to_global,
        evaluate=evaluate
        and (lambda params, times: evaluate(whole_params(config, params, frozen), times)),
        eval_every=config["eval"]["every"],
        rows=cfg.batch,
        meta={"length": net.max_length, "tokenizer": data.tokenizer.fingerprint},
        spent=spent + time.monotonic() - began,
        rate=program.rate,
    )
    if state.tracked is not None:
        run = run._replace(note=schedule_recorder(workdir, config, int(state.step)))
    return run, checkpoints


def _started(
    config: dict[str, Any], state: TrainState, teacher: Model | None, place: jax.sharding.Sharding
) -> TrainState:
    """State of step 0 with everything except parameters from which it starts.

    This is the teacher's learnt times, what a flow map and its auxiliary network have of the
    teacher's adapters, and the adapters of config.adapters.start if that is set, with their learnt
    times.

    Args:
      place: sharding of replicated arrays.
    """
    found = starting_adapters(config, state.params, place)
    adapters, times = found or (None, None)
    times = times if teacher is None or teacher.times is None else teacher.times
    if times is not None and state.tracked is not None:
        # Copies: the state is donated, so no two arrays of it may share their memory.
        put = lambda x, like: jnp.copy(jax.device_put(x, like.sharding))
        state = state._replace(tracked=jax.tree.map(put, times, state.tracked))
    params = state.params
    if config["adapters"]["base"] and teacher is not None:
        params = started_params(params, teacher.params)
        if state.auxiliary is not None:
            beside = started_params(state.auxiliary.params, teacher.params)
            state = state._replace(auxiliary=state.auxiliary._replace(params=beside))
    params = params if adapters is None else join(params, adapters)
    return state._replace(params=params, ema_params=jax.tree.map(jnp.copy, params))


def _check_workdir(workdir: str, config: dict[str, Any], tokenizer) -> dict[str, Any] | None:
    """Configuration of the run to continue, or None for a new one."""
    folder = epath.Path(workdir)
    if not (folder / "config.json").exists():
        return None
    saved = read_config(folder)
    check_continuable(folder, saved)
    check_resumable(saved, config, workdir)
    own = load_tokenizer(folder / "tokenizer").fingerprint
    require(
        own == tokenizer.fingerprint,
        f"the data's tokenizer ({tokenizer.fingerprint[:12]}) is not the one this run began "
        f"with ({own[:12]}): restore the data, or give a new --workdir.",
    )
    return saved


def _write_workdir(workdir: str, config: dict[str, Any], tokenizer) -> None:
    """Writes the workdir, once everything was accepted: a refused run leaves none."""
    folder = epath.Path(workdir)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        # Where there is a config.json the tokenizer was found equal: a kill must not cut it short.
        if not (folder / "config.json").exists():
            tokenizer.save(folder / "tokenizer")
        write_config(folder, config)


def _describe(net: Network, state: TrainState, data: loading.Data, mesh) -> None:
    if jax.process_index() > 0:
        return
    count = sum(x.size for x in jax.tree.leaves(state.params))
    examples = sum(len(source) for source, _ in data.train)
    say(
        f"{count / 1e6:.2f} M parameters, vocabulary {net.vocab_size}, length {net.max_length}, "
        f"{examples:,} training sequences, mesh {dict(mesh.shape)}, "
        f"{jax.devices()[0].platform}, {jax.process_count()} processes"
    )
    whole = sharding.large_replicated((state.params, state.opt_state))
    if whole:
        names = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for name, size in whole[:3])
        say(
            f"{len(whole)} large arrays are held whole by each of {mesh.size} devices, "
            f"{sum(size for _, size in whole) / 2**20:.1f} MiB in all; the largest: {names}"
        )
