"""Models as portable folders: model.safetensors, config.json, tokenizer/ and a model card.

Every command takes such a folder as a workdir, one on the Hugging Face hub as hf:OWNER/NAME, and
one that comes with the library by its name (`tales`), unless a folder of that name is there. It
holds the averaged parameters alone, under the names of this library's own tree, and no paths of
the machine it was written on.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from flm_jax.checkpoints.workdir import write_config
from flm_jax.core.errors import UserError, require
from flm_jax.core.files import write_whole
from flm_jax.core.paths import check_folder, expanded
from flm_jax.core.types import Params
from flm_jax.data.tokenizers.base import Tokenizer

WEIGHTS = "model.safetensors"
HUB = "hf:"
PRETRAINED = epath.Path(__file__).parent.parent / "pretrained"
# What config.json says of adapters whose base lies in the same file.
_INCLUDED = "included"


def located(workdir: str | epath.Path) -> epath.Path:
    """The local folder of a workdir; one named hf:OWNER/NAME is fetched first (extra `hf`).

    The name of a model that comes with the library stands for its folder, if there is no other.

    Raises:
      UserError: the extra is missing, or the hub does not give the model.
    """
    if not str(workdir).startswith(HUB):
        folder = epath.Path(expanded(str(workdir)))
        shipped = PRETRAINED / folder.name
        own = str(workdir) == folder.name and not folder.exists()
        return shipped if own and (shipped / "config.json").exists() else folder
    with _hub(f"{workdir} could not be fetched") as hub:
        return epath.Path(hub.snapshot_download(str(workdir).removeprefix(HUB)))


def upload_folder(folder: str | epath.Path, name: str, private: bool = False) -> None:
    """Puts a saved folder on the hub as OWNER/NAME, made there if it is missing (extra `hf`)."""
    with _hub(f"{name} could not be uploaded", "; log in with `hf auth login`") as hub:
        hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=str(folder))


@contextlib.contextmanager
def _hub(failed: str, advice: str = "") -> Iterator[Any]:
    """The hub's package; its refusals, first lines alone, are told between the two texts."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError(
            f"the hub needs the extra hf ({error}): pip install 'flm-jax[hf]'"
        ) from error
    errors = huggingface_hub.errors
    try:
        yield huggingface_hub
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{failed}: {reason}{advice}") from error


def save_folder(
    folder: str | epath.Path,
    config: dict[str, Any],
    params: Params,
    tokenizer: Tokenizer,
    step: int,
) -> None:
    """Writes a model as a folder; config.json comes last, so its presence means a complete one.

    Args:
      params: all of them, those of a frozen base included; their dtypes are kept.
      step: of training, which the file remembers.

    Raises:
      UserError: the folder holds a model already.
    """
    root = epath.Path(expanded(str(folder)))
    check_folder(root, "folder")
    require(
        not any((root / name).exists() for name in ("config.json", WEIGHTS, "checkpoints")),
        f"{root} holds a model already; give a new folder.",
    )
    root.mkdir(parents=True, exist_ok=True)
    flat = named(params)
    save_file(jax.device_get(flat), str(root / WEIGHTS), metadata={"step": str(step)})
    tokenizer.save(root / "tokenizer")
    write_whole(root / "README.md", _card(config, flat, tokenizer, step))
    write_config(root, _portable(config))


def read_folder(folder: epath.Path, abstract: Params) -> tuple[Params, int]:
    """Parameters and step of a folder that `save` wrote.

    Args:
      abstract: tree of ShapeDtypeStruct (with shardings, if any) that the parameters must fit.

    Raises:
      UserError: a damaged file, or one of another model.
    """
    path = folder / WEIGHTS
    expected = named(abstract)
    try:
        with safe_open(str(path), framework="flax") as file:
            step = int((file.metadata() or {}).get("step", 0))
            names = set(file.keys())
            wrong = sorted(names ^ set(expected))
            require(
                not wrong,
                f"{path} and its config.json differ in {len(wrong)} tensors, first {wrong[:3]}; "
                "restore both from one source.",
            )
            tensors = [_placed(path, name, file.get_tensor(name), expected) for name in expected]
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); restore it.") from error
    return jax.tree.unflatten(jax.tree.structure(abstract), tensors), step


def named(params: Params) -> dict[str, Any]:
    """Name -> leaf, in the order of the tree's leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _placed(path: epath.Path, name: str, tensor: jax.Array, expected: dict[str, Any]) -> jax.Array:
    aim = expected[name]
    require(
        tensor.shape == aim.shape,
        f"{path}: {name} has shape {tensor.shape}, its config.json asks for {aim.shape}; restore "
        "both from one source.",
    )
    return jax.device_put(tensor.astype(aim.dtype), aim.sharding)


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the paths of data and of other models."""
    data = config["data"] | {
        "path": "",
        "mixture": (),
        "chat": (),
        "generated": "",
        "tokenizer": "",
    }
    places = {key: "" for key in ("teacher", "start") if key in config["objective"]}
    out = config | {"data": data, "objective": config["objective"] | places}
    if config.get("adapters", {}).get("base"):
        out["adapters"] = config["adapters"] | {"base": _INCLUDED, "start": ""}
    return out


def _card(config: dict[str, Any], flat: dict[str, Any], tokenizer: Tokenizer, step: int) -> str:
    model, count = config["model"], sum(x.size for x in flat.values())
    return f"""---
library_name: flm-jax
pipeline_tag: text-generation
tags: [flow-language-model, jax]
---
# A {model["name"]} of objective {config["objective"]["name"]}

{count / 1e6:.2f} M parameters: width {model["dim"]}, {model["depth"]} blocks, {model["heads"]}
heads, sequences of up to {model["length"]} tokens of a {tokenizer.kind} tokenizer with
{tokenizer.vocab_size} tokens; the average of step {step} of its training.

```python
import flm_jax

model = flm_jax.load("FOLDER")  # or hf:OWNER/NAME
print(model.sample(4, steps={config["eval"]["sample_steps"]}).texts)
```

Training data, intended use and limits: to be told by who publishes it.
"""
