"""Assembles a training run from its configuration."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from flm_jax import adaptation, alignment, build, datasets, schedule
from flm_jax.assembly import assemble
from flm_jax.config import check_resumable
from flm_jax.data.chat import cropped
from flm_jax.data.pipeline import eval_batches, make_iterator
from flm_jax.data.tokenizers import load_tokenizer
from flm_jax.evals.alignment import compare_with_base
from flm_jax.evals.denoising import tau_profile
from flm_jax.evals.text import unigram_entropy
from flm_jax.families import PLAIN, family
from flm_jax.flows.clocks import Clock
from flm_jax.samplers.common import nothing_given
from flm_jax.training import sharding
from flm_jax.training.checkpoint import Checkpoints, read_config, write_config
from flm_jax.training.loop import Run, train
from flm_jax.training.step import TrainState
from flm_jax.types import Network, Params, require


def run(config: dict[str, Any], workdir: str) -> int:
    """Trains, or continues, the run of `config` in `workdir`; returns the exit status.

    Raises:
      UserError: bad configuration, data, teacher or workdir; before anything is compiled.
    """
    data = datasets.open_data(config)
    base = config["adapters"]["base"]
    if base:
        config = adaptation.resolve(config, read_config(base), data.tokenizer)
    config = datasets.resolve_vocabulary(config, data.tokenizer)
    mesh = sharding.make_mesh(build.mesh(config))
    _check_workdir(workdir, config, data.tokenizer)
    teacher = None
    if config["objective"]["teacher"] or base:
        attention = config["model"]["attention"]
        teacher = build.load_model(base or config["objective"]["teacher"], mesh, attention)
        if base:
            adaptation.check_tokenizer(config, data.tokenizer, teacher.tokenizer)
        else:
            build.check_teacher(config, data.tokenizer, teacher)
    frozen = {} if teacher is None else teacher.params
    program = assemble(config, mesh, teacher and (teacher.net, frozen))
    net, clock, cfg = program.net, program.clock, program.cfg
    _write_workdir(workdir, config, data.tokenizer)
    rows = sharding.local_rows(mesh, cfg.batch)
    batches = make_iterator(
        data.train,
        global_batch=cfg.batch,
        seed=config["seed"],
        threads=config["data"]["threads"],
        prefetch=config["data"]["prefetch"],
        rows=rows,
    )
    checkpoints = Checkpoints(workdir, cfg.keep_checkpoints)
    state = program.initial_state(frozen)
    found = checkpoints.restore(state)
    if found is None:
        state = _started(config, state)
    else:
        state, meta = found
        batches.set_state(meta["iterator"])
        if jax.process_index() == 0:
            print(f"continuing {workdir} from step {int(state.step)}", flush=True)
    _describe(net, state, data, mesh)
    to_global = functools.partial(sharding.global_batch, mesh=mesh, rows=rows, total=cfg.batch)
    if config["data"]["chat"] and jax.process_count() == 1:  # several would need to agree
        whole_batch = to_global
        to_global = lambda batch: whole_batch(cropped(batch))
    base_params = None
    if family(config).aligned:
        base_params = alignment.base_params(config, state.params, frozen)
    evaluate = _evaluator(config, net, clock, data, to_global, rows, mesh, base_params)
    loop = Run(
        state=state,
        train_step=program.train_step,
        frozen=frozen,
        batches=batches,
        to_global=to_global,
        evaluate=lambda params: evaluate(adaptation.whole(config, params, frozen)),
        eval_every=config["eval"]["every"],
        meta={"length": net.max_length, "tokenizer": data.tokenizer.fingerprint},
    )
    if loop.state.tracked is not None:
        loop = loop._replace(note=schedule.recorder(workdir, config, int(state.step)))
    return train(loop, cfg, workdir, checkpoints)


def _started(config: dict[str, Any], state: TrainState) -> TrainState:
    """The state of step 0, with the adapters of config.adapters.start where it is set."""
    adapters = adaptation.started(config, state.params)
    if adapters is None:
        return state
    return state._replace(params=adapters, ema_params=jax.tree.map(jnp.copy, adapters))


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


def _describe(net: Network, state: TrainState, data: datasets.Data, mesh) -> None:
    if jax.process_index() > 0:
        return
    count = sum(x.size for x in jax.tree.leaves(state.params))
    examples = sum(len(source) for source, _ in data.train)
    print(
        f"{count / 1e6:.2f} M parameters, vocabulary {net.vocab_size}, length {net.max_length}, "
        f"{examples:,} training sequences, mesh {dict(mesh.shape)}, "
        f"{jax.devices()[0].platform}, {jax.process_count()} processes",
        flush=True,
    )
    whole = sharding.large_replicated((state.params, state.opt_state))
    if whole:
        names = ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for name, size in whole[:3])
        print(
            f"{len(whole)} large arrays are held whole by each of {mesh.size} devices, "
            f"{sum(size for _, size in whole) / 2**20:.1f} MiB in all; the largest: {names}",
            flush=True,
        )


def _evaluator(
    config,
    net: Network,
    clock: Clock,
    data: datasets.Data,
    to_global,
    rows,
    mesh,
    base_params: Params | None = None,
):
    """evaluate(params) -> (values, texts): loss by tau, samples with their statistics.

    `base_params` are what an aligned model is compared with, None of other families.
    """
    cfg, batch = config["eval"], config["train"]["batch"]
    everywhere, kind = sharding.replicated(mesh), family(config)
    row_nll = kind.row_nll(config, net, clock)
    row_nll = row_nll and jax.jit(row_nll, out_shardings=everywhere)
    figures = kind.aligned and kind.aligned(config, net)
    figures = figures and jax.jit(figures, out_shardings=everywhere)
    bins = cfg["tau_bins"] if kind.timed else 0
    count = 2048 if data.task else max(cfg["samples"], 1)
    whole = dataclasses.replace(net, parallel=None)  # so few rows need not divide over devices
    sample = kind.sampler(config, whole, clock, cfg["sample_steps"], PLAIN)
    draw = jax.jit(
        lambda key, params: sample(key, params, nothing_given(count, net.max_length)).tokens,
        out_shardings=everywhere,
    )

    def evaluate(params):
        values = {}
        if row_nll:
            held_out = eval_batches(data.valid, batch, max_batches=cfg["batches"], rows=rows)
            values = tau_profile(row_nll, params, map(to_global, held_out), bins, jax.random.key(1))
        if figures:
            held_out = eval_batches(data.valid, batch, max_batches=cfg["batches"], rows=rows)
            trees, key = (params, base_params), jax.random.key(3)
            values |= compare_with_base(figures, *trees, map(to_global, held_out), key)
        tokens = np.asarray(jax.device_get(draw(jax.random.key(2), params)))
        values["sample_entropy_nats"] = unigram_entropy(tokens)
        if data.task:
            values |= {f"task_{k}": v for k, v in data.task.report(tokens).items()}
        return values, [data.tokenizer.decode(row) for row in tokens[: cfg["samples"]]]

    return evaluate
