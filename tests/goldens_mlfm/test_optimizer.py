"""Groups of parameters and learning rates of both stages, as the authors' code."""

from dataclasses import replace

import pytest

from configs.masked_flow import adapt, sft
from flm_jax.config.check import check
from flm_jax.config.schema import settings
from flm_jax.interop import mlfm
from flm_jax.training.adapter_groups import optimizer_groups
from flm_jax.training.optim import learning_rate
from helpers.goldens_mlfm import GOLDENS, assert_close, record

STAGES = {"train": adapt, "sft": sft}


def paths():
    """Their names, and the paths of our parameters that each holds."""
    sizes, config = mlfm.read(GOLDENS / "model_adapted.safetensors", 2).sizes, adapt.get_config()
    cfg = settings(check(config), "adapters")
    layout = mlfm.adapters_layout(sizes, cfg) | mlfm.base_layout(sizes)
    return {name: {part.path for part in parts} for name, (_, parts) in layout.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_rates_and_weight_decay(stage):
    config = check(STAGES[stage].get_config())
    groups, decays = optimizer_groups(config)
    optim, found, named = settings(config, "optim"), {}, paths()
    for name, parts in named.items():
        for path in parts - {("table",), ("anchor",)}:
            own = next((group for group in groups if group.member(path)), None)
            if own is None and path[0] != "lora" and "blocks" not in path:
                continue  # a frozen base
            if own is None and not {"lora", "time", "modulation"} & set(path):
                continue
            rate, decay, of = (
                (own.lr, own.weight_decay, own.decays)
                if own
                else (optim.lr, optim.weight_decay, decays)
            )
            found.setdefault((rate, decay if of(path) else 0.0), set()).add(name)
    want = {
        (group["lr"], group["weight_decay"]): set(group["names"])
        for group in record("loss")[f"optimizer_groups_{stage}"]
    }
    assert found == want
    assert [optim.b1, optim.b2, optim.eps] == [0.9, 0.95, record("loss")["eps"]]


@pytest.mark.parametrize("stage, steps, warmup", [("train", 200_000, 3000), ("sft", 30_000, 200)])
def test_learning_rates(stage, steps, warmup):
    """Rates are float32; the step that is a share of one warm-up later is another by 3e-4."""
    config = STAGES[stage].get_config()
    config.optim.warmup_steps, config.optim.lr = warmup, 1.0
    cfg = settings(check(config), "optim")
    rate, still = (learning_rate(one, steps) for one in (cfg, replace(cfg, first_step="still")))
    for step, factor in record("loss")[f"lr_multiplier_{stage}"].items():
        assert_close(rate(int(step)), factor, atol=1e-6)
        if int(step) < warmup:
            assert_close(still(int(step) + 1), factor, atol=1e-6)
    assert still(0) == 0.0


def test_time_conditioning_may_decay_as_the_paper_has_it():
    config = adapt.get_config()
    time = [path for parts in paths().values() for path in parts if "time" in path]
    kernels = [path for path in time if path[-1] == "kernel"]
    assert kernels and not any(map(optimizer_groups(check(config))[1], time))
    config.adapters.time_decays = True
    assert list(filter(optimizer_groups(check(config))[1], time)) == kernels


@pytest.mark.parametrize("stage", STAGES)
def test_objective_and_law_are_those_of_their_configurations(stage):
    config, theirs = STAGES[stage].get_config(), record("gamma_law")[f"config_{stage}"]
    objective, law = config.objective, config.flow.law
    assert objective.embedding_weight == theirs["lambda_mse"]
    whole = theirs["sft_full_response_mask_prob"] if stage == "sft" else 0.0
    assert objective.whole == whole and objective.hide_special == (stage == "sft")
    assert objective.reduction == ("inverse_length" if stage == "sft" else "inverse_count")
    uniform, normal, _ = theirs["gamma_active_mixture_weights"]
    learnt = {"generalized_logistic": "logistic", "empirical": "empirical"}
    want = {
        "low": theirs["gamma_min"],
        "high": theirs["gamma_max"],
        "center": theirs["gamma_loc"],
        "spread": theirs["gamma_scale"],
        "uniform": uniform,
        "normal": normal,
        "learnt": learnt[theirs["gamma_curve_estimator"]],
        "decay": theirs["loss_diagnostic_ema_decay"],
        "refit_every": theirs["log_freq"],
        "knot_rate": theirs["gamma_curve_update_rate"],
        "ratio_low": theirs["gamma_curve_mask_p_min"],
        "least_r2": theirs["gamma_curve_min_r2"],
        "least_examples": theirs["gamma_curve_min_examples"],
        "bins": {"train": 128, "sft": 134}[stage],
    }
    assert {key: law[key] for key in want} == want
    assert config.flow.sigma == theirs["brownian_bridge_sigma"]
    assert config.optim.ema_decay == theirs["ema_decay1"]
    assert (config.adapters.base_lr == 0.0) == theirs["freeze_backbone"]
    assert config.adapters.time == theirs["time_conditioning"]
