"""Published checkpoints of masked flows become workdirs, by the command line, and files again."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flm_jax.build.load import load_model
from flm_jax.build.published import adapted
from flm_jax.checkpoints.config_file import write_config
from flm_jax.checkpoints.workdir import save_ema
from flm_jax.config.upgrade import read_config
from flm_jax.core.errors import UserError
from flm_jax.data.tokenizers.builtin import CharacterTokenizer
from flm_jax.data.tokenizers.registry import load_tokenizer
from flm_jax.denoiser.forward import denoise
from flm_jax.interop import mlfm
from flm_jax.models.lora import AdapterConfig
from helpers.compiling import FAST
from helpers.goldens_mlfm import GOLDENS, assert_close, record

HEADS = 2
ADAPTED, BASE = GOLDENS / "model_adapted.safetensors", GOLDENS / "model_base_smdm.safetensors"
NAMES = record("checkpoint_names")
FULL = NAMES["tiny_full_checkpoint_sft (state_dict)"]
ALONE = NAMES["tiny_adapter_checkpoint_train (adapter_state_dict)"]


def command(*flags):
    env = os.environ | {"XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "-m", "flm_jax.convert", *flags]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """SMDM's workdir, and those of a checkpoint of adapters on it and of one of all weights."""
    folder = tmp_path_factory.mktemp("mlfm")
    CharacterTokenizer([chr(i) for i in range(40, 40 + 56)]).save(folder / "tokenizer")
    state = load_file(ADAPTED)
    save_file({name: state[name] for name in ALONE}, folder / "adapters.safetensors")
    tokenizer, heads = f"--tokenizer={folder / 'tokenizer'}", f"--heads={HEADS}"
    runs = {name: folder / name for name in ("smdm", "alone", "whole")}
    for more in (
        ("--source=smdm", f"--checkpoint={BASE}", f"--workdir={runs['smdm']}", tokenizer, heads),
        (
            "--source=mlfm",
            f"--checkpoint={folder / 'adapters.safetensors'}",
            f"--workdir={runs['alone']}",
            f"--base={runs['smdm']}",
        ),
        (
            "--source=mlfm",
            f"--checkpoint={ADAPTED}",
            f"--workdir={runs['whole']}",
            tokenizer,
            heads,
        ),
    ):
        code, said = command(*more)
        assert code == 0, said
    return runs


@pytest.mark.parametrize("name", ["alone", "whole"])
def test_the_command_imports_what_computes_their_logits(workdirs, name):
    """Within 3e-5: their float32 is within 2e-5 of float64, see tests/interop/test_mlfm.py."""
    model = load_model(workdirs[name])
    assert model.config["model"]["length"] == 1024 and model.net.max_length == 1024
    with np.load(GOLDENS / "adapter.npz") as file:
        golden = {key: jnp.asarray(file[key]) for key in ("gamma", "z", "logits")}
    times = model.flow.told.progress(golden["gamma"])
    got = denoise(model.net, model.params, golden["z"], times, times)
    assert_close(got, golden["logits"], 3e-5)


@pytest.mark.parametrize("name", ["alone", "whole"])
def test_the_command_exports_what_it_imported(workdirs, tmp_path, name):
    out = tmp_path / "back.safetensors"
    code, said = command(f"--workdir={workdirs[name]}", f"--export={out}")
    assert code == 0, said
    want, back = load_file(ADAPTED), load_file(out)
    trained = load_model(workdirs[name]).config["adapters"].get("base_lr")
    assert back.keys() == (FULL if trained else ALONE).keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, want[key], err_msg=key)


def test_the_command_refuses_what_does_not_fit(workdirs, tmp_path):
    flags = ["--source=mlfm", f"--workdir={tmp_path / 'run'}", f"--heads={HEADS}"]
    alone = f"--checkpoint={workdirs['smdm'].parent / 'adapters.safetensors'}"
    for more, message in (
        ([alone], "holds adapters alone; give the workdir of their base"),
        ([f"--checkpoint={ADAPTED}", f"--base={workdirs['smdm']}"], "expected no --base"),
    ):
        code, said = command(*flags, *more)
        assert code == 2 and message in said and "Traceback" not in said
    small = mlfm.read(ADAPTED, HEADS)._replace(sizes=mlfm.Sizes(60, 32, 2, 2, 2, 64))
    base = read_config(workdirs["smdm"])
    with pytest.raises(UserError, match="vocab_size: 61, checkpoint 60"):
        adapted(small, "runs/smdm", base, None)


def test_the_curve_becomes_the_learnt_law(workdirs, tmp_path):
    """State of the law from 101 knots, which the workdir keeps and a loaded model has."""
    knots, where = np.linspace(-2.1, 1.8, 101) ** 3, workdirs["smdm"]
    base, tokenizer = read_config(where), load_tokenizer(where / "tokenizer")
    knots[0], knots[-1] = -10.0, 6.0
    found = mlfm.read(ADAPTED, HEADS)._replace(base=None, knots=knots)
    made = adapted(found, str(where), base, tokenizer)
    assert made.times.ready == 1.0
    tokenizer.save(tmp_path / "tokenizer")
    save_ema(tmp_path, made.params, 7, {}, made.times)
    write_config(tmp_path, made.config)
    model = load_model(tmp_path)
    assert model.step == 7
    np.testing.assert_array_equal(model.times.knots, knots.astype(np.float32))
    assert adapted(found._replace(knots=None), str(where), base, tokenizer).times is None


def test_the_command_reads_what_torch_saved(workdirs, tmp_path):
    """Averages, the curve of gamma and the step of a file with all that they save beside."""
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(load_file(ADAPTED)[name]) for name in ALONE}
    knots = (np.linspace(-2.1, 1.8, 101) ** 3).tolist()
    curve = dict(zip(mlfm.CURVE, (knots, np.linspace(0.0, 1.0, 101).tolist())))
    saved = {
        "model": {name: torch.zeros_like(value) for name, value in state.items()},
        "save_full_model": False,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
        "scaler": {},
        "step": 12,
        "epoch": 0,
        "config": {"lora_alpha": 8.0, "gamma_active_mixture_weights": [0.1, 0.0, 0.9]} | curve,
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state_all": None,
        "ema_adapter": state,
    }
    torch.save(saved, tmp_path / "saved.pt")
    where, run = f"--base={workdirs['smdm']}", tmp_path / "run"
    code, said = command(
        "--source=mlfm", f"--checkpoint={tmp_path / 'saved.pt'}", f"--workdir={run}", where
    )
    assert code == 0 and "tells the learnt law of times" in said, said
    model, same = load_model(run), load_model(workdirs["alone"])
    assert model.step == 12 and model.config["flow"]["law"]["normal"] == 0.0
    np.testing.assert_allclose(model.times.knots, knots, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(same.params)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "stage, law", [("train", ("logistic", 0.2, 0.999, 0.05)), ("sft", ("empirical", 0, 0.98, 0.95))]
)
def test_settings_that_they_save_become_ours(workdirs, stage, law):
    """Those of both stages, as far as the goldens have them, make a configuration."""
    says, where = record("gamma_law")[f"config_{stage}"], workdirs["smdm"]
    found, base = mlfm.read(ADAPTED, HEADS), read_config(where)
    own = AdapterConfig(**found.values["adapters"])
    found = found._replace(base=None, values=mlfm.values_of(says, own))
    config = adapted(found, str(where), base, load_tokenizer(where / "tokenizer")).config
    got = [config["flow"]["law"][key] for key in ("learnt", "normal", "decay", "ratio_low")]
    assert got == pytest.approx(list(law))
