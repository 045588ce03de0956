"""Prepares a folder from documents: tokenises them, writes the shards, then the manifest."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from flm_jax.core.errors import require
from flm_jax.core.locks import alone
from flm_jax.core.paths import check_folder, expanded
from flm_jax.core.progress import Progress
from flm_jax.data.corpus import manifest as manifests
from flm_jax.data.corpus import store
from flm_jax.data.corpus.encoder import Encoder
from flm_jax.data.corpus.sources import Corpus, SourceConfig, open_corpus
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.data.tokenizers.builtin import (
    SAMPLE_CHARACTERS,
    TOKENIZER_FOLDER,
    byte_pieces_from,
)
from flm_jax.data.tokenizers.registry import make_tokenizer, needs_training


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Settings of one preparation.

    Attributes:
      source: documents to read.
      out: folder to write, local or remote.
      tokenizer: name of the tokenizer, see `registry.make_tokenizer`.
      vocab_size, sentencepiece_model: vocabulary size and model type, used by the tokenizer
        "sentencepiece" alone.
      sample_characters: number of characters of the training text of "sentencepiece".
      normal_form: Unicode normal form to which "sentencepiece" and "characters" convert text,
        "NFC"; "" for none. The tokenizer does so wherever it is used.
      shard: this worker's part of the documents.
      workers: number of processes that tokenise; the folder does not depend on it. With more than
        one, a script needs `if __name__ == "__main__":`.
      overwrite: whether to replace data that other arguments prepared in `out`.
    """

    source: SourceConfig
    out: str
    tokenizer: str = "sentencepiece"
    vocab_size: int = 1024
    sentencepiece_model: str = "bpe"
    sample_characters: int = SAMPLE_CHARACTERS
    normal_form: str = ""
    shard: store.Shard = store.Shard()
    workers: int = 1
    overwrite: bool = False


def prepare(cfg: PrepareConfig, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Prepares a corpus, or one shard of it, unless that is already done.

    An interrupted call leaves no manifest; the next one starts over.

    Returns:
      The manifest of the folder, or of the shard.

    Raises:
      UserError: bad input, or `out` was prepared with other arguments.
    """
    require(
        cfg.shard.count == 1 or not needs_training(cfg.tokenizer),
        f"tokenizer {cfg.tokenizer!r} would be trained anew by every shard; prepare or train it "
        "once and pass --tokenizer=THAT_FOLDER with --shard",
    )
    folder = epath.Path(expanded(cfg.out))
    check_folder(folder, "--out")
    many = cfg.shard.count > 1
    part = contextlib.nullcontext() if not many else alone(folder, "preparing", cfg.shard.suffix)
    with alone(folder, "preparing", shared=many), part:
        return _prepare(cfg, folder, log)


def _prepare(cfg: PrepareConfig, folder: epath.Path, log: Callable[[str], None]) -> dict[str, Any]:
    corpus = open_corpus(cfg.source)
    ready = None if needs_training(cfg.tokenizer) else _make_tokenizer(cfg, corpus)
    args = _arguments(cfg, corpus, ready)
    if not cfg.overwrite and (old := _find_prepared(folder, cfg.shard, args)) is not None:
        log(f"{folder}: already prepared with these arguments")
        return old
    tokenizer = ready or _make_tokenizer(cfg, corpus, log)
    folder.mkdir(parents=True, exist_ok=True)
    store.clear(folder, cfg.shard)
    if cfg.shard.index == 0:
        tokenizer.save(folder / TOKENIZER_FOLDER)
    with Encoder(tokenizer, cfg.workers) as encoder:
        shards = {
            split: [_write_split(folder, split, corpus, encoder, cfg.shard, log)]
            for split in corpus.splits
        }
    manifest = manifests.build_manifest(tokenizer, args, shards)
    if cfg.shard.count == 1:
        manifests.check_not_empty(manifest)
    with Progress("reading again what was written"):
        store.verify(folder, manifest)
    manifests.write_manifest(folder, cfg.shard.manifest_name, manifest)
    return manifest


def _find_prepared(
    folder: epath.Path, shard: store.Shard, args: dict[str, Any]
) -> dict[str, Any] | None:
    """Manifest of this shard, or of the complete folder, if it has these arguments.

    Raises:
      UserError: the folder holds data prepared with others, or parts that wait to be merged.
    """
    if not folder.exists():
        return None
    own, whole = (
        manifests.read_manifest(folder, name) for name in (shard.manifest_name, manifests.MANIFEST)
    )
    for manifest in (whole, own):
        if manifest is not None:
            wrong = manifests.difference(manifest["args"], args)
            require(
                not wrong,
                f"{folder} was prepared with other arguments: {wrong}; pass --overwrite or "
                "another --out",
            )
    require(
        shard.count > 1 or whole is not None or not store.has_parts(folder),
        f"{folder} holds parts of a sharded preparation; join them with --merge, "
        "or pass --overwrite or another --out",
    )
    return own or whole


def _make_tokenizer(
    cfg: PrepareConfig, corpus: Corpus, log: Callable[[str], None] = print
) -> Tokenizer:
    def training_text() -> Iterator[str]:
        return (text for _, text in corpus.texts("train", "reading for the tokenizer"))

    trained = needs_training(cfg.tokenizer)
    what = f"{'training' if trained else 'loading'} the {cfg.tokenizer} tokenizer"
    if trained:
        log(what)
    with Progress(what):
        return make_tokenizer(
            cfg.tokenizer,
            training_text,
            vocab_size=cfg.vocab_size,
            model=cfg.sentencepiece_model,
            sample_characters=cfg.sample_characters,
            normal_form=cfg.normal_form,
        )


def _arguments(cfg: PrepareConfig, corpus: Corpus, ready: Tokenizer | None) -> dict[str, Any]:
    """Everything on which the contents of the folder depend."""
    args = dataclasses.asdict(cfg.source)
    args |= {"identity": corpus.identity, "content": corpus.content}
    if ready is not None:
        # By content: the folder of a saved tokenizer may have moved between two workers.
        return args | {"tokenizer": f"{ready.kind} {ready.fingerprint[:16]}"}
    args |= {"tokenizer": cfg.tokenizer}
    args |= {"normal_form": cfg.normal_form} if cfg.normal_form else {}
    if cfg.tokenizer == "sentencepiece":
        names = ("vocab_size", "sentencepiece_model", "sample_characters")
        args |= {name: getattr(cfg, name) for name in names}
    return args


def _write_split(
    folder: epath.Path,
    split: str,
    corpus: Corpus,
    encoder: Encoder,
    shard: store.Shard,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Tokenises this worker's documents of a split; returns their record for the manifest."""
    read = corpus.texts(split, f"{split}: tokenising")
    texts = (text for index, text in read if index % shard.count == shard.index)
    began = time.perf_counter()
    tokenizer = encoder.tokenizer
    writer = store.SplitWriter(folder, split, shard, tokenizer)
    try:
        for text, ids in encoder.encoded(texts):
            writer.add(ids, text)
    except BaseException:
        writer.close()
        raise
    record = writer.finish()
    log(_progress(split, writer.counts, began))
    if writer.unknown:
        share = writer.unknown / writer.counts["tokens"]
        pieces = byte_pieces_from(tokenizer)
        least = f"from --vocab_size={pieces} on" if pieces else "where bytes have room"
        log(
            f"{split}: {writer.unknown:,} of {writer.counts['tokens']:,} tokens ({share:.2%}) are "
            f"unknown: the {tokenizer.kind} tokenizer cannot spell their characters. "
            f"--tokenizer=bytes spells all, as does sentencepiece {least}"
        )
    return record


def _progress(split: str, counts: dict[str, int], began: float) -> str:
    rate = counts["tokens"] / max(time.perf_counter() - began, 1e-9)
    documents, tokens = counts["documents"], counts["tokens"]
    return f"{split}: {documents:,} documents, {tokens:,} tokens, {rate:,.0f} tokens/s"


def summary(manifest: dict[str, Any], path: str, seconds: float) -> str:
    """Formats one line about a folder and the seconds that its preparation took."""
    splits = ", ".join(
        f"{name} {record['documents']:,} documents {record['tokens']:,} tokens"
        f" ({record['tokens'] / max(record['characters'], 1):.3f} a character)"
        for name, record in manifest["splits"].items()
    )
    tokenizer = manifest["tokenizer"]
    megabytes = sum(record["bytes"] for record in manifest["splits"].values()) / 1e6
    return (
        f"{path}: {splits}; tokenizer {tokenizer['kind']}, vocabulary {tokenizer['vocab_size']}; "
        f"{megabytes:.1f} MB in {seconds:.1f} s"
    )
