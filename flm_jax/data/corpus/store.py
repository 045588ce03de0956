"""A tokenised corpus on disk: flat token files, their document starts and one manifest.

    manifest.json                     written last: without it the folder does not count as prepared
    manifest-00001-of-00004.json      what one worker of a sharded preparation wrote
    tokenizer/
    train-00000-of-00004.tokens       uint16 (up to 65,536 ids) or uint32, little endian
    train-00000-of-00004.offsets      uint64, where each document starts in the file beside it

Every document is followed by one EOS, which counts as a token. Local files are read piece by piece,
on demand; files of a remote store are read into memory.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from flm_jax.core.errors import UserError, one_of, require
from flm_jax.core.files import open_new
from flm_jax.core.locks import alone
from flm_jax.core.paths import expanded, is_remote
from flm_jax.core.reading import named_damage, require_plain
from flm_jax.data.corpus import manifest as manifests
from flm_jax.data.corpus.manifest import COUNTS, MANIFEST
from flm_jax.data.corpus.shard_file import ShardFile
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.data.tokenizers.builtin import TOKENIZER_FOLDER
from flm_jax.data.tokenizers.registry import load_tokenizer

Numbers = np.ndarray | ShardFile

_OFFSET_DTYPE = np.dtype("<u8")
_PART_NAME = re.compile(r"manifest-(\d+)-of-(\d+)\.json")
_OWN_FILES = re.compile(
    r"\.?(manifest(-\d+-of-\d+)?\.json|(train|valid)-\d+-of-\d+\.(tokens|offsets))"
    r"(\.[0-9a-f]{8})?(\.tmp)?"
)
_HASH_CHUNK = 1 << 24  # bytes


@dataclasses.dataclass(frozen=True)
class Shard:
    """Worker `index` of `count`, which prepares documents index, index + count, and so on."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Parses "i/n", counting from 0."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        require(
            shard.index < shard.count,
            f"shard is {text!r}; expected i/n with 0 <= i < n, such as 0/4 to 3/4",
        )
        return shard

    @property
    def suffix(self) -> str:
        return f"-{self.index:05d}-of-{self.count:05d}"

    @property
    def manifest_name(self) -> str:
        return MANIFEST if self.count == 1 else f"manifest{self.suffix}.json"


def token_dtype(vocab_size: int) -> np.dtype:
    """Narrowest dtype on disk that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class SplitWriter:
    """Writes one shard of one split under temporary names; `finish` renames them.

    Attributes:
      counts: sums over the added documents; the keys are `COUNTS`.
      unknown: number of tokens that stand for text that the tokenizer cannot encode.
    """

    def __init__(self, folder: epath.Path, split: str, shard: Shard, tokenizer: Tokenizer):
        require(
            tokenizer.eos_id is not None,
            f"the {tokenizer.kind} tokenizer has no EOS token to put between documents; "
            "declare one in its tokenizer_config.json or use another tokenizer",
        )
        self._folder = folder
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._eos = np.array([tokenizer.eos_id], self._dtype).tobytes()
        self._names = {kind: f"{split}{shard.suffix}.{kind}" for kind in ("tokens", "offsets")}
        self._files = {k: open_new(folder / f"{n}.tmp") for k, n in self._names.items()}
        self._hashes = {kind: hashlib.sha256() for kind in self._names}
        self.counts = dict.fromkeys(COUNTS, 0)
        self._unknown_id = tokenizer.unknown_id
        self.unknown = 0

    def add(self, ids: np.ndarray, text: str) -> None:
        """Appends a document and the EOS after it."""
        self._write("offsets", np.array([self.counts["tokens"]], _OFFSET_DTYPE).tobytes())
        self._write("tokens", ids.astype(self._dtype).tobytes() + self._eos)
        self.counts["tokens"] += len(ids) + 1
        self.counts["documents"] += 1
        if self._unknown_id is not None:
            self.unknown += int(np.count_nonzero(ids == self._unknown_id))
        self.counts["characters"] += len(text)
        self.counts["bytes"] += len(text.encode("utf8", errors="surrogatepass"))

    def _write(self, kind: str, content: bytes) -> None:
        self._files[kind].write(content)
        self._hashes[kind].update(content)

    def close(self) -> None:
        """Closes the files; after an error this is all that happens."""
        for file in self._files.values():
            file.close()

    def finish(self) -> dict[str, Any]:
        """Closes and renames the files; returns the shard's record for the manifest."""
        self.close()
        for name in self._names.values():
            (self._folder / f"{name}.tmp").replace(self._folder / name)
        files = {
            kind: {"file": name, "sha256": self._hashes[kind].hexdigest()}
            for kind, name in self._names.items()
        }
        return {"files": files, **self.counts}


def _names(folder: epath.Path) -> list[str]:
    """Sorted names in a folder; in an object store an empty folder does not exist."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def has_parts(folder: epath.Path) -> bool:
    """Whether workers of a sharded preparation left their manifests in a folder."""
    return any(_PART_NAME.fullmatch(name) for name in _names(folder))


def clear(folder: epath.Path, shard: Shard) -> None:
    """Removes the files of an earlier preparation, manifests first, but none of other workers."""
    (folder / MANIFEST).unlink(missing_ok=True)
    names = [name for name in _names(folder) if _OWN_FILES.fullmatch(name)]
    for name in sorted(names, key=lambda name: not name.startswith("manifest")):
        if shard.count == 1 or shard.suffix in name:
            (folder / name).unlink()


def merge(path: os.PathLike | str) -> dict[str, Any]:
    """Joins the parts of a sharded preparation in one manifest, and writes it.

    Raises:
      UserError: parts are missing, or were prepared with different arguments or tokenizers.
    """
    folder = epath.Path(expanded(str(path)))
    if not has_parts(folder):
        raise UserError(
            f"{folder} holds no manifest-i-of-n.json; run prepare_data --shard=i/n for each i first"
        )
    with alone(folder, "merging"):
        return _merge(folder)


def _merge(folder: epath.Path) -> dict[str, Any]:
    names = _names(folder)
    found = {name: match for name in names if (match := _PART_NAME.fullmatch(name))}
    counts = sorted({int(match[2]) for match in found.values()})
    require(
        len(counts) == 1,
        f"{folder} mixes parts of {' and '.join(map(str, counts))} shards; "
        "expected one number: prepare in an empty folder",
    )
    have = {int(match[1]) for match in found.values()}
    missing = [f"{i}/{counts[0]}" for i in range(counts[0]) if i not in have]
    require(
        not missing,
        f"{folder} lacks shards {', '.join(missing)}; run prepare_data --shard for each of them",
    )
    parts = {name: manifests.read_manifest(folder, name) for name in sorted(found)}
    first_name, first = next(iter(parts.items()))
    for name, part in parts.items():
        for key in ("tokenizer", "args"):
            wrong = manifests.difference(first[key], part[key])
            require(
                not wrong,
                f"{name} and {first_name} differ in {wrong}; expected equal: prepare one of them "
                "again with --overwrite",
            )
    shards = {
        split: [record for part in parts.values() for record in part["splits"][split]["shards"]]
        for split in first["splits"]
    }
    splits = {split: manifests.split_record(records) for split, records in shards.items()}
    manifest = {**first, "splits": splits}
    manifests.check_not_empty(manifest)
    _open(folder, manifest, verify=not is_remote(folder))
    manifests.write_manifest(folder, MANIFEST, manifest)
    return manifest


class TokenStream:
    """All tokens of a split as one sequence, over any number of shards."""

    def __init__(self, tokens: list[Numbers], offsets: list[Numbers], record: dict[str, Any]):
        self._tokens = tokens
        self._offsets = offsets
        self._token_starts = np.cumsum([0, *map(len, tokens)])
        self._document_starts = np.cumsum([0, *map(len, offsets)])
        self.counts: dict[str, int] = {count: record[count] for count in COUNTS}
        hashes = [shard["files"]["tokens"]["sha256"] for shard in record["shards"]]
        self.fingerprint = hashlib.sha256(" ".join(hashes).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._token_starts[-1])

    @property
    def documents(self) -> int:
        return int(self._document_starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Reads tokens start to stop, int32 [stop - start], and no others."""
        out = np.empty(stop - start, np.int32)
        place = start
        while place < stop:
            shard = int(np.searchsorted(self._token_starts, place, side="right")) - 1
            first = int(self._token_starts[shard])
            end = min(stop, int(self._token_starts[shard + 1]))
            out[place - start : end - start] = self._tokens[shard][place - first : end - first]
            place = end
        return out

    def blocks(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Reads `length` tokens from each start, int32 [len(starts), length], and no others."""
        first = np.searchsorted(self._token_starts, starts, side="right") - 1
        last = np.searchsorted(self._token_starts, starts + length, side="left") - 1
        out = np.empty((len(starts), length), np.int32)
        for shard in np.unique(first):
            rows = np.flatnonzero((first == shard) & (last == shard))
            places = starts[rows] - self._token_starts[shard]
            out[rows] = _pieces(self._tokens[shard], places, length)
        # Blocks over the end of a shard are few, and are read one by one.
        for row in np.flatnonzero(first != last):
            out[row] = self.read(int(starts[row]), int(starts[row]) + length)
        return out

    def starts(self, documents: Sequence[int]) -> np.ndarray:
        """Number of tokens of the split before each of some documents, int64."""
        wanted = np.asarray(documents, np.int64)
        shards = np.searchsorted(self._document_starts, wanted, side="right") - 1
        found = np.empty(len(wanted), np.int64)
        for shard in np.unique(shards):
            rows = shards == shard
            offsets = np.asarray(self._offsets[shard][:], np.int64)
            places = wanted[rows] - self._document_starts[shard]
            found[rows] = offsets[places] + self._token_starts[shard]
        return found

    def document(self, index: int) -> np.ndarray:
        """Reads the tokens of a document, int32, without the EOS after it."""
        shard = int(np.searchsorted(self._document_starts, index, side="right")) - 1
        place = index - int(self._document_starts[shard])
        offsets, tokens = self._offsets[shard], self._tokens[shard]
        stop = int(offsets[place + 1]) if place + 1 < len(offsets) else len(tokens)
        return tokens[int(offsets[place]) : stop - 1].astype(np.int32)


def _pieces(tokens: Numbers, places: np.ndarray, length: int) -> np.ndarray:
    """Tokens of one shard from each place, [len(places), length]."""
    if isinstance(tokens, ShardFile):
        return tokens.pieces(places.tolist(), length)
    return tokens[places[:, None] + np.arange(length)]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared folder whose checks have passed.

    Attributes:
      path: path of the folder.
      manifest: manifest of the folder.
      tokenizer: tokenizer of its ids.
      splits: token stream of each split.
    """

    path: epath.Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    splits: dict[str, TokenStream] = dataclasses.field(repr=False)

    def split(self, name: str) -> TokenStream:
        """Returns the token stream of a split."""
        one_of(f"split of {self.path}", name, self.splits)
        return self.splits[name]


def verify(folder: epath.Path, manifest: dict[str, Any]) -> None:
    """Compares files with a manifest to be written, since another process may have changed them.

    Files in an object store would have to be fetched again, and are not checked.

    Raises:
      UserError: a file is missing, or is not what was written.
    """
    dtype = token_dtype(manifest["tokenizer"]["vocab_size"])
    kinds = {"tokens": ("tokens", dtype), "offsets": ("documents", _OFFSET_DTYPE)}
    for record in manifest["splits"].values() if not is_remote(folder) else ():
        for shard in record["shards"]:
            for kind, (length, number) in kinds.items():
                _open_array(folder, shard["files"][kind], shard[length], number, True)


def load_prepared(path: os.PathLike | str, *, verify: bool = False) -> Prepared:
    """Opens a prepared folder.

    Args:
      path: folder written by `prepare_data`.
      verify: whether to read every file and compare its SHA-256; sizes are always compared.

    Raises:
      UserError: no manifest, a missing, truncated or altered file, another tokenizer.
    """
    folder = epath.Path(expanded(str(path)))
    manifest = manifests.read_manifest(folder, MANIFEST) if folder.exists() else None
    if manifest is None:
        mend = f"--merge --out={folder}" if has_parts(folder) else f"--source=... --out={folder}"
        raise UserError(
            f"{folder} is not prepared data ({MANIFEST} is missing): "
            f"run python -m flm_jax.prepare_data {mend}"
        )
    with named_damage(folder / MANIFEST, "prepare the data again"):
        return _open(folder, manifest, verify)


def _open(folder: epath.Path, manifest: dict[str, Any], verify: bool) -> Prepared:
    """Checks the folder against its manifest and maps its files."""
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    got, expected = tokenizer.fingerprint, manifest["tokenizer"]["fingerprint"]
    require(
        got == expected,
        f"{folder / TOKENIZER_FOLDER} has fingerprint {got[:12]}; the tokens were made with "
        f"{expected[:12]}: restore that tokenizer or prepare the data again",
    )
    dtypes = {"tokens": token_dtype(tokenizer.vocab_size), "offsets": _OFFSET_DTYPE}
    lengths = {"tokens": "tokens", "offsets": "documents"}
    streams = {}
    for split, record in manifest["splits"].items():
        arrays = {
            kind: [
                _open_array(folder, shard["files"][kind], shard[lengths[kind]], dtype, verify)
                for shard in record["shards"]
            ]
            for kind, dtype in dtypes.items()
        }
        streams[split] = TokenStream(arrays["tokens"], arrays["offsets"], record)
    return Prepared(folder, manifest, tokenizer, streams)


def _open_array(
    folder: epath.Path, entry: dict[str, str], length: int, dtype: np.dtype, verify: bool
) -> Numbers:
    name = entry["file"]
    require(
        name == epath.Path(name).name,
        f"the manifest of {folder} names {name!r}; expected names of files beside it.",
    )
    path = folder / name
    require(path.exists(), f"{path} is missing, though the manifest lists it; prepare again")
    require_plain(path, "tokens or offsets")
    size, expected = path.stat().length, length * dtype.itemsize
    require(
        size == expected,
        f"{path} has {size} bytes; the manifest expects {expected}: the file is truncated or not "
        "of this folder, copy it again or prepare again with --overwrite",
    )
    if verify:
        require(
            _sha256(path) == entry["sha256"],
            f"{path} does not match its SHA-256 in the manifest; copy it again or prepare again "
            "with --overwrite",
        )
    if not size:
        return np.empty(0, dtype)
    if "://" in os.fspath(path):
        return np.frombuffer(path.read_bytes(), dtype)
    return ShardFile(path, dtype, length)


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
