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

_SOURCE = flags.DEFINE_string("source", "", f"Source of the documents: {', '.join(SOURCES)}.")
_PUBLISHED = flags.DEFINE_string(
    "published",
    "",
    "Data set of the published tables, prepared as for their models: "
    f"{', '.join(PUBLISHED)}. Replaces --source and its options; --path and --tokenizer "
    "override the published ones.",
)
_PATH = DEFINE_path(
    "path",
    "",
    "File or folder of text, jsonl or parquet (.gz and .zst are unpacked); for hf, "
    "name[:config][@revision], or a folder laid out as on the hub.",
)
_OUT = DEFINE_path("out", "", "Folder to write.")
_TOKENIZER = DEFINE_path(
    "tokenizer",
    "sentencepiece",
    "Tokenizer: bytes, text8, characters or sentencepiece (both trained on the corpus), "
    "hf:NAME_OR_FOLDER, or the path of a saved tokenizer or prepared folder.",
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size",
    1024,
    "Vocabulary size of the sentencepiece tokenizer; from 326 and one for each character of the "
    "texts on, it spells any text.",
)
_MODEL = flags.DEFINE_string(
    "sentencepiece_model", "bpe", f"Model type of sentencepiece: {', '.join(SENTENCEPIECE_MODELS)}."
)
_SAMPLE = flags.DEFINE_integer(
    "sample_characters",
    SAMPLE_CHARACTERS,
    "Number of characters, in lines from all over the corpus, on which sentencepiece is trained.",
    lower_bound=1,
)
_FORM = flags.DEFINE_string(
    "normal_form",
    "",
    "Unicode normal form of tokenizers trained here: NFC (composed characters), or empty for none.",
)
_UNIT = flags.DEFINE_string(
    "split_documents",
    "file",
    f"Unit that counts as a document of a text source: {', '.join(DOCUMENT_UNITS)}.",
)
_SEPARATOR = flags.DEFINE_string(
    "separator",
    "",
    "Line that separates the documents of a text source, such as '<|endoftext|>'; it "
    "belongs to none of them.",
)
_TEXT_KEY = flags.DEFINE_string(
    "text_key", "text", "Field that holds the text of jsonl, parquet and hf sources."
)
_DETOKENIZE = flags.DEFINE_string(
    "detokenize",
    "",
    f"Corpus whose own tokenisation is undone: {', '.join(DETOKENIZERS)}; empty for none.",
)
_VALID = flags.DEFINE_float(
    "valid_fraction",
    0.05,
    "Fraction of the documents held out for validation, unless the source has splits.",
)
_VALID_SPLIT = flags.DEFINE_string(
    "valid_split",
    "",
    "Split of an hf source to hold out; validation, valid, dev or test by default.",
)
_VALID_LAST = flags.DEFINE_integer(
    "valid_last",
    0,
    "Number of documents at the end to hold out, instead of --valid_fraction.",
    lower_bound=0,
)
_VALID_ONLY = flags.DEFINE_bool(
    "valid_only", False, "Read the held-out split of an hf source alone."
)
_VERBATIM = flags.DEFINE_bool(
    "verbatim", False, "Keep empty texts, byte order marks and carriage returns."
)
_SHARD = flags.DEFINE_string("shard", "0/1", "Part to prepare, i/n: part i (counted from 0) of n.")
_MERGE = flags.DEFINE_bool("merge", False, "Join the n parts in --out; no other flag is needed.")
_WORKERS = flags.DEFINE_integer(
    "workers",
    0,
    "Number of processes that tokenise; 0 is one for each core. The result does not depend on it.",
    lower_bound=0,
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the contents of --out.")


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
    """Returns the settings of the source, and the tokenizer's name.

    Raises:
      UserError: no source, or a published one together with settings that it fixes.
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
