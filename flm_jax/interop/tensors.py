"""Helpers that all formats of weights share: parameter trees, names and shapes, files."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flm_jax.core.errors import UserError, require
from flm_jax.core.files import open_new, replacing
from flm_jax.core.reading import named_damage, read_object, require_plain
from flm_jax.core.types import Params

Shapes = Mapping[str, tuple[int, ...]]

_INDEX = "model.safetensors.index.json"


def flip(array: np.ndarray, path: tuple[str, ...]) -> np.ndarray:
    """Transposes linear weights between torch's (out, in) and our (in, out), and nothing else."""
    return array.T if path[-1] == "kernel" else array


def get(tree: Params, path: tuple[str, ...]) -> Any:
    """The leaf at a path."""
    for name in path:
        tree = tree[name]
    return tree


def put(tree: Params, path: tuple[str, ...], value: Any) -> None:
    """Sets the leaf at a path, creating the levels above it."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def some(names: list[str], most: int = 4) -> str:
    """Lists a few names in brackets."""
    tail = ", ..." if len(names) > most else ""
    return f" ({', '.join(names[:most])}{tail})" if names else ""


def check_shapes(found: Shapes, wanted: Shapes, what: str) -> None:
    """Raises a UserError that lists missing, misshapen and unexpected tensors.

    Args:
      found, wanted: dicts from name to shape.
      what: description of the network, for the message.
    """
    kinds = {
        "missing": [name for name in wanted if name not in found],
        "misshapen": [
            f"{name} {tuple(found[name])} instead of {tuple(shape)}"
            for name, shape in wanted.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
        "unexpected": [name for name in found if name not in wanted],
    }
    faults = [f"{len(names)} {kind}{some(names)}" for kind, names in kinds.items() if names]
    require(not faults, f"these tensors are not {what}: {'; '.join(faults)}.")


class Tensors(Protocol):
    """Named tensors, read one at a time.

    Attributes:
      shapes: dict from name to shape.
      dtypes: dict from name to type in safetensors' notation, such as "BF16".
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    def items(self) -> Iterable[tuple[str, np.ndarray]]:
        """Yields (name, array) of every tensor."""


class TensorFiles:
    """Tensors of one .safetensors file, or of a folder of them, read one at a time.

    Attributes:
      folder: folder of the files.
      shapes: dict from name to shape, from the headers alone.
      dtypes: dict from name to type in safetensors' notation, such as "BF16".

    Raises:
      UserError: no such file; an unreadable one; shards of the index that are missing, or lack
        tensors that it lists; two files with tensors of one name.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        require(path.exists(), f"no file or folder {path}; expected .safetensors weights.")
        self.folder = path if path.is_dir() else path.parent
        homes = _homes(path)
        self._files = list(homes)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._home: dict[str, Path] = {}
        for file, told in homes.items():
            with _opened(file) as tensors:
                held = tensors.keys()
                lost = sorted(told - set(held))
                require(
                    not lost,
                    f"{file} lacks {len(lost)} tensors{some(lost)} that {_INDEX} says it holds; "
                    "fetch both from one source.",
                )
                for name in held:
                    require(
                        name not in self._home,
                        f"tensor {name} stands in {self._home.get(name)} and in {file}; expected "
                        f"one of them: remove the file that is not of this model, or put its "
                        f"{_INDEX} there.",
                    )
                    part = tensors.get_slice(name)
                    self.shapes[name] = tuple(part.get_shape())
                    self.dtypes[name] = part.get_dtype()
                    self._home[name] = file

    def items(self):
        """Yields (name, array) of every tensor, file by file, with one in memory at a time."""
        for file in self._files:
            with _opened(file) as tensors:
                for name in [n for n, home in self._home.items() if home == file]:
                    with named_damage(f"{name} of {file}", "expected numbers that NumPy has"):
                        tensor = tensors.get_tensor(name)
                    yield name, tensor


def save_tensors(
    path: str | Path | epath.Path,
    tensors: Mapping[str, np.ndarray],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a .safetensors file atomically.

    Raises:
      UserError: the storage refuses.
    """
    try:
        with replacing(epath.Path(path)) as temporary:
            with open_new(temporary) as file:
                mode = os.fstat(file.fileno()).st_mode
            save_file(dict(tensors), temporary, metadata=metadata)
            os.chmod(temporary, mode)  # safetensors 0.8 makes files that others cannot read
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} could not be written ({error}); expected storage with room: mend that and run "
            "the same command again."
        ) from error


def _homes(path: Path) -> dict[Path, set[str]]:
    """Files in their order, each with the tensors that an index lists for it."""
    if path.is_file():
        return {path: set()}
    index = path / _INDEX
    if not index.exists():
        found = sorted(path.glob("[!.]*.safetensors"))
        require(bool(found), f"{path} holds neither {_INDEX} nor any .safetensors file.")
        return {file: set() for file in found}
    homes: dict[Path, set[str]] = {}
    try:
        told = read_object(index, "an index of shards")["weight_map"]
        for file, name in sorted((file, name) for name, file in told.items()):
            require(
                bool(file) and file == Path(file).name,
                f"{index} names {file!r}; expected names of files beside it.",
            )
            homes.setdefault(path / file, set()).add(name)
    except UserError:
        raise
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is no index of safetensors shards; fetch it again.") from error
    missing = [file.name for file in homes if not os.path.exists(file)]
    require(
        not missing,
        f"{path} lacks {len(missing)} of {len(homes)} shards{some(missing)}; fetch them.",
    )
    return homes


def _opened(file: Path):
    require_plain(file, "a file of tensors")
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError, MemoryError) as error:
        raise UserError(f"{file} is not a readable safetensors file: {error}") from error
