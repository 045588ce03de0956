"""Assembles a training run from its configuration."""

import functools
from typing import Any

import jax
import numpy as np
from etils import epath

from flm_jax import build
from flm_jax.config import check_resumable
from flm_jax.data.pipeline import eval_batches, make_iterator
from flm_jax.data.tokenizers import load_tokenizer
from flm_jax.evals.denoising import make_row_nll, tau_profile
from flm_jax.evals.text import unigram_entropy
from flm_jax.flows.clocks import Clock, decoding_clock
from flm_jax.samplers.common import nothing_given
from flm_jax.samplers.flow_map import sample
from flm_jax.training import sharding
from flm_jax.training.checkpoint import Checkpoints, read_config, write_config
from flm_jax.training.loop import Run, train
from flm_jax.training.optim import make_optimizer
from flm_jax.training.step import TrainState, make_train_step, new_state
from flm_jax.types import Network, require


def run(config: dict[str, Any], workdir: str) -> int:
    """Trains, or continues, the run of `config` in `workdir`; returns the exit status.

    Raises:
      UserError: bad configuration, data, teacher or workdir; before anything is compiled.
    """
    data = build.data(config)
    config = build.resolve_vocabulary(config, data.tokenizer)
    cfg, optim = build.training(config), build.optim(config)
    mesh = sharding.make_mesh(build.mesh(config))
    net = build.network(config, mesh)
    _check_batch(cfg.batch, cfg.microbatches, mesh)
    _check_workdir(workdir, config, data.tokenizer)
    clock = decoding_clock(net.vocab_size)
    teacher = None
    if config["objective"]["teacher"]:
        teacher = build.load_model(config["objective"]["teacher"], mesh)
        build.check_teacher(config, data.tokenizer, teacher)
    objective = build.objective(config, net, clock, teacher and teacher.net)
    _write_workdir(workdir, config, data.tokenizer)
    optimizer = make_optimizer(optim, cfg.steps)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    batches = make_iterator(
        data.train,
        global_batch=cfg.batch,
        seed=config["seed"],
        threads=config["data"]["threads"],
        prefetch=config["data"]["prefetch"],
        **processes,
    )
    checkpoints = Checkpoints(workdir, cfg.keep_checkpoints)
    state = _initial_state(config["seed"], net, optimizer, mesh, teacher)
    found = checkpoints.restore(state)
    if found is not None:
        state, meta = found
        batches.set_state(meta["iterator"])
        print(f"continuing {workdir} from step {int(state.step)}", flush=True)
    _describe(net, state, data, mesh)
    step = make_train_step(
        objective,
        optimizer,
        seed=config["seed"],
        microbatches=cfg.microbatches,
        ema_decay=optim.ema_decay,
    )
    train_step = jax.jit(step, donate_argnums=0, out_shardings=(_shardings(state), None))
    to_global = functools.partial(sharding.global_batch, mesh=mesh)
    loop = Run(
        state=state,
        train_step=train_step,
        frozen={} if teacher is None else teacher.params,
        batches=batches,
        to_global=to_global,
        evaluate=_evaluator(config, net, clock, data, to_global, processes),
        eval_every=config["eval"]["every"],
        meta={"length": net.max_length, "tokenizer": data.tokenizer.fingerprint},
    )
    return train(loop, cfg, workdir, checkpoints)


def _check_batch(batch: int, microbatches: int, mesh) -> None:
    ways = mesh.shape["data"] * mesh.shape["fsdp"] * microbatches
    require(
        batch % ways == 0,
        f"config.train.batch {batch} does not split over {ways} (devices of the data and fsdp axes "
        "times microbatches); use a multiple.",
    )


def _check_workdir(workdir: str, config: dict[str, Any], tokenizer) -> None:
    folder = epath.Path(workdir)
    if (folder / "config.json").exists():
        check_resumable(read_config(folder), config, workdir)
        saved = load_tokenizer(folder / "tokenizer").fingerprint
        require(
            saved == tokenizer.fingerprint,
            f"the data's tokenizer ({tokenizer.fingerprint[:12]}) is not the one this run began "
            f"with ({saved[:12]}): restore the data, or give a new --workdir.",
        )


def _write_workdir(workdir: str, config: dict[str, Any], tokenizer) -> None:
    """Only once everything was accepted: a refused run leaves no workdir behind."""
    folder = epath.Path(workdir)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        # Where there is a config.json the tokenizer was found equal: a kill must not cut it short.
        if not (folder / "config.json").exists():
            tokenizer.save(folder / "tokenizer")
        write_config(folder, config)


def _initial_state(seed: int, net: Network, optimizer, mesh, teacher) -> TrainState:
    """State at step 0, created already sharded."""

    def fresh(teacher_params):
        params = net.init(jax.random.fold_in(jax.random.key(seed), 2**31 - 1))
        return new_state(build.student_params(params, teacher_params), optimizer)

    given = {} if teacher is None else teacher.params
    shardings = sharding.tree_shardings(jax.eval_shape(fresh, given), mesh)
    return jax.jit(fresh, out_shardings=shardings)(given)


def _shardings(state: TrainState):
    return jax.tree.map(lambda x: x.sharding, state)


def _describe(net: Network, state: TrainState, data: build.Data, mesh) -> None:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    print(
        f"{count / 1e6:.2f} M parameters, vocabulary {net.vocab_size}, length {net.max_length}, "
        f"{len(data.train):,} training sequences, mesh {dict(mesh.shape)}, "
        f"{jax.devices()[0].platform}",
        flush=True,
    )


def _evaluator(config, net: Network, clock: Clock, data: build.Data, to_global, processes):
    """evaluate(params) -> (values, texts): loss by tau, samples with their statistics."""
    cfg, batch = config["eval"], config["train"]["batch"]
    row_nll = jax.jit(make_row_nll(net, clock))
    count = 2048 if data.task else max(cfg["samples"], 1)
    draw = jax.jit(
        lambda key, params: (
            sample(
                key,
                net,
                params,
                clock=clock,
                steps=cfg["sample_steps"],
                given=nothing_given(count, net.max_length),
            ).tokens
        )
    )

    def evaluate(params):
        held_out = eval_batches(data.valid, batch, max_batches=cfg["batches"], **processes)
        values = tau_profile(
            row_nll, params, map(to_global, held_out), cfg["tau_bins"], jax.random.key(1)
        )
        tokens = np.asarray(jax.device_get(draw(jax.random.key(2), params)))
        values["sample_entropy_nats"] = unigram_entropy(tokens)
        if data.task:
            values |= {f"task_{k}": v for k, v in data.task.report(tokens).items()}
        return values, [data.tokenizer.decode(row) for row in tokens[: cfg["samples"]]]

    return evaluate
