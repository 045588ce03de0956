"""Prepares a corpus for training: tokenises documents into a folder that training reads.

python -m flm_jax.prepare_data --source=pydoc --tokenizer=sentencepiece --vocab_size=1024 --out=DIR

Text as the published models saw it, from the Hugging Face hub or a folder of its layout (--path):
--published=openwebtext --out=data/owt.

Documents of one file that a line separates, as in many corpora of stories:
--source=text --path=stories.txt --separator='<|endoftext|>'.

Large corpora in parallel: one command for each i with --shard=i/n, then one with --merge.
"""

import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from flm_jax.cli.path_flags import DEFINE_path
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.core.errors import require
from flm_jax.data.corpus import store
from flm_jax.data.corpus.detokenizers import DETOKENIZERS
from flm_jax.data.corpus.encoder import cores
from flm_jax.data.corpus.prepare import PrepareConfig, prepare, summary
from flm_jax.data.corpus.published import PUBLISHED, published_source, published_tokenizer
from flm_jax.data.corpus.sources import DOCUMENT_UNITS, SOURCES, SourceConfig
from flm_jax.data.tokenizers.builtin import SAMPLE_CHARACTERS, SENTENCEPIECE_MODELS

_SOURCE = flags.DEFINE_string("source", "", f"Documents: {', '.join(SOURCES)}.")
_PUBLISHED = flags.DEFINE_string(
    "published",
    "",
    "A data set of the published tables, read as their models read it: "
    f"{', '.join(PUBLISHED)}. Instead of --source and what goes with it; --path and --tokenizer "
    "name others than the published ones.",
)
_PATH = DEFINE_path(
    "path",
    "",
    "text, jsonl, parquet: file or folder, .gz and .zst unpacked. hf: name[:config][@revision], or "
    "a folder of the hub's layout.",
)
_OUT = DEFINE_path("out", "", "Folder to write.")
_TOKENIZER = DEFINE_path(
    "tokenizer",
    "sentencepiece",
    "bytes, text8, characters, sentencepiece (both trained on the corpus), hf:NAME_OR_FOLDER, or "
    "the path of a saved tokenizer or prepared folder.",
)
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 1024, "Pieces of the sentencepiece tokenizer.")
_MODEL = flags.DEFINE_string(
    "sentencepiece_model", "bpe", f"Model of sentencepiece: {', '.join(SENTENCEPIECE_MODELS)}."
)
_SAMPLE = flags.DEFINE_integer(
    "sample_characters",
    SAMPLE_CHARACTERS,
    "Characters of the corpus, in lines from all over it, that sentencepiece is trained on.",
    lower_bound=1,
)
_FORM = flags.DEFINE_string(
    "normal_form",
    "",
    "NFC: text in composed characters, for tokenizers trained here, which remember it.",
)
_UNIT = flags.DEFINE_string(
    "split_documents", "file", f"text: what a document is: {', '.join(DOCUMENT_UNITS)}."
)
_SEPARATOR = flags.DEFINE_string(
    "separator",
    "",
    "The line between the documents of a text, such as '<|endoftext|>'; no part of them.",
)
_TEXT_KEY = flags.DEFINE_string(
    "text_key", "text", "jsonl, parquet, hf: the field that holds the text."
)
_DETOKENIZE = flags.DEFINE_string(
    "detokenize", "", f"Undo a corpus's own tokenisation: {', '.join(DETOKENIZERS)}."
)
_VALID = flags.DEFINE_float("valid_fraction", 0.05, "Share held out, unless the source has splits.")
_VALID_SPLIT = flags.DEFINE_string(
    "valid_split", "", "hf: the split to hold out; validation, valid, dev or test by default."
)
_VALID_LAST = flags.DEFINE_integer(
    "valid_last", 0, "Hold out the last documents, so many, instead.", lower_bound=0
)
_VALID_ONLY = flags.DEFINE_bool("valid_only", False, "hf: read what is held out alone.")
_VERBATIM = flags.DEFINE_bool(
    "verbatim", False, "Keep empty texts, byte order marks and carriage returns."
)
_SHARD = flags.DEFINE_string("shard", "0/1", "i/n: prepare part i (from 0) of n.")
_MERGE = flags.DEFINE_bool("merge", False, "Join the n parts in --out; needs no other flag.")
_WORKERS = flags.DEFINE_integer(
    "workers",
    0,
    "Processes that tokenise; 0: as many as there are cores. The result is the same.",
    lower_bound=0,
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what is in --out.")


# Flags that say how a source is read, by their settings.
_READING = {
    "split_documents": _UNIT,
    "separator": _SEPARATOR,
    "text_key": _TEXT_KEY,
    "detokenize": _DETOKENIZE,
    "valid_fraction": _VALID,
    "valid_split": _VALID_SPLIT,
    "valid_last": _VALID_LAST,
    "valid_only": _VALID_ONLY,
    "verbatim": _VERBATIM,
}


def _chosen() -> tuple[SourceConfig, str]:
    """What is read, and the tokenizer's name.

    Raises:
      UserError: no source; one of the published and settings that these have.
    """
    if not _PUBLISHED.value:
        require(
            bool(_SOURCE.value),
            f"no --source; expected one of {', '.join(SOURCES)}, or --published",
        )
        how: dict[str, Any] = {key: flag.value for key, flag in _READING.items()}
        return SourceConfig(_SOURCE.value, _PATH.value, **how), _TOKENIZER.value
    given = [flag.name for flag in (_SOURCE, *_READING.values()) if flag.present]
    require(
        not given,
        f"got --published and --{' and --'.join(given)}; leave them out: --published sets them",
    )
    tokenizer = _TOKENIZER.value if _TOKENIZER.present else published_tokenizer(_PUBLISHED.value)
    return published_source(_PUBLISHED.value, _PATH.value), tokenizer


def main(argv: Sequence[str]) -> None:
    no_arguments(argv)
    require(bool(_OUT.value), "no --out; expected the folder to write")
    began = time.perf_counter()
    if _MERGE.value:
        manifest = store.merge(_OUT.value)
    else:
        source, tokenizer = _chosen()
        cfg = PrepareConfig(
            source=source,
            out=_OUT.value,
            tokenizer=tokenizer,
            vocab_size=_VOCAB_SIZE.value,
            sentencepiece_model=_MODEL.value,
            sample_characters=_SAMPLE.value,
            normal_form=_FORM.value,
            workers=_WORKERS.value or cores(),
            shard=store.Shard.parse(_SHARD.value),
            overwrite=_OVERWRITE.value,
        )
        manifest = prepare(cfg)
    print(summary(manifest, _OUT.value, time.perf_counter() - began))


if __name__ == "__main__":
    run_cli(main)
