"""Imports published weights into a workdir, and exports a workdir's averaged weights.

python -m flm_jax.convert --checkpoint=lm1b_flm.ckpt --workdir=runs/lm1b_flm --length=128 \\
    --tokenizer=hf:bert-base-uncased
python -m flm_jax.convert --source=fmlm_plus --checkpoint=owt.ckpt --workdir=runs/owt_any
python -m flm_jax.convert --source=flm_residual --checkpoint=first.ckpt --base=runs/lm1b_flm \\
    --workdir=runs/lm1b_residual
python -m flm_jax.convert --source=smdm --checkpoint=mdm-1028M.safetensors --workdir=runs/smdm
python -m flm_jax.convert --source=llada --checkpoint=LLaDA-8B-Base --workdir=runs/llada
python -m flm_jax.convert --source=llada2 --checkpoint=LLaDA2.0-mini --workdir=runs/llada2
python -m flm_jax.convert --source=llada --checkpoint=hf:GSAI-ML/LLaDA-8B-Base --workdir=runs/llada
python -m flm_jax.convert --source=mlfm --checkpoint=adapted.pt --workdir=runs/mlfm --base=runs/smdm
python -m flm_jax.convert --source=mlfm --checkpoint=finetuned.pt --workdir=runs/mlfm_sft
python -m flm_jax.convert --export=weights.safetensors --workdir=runs/lm1b_flm
python -m flm_jax.convert --export=published/flm --workdir=runs/flm

An imported workdir serves `sample`, `evaluate` (with --data) and, as a teacher or as the base of
adapters, `train`. For masked flows (mlfm), a checkpoint of adapters needs the workdir of their
base; a checkpoint of all weights contains the base, which is written to WORKDIR/base.
"""

import re
from typing import Any

from absl import flags
from etils import epath

from flm_jax.build.load import load_model
from flm_jax.build.model import make_network, network_kind
from flm_jax.build.published import adapted, imported_config
from flm_jax.build.published_flows import clean_probability, imported_flow, imported_residual
from flm_jax.checkpoints.config_file import write_config
from flm_jax.checkpoints.portable import HUB, located
from flm_jax.checkpoints.workdir import save_ema
from flm_jax.cli.path_flags import DEFINE_path
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.config.upgrade import read_config
from flm_jax.core.errors import one_of, require
from flm_jax.core.locks import alone
from flm_jax.core.paths import check_file, check_folder
from flm_jax.core.progress import Progress
from flm_jax.core.types import Config, Params
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.data.tokenizers.registry import load_tokenizer, make_tokenizer, needs_training
from flm_jax.inference import language_model
from flm_jax.interop import flm, flm_checkpoints, llada2, llama, mlfm
from flm_jax.interop.tensors import save_tensors

_LLAMAS = {"smdm": llama.read_smdm, "llada": llama.read_llada, "llada2": llada2.read_llada2}
_FLOWS = tuple(flm_checkpoints.RELEASES)
_RESIDUAL = "flm_residual"  # the one of them that belongs to another model
_SOURCES = (*_FLOWS, "mlfm", *_LLAMAS)
# Tokenizers of the published models, by vocabulary; OWT's may have one more row, for a mask.
_TOKENIZERS = {
    30522: "hf:bert-base-uncased",
    50257: "hf:gpt2",
    50258: "hf:gpt2",
    32000: "hf:TinyLlama/TinyLlama_v1.1",
    126464: "hf:GSAI-ML/LLaDA-8B-Base",
    157184: "hf:inclusionAI/LLaDA2.0-mini",
}
_FLM_LENGTH = 128
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")

_SOURCE = flags.DEFINE_string(
    "source",
    "flm",
    f"Origin of the weights: {', '.join(_SOURCES)}. FLM and FMLM of February 2026, whose "
    "logits are not capped, are flm_2026_02; first stages of their distillation are "
    "flm_residual; any-order FMLM+ is fmlm_plus.",
)
_CHECKPOINT = DEFINE_path(
    "checkpoint",
    "",
    "File to import (.safetensors, .ckpt or .pt), the folder of llada or llada2, or hf:OWNER/NAME.",
)
_WORKDIR = DEFINE_path("workdir", "", "Workdir to write; with --export, to read.")
_TOKENIZER = DEFINE_path(
    "tokenizer",
    "",
    "Tokenizer: bytes, hf:NAME_OR_FOLDER, or the folder of a saved tokenizer; by default "
    "the one in the folder of the weights, or else by vocabulary size.",
)
_DATA = DEFINE_path("data", "", "Prepared folder on which `evaluate` measures the loss.")
_LENGTH = flags.DEFINE_integer(
    "length",
    0,
    "Length in tokens of the sequences of training; 0 is the length in the file, or else "
    "the published one.",
)
_BASE = DEFINE_path(
    "base",
    "",
    "Workdir of the model that adapters belong to (mlfm), or of the flow that a first "
    "stage corrects (flm_residual).",
)
_HEADS = flags.DEFINE_integer(
    "heads", None, "Number of attention heads, if the file does not record it."
)
_SOFTCAP = flags.DEFINE_float(
    "logit_softcap",
    None,
    "Soft cap of the output logits, 0 for none; by default as published for the source.",
)
_EMA = flags.DEFINE_bool("ema", True, "Import the averaged weights of a .ckpt, if it has any.")
_EXPORT = DEFINE_path(
    "export",
    "",
    "File or folder to write the weights of --workdir to: a .safetensors file under the "
    "reference's names, or a folder that every command takes as a workdir.",
)


def _checkpoint() -> str:
    """Returns the file or folder to import; one named hf:OWNER/NAME is fetched first.

    Raises:
      UserError: the hub does not provide it; a flow's folder has no file of weights, or several.
    """
    name = _CHECKPOINT.value
    if not name.startswith(HUB):
        require(
            not _HUB_NAME.fullmatch(name) or epath.Path(name).exists(),
            f"no file or folder {name}; a model of the hub is named {HUB}{name}.",
        )
        return name
    folder = located(
        name, [*(f"*{ending}" for ending in flm_checkpoints.SUFFIXES), "*.json", "*.jinja"]
    )
    if _SOURCE.value in _LLAMAS:
        return str(folder)
    found = sorted(
        path.name for path in folder.iterdir() if path.suffix in flm_checkpoints.SUFFIXES
    )
    none = f"no file ending in {', '.join(flm_checkpoints.SUFFIXES)}"
    require(
        len(found) == 1,
        f"{name} holds {', '.join(found) or none}; "
        "expected one file of weights: fetch the repository and name the file.",
    )
    return str(folder / found[0])


def _read_flow(source: str) -> tuple[Params, Config]:
    with Progress(f"reading {source}"):
        found = flm_checkpoints.read_checkpoint(source, _EMA.value)
    release = flm_checkpoints.release_of(_SOURCE.value, found.settings)
    said = flm_checkpoints.sizes_said(found.settings)
    params, model = flm.params_from_state_dict(found.tensors, _HEADS.value or said.get("heads"))
    model["length"] = _LENGTH.value or said.get("length", _FLM_LENGTH)
    if _SOFTCAP.value is not None:
        model["logit_softcap"] = _SOFTCAP.value
    if release.residual:
        base = load_model(_BASE.value)
        given = release, model, params, base, _BASE.value, _DATA.value
        config, params = imported_residual(*given)
    else:
        config = imported_flow(release, model, _DATA.value)
    if not found.settings:
        others = ", ".join(name for name in _FLOWS if name != _SOURCE.value)
        print(
            f"{source} does not say its release: it is read as --source={_SOURCE.value}; others "
            f"are {others}"
        )
    return params, config


def _say_clean(config: Config, params: Params) -> None:
    """Prints whether the network denoises, which reveals a wrong kind of file."""
    with Progress("trying the network"):
        share = clean_probability(config, params)
    print(f"its softmax gives {share:.3f} to the tokens of a clean state")
    if share < 0.5:
        print(
            "warning: of a trained flow that is near 1. The network was not trained, or is of "
            "another --source, or is the first stage of a two-stage distillation, whose output is "
            "no softmax (--source=flm_residual)"
        )


def _read_llama(source: str) -> tuple[Any, dict[str, Any], str]:
    params, model = _LLAMAS[_SOURCE.value](source, _HEADS.value)
    return params, model | {"length": _LENGTH.value or model["length"]}, "masked_diffusion"


def _tokenizer(vocab_size: int, source: str):
    """Returns the tokenizer of the weights at `source`, with its chat template, if it has one."""
    beside = f"hf:{source}" if (epath.Path(source) / "tokenizer.json").exists() else ""
    name = _TOKENIZER.value or beside or _TOKENIZERS.get(vocab_size, "")
    require(
        bool(name),
        f"no --tokenizer; there is no tokenizer.json at {source}, and none is known for a "
        f"vocabulary of {vocab_size}.",
    )
    require(
        not needs_training(name),
        f"got --tokenizer={name}; expected the model's own, not a new one.",
    )
    found = make_tokenizer(name, documents=lambda: ())
    require(
        found.vocab_size <= vocab_size,
        f"tokenizer {name} has {found.vocab_size} tokens, the model {vocab_size}; expected the "
        "model's own.",
    )
    return found


def _base_tokenizer() -> Tokenizer:
    require(not _TOKENIZER.value, "got --tokenizer and --base; expected the base's tokenizer.")
    return load_tokenizer(located(_BASE.value) / "tokenizer")


def _import(folder: epath.Path) -> None:
    one_of("source", _SOURCE.value, _SOURCES)
    require(bool(_CHECKPOINT.value), "no --checkpoint to import, and no --export.")
    check_folder(folder, "--workdir")
    require(
        not any((folder / name).exists() for name in ("config.json", "checkpoints")),
        f"workdir {folder} holds a run already; give a new one.",
    )
    source = _checkpoint()
    if _SOURCE.value == "mlfm":
        _import_mlfm(folder, source)
        return
    with_base = _SOURCE.value == _RESIDUAL
    require(
        bool(_BASE.value) == with_base,
        f"--source={_SOURCE.value} needs the workdir of the flow that it corrects: --base=runs/flm."
        if with_base
        else f"got --base for source {_SOURCE.value}; only mlfm and {_RESIDUAL} have one.",
    )
    if _SOURCE.value in _FLOWS:
        params, config = _read_flow(source)
    else:
        params, model, objective = _read_llama(source)
        config = imported_config(model, objective, _DATA.value)
    make_network(config)
    if with_base:
        tokenizer = _base_tokenizer()
    else:
        tokenizer = _tokenizer(config["model"]["vocab_size"], source)
        if _SOURCE.value in _FLOWS:
            _say_clean(config, params)
    _write(folder, params, config, tokenizer)


def _import_mlfm(folder: epath.Path, source: str) -> None:
    where = _BASE.value
    base = read_config(located(where)) if where else None
    heads = base["model"]["heads"] if base else _HEADS.value
    with Progress(f"reading {source}"):
        found = mlfm.read(source, heads, _EMA.value)
    require(
        bool(where or found.base),
        f"{source} holds adapters alone; give the workdir of their base: --base=runs/smdm.",
    )
    require(
        not (where and found.base),
        f"{source} holds the base beside its adapters; expected no --base.",
    )
    if found.base:
        where = str(folder / "base")
        base = imported_config(found.base.model, "masked_diffusion", _DATA.value)
        tokenizer = _tokenizer(found.sizes.vocab, source)
    else:
        tokenizer = _base_tokenizer()
    config, params, times = adapted(found, where, base, tokenizer, _LENGTH.value)
    config["data"]["path"] = _DATA.value
    if found.base:
        _write(epath.Path(where), found.base.params, base, tokenizer)
    _write(folder, params, config, tokenizer, found.step, times)
    print(f"its file {'tells' if times is not None else 'does not tell'} the learnt law of times")


def _write(
    folder: epath.Path,
    params: Params,
    config: Config,
    tokenizer: Tokenizer,
    step: int = 0,
    times: Any = None,
) -> None:
    tokenizer.save(folder / "tokenizer")
    meta = {"source": _SOURCE.value, "checkpoint": _CHECKPOINT.value}
    with Progress(f"writing {folder}"):
        save_ema(folder, params, step, meta, times)
    # Last, because it is what makes the folder a workdir.
    write_config(folder, config)
    model = config["model"]
    told = ("name", "vocab_size", "length", "dim", "depth", "heads")
    print(f"wrote {folder}: {', '.join(f'{key} {model[key]}' for key in told)}")
    print(f"its tokenizer has {'a' if tokenizer.has_template else 'no'} chat template")


def _export(folder: epath.Path, path: str) -> None:
    require(not _CHECKPOINT.value, "got both --checkpoint and --export; expected one of them.")
    tensors = path.endswith(".safetensors")
    (check_file if tensors else check_folder)(path, "--export")
    if tensors:
        _export_tensors(folder, path)
        return
    model = language_model.load(folder)
    with Progress(f"writing {path}"):
        model.save_pretrained(path)
    print(f"wrote {path}: weights, configuration, tokenizer, model card")


def _export_tensors(folder: epath.Path, path: str) -> None:
    model = load_model(folder)
    state = network_kind(model.config).tensors(model.config, model.params)
    epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Progress(f"writing {path}"):
        save_tensors(path, state)
    print(f"wrote {path}: {len(state)} tensors of step {model.step}")


def main(argv) -> None:
    no_arguments(argv)
    require(bool(_WORKDIR.value), "no --workdir.")
    folder = epath.Path(_WORKDIR.value)
    if _EXPORT.value:
        _export(folder, _EXPORT.value)
    else:
        with alone(folder, "importing"):
            _import(folder)


if __name__ == "__main__":
    run_cli(main)
