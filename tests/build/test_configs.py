"""Every shipped configuration is complete, and its network and objective trace at full size."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from flm_jax.build.data import open_data, resolve_vocabulary
from flm_jax.build.families.registry import family, make_objective, teacher_folder
from flm_jax.build.flow import make_flow
from flm_jax.build.model import abstract_params, make_network
from flm_jax.config.check import check, check_policy
from flm_jax.config.schema import settings
from flm_jax.evaluation.compare import entries
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen
from flm_jax.losses.distillation.two_networks import RESIDUAL
from flm_jax.models.lora import split
from flm_jax.training.policy_trainer import check_policy_config

FOLDER = Path(__file__).parents[2] / "configs"
RUNNABLE = {path for path in FOLDER.glob("*/*.py") if path.stem != "recipe"}
COMPARISONS = sorted(path for path in RUNNABLE if path.parent.name == "comparisons")
POLICIES = sorted(path for path in RUNNABLE if path.stem.endswith("_policy"))
CONFIGS = sorted(RUNNABLE - set(COMPARISONS) - set(POLICIES))
VOCABULARY = {
    "lm1b": 30522,
    "owt": 50257,
    "quickstart": 2048,
    "phrases": 4,
    "masked_flow": 32000,
    "x_prediction": 12,
    "tales": 4096,
    "conditional": 260,
}


def name_of(path):
    """lm1b/flm of configs/lm1b/flm.py."""
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_builds(path):
    module = runpy.run_path(str(path))
    assert f"--config=configs/{name_of(path)}.py" in module["__doc__"]
    config = check(module["get_config"]())
    experiment = path.parent.name
    config["model"]["vocab_size"] = config["model"]["vocab_size"] or VOCABULARY[experiment]
    rows = settings(config, "train").batch
    net, flow = make_network(config), make_flow(config, config["model"]["vocab_size"])
    params = abstract_params(net)
    frozen = teacher_folder(config) or config["adapters"]["base"]
    objective = make_objective(config, net, flow, net if frozen else None)
    tracker = family(config).tracker(config)
    tracked = tracker and tracker.fresh()
    shape = jax.ShapeDtypeStruct((rows, net.max_length), jnp.int32)
    batch = {"tokens": shape, "mask": shape}
    key = jax.eval_shape(lambda: jax.random.key(0))
    of = (lambda p: p | {RESIDUAL: p}) if config["objective"]["name"] == "merge" else lambda p: p
    loss, metrics = jax.eval_shape(
        lambda p, b, k: objective(p, Frozen(of(p), p, tracked, p), b, k, Rows(0, rows)),
        params,
        batch,
        key,
    )
    assert loss.shape == () and loss.dtype == jnp.float32
    assert "counted" in metrics
    assert all(name.endswith("_per_token") or name in ("counted", "observed") for name in metrics)
    count = sum(x.size for x in jax.tree.leaves(params))
    if path.stem == "flm_1b":
        assert 1.44e9 < count < 1.46e9
    elif experiment == "masked_flow" and not path.stem.startswith("small"):
        base = sum(x.size for x in jax.tree.leaves(split(params)[0]))
        assert 1.13e9 < base < 1.15e9  # 1028 M and the embeddings of input and output
    elif path.stem == "llada_align":
        assert count == 8_015_581_184
    elif path.stem == "llada2_align":
        base, adapters = (sum(x.size for x in jax.tree.leaves(part)) for part in split(params))
        assert base == 16_255_643_392 and adapters < 0.002 * base
    elif experiment in ("lm1b", "owt"):
        assert 130e6 < count < 180e6  # the causal network has no adaLN: 7 M less


@pytest.mark.parametrize("path", POLICIES, ids=name_of)
def test_policy_builds(path):
    module = runpy.run_path(str(path))
    assert f"--config=configs/{name_of(path)}.py" in module["__doc__"]
    check_policy_config(check_policy(module["get_config"]()))


@pytest.mark.parametrize("path", COMPARISONS, ids=name_of)
def test_comparison_builds(path, tmp_path):
    """For every task it names: complete, parameters equal to 20%, equal training tokens.

    The flow map's second time embedding is most of the difference. Routes of unequal cost take
    tokens in inverse proportion to it, and their teacher its own. NAME_self takes NAME's.
    """
    module = runpy.run_path(str(path))
    assert f"--config=configs/{name_of(path)}.py" in module["__doc__"]
    for task in module.get("TASKS") or module.get("CORPORA") or [""]:
        given = module["get_config"](task).to_dict()
        sizes, tokens = {}, {}
        for entry in entries(given | {"judge": "", "prepare": {}, "words": False}, tmp_path):
            if entry.steps and entry.of == entry.name:
                config = _with_vocabulary(entry.config, given)
                params = abstract_params(make_network(config))
                sizes[entry.name] = sum(x.size for x in jax.tree.leaves(params))
                rows = config["train"]["steps"] * config["train"]["batch"]
                tokens[entry.name] = rows * config["model"]["length"]
        sizes.pop("dim_192", None)  # what it changes
        assert max(sizes.values()) / min(sizes.values()) < 1.2, sizes
        own = {name for name in tokens if name.endswith("_self")}
        assert all(tokens[name] == tokens[name.removesuffix("_self")] for name in own)
        if baselines := {tokens[name] for name in ("MDLM", "Duo", "AR") if name in tokens}:
            maps = sum(number for name, number in tokens.items() if name.startswith("FMLM"))
            assert baselines == {tokens["FLM"] + maps}
            distilled = [tokens[name] for name in ("MDLM_sdtt", "Duo_dcd") if name in tokens]
            assert all(number == maps for number in distilled)
        elif own:
            assert own == {"FLM_self", "FMLM_self"}
        elif flows := module.get("FLOWS"):
            assert tokens["states_longer"] == 1.6 * tokens["states"]  # equal seconds
            assert len({tokens[name] for name in flows if name != "states_longer"}) == 1
            assert len({tokens[name] for name in module["ROUTES"]}) == 1
            assert len({tokens[name] for name in module["MATCHED"]}) == 1
        elif cost := module.get("COST"):
            spent = [tokens[n] * cost[n.removesuffix("_alone")] for n in tokens if n != "FLM"]
            assert len(spent) == 2 * len(cost) and max(spent) / min(spent) < 1.01
        elif maps := {tokens[name] for name in tokens if name.endswith("_map")}:
            flows = {tokens[name] for name in tokens if name.endswith("_flow")}
            assert len(maps) == len(flows) == 1
        else:
            assert len(set(tokens.values())) == 1


def _with_vocabulary(config, comparison):
    """Of the task's tokenizer, or of the corpus that the comparison would prepare."""
    if size := comparison.get("prepare", {}).get("vocab_size"):
        return config | {"model": config["model"] | {"vocab_size": size}}
    return resolve_vocabulary(config, open_data(config).tokenizer)
