"""Built-in tokenizers: bytes, characters, text8, words and SentencePiece.

A tokenizer is defined by its `spec` (JSON) and its `files` (name to bytes); both together determine
its fingerprint, and `save` writes both, so that a folder of prepared data or of weights is
self-contained.
"""

import collections
import io
import itertools
import string
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import sentencepiece

from flm_jax.core.errors import UserError, one_of, require, unknown_name
from flm_jax.data.tokenizers.base import NO_PIECE, NORMAL_FORMS, Tokenizer
from flm_jax.data.tokenizers.line_sample import sample_lines

TOKENIZER_FOLDER = "tokenizer"
TRAINED = ("characters", "sentencepiece")
SENTENCEPIECE_MODELS = ("bpe", "unigram")
# Beside the characters of the texts: 256 byte pieces, five special ones and the line end, and as
# many learnt ones as make texts shorter than bytes are.
_BESIDE_CHARACTERS = 256 + 6 + 64
_COVERAGE = 0.9995  # share of all characters that have pieces
_SENTENCE_BYTES = 1000  # the trainer silently skips sentences over 4192 bytes, so lines are cut
SAMPLE_CHARACTERS = 10_000_000  # that SentencePiece learns from, unless told otherwise


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes (ids 0 to 255), then BOS, EOS, PAD and MASK."""

    kind = "bytes"
    vocab_size = 260
    bos_id, eos_id, pad_id, mask_id = 256, 257, 258, 259

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf8"), np.uint8).astype(np.int32)

    def _decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf8", errors="replace")

    def spec(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], files: dict[str, bytes]) -> "ByteTokenizer":
        return cls()


class CharacterTokenizer(Tokenizer):
    """BOS, EOS, PAD, MASK and an unknown, then the given characters in code point order."""

    kind = "characters"
    bos_id, eos_id, pad_id, mask_id = 0, 1, 2, 3
    unknown_id = 4

    def __init__(self, characters: Iterable[str], normal_form: str = ""):
        self.normal_form = _form(normal_form)
        self._characters = sorted(set(characters))
        self._ids = {c: i for i, c in enumerate(self._characters, start=self.unknown_id + 1)}
        self.vocab_size = self.unknown_id + 1 + len(self._characters)

    def encode(self, text: str) -> np.ndarray:
        return np.array([self._ids.get(c, self.unknown_id) for c in self._normal(text)], np.int32)

    def _decode(self, ids: list[int]) -> str:
        table = [NO_PIECE, *self._characters]
        return "".join(table[i - self.unknown_id] for i in ids)

    def spec(self) -> dict[str, Any]:
        return {"characters": "".join(self._characters)} | _remembered(self.normal_form)

    @classmethod
    def from_spec(cls, spec: dict[str, Any], files: dict[str, bytes]) -> "CharacterTokenizer":
        return cls(spec["characters"], spec.get("normal_form", ""))

    @classmethod
    def train(cls, documents: Iterable[str], normal_form: str = "") -> "CharacterTokenizer":
        """Builds the tokenizer of the characters in the documents, in their normal form."""
        seen, found = set(), cls("", normal_form)
        for text in documents:
            seen.update(found._normal(text))
        return cls(seen, normal_form)


class Text8Tokenizer(Tokenizer):
    """The ids of text8 in published models: eight special ones, then a to z and the space.

    Text is converted to lower case. Ids 0, 1 and 6 have no meaning here.
    """

    kind = "text8"
    vocab_size = 35
    bos_id, eos_id, mask_id, pad_id = 2, 3, 4, 5
    unknown_id = 7
    _characters = string.ascii_lowercase + " "

    def encode(self, text: str) -> np.ndarray:
        places = {c: i for i, c in enumerate(self._characters, start=self.unknown_id + 1)}
        return np.array([places.get(c, self.unknown_id) for c in text.lower()], np.int32)

    def _decode(self, ids: list[int]) -> str:
        table = [NO_PIECE, *self._characters]
        return "".join(table[i - self.unknown_id] for i in ids)

    def _has_piece(self, token: int) -> bool:
        return self.unknown_id <= token < self.vocab_size

    def spec(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], files: dict[str, bytes]) -> "Text8Tokenizer":
        return cls()


class WordTokenizer(Tokenizer):
    """A closed list of words separated by spaces, for synthetic tasks.

    Args:
      words: words of the vocabulary; the index of a word is its id.
      end: word that ends a text; empty for none. There are no other special tokens.
    """

    kind = "words"

    def __init__(self, words: Sequence[str], end: str = ""):
        require(
            len(set(words)) == len(words) > 0,
            f"word list has {len(words)} words, {len(set(words))} distinct; expected no repeats",
        )
        self._words = list(words)
        self._ids = {word: i for i, word in enumerate(words)}
        self.vocab_size = len(words)
        if end:
            self.eos_id = self._ids[end]

    def encode(self, text: str) -> np.ndarray:
        words = text.split()
        for word in words:
            if word not in self._ids:
                raise unknown_name("word", word, self._words)
        return np.array([self._ids[word] for word in words], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Joins words by spaces; an id without a word is U+FFFD."""
        return " ".join(
            self._decode([i]) if self._has_piece(i) else NO_PIECE for i in map(int, ids)
        )

    def _decode(self, ids: list[int]) -> str:
        return " ".join(self._words[i] for i in ids)

    def spec(self) -> dict[str, Any]:
        end = {} if self.eos_id is None else {"end": self._words[self.eos_id]}
        return {"words": self._words} | end

    @classmethod
    def from_spec(cls, spec: dict[str, Any], files: dict[str, bytes]) -> "WordTokenizer":
        return cls(spec["words"], spec.get("end", ""))


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model trained here; decode(encode(text)) == text with byte pieces.

    It has byte pieces if they leave room for the characters of the texts and 64 learnt pieces.
    Limit: U+2581, SentencePiece's own sign for a space, decodes to a space.
    """

    kind = "sentencepiece"
    file_names = ("sentencepiece.model",)
    unknown_id, bos_id, eos_id, pad_id, mask_id = 0, 1, 2, 3, 4

    def __init__(self, model: bytes, normal_form: str = ""):
        self.normal_form = _form(normal_form)
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.vocab_size()

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._processor.encode(self._normal(text)), np.int32)

    @property
    def characters(self) -> int:
        """Number of characters that are pieces."""
        special = {self._processor.piece_to_id("\n"), *range(self.mask_id + 1)}
        pieces = (i for i in range(self.vocab_size) if i not in special)
        return sum(len(self._processor.id_to_piece(i)) == 1 for i in pieces)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = self._processor.encode([self._normal(text) for text in texts])
        return [np.array(ids, np.int32) for ids in found]

    def _decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def spec(self) -> dict[str, Any]:
        return _remembered(self.normal_form)

    def files(self) -> dict[str, bytes]:
        return {"sentencepiece.model": self._model}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], files: dict[str, bytes]) -> "SentencePieceTokenizer":
        return cls(files["sentencepiece.model"], spec.get("normal_form", ""))

    @classmethod
    def train(
        cls,
        documents: Iterable[str],
        vocab_size: int,
        model: str = "bpe",
        characters: int = SAMPLE_CHARACTERS,
        normal_form: str = "",
    ) -> "SentencePieceTokenizer":
        """Trains on a sample of the lines; the same documents give the same model.

        Args:
          documents: training text.
          vocab_size: total number of pieces, including special tokens and byte pieces.
          model: one of `SENTENCEPIECE_MODELS`; bpe trains about twenty times faster.
          characters: number of characters of the sample; a smaller corpus is used completely.
          normal_form: normal form to which text is converted, one of `NORMAL_FORMS`; "" for none.
        """
        _form(normal_form)
        if normal_form:
            documents = (unicodedata.normalize(normal_form, text) for text in documents)
        one_of("sentencepiece model", model, SENTENCEPIECE_MODELS)
        require(characters > 0, f"got a sample of {characters} characters; expected at least 1")
        out, lines = io.BytesIO(), sample_lines(_sentences(documents), characters)
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=out,
                model_type=model,
                vocab_size=vocab_size,
                byte_fallback=vocab_size >= _BESIDE_CHARACTERS + _covered(lines),
                character_coverage=_COVERAGE,
                unk_id=cls.unknown_id,
                bos_id=cls.bos_id,
                eos_id=cls.eos_id,
                pad_id=cls.pad_id,
                # A control symbol, unlike a user-defined one, is never produced from text.
                control_symbols=["<mask>"],
                user_defined_symbols=["\n"],
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                num_threads=1,
                minloglevel=2,
            )
        except (RuntimeError, OSError, ValueError) as error:
            # Without the trainer's source line and its advice on an option not offered here.
            reason = str(error).rpartition("] ")[2].partition(" or decrease")[0].strip()
            reason = reason or "too few pieces for the characters of its texts; expected more"
            raise UserError(
                f"SentencePiece cannot train a vocabulary of {vocab_size} on this corpus: {reason}"
            ) from error
        return cls(out.getvalue(), normal_form)


def byte_pieces_from(tokenizer: Tokenizer) -> int | None:
    """Vocabulary size from which SentencePiece can spell all training texts of a tokenizer.

    It is None if that cannot be inferred from the tokenizer.
    """
    if isinstance(tokenizer, CharacterTokenizer):
        return _BESIDE_CHARACTERS + len(tokenizer.spec()["characters"])
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _BESIDE_CHARACTERS + tokenizer.characters
    return None


def _covered(lines: Iterable[str]) -> int:
    """Number of characters for which the trainer makes pieces; it drops final carriage returns."""
    counts = collections.Counter(itertools.chain.from_iterable(x.rstrip("\r") for x in lines))
    least, found = _COVERAGE * counts.total(), 0
    for number, (_, count) in enumerate(counts.most_common()):
        if found >= least:
            return number
        found += count
    return len(counts)


def _form(name: str) -> str:
    """Checks a normal form by name, or "" for none."""
    return name and one_of("normal_form", name, NORMAL_FORMS)


def _remembered(normal_form: str) -> dict[str, str]:
    """Entry of a spec for a normal form; none without one, as in specs of older versions."""
    return {"normal_form": normal_form} if normal_form else {}


def _sentences(documents: Iterable[str]) -> Iterator[str]:
    """Lines of the documents, cut to the length that the trainer accepts."""
    step = _SENTENCE_BYTES // 4  # a character has at most 4 bytes
    for text in documents:
        for line in text.split("\n"):
            yield from (line[i : i + step] for i in range(0, len(line), step))
