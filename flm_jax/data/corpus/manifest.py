"""The manifest of prepared data: the contents of the folder, and everything they depend on."""

from typing import Any

from etils import epath

from flm_jax.core.errors import require
from flm_jax.core.files import to_json, write_whole
from flm_jax.core.reading import read_object
from flm_jax.data.tokenizers.base import Tokenizer

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
COUNTS = ("tokens", "documents", "characters", "bytes")
# Arguments that came later, as they were before: older manifests do not list them.
_LATER = {
    "separator": "",
    "valid_split": "",
    "valid_last": 0,
    "valid_only": False,
    "verbatim": False,
}
# Those of which older manifests do not tell what they were: any may be theirs.
_UNTOLD = {"content", "sample_characters"}


def build_manifest(
    tokenizer: Tokenizer, args: dict[str, Any], shards: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Builds the manifest of a folder, or of one worker's part of it.

    Args:
      tokenizer: the tokenizer whose ids the shards hold.
      args: everything on which the contents depend; compared when a preparation is repeated or
        merged.
      shards: dict from the name of a split to the records from `SplitWriter.finish`.
    """
    return {
        "format_version": FORMAT_VERSION,
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
        },
        "args": args,
        "splits": {name: split_record(records) for name, records in shards.items()},
    }


def split_record(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Combines the records of all shards of a split with their sums."""
    totals = {count: sum(record[count] for record in records) for count in COUNTS}
    return {**totals, "shards": records}


def write_manifest(folder: epath.Path, name: str, manifest: dict[str, Any]) -> None:
    """Writes a manifest atomically, once everything it lists is in place."""
    write_whole(folder / name, to_json(manifest, indent=2) + "\n")


def read_manifest(folder: epath.Path, name: str) -> dict[str, Any] | None:
    """Reads the manifest, or returns None if there is none."""
    if not (folder / name).exists():
        return None
    manifest = read_object(folder / name, "the manifest of prepared data")
    version = manifest.get("format_version")
    require(
        version == FORMAT_VERSION,
        f"{folder / name} has format version {version}; expected {FORMAT_VERSION}: "
        "prepare the data again with this version of flm_jax",
    )
    return manifest


def check_not_empty(manifest: dict[str, Any]) -> None:
    """Raises UserError if a split has no document."""
    for split, record in manifest["splits"].items():
        require(
            record["documents"] > 0,
            f"split {split!r} came out empty; expected at least one document: use a larger corpus "
            "or --valid_fraction",
        )


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Lists what differs, "" for nothing: "vocab_size (512, now 1024)".

    A manifest from before content digests matches any content of its files.
    """
    old, new = _LATER | old, _LATER | new
    names = {*old, *new} - (_UNTOLD - (old.keys() & new.keys()))
    keys = [key for key in sorted(names) if old.get(key) != new.get(key)]
    return ", ".join(f"{key} ({old.get(key)!r}, now {new.get(key)!r})" for key in keys)
