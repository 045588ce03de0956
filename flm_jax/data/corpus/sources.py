"""Iterators over documents: the standard library, files of text or records, Hugging Face.

A `Corpus` can be read any number of times and always in the same order, so a document's index
identifies it: sharded preparation and the train/valid split both work on that index.
"""

import collections
import dataclasses
import hashlib
import itertools
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from flm_jax.core.errors import UserError, one_of, require
from flm_jax.core.reading import loads
from flm_jax.data.corpus import detokenizers, hub, parquet, pydoc_text, text8
from flm_jax.data.corpus.files import Reading, find_files, lines, packed
from flm_jax.data.corpus.separators import Separator
from flm_jax.data.text import Mender, joined, tidy

DOCUMENT_UNITS = ("file", "paragraph", "line")
_POSITION_SPLIT_SLACK = 1000  # characters searched for a line end when one document is cut in two


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Settings of the documents to read.

    Attributes:
      source: one of `SOURCES`.
      path: file, folder or dataset name (hf: `name[:config][@revision]`, or a folder of the hub's
        layout); empty for pydoc.
      split_documents: unit that counts as a document, one of `DOCUMENT_UNITS`; text only.
      separator: line that separates the documents of a text, such as <|endoftext|>; "" for none. It
        ends documents of every unit, and belongs to none of them.
      text_key: field that holds the text; jsonl, parquet and hf.
      detokenize: one of `detokenizers.DETOKENIZERS`, or "".
      valid_fraction: fraction of documents held out if the source has no split of its own.
      valid_split: split to hold out, "" for the first of `hub.HELD_OUT` that exists; hf only.
      valid_last: number of documents held out at the end of the training split, whatever other
        splits there are; 0 for none.
      valid_only: whether only the held-out split is read; hf only.
      verbatim: whether texts are unchanged: with empty ones, which are otherwise left out, byte
        order marks and carriage returns.
    """

    source: str
    path: str = ""
    split_documents: str = "file"
    text_key: str = "text"
    detokenize: str = ""
    valid_fraction: float = 0.05
    separator: str = ""
    valid_split: str = ""
    valid_last: int = 0
    valid_only: bool = False
    verbatim: bool = False

    def text(self, text: str) -> str:
        """Returns the text of a record after its clean-up, if any."""
        return text if self.verbatim else tidy(text)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents by split.

    Attributes:
      splits: dict from a split's name ("train", "valid") to a function that starts a pass over
        (index, document).
      identity: description of the input: its files and their sizes, or its version.
      content: digest that changes with the content of the input; "" if the identity determines it.
      readings: dict from a split's name to the pass over its files; {} for a source without files.
    """

    splits: dict[str, Callable[[], Iterator[tuple[int, str]]]]
    identity: str
    content: str = ""
    readings: dict[str, Reading] = dataclasses.field(default_factory=dict)

    def texts(self, split: str, label: str) -> Iterator[tuple[int, str]]:
        """Yields (index, document) of one pass over a split, and shows its progress."""
        reading = self.readings.get(split, Reading(()))
        return reading.watched(self.splits[split](), label)


RawSplits = dict[str, Callable[[], Iterator[str]]]


class _Opened(NamedTuple):
    """A source before its texts are cleaned and numbered; fields as in `Corpus`."""

    splits: RawSplits
    identity: str
    content: str = ""
    readings: Mapping[str, Reading] = {}


def open_corpus(cfg: SourceConfig) -> Corpus:
    """Opens the corpus that `cfg` names, split in train and valid.

    Raises:
      UserError: unknown names, a missing path, nothing to read, or a separator that no text has.
    """
    one_of("source", cfg.source, SOURCES)
    one_of("split_documents", cfg.split_documents, DOCUMENT_UNITS)
    require(
        0 < cfg.valid_fraction <= 0.5,
        f"valid_fraction is {cfg.valid_fraction}; expected more than 0 and at most 0.5",
    )
    require(
        bool(cfg.path) or cfg.source == "pydoc",
        f"source {cfg.source!r} needs a path (file, folder or dataset name), got none; pass --path",
    )
    clean = detokenizers.get_detokenizer(cfg.detokenize)
    _check_held_out(cfg)
    separator = Separator(cfg.separator)
    opened = SOURCES[cfg.source](cfg, separator)
    _check_seen(separator, opened.splits, cfg)
    splits = {name: _documents(read, clean, cfg.verbatim) for name, read in opened.splits.items()}
    if cfg.valid_last:
        splits = _last_held_out(next(iter(splits.values())), cfg.valid_last)
    for name, read in splits.items():
        require(
            next(read(), None) is not None,
            f"source {cfg.source!r} ({cfg.path or 'no path'}) has no text in {name!r}; "
            "expected at least one document",
        )
    if len(splits) == 1 and not cfg.valid_only:
        (read,) = splits.values()
        numbered = _split_train_valid(read, cfg.valid_fraction)
    else:
        numbered = {name: _enumerated(read) for name, read in splits.items()}
    readings = dict(opened.readings)
    if len(readings) == 1:  # each split is chosen from all texts
        readings = dict.fromkeys(numbered, *readings.values())
    return Corpus(numbered, opened.identity, opened.content, readings)


def _check_held_out(cfg: SourceConfig) -> None:
    """Refuses ways to hold documents out that a source does not support."""
    require(
        cfg.source == "hf" or not (cfg.valid_split or cfg.valid_only),
        f"source {cfg.source!r} has no splits to choose from, got valid_split "
        f"{cfg.valid_split!r} and valid_only {cfg.valid_only}; leave them out",
    )
    require(cfg.valid_last >= 0, f"valid_last is {cfg.valid_last}; expected 0 or more documents")
    require(
        not (cfg.valid_last and (cfg.valid_split or cfg.valid_only)),
        f"got valid_last {cfg.valid_last} and a split to hold out; expected one of them",
    )


def _check_seen(separator: Separator, raw: RawSplits, cfg: SourceConfig) -> None:
    """Raises UserError if a separator was given and no line equals it."""
    if not separator.line:
        return
    require(cfg.source != "pydoc", "source 'pydoc' got a separator; it has none, leave it out")
    for read in raw.values():
        for _ in read():
            if separator.seen:
                return
    require(
        separator.seen,
        f"no line of {cfg.path} is {separator.line!r}, the separator; expected the line that "
        "stands between documents: mend it, or leave it out",
    )


def _documents(
    read: Callable[[], Iterator[str]], clean: Callable[[str], str], verbatim: bool
) -> Callable[[], Iterator[str]]:
    """Cleans documents and drops empty ones, unless they count, before they are numbered."""
    return lambda: (text for text in map(clean, read()) if verbatim or text.strip())


def _last_held_out(
    read: Callable[[], Iterator[str]], count: int
) -> dict[str, Callable[[], Iterator[str]]]:
    """Splits off the last documents, which are held in memory."""

    def before() -> Iterator[str]:
        waiting: collections.deque[str] = collections.deque()
        for text in read():
            waiting.append(text)
            if len(waiting) > count:
                yield waiting.popleft()

    return {"train": before, "valid": lambda: iter(collections.deque(read(), maxlen=count))}


def _enumerated(read: Callable[[], Iterator[str]]) -> Callable[[], Iterator[tuple[int, str]]]:
    return lambda: enumerate(read())


def _split_train_valid(
    read: Callable[[], Iterator[str]], fraction: float
) -> dict[str, Callable[[], Iterator[tuple[int, str]]]]:
    """Splits by document; a corpus of one document is cut in two by position instead."""
    first_two = list(itertools.islice(read(), 2))
    if len(first_two) == 1:
        head, tail = _cut(first_two[0], fraction)
        return {"train": lambda: iter([(0, head)]), "valid": lambda: iter([(1, tail)])}

    def select(valid: bool) -> Iterator[tuple[int, str]]:
        return ((i, text) for i, text in enumerate(read()) if is_valid(i, fraction) == valid)

    return {"train": lambda: select(False), "valid": lambda: select(True)}


def is_valid(index: int, fraction: float) -> bool:
    """Whether document `index` is held out: one of every round(1 / fraction) consecutive ones.

    A hash picks the one, so that no period of the corpus can align with the choice, which depends
    on the index alone. In the first group it is document 1, so that two documents fill both splits.
    """
    period = round(1 / fraction)
    group, place = divmod(index, period)
    if group == 0:
        return place == 1
    digest = hashlib.blake2b(group.to_bytes(8, "little"), digest_size=8).digest()
    return place == int.from_bytes(digest, "little") % period


def _cut(text: str, fraction: float) -> tuple[str, str]:
    """Cuts off the last `fraction` of a text, at a line end if one is near."""
    text = text.strip()
    require(
        len(text) >= 2,
        f"the corpus is one document of {len(text)} character; expected enough for train and valid",
    )
    cut = min(max(1, round(len(text) * (1 - fraction))), len(text) - 1)
    line_end = text.find("\n", cut, min(cut + _POSITION_SPLIT_SLACK, len(text) - 1))
    cut = cut if line_end < 0 else line_end + 1
    return text[:cut], text[cut:]


def _read_pydoc(cfg: SourceConfig, separator: Separator) -> _Opened:
    del cfg, separator  # has no options
    version = platform.python_version()
    return _Opened({"all": pydoc_text.documents}, f"pydoc of Python {version}")


def _read_text(cfg: SourceConfig, separator: Separator) -> _Opened:
    files, *names = find_files(cfg.path, packed(".txt"))
    reading = Reading(files)

    def read() -> Iterator[str]:
        for path in files:
            for document in separator.documents(lines(path, reading), str(path)):
                if cfg.split_documents == "file":
                    yield separator.joined(document, str(path))
                elif cfg.split_documents == "line":
                    yield from (line.rstrip("\n") for line in document)
                else:
                    yield from _paragraphs(document, str(path))

    return _Opened({"all": read}, *names, {"all": reading})


def _paragraphs(found: Iterator[str], where: str) -> Iterator[str]:
    """Yields runs of non-blank lines."""
    for blank, group in itertools.groupby(found, key=lambda line: not line.strip()):
        if not blank:
            yield joined(group, where, "put blank lines into it").rstrip("\n")


def _read_jsonl(cfg: SourceConfig, separator: Separator) -> _Opened:
    files, *names = find_files(cfg.path, packed(".jsonl"))
    mender, reading = Mender(), Reading(files)

    def read() -> Iterator[str]:
        for path in files:
            for number, line in enumerate(lines(path, reading), start=1):
                if line.strip():
                    where = f"{path} line {number}"
                    text = mender.text(cfg.text(_json_text(line, cfg.text_key, where)), where)
                    yield from separator.texts(text, where)

    return _Opened({"all": read}, *names, {"all": reading})


def _json_text(line: str, key: str, where: str) -> str:
    try:
        record = loads(tidy(line))
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error}); expected one object a line") from error
    require(isinstance(record, dict), f"{where} holds {type(record).__name__}; expected an object")
    if key not in record:
        raise UserError(
            f"{where} has no field {key!r}; it has {', '.join(sorted(record)) or 'none'}: "
            "name the text's field with --text_key"
        )
    text = record[key]
    require(
        isinstance(text, str),
        f"{where}: field {key!r} holds {type(text).__name__}; expected a string",
    )
    return text


def _read_parquet(cfg: SourceConfig, separator: Separator) -> _Opened:
    files, *names = find_files(cfg.path, (".parquet",))
    mender, reading = Mender(), Reading(files)

    def read() -> Iterator[str]:
        for path in files:
            for where, text in parquet.texts(path, cfg.text_key, reading):
                yield from separator.texts(mender.text(cfg.text(text), where), where)

    return _Opened({"all": read}, *names, {"all": reading})


def _read_hf(cfg: SourceConfig, separator: Separator) -> _Opened:
    """Opens a data set in the hub's layout, with its own held-out split if it has one."""
    found = hub.open_hub(cfg.path)
    names = {"train": "train", "valid": cfg.valid_split}
    if not cfg.valid_split:
        names["valid"] = next((name for name in hub.HELD_OUT if name in found.splits), "")
    if cfg.valid_only:
        names.pop("train")
    if cfg.valid_last or not (names["valid"] or cfg.valid_only):
        names.pop("valid")
    for wanted in names.values():
        require(
            wanted in found.splits,
            f"dataset {cfg.path!r} has splits {', '.join(found.splits)}; expected one called "
            f"{wanted or ' or '.join(hub.HELD_OUT)}",
        )
    mender = Mender()
    readings = {name: Reading(found.splits[split]) for name, split in names.items()}

    def reader(name: str, split: str) -> Callable[[], Iterator[str]]:
        def read() -> Iterator[str]:
            for where, text in hub.texts(found.splits[split], cfg.text_key, readings[name]):
                yield from separator.texts(mender.text(cfg.text(text), where), where)

        return read

    raw = {name: reader(name, split) for name, split in names.items()}
    return _Opened(raw, found.identity, found.content, readings)


def _read_text8(cfg: SourceConfig, separator: Separator) -> _Opened:
    del separator  # the text is one line
    return _Opened(*text8.open_text8(cfg.path))


SOURCES: dict[str, Callable[[SourceConfig, Separator], _Opened]] = {
    "pydoc": _read_pydoc,
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "hf": _read_hf,
    "text8": _read_text8,
}
