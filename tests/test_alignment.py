"""Alignment of masked diffusion: the loss, texts a model writes for itself, whole runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.build.adapters import trained_params
from flm_jax.build.families.x_prediction import base_params
from flm_jax.build.load import load_model
from flm_jax.build.model import make_network
from flm_jax.build.sampler import Options
from flm_jax.checkpoints import workdir as checkpoints_workdir
from flm_jax.config.check import check
from flm_jax.config.schema import base_config
from flm_jax.core.errors import UserError
from flm_jax.data.self_generated import open_generated
from flm_jax.denoiser.forward import denoise
from flm_jax.flows.time_sampling import Rows
from flm_jax.inference import self_generation, task_problems
from flm_jax.losses.alignment import (
    INPUTS,
    AlignmentConfig,
    aligned_at,
    alignment_loss,
    draw_inputs,
)
from flm_jax.metrics.alignment import compare_with_base, make_alignment_figures
from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.models.lora import split
from flm_jax.training.trainer import train_run

NET = llama(LlamaConfig(11, 6, 16, 2, 2, 2, 0.0, 0.0, 0.0, "float32", "none", True))
PARAMS = NET.init(jax.random.key(1))
TOKENS = jax.random.randint(jax.random.key(3), (4, 6), 0, 11)
MASKED = jnp.broadcast_to(jnp.arange(6)[None] >= 3, (4, 6))


def distances(t, tile=0):
    net = dataclasses.replace(NET, loss_tile=tile)
    run = lambda: aligned_at(PARAMS, TOKENS, t, net=net, cfg=AlignmentConfig())[0]
    return jax.jit(run)()


@pytest.mark.parametrize("level, tile", [(0.0, 0), (0.3, 0), (0.3, 3)])
def test_the_distance_is_that_of_expected_embeddings(level, tile):
    t = jnp.where(MASKED, level, 1.0)
    table, anchor = NET.table(PARAMS), NET.anchor(PARAMS)[:6]
    states = t[..., None] * table[TOKENS] + (1.0 - t)[..., None] * anchor[None]
    zeros = jnp.zeros(4)
    probs = jax.nn.softmax(jax.jit(lambda: denoise(NET, PARAMS, states, zeros, zeros))())
    want = np.sum((np.asarray(probs) @ np.asarray(table) - table[TOKENS]) ** 2, axis=-1)
    np.testing.assert_allclose(distances(t, tile), want, rtol=1e-4)


def loss_of(batch, params=PARAMS, **choices):
    run = lambda p: alignment_loss(
        p, batch, jax.random.key(5), net=NET, cfg=AlignmentConfig(**choices), rows=Rows(0, 4)
    )
    (loss, metrics), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    return float(loss), metrics, grads


def test_all_positions_that_may_be_written_count_and_no_other():
    batch = {"tokens": TOKENS, "mask": jnp.ones((4, 6), bool)}
    loss, metrics, _ = loss_of(batch)
    hidden, visible = (
        float(metrics[f"{name}_squared_distance_per_token"]) for name in ("hidden", "visible")
    )
    assert min(hidden, visible) < loss < max(hidden, visible)
    prompted = batch | {"prompt": ~MASKED}
    first = loss_of(prompted | {"mask": MASKED | ~MASKED})
    # Prompts are seen, whole; what is not valid neither counts nor is hidden.
    other = loss_of(prompted | {"tokens": TOKENS.at[:, 0].set((TOKENS[:, 0] + 1) % 11)})
    assert first[0] != other[0]
    nothing = loss_of(prompted | {"mask": ~MASKED})
    assert nothing[0] == 0.0


def test_the_embeddings_are_no_way_out():
    """With everything hidden the table gets no gradient; its other uses are inputs alone."""
    batch = {"tokens": TOKENS, "mask": jnp.ones((4, 6), bool)}
    run = lambda p: jnp.sum(
        aligned_at(p, TOKENS, jnp.zeros((4, 6)), net=NET, cfg=AlignmentConfig())[0]
    )
    grads = jax.jit(jax.grad(run))(PARAMS)
    assert not np.any(grads["table"])
    assert np.any(grads["anchor"]) and np.any(grads["head"]["kernel"])
    assert np.any(loss_of(batch)[2]["table"])


def test_inputs_between_mask_and_token():
    batch = {"tokens": TOKENS, "mask": jnp.ones((4, 6), bool)}
    losses = {inputs: loss_of(batch, inputs=inputs)[0] for inputs in INPUTS}
    assert len(set(losses.values())) == len(INPUTS) == 4


def test_predicted_inputs_are_what_a_call_leaves():
    """Own predictions at hidden positions of every other row, no further than their confidence."""
    cfg = AlignmentConfig(inputs="predicted")
    table, anchor = NET.table(PARAMS), NET.anchor(PARAMS)[:6]
    states = jnp.where(MASKED[..., None], anchor[None], table[TOKENS])
    zeros = jnp.zeros(4)
    probs = jax.nn.softmax(jax.jit(lambda: denoise(NET, PARAMS, states, zeros, zeros))())
    draw = lambda key: draw_inputs(key, PARAMS, TOKENS, MASKED, NET, cfg, Rows(0, 4))
    shown, t = jax.jit(draw)(jax.random.key(7))
    np.testing.assert_array_equal(shown, jnp.where(MASKED, jnp.argmax(probs, -1), TOKENS))
    assert (t[~MASKED] == 1.0).all() and (t[::2, 3:] == 0.0).all()
    moved, most = t[1::2, 3:], jnp.max(probs, -1)[1::2, 3:]
    assert (moved > 0.0).all() and (moved <= most * (1 + 1e-5)).all()
    assert len(np.unique(moved)) > 3
    # What is shown is not what is to be predicted.
    right = loss_of({"tokens": TOKENS, "mask": jnp.ones((4, 6), bool)}, inputs="predicted")
    own = aligned_at(PARAMS, TOKENS, t, net=NET, cfg=cfg, shown=shown)[0]
    assert np.any(own != aligned_at(PARAMS, shown, t, net=NET, cfg=cfg)[0]) and right[0] > 0.0


def test_figures_are_sums_over_masked_and_unmasked():
    figures = jax.jit(make_alignment_figures(NET, AlignmentConfig()))
    batch = {"tokens": TOKENS, "mask": jnp.ones((4, 6), bool), "prompt": ~MASKED}
    sums, counts = figures(PARAMS, batch, jax.random.key(0))
    both = "masked_squared_distance", "unmasked_squared_distance"
    assert sum(int(counts[name]) for name in both) == 12
    found = compare_with_base(figures, PARAMS, PARAMS, [batch] * 2, jax.random.key(0))
    assert found["masked_nll_nats_per_token"] == found["base_masked_nll_nats_per_token"] > 1.0
    other = jax.tree.map(lambda x: 1.1 * x, PARAMS)
    found = compare_with_base(figures, PARAMS, other, [batch], jax.random.key(0))
    assert found["masked_nll_nats_per_token"] != found["base_masked_nll_nats_per_token"]


# Whole runs, on sums of one digit.
def tiny(**values):
    config = base_config()
    config.model.name, config.objective.name = "llama", "masked"
    config.data.task, config.data.task_size = "arithmetic1", 4096
    config.model.length, config.model.dim, config.model.depth = 6, 32, 1
    config.model.heads, config.model.attention_softcap, config.model.logit_softcap = 2, 0.0, 0.0
    config.optim.lr, config.optim.warmup_steps, config.optim.ema_decay = 3e-3, 5, 0.5
    config.train.steps, config.train.batch, config.train.checkpoint_every = 30, 64, 30
    config.eval.every, config.eval.sample_steps, config.train.log_every = 0, 2, 100
    config.mesh.data, config.mesh.fsdp = 1, 8  # the tests run on 8 devices
    config.adapters.rank, config.adapters.head_rank, config.adapters.cond_dim = 4, 4, 16
    config.update_from_flattened_dict(values)
    return config


def run(config, workdir):
    assert train_run(check(config), str(workdir)) == 0
    return load_model(workdir)


GREEDY = dict(steps=2, seed=1, options=Options(method="confidence", temperature=0.0))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alignment")
    run(tiny(), folder / "base")
    self_generation.generate(
        str(folder / "base"), str(folder / "own"), num=100, batch_size=40, **GREEDY
    )
    return folder


def align(folder, **values):
    more = {"objective.name": "alignment", "data.generated": str(folder / "own")}
    more |= {"objective.teacher": str(folder / "base"), "train.steps": 20}
    return tiny(**(more | {"train.checkpoint_every": 20} | values))


def test_an_interrupted_generation_continues_with_the_same_texts(runs, tmp_path):
    def stop(done, parts):
        raise KeyboardInterrupt

    out = tmp_path / "own"
    settings = dict(num=100, batch_size=40, **GREEDY)
    with pytest.raises(KeyboardInterrupt):
        self_generation.generate(str(runs / "base"), str(out), show=stop, **settings)
    with pytest.raises(UserError, match="lacks 2 of 3 parts"):
        open_generated(str(out), 6)
    assert "2 of 3 parts" in self_generation.generate(str(runs / "base"), str(out), **settings)
    whole, again = (open_generated(str(folder), 6) for folder in (runs / "own", out))
    for a, b in zip(whole[:2], again[:2]):
        assert a.fingerprint == b.fingerprint
    assert (len(whole[0]), len(whole[1])) == (95, 5)
    row = whole[0][3]
    assert row["prompt"].tolist() == [True] * 4 + [False] * 2 and row["mask"].all()
    with pytest.raises(UserError, match="begun with another seed, steps"):
        self_generation.generate(
            str(runs / "base"), str(out), **(settings | {"steps": 1, "seed": 2})
        )


def test_texts_end_with_their_first_end():
    tokens = np.array([[9, 1, 2, 9, 3], [9, 1, 2, 3, 4]])
    given = np.array([[True, False, False, False, False]] * 2)
    mask = self_generation.ended(tokens, given, 9)
    assert mask.tolist() == [[True] * 4 + [False], [True] * 5]
    assert self_generation.ended(tokens, given, None).all()


def figures_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {key[5:]: value for key, value in lines[-1].items() if key.startswith("eval/")}


def test_alignment_lowers_the_distances_and_says_so_beside_the_base(runs):
    model = run(align(runs), runs / "aligned")
    found = figures_of(runs / "aligned")
    for kind in ("masked", "unmasked"):
        name = f"{kind}_squared_distance_per_token"
        assert found[name] < 0.95 * found[f"base_{name}"], kind
    assert "base_masked_nll_nats_per_token" in found
    assert task_problems.task_of(model).name == "arithmetic1"
    share, calls = task_problems.solve(
        model, task_problems.task_of(model), 20, 2, 20, 0, Options(method="flow")
    )
    assert 0.0 <= share <= 1.0 and calls <= 2


def test_adapters_may_be_aligned_in_the_place_of_all_parameters(runs):
    more = {"objective.teacher": "", "adapters.base": str(runs / "base")}
    config = align(runs, **more)
    model = run(config, runs / "lora")
    kept, adapters = split(model.params)
    base = load_model(runs / "base").params
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(base)):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(x) for x in jax.tree.leaves(adapters["blocks"]["lora"]["q"]["b"]))
    found = figures_of(runs / "lora")
    name = "unmasked_squared_distance_per_token"
    assert found[name] < found[f"base_{name}"]
    # The base that it is compared with is the base.
    whole = base_params(model.config, trained_params(model.config, model.params), base)
    states, zeros = NET.table(base)[TOKENS % 12], jnp.zeros(4)
    own = make_network(checkpoints_workdir.read_config(runs / "base"))
    same = [
        jax.jit(lambda net=net, p=p: denoise(net, p, states, zeros, zeros))()
        for net, p in ((model.net, whole), (own, base))
    ]
    np.testing.assert_allclose(*same, atol=1e-6)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"objective.teacher": ""}, "goes on from a masked diffusion model"),
        ({"alignment.inputs": "progres"}, "did you mean 'progress'"),
        ({"model.dim": 64}, "teacher's sizes"),
        ({"data.task": "", "data.path": "elsewhere"}, "data.generated and config.data.path"),
        ({"data.generated": "nowhere"}, "holds no texts of a model"),
        ({"objective.time_conditioning": True}, "time_conditioning is True"),
    ],
)
def test_bad_alignments_are_refused(runs, tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        run(align(runs, **values), tmp_path / "run")
    assert not (tmp_path / "run").exists()
