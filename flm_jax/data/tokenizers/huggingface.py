"""Hugging Face tokenizers, from a folder or the hub (extra `hf`)."""

import importlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from flm_jax.core.errors import UserError, require
from flm_jax.data.tokenizers.base import Tokenizer

_HF_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Names tried, in this order, for special tokens that a Hugging Face folder does not declare.
_HF_SPECIALS = {
    "bos": ("[CLS]", "<s>", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "<|endoftext|>"),
    "eos": ("[SEP]", "</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>"),
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "mask": ("[MASK]", "<mask>", "<|mdm_mask|>", "<|mask|>"),
}


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, read by the package `tokenizers` (extra `hf`)."""

    kind = "hf"

    def __init__(self, definition: bytes, specials: dict[str, str | None]):
        self._definition = definition
        self._specials = dict(specials)
        self._backend = _import_hf("tokenizers").Tokenizer.from_str(definition.decode("utf8"))
        # Otherwise the text "[MASK]" would encode to the mask token.
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self._pieces = frozenset(vocabulary.values())  # the numbers may have gaps
        self.vocab_size = max(self._pieces) + 1
        self.unknown_id = vocabulary.get(getattr(self._backend.model, "unk_token", None))
        for role, token in self._specials.items():
            require(
                token is None or token in vocabulary,
                f"{role} token {token!r} is not in the tokenizer's vocabulary; "
                "mend tokenizer_config.json or special_tokens_map.json",
            )
            setattr(self, f"{role}_id", None if token is None else vocabulary[token])

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)

    def _has_piece(self, token: int) -> bool:
        return token in self._pieces

    def spec(self) -> dict[str, Any]:
        return {"specials": self._specials}

    def files(self) -> dict[str, bytes]:
        return {"tokenizer.json": self._definition}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], files: dict[str, bytes]) -> "HuggingFaceTokenizer":
        return cls(files["tokenizer.json"], spec["specials"])

    @classmethod
    def load(cls, name: str) -> "HuggingFaceTokenizer":
        """Reads a folder that holds `tokenizer.json`, or fetches a name from the hub."""
        folder = epath.Path(name)
        if folder.is_dir():
            found = {f: (folder / f).read_bytes() for f in _HF_FILES if (folder / f).exists()}
        else:
            found = _fetch_hf(name)
        require(
            "tokenizer.json" in found,
            f"tokenizer hf:{name} has no tokenizer.json; expected a fast tokenizer",
        )
        return cls(found["tokenizer.json"], _hf_specials(found))


def _import_hf(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"tokenizer 'hf' needs the package `{package}`, which is not installed: "
            "pip install 'flm-jax[hf]'"
        ) from error


def _fetch_hf(name: str) -> dict[str, bytes]:
    """The tokenizer's files from the Hugging Face hub or its local cache."""
    hub = _import_hf("huggingface_hub")
    hub.utils.logging.set_verbosity_error()  # it logs each retry; the error below says it once
    found = {}
    for filename in _HF_FILES:
        try:
            found[filename] = epath.Path(hub.hf_hub_download(name, filename)).read_bytes()
        except Exception as error:  # the hub raises many kinds; only the first file is needed
            if filename == "tokenizer.json":
                reason = str(error).strip().partition("\n")[0]
                raise UserError(
                    f"tokenizer hf:{name} is neither a folder here nor fetched from the hub "
                    f"({reason}); give a folder with tokenizer.json or a name and a network"
                ) from error
    return found


def _hf_specials(found: dict[str, bytes]) -> dict[str, str | None]:
    """Special tokens that the folder declares, else the first customary name it knows."""
    declared: dict[str, Any] = {}
    for filename in _HF_FILES[1:]:
        declared.update(json.loads(found.get(filename, b"{}")))
    backend = _import_hf("tokenizers").Tokenizer.from_str(found["tokenizer.json"].decode("utf8"))
    vocabulary = backend.get_vocab(with_added_tokens=True)
    # BERT's files declare the classifier's names for what frames a text.
    aliases = {"bos": ("bos_token", "cls_token"), "eos": ("eos_token", "sep_token")}
    specials: dict[str, str | None] = {}
    for role, customary in _HF_SPECIALS.items():
        values = [declared.get(key) for key in aliases.get(role, (f"{role}_token",))]
        names = [value["content"] if isinstance(value, dict) else value for value in values]
        known = [name for name in (*filter(None, names), *customary) if name in vocabulary]
        specials[role] = known[0] if known else None
    return specials
