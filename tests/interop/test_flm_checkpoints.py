"""Files of the reference: averages in the order of its parameters, and what release they are of."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags as absl_flags
from safetensors.numpy import load_file

from flm_jax.build.families.registry import objective_name
from flm_jax.build.load import load_model
from flm_jax.build.published import imported_config
from flm_jax.build.published_flows import clean_probability, imported_flow
from flm_jax.build.residual import residual_params
from flm_jax.core.errors import UserError
from flm_jax.data.tokenizers.builtin import CharacterTokenizer
from flm_jax.denoiser.forward import denoise
from flm_jax.inference import engine
from flm_jax.interop import flm_checkpoints
from flm_jax.interop.flm import params_from_state_dict, state_dict_from_params
from flm_jax.interop.flm_checkpoints import RELEASES, averaged_weights, read_checkpoint, release_of
from flm_jax.losses.distillation.two_networks import RESIDUAL, residual_readout
from flm_jax.samplers.posterior_refinement import PosteriorRefinementConfig
from helpers.goldens import GOLDENS, arrays

ROTARY, HEAD = "rotary_emb.inv_freq", "learnable_loss_weighting."
# As the network registers its parts (models/dit.py of the reference).
PARTS = ("vocab_embed", "sigma_map.", "sigma_map_prime", "rotary_emb", HEAD, "blocks", "output")


class Tensor:
    """An array as far as torch's tensors are used."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def detach(self):
        return self

    float = cpu = detach

    def numpy(self):
        return np.asarray(self.array, np.float32)


def golden(name):
    """The state dict in the order of the module; files store names sorted."""
    state = load_file(GOLDENS / f"dit_{name}.safetensors")
    return {k: v for part in PARTS for k, v in state.items() if k.startswith(part)}


def without_head(state):
    return {k: v for k, v in state.items() if not k.startswith(HEAD)}


def named(state):
    return {k: v for k, v in without_head(state).items() if k != ROTARY}


def tensors(state):
    return {f"backbone.{k}": Tensor(v) for k, v in state.items()}


def averages(state):
    return [Tensor(v + 1) for k, v in state.items() if k != ROTARY]


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def two_times(state):
    """The weighting of two times, which has four tensors more."""
    more = {f"{HEAD}t_embed.mlp.{i}.{k}": np.ones(2) for i in (0, 2) for k in ("weight", "bias")}
    return {k: v for part in PARTS for k, v in (state | more).items() if k.startswith(part)}


def test_the_weighting_stands_before_the_blocks():
    names = [name for name in golden("double") if name != ROTARY]
    assert len(names) == 42
    assert [i for i, name in enumerate(names, 1) if name.startswith(HEAD)] == list(range(10, 18))
    assert names[17].startswith("blocks.0.")


@pytest.mark.parametrize("change", [lambda state: state, two_times])
@pytest.mark.parametrize("in_state, in_average", [(True, True), (True, False), (False, True)])
def test_averages_have_the_order_of_the_parameters(change, in_state, in_average):
    full = change(golden("double"))
    state = full if in_state else without_head(full)
    shadows = averages(full if in_average else without_head(full))
    found = averaged_weights(tensors(state) | {"teacher.x": Tensor(np.ones(2))}, shadows)
    params, sizes = params_from_state_dict(found)
    assert (sizes["heads"], sizes["two_time"]) == (4, True)
    assert_same(state_dict_from_params(params), {k: v + 1 for k, v in named(full).items()})


def test_averages_that_do_not_fit():
    state, shadows = tensors(golden("single")), averages(golden("single"))
    with pytest.raises(UserError, match="29 averaged tensors do not fit the 30 .* 8 or 12 more"):
        averaged_weights(state, shadows[:-1])
    with pytest.raises(UserError, match="2 averaged tensors have another shape"):
        averaged_weights(state, [shadows[1], shadows[0], *shadows[2:]])
    # The order of a sorted file is another one.
    full = golden("double")
    last = without_head(full) | {k: v for k, v in full.items() if k.startswith(HEAD)}
    with pytest.raises(UserError, match="averaged tensors have another shape"):
        averaged_weights(tensors(full), averages(last))


@pytest.fixture
def ckpt(tmp_path, monkeypatch):
    """(state, shadows, settings) -> path of what torch would read as that."""

    def made(state, shadows=None, **settings):
        held = {"state_dict": tensors(state)}
        if shadows is not None:
            held["ema"] = {"decay": 0.9999, "shadow_params": shadows}
        if settings:
            held["hyper_parameters"] = {"config": settings}
        monkeypatch.setattr(flm_checkpoints, "load_torch", lambda path: held)
        path = tmp_path / "model.ckpt"
        path.write_bytes(b"x")
        return path

    return made


def test_a_lightning_checkpoint(ckpt):
    state = golden("double")
    path = ckpt(state, averages(state), algo={"name": "fmlm"})
    found = read_checkpoint(path)
    assert found.settings == {"algo": {"name": "fmlm"}}
    assert_same(
        {k: v for k, v in found.tensors.items() if k in named(state)},
        {k: v + 1 for k, v in named(state).items()},
    )
    last = read_checkpoint(path, ema=False).tensors
    assert_same(last, {f"backbone.{k}": v for k, v in state.items()})
    assert_same(read_checkpoint(ckpt(state)).tensors, last)
    monstrous = ckpt(state, averages(state))
    flm_checkpoints.load_torch(path)["ema"] = {"decay": 0.9}
    with pytest.raises(UserError, match="lacks `shadow_params`"):
        read_checkpoint(monstrous)


def test_safetensors_need_no_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = GOLDENS / "dit_single.safetensors"
    assert_same(read_checkpoint(path).tensors, load_file(path))
    (tmp_path / "weights.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r'pip install "flm-jax\[torch\]"'):
        read_checkpoint(tmp_path / "weights.ckpt")


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="no file"):
        read_checkpoint(tmp_path / "absent.ckpt")
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="unknown ending"):
        read_checkpoint(tmp_path / "weights.bin")
    (tmp_path / "weights.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_checkpoint(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    "source, algorithm, want",
    [
        ("flm", {}, (30.0, "decoding", False)),
        ("flm", {"name": "flm"}, (30.0, "decoding", False)),
        ("flm", {"name": "fmlm"}, (30.0, "decoding", False)),
        ("flm_2026_02", {"name": "flm"}, (0.0, "decoding", False)),
        ("flm_2026_02", {"name": "flm_distill_double"}, (0.0, "decoding", False)),
        ("fmlm_plus", {"name": "fmlm_plus"}, (30.0, "identity", True)),
        ("fmlm_plus", {"name": "fmlm_plus", "skip_time_reparam": False}, (30.0, "decoding", True)),
        ("flm", {"name": "fmlm_plus"}, "expected --source=fmlm_plus, got flm"),
        ("fmlm_plus", {"name": "flm"}, "expected --source=flm or flm_2026_02, got fmlm_plus"),
        ("flm", {"name": "flm_distill_double"}, "expected --source=flm_2026_02"),
        ("flm_residual", {"name": "flm_distill"}, (0.0, "decoding", False)),
        ("flm_residual", {"name": "flm_distill_double"}, "expected --source=flm_2026_02"),
        ("flm", {"name": "flm_distill"}, "first stage .* no softmax; expected --source=flm_resid"),
        ("flm", {"name": "mdlm"}, "algo.name=mdlm; expected one of flm"),
        ("fmlm_plus", {"name": "fmlm_plus", "backbone": "dit_2d"}, "expected dit"),
    ],
)
def test_releases(source, algorithm, want):
    settings = {"algo": algorithm} if algorithm else {}
    if isinstance(want, str):
        with pytest.raises(UserError, match=want):
            release_of(source, settings)
    else:
        found = release_of(source, settings)
        assert (*found[:3], found.residual) == (*want, source == "flm_residual")


def imported(tmp_path, path, *flags):
    """The workdir that the command writes, as a model."""
    from flm_jax import convert as command  # it defines flags

    tokenizer = tmp_path / "tokenizer"
    CharacterTokenizer([chr(i) for i in range(33, 33 + 92)]).save(tokenizer)
    workdir = tmp_path / "run"
    given = f"--checkpoint={path}", f"--workdir={workdir}", f"--tokenizer={tokenizer}", *flags
    absl_flags.FLAGS.unparse_flags()
    absl_flags.FLAGS(["convert", "--source=flm", "--length=0", "--export=", "--base=", *given])
    command.main(["convert"])
    return load_model(absl_flags.FLAGS.workdir)


def test_february_has_no_cap(tmp_path, capsys):
    """The logits are those of the network of the reference, which knew none then."""
    path = GOLDENS / "dit_single.safetensors"
    model = imported(tmp_path, path, "--source=flm_2026_02", "--length=16")
    assert model.net.logit_softcap == 0.0
    values = arrays("dit")
    y = values["x_cont"] @ model.params["table"]
    got = denoise(model.net, model.params, y, values["sigma"], values["sigma"])
    want = values["single_cont_sigma_f32"]
    assert float(jnp.max(jnp.abs(want))) > 1.0
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert (
        "read as --source=flm_2026_02; others are flm, flm_residual, fmlm_plus"
        in capsys.readouterr().out
    )


def test_any_order_files(tmp_path, ckpt, capsys):
    """Identity clock, a time for each token, sizes of their settings; it is refined as such."""
    state = golden("double")
    said = {"algo": {"name": "fmlm_plus", "skip_time_reparam": True}, "model": {"length": 16}}
    path = ckpt(state, averages(state), **said)
    with pytest.raises(UserError, match="expected --source=fmlm_plus, got flm"):
        imported(tmp_path, path)
    model = imported(tmp_path, path, "--source=fmlm_plus")
    assert model.net.any_order and model.net.two_time and model.net.max_length == 16
    assert model.config["flow"]["clock"] == "identity" and model.net.logit_softcap == 30.0
    np.testing.assert_allclose(model.flow.tau(jnp.array([0.3, 0.8])), [0.3, 0.8], atol=1e-6)
    assert_same(state_dict_from_params(model.params), {k: v + 1 for k, v in named(state).items()})
    given = engine.given_tokens(model, "!!!!", "", 2, 16)
    cfg = PosteriorRefinementConfig()
    drawn = engine.draw(model, given, steps=2, num=2, seed=0, sampler=cfg)
    np.testing.assert_array_equal(drawn.tokens[:, :4], np.asarray(given.tokens)[:, :4])
    out = capsys.readouterr().out
    assert "does not say its release" not in out and "warning: of a trained flow" in out
    with pytest.raises(UserError, match="network of one time.* expected --source=flm"):
        imported(tmp_path / "one", GOLDENS / "dit_single.safetensors", "--source=fmlm_plus")


def test_a_first_stage_is_no_flow_map(tmp_path, ckpt):
    """It is imported beside the flow that it corrects, and gives its file's vectors."""
    path = ckpt(golden("double"), algo={"name": "flm_distill"}, model={"length": 16})
    with pytest.raises(UserError, match="whose output is no softmax; .* --source=flm_residual"):
        imported(tmp_path, path)
    assert not (tmp_path / "run/config.json").exists()
    with pytest.raises(UserError, match="needs the workdir of the flow that it corrects"):
        imported(tmp_path, path, "--source=flm_residual")
    single = GOLDENS / "dit_single.safetensors"
    flow = imported(tmp_path, single, "--source=flm_2026_02", "--length=16")
    where = f"--workdir={tmp_path / 'first'}", f"--base={tmp_path / 'run'}"
    model = imported(tmp_path, path, "--source=flm_residual", *where, "--tokenizer=")
    assert objective_name(model.config) == "residual"
    values = arrays("dit")
    y, times = values["x_cont"] @ model.params["table"], (values["sigma"], values["sigma_prime"])
    teacher = flow.net, flow.params
    out = residual_readout(model.net, model.params, y, *times, teacher)
    got = out.features @ out.kernel + out.bias[None, None]
    np.testing.assert_allclose(got, values["double_cont_both_f32"], atol=5e-5)
    second = imported_config(model.config["model"], "merge", more={"flow": model.config["flow"]})
    second["objective"] |= {"teacher": str(tmp_path / "run"), "residual": str(tmp_path / "first")}
    assert residual_params(second, model.tokenizer, None)[RESIDUAL].keys() == model.params.keys()
    with pytest.raises(UserError, match="is a model of objective residual; expected the flow"):
        more = f"--workdir={tmp_path / 'more'}", f"--base={tmp_path / 'first'}", "--tokenizer="
        imported(tmp_path, path, "--source=flm_residual", *more)


def test_a_softmax_is_told_by_clean_states():
    """Random weights give clean tokens next to nothing, a network that reads states back much."""
    params, sizes = params_from_state_dict(golden("single"))
    config = imported_flow(RELEASES["flm"], sizes | {"length": 16})
    assert clean_probability(config, params) < 0.1
    rows = params["table"] / np.linalg.norm(params["table"], axis=1, keepdims=True)
    still = lambda tree: {k: v * 0 for k, v in tree.items()}
    params |= {
        "table": 4.0 * rows,
        "blocks": params["blocks"] | {"modulation": still(params["blocks"]["modulation"])},
        "modulation": still(params["modulation"]),
        "norm": {"scale": np.ones(rows.shape[1], np.float32)},
        "head": {"kernel": 16.0 * rows.T, "bias": np.zeros(len(rows), np.float32)},
    }
    assert clean_probability(config, params) > 0.9
