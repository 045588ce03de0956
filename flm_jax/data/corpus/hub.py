"""Data sets laid out as on the Hugging Face hub: parquet files of splits, read without scripts.

A data set without parquet files of its own (older ones are programs) has a converted copy, which
the hub keeps at the revision refs/convert/parquet; that copy is read if no revision is named.
Without a network, the files fetched by an earlier call are read.
"""

import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from absl import logging
from etils import epath

from flm_jax.core.downloads import downloading
from flm_jax.core.errors import UserError, one_of, require
from flm_jax.core.extras import import_extra
from flm_jax.core.paths import expanded, hub_name
from flm_jax.data.corpus import parquet
from flm_jax.data.corpus.files import Reading, find_files

CONVERTED = "refs/convert/parquet"
HELD_OUT = ("validation", "valid", "dev", "test")  # the first of them that a data set has
_SPLITS = ("train", *HELD_OUT)
_SPLIT = re.compile(rf"(?:^|[-_.])({'|'.join(_SPLITS)})(?:[-_.]|$)")
_PARTIAL = "partial-"  # before a split of which the hub converted the beginning alone
_NO_CONFIGURATION = ("data",)


class HubData(NamedTuple):
    """A data set found on this machine.

    Attributes:
      splits: dict from the name of a split to its parquet files, in the order of their names.
      identity: identity in the manifest of prepared data: the name with its commit, or names and
        sizes of the files of a folder.
      content: digest of the files of a folder; "" for a commit, which identifies the content.
    """

    splits: dict[str, list[epath.Path]]
    identity: str
    content: str = ""


def open_hub(path: str) -> HubData:
    """Finds a data set, and fetches it if it is given by name.

    Args:
      path: name[:config][@revision], or folder[:config] of the same layout.

    Raises:
      UserError: it is not available; no parquet file; several configurations and none named.
    """
    name, revision = hub_name(path)
    folder = epath.Path(expanded(path))
    if folder.is_dir():
        return _found(folder, "", path)
    name, _, config = name.partition(":")
    folder = epath.Path(expanded(name))
    if folder.is_dir():
        return _found(folder, config, path)
    root = _fetched(name, config, revision, path)
    splits = _splits(root, config, path)
    # Snapshots stand in folders that are named by their commits.
    rows = ", ".join(f"{split} {sum(map(parquet.rows, splits[split]))}" for split in splits)
    return HubData(splits, f"{name}:{config}@{root.name}: {rows}")


def _found(folder: epath.Path, config: str, path: str) -> HubData:
    _, *names = find_files(str(folder), (".parquet",))
    return HubData(_splits(folder, config, path), *names)


def _fetched(name: str, config: str, revision: str | None, path: str) -> epath.Path:
    """Folder of a snapshot that holds the parquet files of a configuration."""
    hub = import_extra("huggingface_hub", "hf", "source 'hf'")
    wanted = [f"{config}/*.parquet"] if config else ["*.parquet"]
    try:
        for found in (revision,) if revision else (None, CONVERTED):
            fetch = functools.partial(hub.snapshot_download, name, repo_type="dataset")
            with downloading(path):
                root = epath.Path(fetch(revision=found, allow_patterns=wanted))
            if any(_below(root)):
                return root
    except Exception as error:  # noqa: BLE001 - the hub raises many kinds; all mean "not loaded"
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"Hugging Face dataset {path!r} was not loaded ({reason}); expected "
            "name[:config][@revision] and, unless it is cached, a network"
        ) from error
    raise UserError(
        f"Hugging Face dataset {path!r} has no parquet files{f' of {config}' if config else ''}; "
        f"expected some: name a configuration that it has, or the revision {CONVERTED}"
    )


def _splits(root: epath.Path, config: str, path: str) -> dict[str, list[epath.Path]]:
    """Parquet files below a folder by split."""
    places = sorted(_below(root))
    configs = sorted({_configuration(place) for place in places} - {""})
    if config:
        one_of(f"configuration of {path!r}", config, configs)
        places = [place for place in places if _configuration(place) == config]
    require(
        bool(config) or len(configs) < 2,
        f"dataset {path!r} has the configurations {', '.join(configs)}; name one: {path}:NAME",
    )
    splits: dict[str, list[epath.Path]] = {}
    for place in places:
        if split := _split(place):
            splits.setdefault(split, []).append(root / place)
            _tell_partial(place, path)
    require(
        bool(splits),
        f"dataset {path!r} has no parquet file whose name or folder tells its split; expected "
        f"names such as train-00000-of-00001.parquet or folders such as {' and '.join(_SPLITS)}",
    )
    return {name: splits[name] for name in _SPLITS if name in splits}


def _below(root: epath.Path, inside: str = "") -> Iterator[str]:
    """Paths of parquet files; several may link to one file, as snapshots store equal ones once."""
    for child in root.iterdir() if root.is_dir() else ():
        if child.is_dir() and not child.name.startswith("."):
            yield from _below(child, f"{inside}{child.name}/")
        elif child.name.endswith(".parquet"):
            yield f"{inside}{child.name}"


def _split(place: str) -> str:
    """Split named by a file or a folder, the innermost first; "" for none."""
    for part in reversed(PurePosixPath(place).parts):
        if match := _SPLIT.search(part.removesuffix(".parquet")):
            return match[1]
    return ""


def _configuration(place: str) -> str:
    """Outermost folder that is no split and does not hold all of them; "" for none."""
    folders = PurePosixPath(place).parts[:-1]
    named = [part for part in folders if not (_SPLIT.search(part) or part in _NO_CONFIGURATION)]
    return named[0] if named else ""


def _tell_partial(place: str, path: str) -> None:
    for part in PurePosixPath(place).parts:
        if part.startswith(_PARTIAL):
            told = "dataset %s: %s is the beginning of a split alone."
            logging.log_first_n(logging.WARNING, told, 1, path, part)


def texts(files: Iterable[epath.Path], key: str, reading: Reading) -> Iterator[tuple[str, str]]:
    """Yields (place, text) of every row of the files of a split, a pass whose progress is shown."""
    for file in files:
        yield from parquet.texts(file, key, reading)
