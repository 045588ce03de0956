"""Texts that a model wrote, on disk: parts of rows, written one after another.

    manifest.json       what all parts depend on, how many there are, rows and length
    tokenizer/
    part-00000.npz      tokens int32 [R, L], prompt, mask and maybe visible bool [R, L]

`prompt` is True where tokens were given, `mask` where the text is valid, prompt included, and
`visible` where the network looked while it wrote; it is missing where that was everywhere. The
folder is complete once every part is there; a part appears whole or not at all.
"""

import hashlib
import io
import json
from typing import Any

import numpy as np
from etils import epath

from flm_jax.core.errors import require
from flm_jax.core.files import to_json, write_whole
from flm_jax.core.paths import expanded
from flm_jax.core.reading import named_damage, read_arrays, read_object
from flm_jax.data.pipeline import Batch
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.data.tokenizers.builtin import TOKENIZER_FOLDER
from flm_jax.data.tokenizers.registry import load_tokenizer

MANIFEST = "manifest.json"
_VERSION = 1
_MOST_PARTS = 100_000
_ARRAYS = ("tokens", "prompt", "mask")
_OPTIONAL = "visible"
_HELD_OUT = 20  # every so many rows one is kept for validation


def part_path(folder: epath.Path, part: int) -> epath.Path:
    return folder / f"part-{part:05d}.npz"


def begin(
    folder: epath.Path, args: dict[str, Any], rows: int, parts: int, tokenizer: Tokenizer
) -> list[int]:
    """Starts a folder, or continues one.

    Args:
      args: all that the texts depend on.
      rows, parts: of the whole.

    Returns:
      The parts that are still to be written.

    Raises:
      UserError: the folder was begun with other arguments.
    """
    manifest = {"format_version": _VERSION, "rows": rows, "parts": parts, "args": args}
    manifest = json.loads(to_json(manifest))
    if (folder / MANIFEST).exists():
        old = _manifest(folder)
        wrong = sorted(
            key
            for key in {*old["args"], *args, "rows"}
            if ({**old["args"], "rows": old.get("rows")}).get(key)
            != ({**manifest["args"], "rows": rows}).get(key)
        )
        require(
            not wrong,
            f"{folder} was begun with another {', '.join(wrong)}; give the same, or another --out.",
        )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder / TOKENIZER_FOLDER)
        write_whole(folder / MANIFEST, to_json(manifest, indent=1) + "\n")
    return [part for part in range(parts) if not part_path(folder, part).exists()]


def write_part(folder: epath.Path, part: int, rows: Batch) -> None:
    """Writes one part, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: rows[name] for name in _names(rows)})
    write_whole(part_path(folder, part), buffer.getvalue())


def _names(rows: Batch) -> list[str]:
    return [*_ARRAYS, *(name for name in (_OPTIONAL,) if name in rows)]


def _manifest(folder: epath.Path) -> dict[str, Any]:
    path = folder / MANIFEST
    require(
        path.exists(),
        f"{folder} holds no texts of a model ({MANIFEST} is missing): run "
        f"python -m flm_jax.generate_data --workdir=... --out={folder}",
    )
    manifest = read_object(path, "the manifest of generated texts")
    require(
        manifest.get("format_version") == _VERSION,
        f"{path} has format version {manifest.get('format_version')}; expected {_VERSION}: "
        "generate the texts again.",
    )
    parts = manifest.get("parts")
    require(
        type(parts) is int and 0 < parts <= _MOST_PARTS and isinstance(manifest.get("args"), dict),
        f"{path} tells no number of parts from 1 to {_MOST_PARTS}, or no arguments; restore it.",
    )
    return manifest


class GeneratedSource:
    """Random-access examples {"tokens": int32 [L], "prompt", "mask" (, "visible"): bool [L]}."""

    def __init__(self, rows: Batch):
        self._rows = rows
        digest = hashlib.sha256()
        for name in _names(rows):
            digest.update(np.ascontiguousarray(rows[name]).tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._rows["tokens"])

    def __getitem__(self, index: int) -> Batch:
        return {name: value[index] for name, value in self._rows.items()}


def open_generated(path: str, length: int) -> tuple[GeneratedSource, GeneratedSource, Tokenizer]:
    """Training rows, held-out ones (every 20th) and the tokenizer of a folder.

    Raises:
      UserError: no such folder, one that is not complete, texts of another length, a single row.
    """
    folder = epath.Path(expanded(path))
    manifest = _manifest(folder)
    missing = [p for p in range(manifest["parts"]) if not part_path(folder, p).exists()]
    require(
        not missing,
        f"{folder} lacks {len(missing)} of {manifest['parts']} parts; run the command that began "
        "it again to finish it.",
    )
    parts = [_read(part_path(folder, part)) for part in range(manifest["parts"])]
    with named_damage(folder, "generate its texts again"):
        rows = {name: np.concatenate([part[name] for part in parts]) for name in _names(parts[0])}
        count, got = rows["tokens"].shape
    require(
        got == length,
        f"{folder} has texts of {got} tokens, config.model.length is {length}; set it to {got}.",
    )
    require(count >= 2, f"{folder} has {count} text; expected at least 2, one is held out.")
    held_out = np.arange(count) % _HELD_OUT == 0
    train, valid = (
        GeneratedSource({name: value[which] for name, value in rows.items()})
        for which in (~held_out, held_out)
    )
    return train, valid, load_tokenizer(folder / TOKENIZER_FOLDER)


def _read(path: epath.Path) -> Batch:
    mend = "delete it and run the command that wrote it again"
    arrays = read_arrays(path, "texts of a model", mend)
    with named_damage(path, mend):
        found = {name: arrays[name] for name in _names(arrays)}
        require(
            all(array.shape == found["tokens"].shape for array in found.values()),
            f"{path} holds arrays of several shapes; {mend}.",
        )
    return found
