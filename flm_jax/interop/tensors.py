"""What all formats of weights share: paths in parameter trees, names and shapes, files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from flm_jax.core.errors import UserError, require
from flm_jax.core.types import Params

Shapes = Mapping[str, tuple[int, ...]]

_INDEX = "model.safetensors.index.json"


def flip(array: np.ndarray, path: tuple[str, ...]) -> np.ndarray:
    """Linear weights between torch's (out, in) and our (in, out); all else as it is."""
    return array.T if path[-1] == "kernel" else array


def get(tree: Params, path: tuple[str, ...]) -> Any:
    """The leaf at a path."""
    for name in path:
        tree = tree[name]
    return tree


def put(tree: Params, path: tuple[str, ...], value: Any) -> None:
    """Sets the leaf at a path, making the levels above it."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def some(names: list[str], most: int = 4) -> str:
    """A few names in brackets."""
    tail = ", ..." if len(names) > most else ""
    return f" ({', '.join(names[:most])}{tail})" if names else ""


def check_shapes(found: Shapes, wanted: Shapes, what: str) -> None:
    """Raises one UserError that lists missing, misshapen and unexpected tensors.

    Args:
      found, wanted: name -> shape.
      what: the network they should make, for the message.
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


class TensorFiles:
    """Tensors of one .safetensors file, or of a folder of them, read one at a time.

    Attributes:
      folder: where the files lie.
      shapes: name -> shape, from the headers alone.
      dtypes: name -> type as safetensors calls it, such as "BF16".

    Raises:
      UserError: no such file; an unreadable one; shards that the index names are missing, or lack
        tensors.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        require(path.exists(), f"no file or folder {path}; expected .safetensors weights.")
        self.folder = path if path.is_dir() else path.parent
        self._files = _files(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._home: dict[str, Path] = {}
        for file in self._files:
            with _opened(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118  no mapping: it has no __iter__
                    part = tensors.get_slice(name)
                    self.shapes[name] = tuple(part.get_shape())
                    self.dtypes[name] = part.get_dtype()
                    self._home[name] = file

    def items(self):
        """(name, array) of every tensor, file by file, with one of them in memory at a time."""
        for file in self._files:
            with _opened(file) as tensors:
                for name in [n for n, home in self._home.items() if home == file]:
                    yield name, tensors.get_tensor(name)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    index = path / _INDEX
    if not index.exists():
        found = sorted(path.glob("[!.]*.safetensors"))
        require(bool(found), f"{path} holds neither {_INDEX} nor any .safetensors file.")
        return found
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is no index of safetensors shards; fetch it again.") from error
    missing = [name for name in names if not (path / name).exists()]
    require(
        not missing,
        f"{path} lacks {len(missing)} of {len(names)} shards{some(missing)}; fetch them.",
    )
    return [path / name for name in names]


def _opened(file: Path):
    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a readable safetensors file: {error}") from error
