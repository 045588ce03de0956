"""Models as portable folders: model.safetensors, config.json, tokenizer/ and a model card.

Every command accepts such a folder as a workdir, a folder on the Hugging Face hub as hf:OWNER/NAME
(or hf:OWNER/NAME@REVISION; only the model's own files are fetched), and one that comes with the
library by its name (`tales`), unless there is a folder of that name. It holds the averaged
parameters alone, under the names of this library's own tree, and no paths of the machine on which
it was written.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from safetensors import safe_open

from flm_jax.checkpoints.config_file import write_config
from flm_jax.checkpoints.times import fitting
from flm_jax.core.downloads import downloading
from flm_jax.core.errors import UserError, require
from flm_jax.core.files import write_whole
from flm_jax.core.locks import alone
from flm_jax.core.paths import check_folder, expanded, hub_name
from flm_jax.core.reading import named_damage, require_plain
from flm_jax.core.types import Params
from flm_jax.data.bigrams import BIGRAMS, Bigrams, save_bigrams
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.data.trigrams import TRIGRAMS, Trigrams, save_trigrams
from flm_jax.interop.tensors import save_tensors

WEIGHTS = "model.safetensors"
HUB = "hf:"
_FETCHED = (
    *(WEIGHTS, "config.json", "README.md", BIGRAMS, TRIGRAMS),
    *("tokenizer/*.json", "tokenizer/*.model"),
)
PRETRAINED = epath.Path(__file__).parent.parent / "pretrained"
_TIMES = "times."  # before the names of what is learnt of the law of times


def located(workdir: str | epath.Path, files: Sequence[str] = _FETCHED) -> epath.Path:
    """Returns the local folder of a workdir; hf:OWNER/NAME[@REVISION] is fetched (extra `hf`).

    The name of a model that comes with the library stands for its folder, unless there is a folder
    of that name.

    Args:
      workdir: folder, or one of the names above.
      files: patterns of the files to fetch.

    Raises:
      UserError: the extra is missing, or the hub does not give the model.
    """
    if not str(workdir).startswith(HUB):
        folder = epath.Path(expanded(str(workdir)))
        shipped = PRETRAINED / folder.name
        own = str(workdir) == folder.name and not folder.exists()
        return shipped if own and (shipped / "config.json").exists() else folder
    workdir = str(workdir)
    with _hub(f"{workdir} could not be fetched") as hub:
        name, revision = hub_name(workdir.removeprefix(HUB))
        with downloading(workdir):
            found = hub.snapshot_download(name, revision=revision, allow_patterns=list(files))
        return epath.Path(found)


def upload_folder(folder: str | epath.Path, name: str, private: bool = False) -> None:
    """Uploads a saved folder to the hub as OWNER/NAME, creating it if missing (extra `hf`)."""
    with _hub(f"{name} could not be uploaded", "; log in with `hf auth login`") as hub:
        hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=str(folder))


@contextlib.contextmanager
def _hub(failed: str, advice: str = "") -> Iterator[Any]:
    """Yields huggingface_hub; its errors become one-line UserErrors `failed: reason advice`."""
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
    record: dict[str, Any],
    card: str,
    params: Params,
    tokenizer: Tokenizer,
    *,
    step: int,
    times: Any,
    bigrams: Bigrams | None = None,
    trigrams: Trigrams | None = None,
) -> None:
    """Writes a model as a folder; config.json comes last, so its presence means a complete one.

    Args:
      record: content of config.json, as JSON values.
      card: content of README.md.
      params: all parameters, including a frozen base's; their dtypes are kept.
      step: training step, which is stored in the file.
      times: tree of the state of learnt times; None without one.
      bigrams, trigrams: tables counted from the training texts; None for none.

    Raises:
      UserError: the folder already holds a model.
    """
    root = epath.Path(expanded(str(folder)))
    check_folder(root, "folder")
    require(
        not any((root / name).exists() for name in ("config.json", WEIGHTS, "checkpoints")),
        f"{root} holds a model already; give a new folder.",
    )
    flat = named(params)
    learnt = {_TIMES + name: jnp.asarray(x) for name, x in named(times).items()}
    with alone(root, "an export"):
        save_tensors(root / WEIGHTS, jax.device_get(flat | learnt), {"step": str(step)})
        tokenizer.save(root / "tokenizer")
        if bigrams is not None:
            save_bigrams(root, bigrams, tokenizer.fingerprint)
        if trigrams is not None:
            save_trigrams(root, trigrams, tokenizer.fingerprint)
        write_whole(root / "README.md", card)
        write_config(root, record)


def read_folder(
    folder: epath.Path, abstract: Params, times: Sequence[Any]
) -> tuple[Params, int, Any]:
    """Reads parameters, step and learnt times from a folder written by `save_folder`.

    Args:
      abstract: tree of ShapeDtypeStruct (with shardings, if any) that the parameters must fit.
      times: the same for each possible format of the state of learnt times. Folders may lack it, in
        which case None is returned.

    Raises:
      UserError: a damaged file, or one of another model.
    """
    path = folder / WEIGHTS
    expected = named(abstract)
    require_plain(path, "the weights of a model")
    with named_damage(path), safe_open(str(path), framework="flax") as file:
        step = int((file.metadata() or {}).get("step", 0))
        names = set(file.keys())
        known = names - {name for name in names if name.startswith(_TIMES)}
        wrong = sorted(known ^ set(expected))
        require(
            not wrong,
            f"{path} and its config.json differ in {len(wrong)} tensors, first {wrong[:3]}; "
            "restore both from one source.",
        )
        tensors = [_placed(path, name, file.get_tensor(name), expected) for name in expected]
        form = fitting(times, {name.removeprefix(_TIMES) for name in names - known})
        saved = form and [file.get_tensor(_TIMES + name) for name in named(form)]
    found = None if saved is None else jax.tree.unflatten(jax.tree.structure(form), saved)
    return jax.tree.unflatten(jax.tree.structure(abstract), tensors), step, found


def named(params: Params) -> dict[str, Any]:
    """Dict from names to the leaves of a tree, in the order of its leaves."""
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
