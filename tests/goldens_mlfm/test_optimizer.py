"""Groups of parameters and learning rates of both stages, as the authors' code."""

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
    """Theirs warms up from 1/warmup at step 0, ours from 0; the cosine is the same."""
    config = STAGES[stage].get_config()
    config.optim.warmup_steps, config.optim.lr = warmup, 1.0
    rate = learning_rate(settings(check(config), "optim"), steps)
    for step, factor in record("loss")[f"lr_multiplier_{stage}"].items():
        at = int(step) + (int(step) < warmup)
        assert_close(rate(at), factor, atol=1e-5)
