"""Every shipped configuration is complete, and its network and objective trace at full size."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from flm_jax import adaptation, build, datasets, policy_training
from flm_jax.compare import entries
from flm_jax.config import check
from flm_jax.defaults import policy_config
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.times import Rows
from flm_jax.models.adapters import split
from flm_jax.training.step import Frozen

FOLDER = Path(__file__).parents[1] / "configs"
COMPARISONS = sorted(FOLDER.glob("compare_*.py"))
POLICIES = sorted(FOLDER.glob("*_policy.py"))
CONFIGS = sorted(set(FOLDER.glob("*.py")) - set(COMPARISONS) - set(POLICIES))
VOCABULARY = {
    "lm1b": 30522,
    "owt": 50257,
    "quickstart": 2048,
    "phrases": 4,
    "mlfm": 32000,
    "xflow": 12,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_builds(path):
    module = runpy.run_path(str(path))
    assert f"--config=configs/{path.name}" in module["__doc__"]
    config = check(module["get_config"]())
    family = path.stem.split("_")[0]
    config["model"]["vocab_size"] = VOCABULARY[family]
    build.optim(config)
    rows = build.training(config).batch
    net, clock = build.network(config), decoding_clock(VOCABULARY[family])
    params = build.abstract_params(net)
    frozen = config["objective"]["teacher"] or config["adapters"]["base"]
    objective = build.objective(config, net, clock, net if frozen else None)
    tracker = adaptation.tracker(config)
    tracked = tracker and tracker.fresh()
    shape = jax.ShapeDtypeStruct((rows, net.max_length), jnp.int32)
    batch = {"tokens": shape, "mask": shape}
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss, metrics = jax.eval_shape(
        lambda p, b, k: objective(p, Frozen(p, p, tracked), b, k, Rows(0, rows)),
        params,
        batch,
        key,
    )
    assert loss.shape == () and loss.dtype == jnp.float32
    assert all(name.endswith("_per_token") or name == "observed" for name in metrics)
    count = sum(x.size for x in jax.tree.leaves(params))
    if "_1b_" in path.stem:
        assert 1.44e9 < count < 1.46e9
    elif path.stem in ("mlfm_adapt", "mlfm_sft"):
        base = sum(x.size for x in jax.tree.leaves(split(params)[0]))
        assert 1.13e9 < base < 1.15e9  # 1028 M and the embeddings of input and output
    elif family in ("lm1b", "owt"):
        assert 130e6 < count < 180e6  # the causal network has no adaLN: 7 M less


@pytest.mark.parametrize("path", POLICIES, ids=lambda p: p.stem)
def test_policy_builds(path):
    module = runpy.run_path(str(path))
    assert f"--config=configs/{path.name}" in module["__doc__"]
    policy_training.check(check(module["get_config"](), policy_config))


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda p: p.stem)
def test_comparison_builds(path, tmp_path):
    """For every task it names: complete, parameters equal to 20%, equal training tokens.

    The flow map's second time embedding is most of the difference. Routes of unequal cost take
    tokens in inverse proportion to it, and their teacher its own. NAME_self takes NAME's.
    """
    module = runpy.run_path(str(path))
    assert f"--config=configs/{path.name}" in module["__doc__"]
    for task in module.get("TASKS") or module.get("CORPORA") or [""]:
        given = module["get_config"](task).to_dict()
        sizes, tokens = {}, {}
        for entry in entries(given | {"judge": "", "prepare": {}}, tmp_path):
            if entry.steps:
                config = _with_vocabulary(entry.config, given)
                params = build.abstract_params(build.network(config))
                sizes[entry.name] = sum(x.size for x in jax.tree.leaves(params))
                tokens[entry.name] = config["train"]["steps"] * config["train"]["batch"]
        assert max(sizes.values()) / min(sizes.values()) < 1.2, sizes
        own = {name for name in tokens if name.endswith("_self")}
        assert all(tokens[name] == tokens[name.removesuffix("_self")] for name in own)
        if baselines := {tokens[name] for name in ("MDLM", "AR") if name in tokens}:
            assert baselines == {tokens["FLM"] + tokens["FMLM"]}
        elif own:
            assert own == {"FLM_self", "FMLM_self"}
        elif cost := module.get("COST"):
            spent = [tokens[n] * cost[n.removesuffix("_alone")] for n in tokens if n != "FLM"]
            assert len(spent) == 2 * len(cost) and max(spent) / min(spent) < 1.01
        else:
            assert len(set(tokens.values())) == 1


def _with_vocabulary(config, comparison):
    """Of the task's tokenizer, or of the corpus that the comparison would prepare."""
    if size := comparison.get("prepare", {}).get("vocab_size"):
        return config | {"model": config["model"] | {"vocab_size": size}}
    return datasets.resolve_vocabulary(config, datasets.open_data(config).tokenizer)
