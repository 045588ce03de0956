"""Tokenizers by name: builds, trains and loads them."""

import os
from collections.abc import Callable, Iterable

from etils import epath

from flm_jax.core.errors import one_of, require, unknown_name
from flm_jax.core.paths import expanded
from flm_jax.core.reading import named_damage, read_bounded, read_object
from flm_jax.data.tokenizers.base import SPEC_FILE, Tokenizer
from flm_jax.data.tokenizers.builtin import (
    SAMPLE_CHARACTERS,
    TOKENIZER_FOLDER,
    TRAINED,
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    Text8Tokenizer,
    WordTokenizer,
)
from flm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer

KINDS: dict[str, type[Tokenizer]] = {
    cls.kind: cls
    for cls in (
        ByteTokenizer,
        CharacterTokenizer,
        Text8Tokenizer,
        WordTokenizer,
        SentencePieceTokenizer,
        HuggingFaceTokenizer,
    )
}
_MEND = "restore its files, or make it again"


def load_tokenizer(path: os.PathLike | str) -> Tokenizer:
    """Loads a saved tokenizer from its own folder or from a prepared folder that contains one.

    Files are read by the names that their kind has, whatever the spec contains, since it may be
    downloaded.

    Raises:
      UserError: there is none, or it is damaged.
    """
    folder = epath.Path(path)
    if not (folder / SPEC_FILE).exists() and (folder / TOKENIZER_FOLDER / SPEC_FILE).exists():
        folder = folder / TOKENIZER_FOLDER
    require(
        (folder / SPEC_FILE).exists(),
        f"{folder} holds no saved tokenizer ({SPEC_FILE} is missing); expected a folder written by "
        "prepare_data",
    )
    place = folder / SPEC_FILE
    spec = read_object(place, "the settings of a tokenizer")
    cls = KINDS[one_of(f"tokenizer kind in {place}", str(spec.get("kind")), KINDS)]
    named, wanted = spec.get("files"), sorted(cls.file_names)
    require(
        named == wanted,
        f"{place} names the files {str(named)[:100]}, a tokenizer {cls.kind} has {wanted!r}; "
        "restore it.",
    )
    missing = [name for name in wanted if not (folder / name).exists()]
    require(not missing, f"tokenizer {folder} lacks {', '.join(missing)}; prepare the data again")
    files = {name: read_bounded(folder / name, "a tokenizer's file") for name in wanted}
    with named_damage(f"tokenizer {folder}", _MEND):
        return cls.from_spec(spec, files)


def needs_training(name: str) -> bool:
    """Whether `make_tokenizer` reads the corpus for this name."""
    return name in TRAINED


def make_tokenizer(
    name: str,
    documents: Callable[[], Iterable[str]],
    *,
    vocab_size: int = 1024,
    model: str = "bpe",
    sample_characters: int = SAMPLE_CHARACTERS,
    normal_form: str = "",
) -> Tokenizer:
    """Builds a tokenizer by name.

    Args:
      name: "bytes", "characters", "sentencepiece", "text8", "hf:NAME_OR_FOLDER" (a name may end in
        @REVISION), or the path of a folder with a saved tokenizer.
      documents: function that starts a pass over the training text; called only if
        `needs_training(name)`.
      vocab_size, model, sample_characters: settings of sentencepiece alone.
      normal_form: Unicode normal form, "NFC" or "" for none; tokenizers that are trained store it.

    Raises:
      UserError: no such tokenizer, or a normal form for a tokenizer that is not trained.
    """
    name = expanded(name)
    require(
        not normal_form or needs_training(name),
        f"got normal_form={normal_form} for the tokenizer {name}; expected one that is trained on "
        f"the corpus, {' or '.join(TRAINED)}: others keep the form that they were made with.",
    )
    if name == "bytes":
        return ByteTokenizer()
    if name == "text8":
        return Text8Tokenizer()
    if name == "characters":
        return CharacterTokenizer.train(documents(), normal_form)
    if name == "sentencepiece":
        how = (vocab_size, model, sample_characters, normal_form)
        return SentencePieceTokenizer.train(documents(), *how)
    if name.startswith("hf:"):
        with named_damage(f"tokenizer {name}", _MEND):
            return HuggingFaceTokenizer.load(name.removeprefix("hf:"))
    if epath.Path(name).is_dir():
        return load_tokenizer(name)
    valid = (
        "bytes",
        "text8",
        *TRAINED,
        "hf:NAME_OR_FOLDER",
        "the path of a folder with a saved tokenizer",
    )
    raise unknown_name("tokenizer", name, valid)
