"""Evaluation during training: losses, samples and task figures."""

import dataclasses

import jax
import numpy as np

from flm_jax.build.families.registry import family
from flm_jax.build.load import Model
from flm_jax.build.sampler import make_sampler, model_sampler
from flm_jax.core.network import Network
from flm_jax.core.types import Params
from flm_jax.data import loading
from flm_jax.data.pipeline import eval_batches
from flm_jax.distributed import sharding
from flm_jax.flows.flow import Flow
from flm_jax.inference.guides import load_guides
from flm_jax.metrics.alignment import compare_with_base
from flm_jax.metrics.denoising import tau_profile
from flm_jax.metrics.text import unigram_entropy
from flm_jax.samplers.base import nothing_given


def make_evaluator(
    config,
    net: Network,
    flow: Flow,
    data: loading.Data,
    to_global,
    rows,
    mesh,
    base_params: Params | None = None,
):
    """Builds evaluate(params, times) -> (values, texts): loss by tau, and samples with statistics.

    With config.eval.batches = 0 there is no loss among the values; without samples too, None is
    returned. `times` is the state of learnt times. `base_params` are the parameters with which an
    aligned model is compared, None for other families.
    """
    cfg, batch = config["eval"], config["train"]["batch"]
    if cfg["batches"] == 0 and cfg["samples"] == 0:
        return None
    everywhere, kind = sharding.replicated(mesh), family(config)
    row_nll = kind.row_nll(config, net, flow)
    row_nll = row_nll and jax.jit(row_nll, out_shardings=everywhere)
    figures = kind.aligned and kind.aligned(config, net)
    figures = figures and jax.jit(figures, out_shardings=everywhere)
    bins = cfg["tau_bins"] if kind.timed else 0
    count = 2048 if data.task else max(cfg["samples"], 1)
    whole = dataclasses.replace(net, parallel=None)  # so few rows need not divide over devices
    sampler = model_sampler(config)
    guides, extra = load_guides(Model(config, whole, {}, flow, data.tokenizer, 0), sampler)
    sample = make_sampler(config, whole, flow, cfg["sample_steps"], sampler, guides)
    given = nothing_given(count, net.max_length)
    draw = jax.jit(
        lambda key, params, extra: sample(key, params, given, extra).tokens,
        out_shardings=everywhere,
    )

    def evaluate(params, times=None):
        values = {}
        looked_at = cfg["batches"] > 0
        if row_nll and looked_at:
            held_out = eval_batches(data.valid, batch, max_batches=cfg["batches"], rows=rows)
            values = tau_profile(row_nll, params, map(to_global, held_out), bins, jax.random.key(1))
        if figures and looked_at:
            held_out = eval_batches(data.valid, batch, max_batches=cfg["batches"], rows=rows)
            trees, key = (params, base_params), jax.random.key(3)
            values |= compare_with_base(figures, *trees, map(to_global, held_out), key)
        drawn = draw(jax.random.key(2), params, extra | {"times": times})
        tokens = np.asarray(jax.device_get(drawn))
        values["sample_entropy_nats"] = unigram_entropy(tokens)
        if data.task:
            values |= {f"task_{k}": v for k, v in data.task.report(tokens).items()}
        return values, [data.tokenizer.decode(row) for row in tokens[: cfg["samples"]]]

    return evaluate
