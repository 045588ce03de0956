"""Reads files saved by torch without running any code that they name.

A Lightning checkpoint holds more than tensors: settings, tokenizers and states of loops, as objects
of various packages. They become `Named` objects, which hold the pickled data and have no behaviour,
so that neither trust nor those packages are needed.
"""

import pickle
import tarfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flm_jax.core.errors import UserError, require
from flm_jax.core.reading import require_plain

# The functions and classes that build tensors from a file; nothing else of a file is called.
_BUILDERS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
}
_MOST_SETTINGS = 100_000  # values, of which a file may name one any number of times
_ZIP = b"PK\x03\x04"
_PROGRAM = "constants.pkl"  # an entry of TorchScript archives
_CONTENT, _VALUE = "_content", "_val"  # of OmegaConf: of its containers, and of its leaves


class Named:
    """An object of an unknown class: its arguments and its state, without behaviour."""

    args: tuple[Any, ...]
    options: dict[str, Any]
    items: list[Any]

    def __new__(cls, *args: Any, **options: Any) -> "Named":
        made = super().__new__(cls)
        made.args, made.options, made.items = args, options, []
        return made

    def __init__(self, *args: Any, **options: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.__dict__.update(part)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, item: Any) -> None:
        """Adds an item, as for lists and sets."""
        self.items.append(item)

    add = append


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _BUILDERS:
            return super().find_class(module, name)
        # Never the class that the file names: loading calls it with arguments from the file.
        return type(name, (Named,), {"__module__": module})


def load_torch(path: Path) -> dict[str, Any]:
    """Reads a file saved by torch: tensors are kept, other objects become `Named`.

    Raises:
      UserError: torch is missing, the file is damaged, or it holds no dict.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f'reading {path} needs torch: pip install "flm-jax[torch]", '
            "or convert the file to .safetensors elsewhere."
        ) from error
    require_plain(path, "a checkpoint of torch")
    # torch asks a module for its Unpickler; older files are also read by its load.
    read = types.SimpleNamespace(
        Unpickler=_Unpickler,
        load=lambda file, **options: _Unpickler(file, **options).load(),
        __name__=__name__,
    )
    try:
        _check_kind(path, torch)
        found = torch.load(path, map_location="cpu", weights_only=False, pickle_module=read)
    except UserError:
        raise
    except Exception as error:  # a damaged file makes it raise anything
        raise UserError(f"{path} is not a readable torch checkpoint: {error}") from error
    require(isinstance(found, dict), f"{path} holds a {type(found).__name__}, expected a dict.")
    return found


def _check_kind(path: Path, torch: Any) -> None:
    """Refuses files that `torch.load` passes to readers other than this module's unpickler.

    Those run the code of TorchScript archives, and unpack entries of tar archives as files.

    Raises:
      UserError: the file is one of these.
    """
    with path.open("rb") as file:
        zipped = file.read(len(_ZIP)) == _ZIP
        file.seek(0)
        # Asked of torch's own reader: another one might see other entries.
        other = _PROGRAM in torch._C.PyTorchFileReader(file).get_all_records() if zipped else None
    kind = "a TorchScript program" if other else "a tar archive of torch before 0.4"
    require(
        not (other if zipped else tarfile.is_tarfile(path)),
        f"{path} is {kind}; expected tensors alone: load it in torch where it is trusted, and save "
        "its state_dict().",
    )


def plain(value: Any) -> Any:
    """Converts settings, plain or of OmegaConf in a torch file, to dicts, lists and values.

    Raises:
      UserError: more than `_MOST_SETTINGS` values, counting repeated ones each time, or too deep
        nesting.
    """
    left = _MOST_SETTINGS

    def one(value: Any) -> Any:
        nonlocal left
        left -= 1
        require(left >= 0, f"the settings of a file are more than {_MOST_SETTINGS}; expected few.")
        own = getattr(value, "__dict__", {})
        if _CONTENT in own:
            return one(own[_CONTENT])
        if _VALUE in own:
            return one(own[_VALUE])
        if isinstance(value, Mapping):
            return {one(key): one(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [one(item) for item in value]
        return value

    try:
        return one(value)
    except RecursionError as error:
        raise UserError("the settings of a file are nested too deeply; expected few.") from error
