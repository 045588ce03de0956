"""Hugging Face tokenizers, from a folder or the hub (extra `hf`)."""

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from etils import epath

from flm_jax.core.downloads import downloading
from flm_jax.core.errors import UserError, require
from flm_jax.core.extras import import_extra
from flm_jax.core.paths import hub_name
from flm_jax.core.reading import named_damage, read_bounded
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.data.tokenizers.chat_template import (
    CHAT_FILES,
    NO_CHAT,
    ChatSettings,
    read_chat_settings,
)
from flm_jax.data.tokenizers.exchanges import CONTROL, Framer, controls_of
from flm_jax.data.tokenizers.in_context import encoded_in_context

_HF_FILES = ("tokenizer.json", *CHAT_FILES)
# Names tried, in this order, for special tokens that a Hugging Face folder does not declare.
_HF_SPECIALS = {
    "bos": ("[CLS]", "<s>", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "<|endoftext|>"),
    "eos": ("[SEP]", "</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>"),
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "mask": ("[MASK]", "<mask>", "<|mdm_mask|>", "<|mask|>"),
}


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer from `tokenizer.json`, by the package `tokenizers` (extra `hf`).

    Its special tokens are the files' special tokens and the tokens that end an answer, but not the
    unknown token, which stands for text.

    Args:
      definition: content of tokenizer.json.
      specials: dict from role to the text of the token, or None.
      chat: settings in the other files, with which exchanges are framed.
    """

    kind = "hf"
    file_names = ("tokenizer.json",)

    def __init__(
        self,
        definition: bytes,
        specials: dict[str, str | None],
        chat: ChatSettings = NO_CHAT,
    ):
        self._definition = definition
        self._specials = dict(specials)
        self._chat = chat
        self._backend = _backend_of(definition)
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
        special, self._controls = controls_of(self._backend, vocabulary, chat)
        ids = {*special.values(), *self._declared_ends(), *self._role_names()}
        self._special_ids = frozenset(ids - {self.unknown_id})
        # Otherwise the text "[MASK]" would encode to the mask token.
        _spell(self._backend, self._controls)

    @property
    def special_ids(self) -> frozenset[int]:
        return self._special_ids

    @property
    def special_names(self) -> dict[int, str]:
        others = {i: self._backend.id_to_token(i) for i in sorted(self._special_ids)}
        return others | self._role_names()

    def _declared_ends(self) -> set[int]:
        return self._pieces & {self.eos_id, *self._chat.end_ids}

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        return frozenset(self._declared_ends() | ({self.turn_end_id} - {None}))

    @property
    def has_template(self) -> bool:
        return bool(self._chat.template)

    @functools.cached_property
    def turn_end_id(self) -> int | None:
        return self._framer.turn_end() if self._framer else None

    @functools.cached_property
    def _framer(self) -> Framer | None:
        if not self.has_template:
            return None
        backend = _backend_of(self._definition)
        _spell(backend, self._controls)
        # Found in the text as it is, whatever the tokenizer makes of it.
        backend.add_tokens([_import_hf("tokenizers").AddedToken(CONTROL, normalized=False)])
        return Framer(backend, self._controls, self._chat)

    def encode_turns(self, turns: Sequence[str]) -> np.ndarray | None:
        return self._framer.encode(turns) if self._framer else None

    def encode_parts(self, parts: Sequence[str]) -> list[np.ndarray]:
        found = encoded_in_context(self._backend, parts) if len(parts) > 1 else None
        return super().encode_parts(parts) if found is None else found

    def encode(self, text: str) -> np.ndarray:
        with _named_damage():
            return np.array(self._backend.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return _encoded(self._backend, texts)

    def decode_whole(self, ids: Iterable[int]) -> str:
        return self._decode(list(map(int, ids)))

    def encode_whole(self, texts: Sequence[str]) -> list[np.ndarray]:
        return _encoded(self._plain, texts)

    @functools.cached_property
    def _plain(self) -> Any:
        """Backend as defined in the files: special tokens in a text are special."""
        backend = _backend_of(self._definition)
        backend.encode_special_tokens = False
        return backend

    def _decode(self, ids: list[int]) -> str:
        with _named_damage():
            return self._backend.decode(ids, skip_special_tokens=False)

    def _has_piece(self, token: int) -> bool:
        return token in self._pieces

    def spec(self) -> dict[str, Any]:
        return {"specials": self._specials}

    def files(self) -> dict[str, bytes]:
        return {"tokenizer.json": self._definition}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], files: dict[str, bytes]) -> "HuggingFaceTokenizer":
        return cls(files["tokenizer.json"], spec["specials"], _settings(spec.get("chat", {})))

    def unprinted(self) -> dict[str, Any]:
        return {"chat": self._chat._asdict()}

    @classmethod
    def load(cls, name: str) -> "HuggingFaceTokenizer":
        """Reads a folder that holds `tokenizer.json`, or fetches a name from the hub."""
        folder = epath.Path(name)
        if folder.is_dir():
            there = [f for f in _HF_FILES if (folder / f).exists()]
            found = {f: read_bounded(folder / f, "a tokenizer's file") for f in there}
        else:
            found = _fetch_hf(name)
        require(
            "tokenizer.json" in found,
            f"tokenizer hf:{name} has no tokenizer.json; expected a fast tokenizer",
        )
        chat = read_chat_settings(found)
        return cls(found["tokenizer.json"], _hf_specials(found, chat.names), chat)


def _settings(saved: Mapping[str, Any]) -> ChatSettings:
    """Inverse of ChatSettings._asdict, through JSON."""
    return ChatSettings(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})


def _named_damage() -> contextlib.AbstractContextManager[None]:
    """Of files that were read, what the package finds only as it uses them."""
    return named_damage("the tokenizer of this model or data", "restore its tokenizer.json")


def _encoded(backend: Any, texts: Sequence[str]) -> list[np.ndarray]:
    with _named_damage():
        encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, np.int32) for encoding in encodings]


def _backend_of(definition: bytes) -> Any:
    tokenizers = _import_hf("tokenizers")
    backend = tokenizers.Tokenizer.from_str(definition.decode("utf8"))
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    # All it does here is to trim the places of tokens, which `encoded_in_context` reads.
    processors = tokenizers.processors
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    return backend


def _spell(backend: Any, controls: Mapping[str, int]) -> None:
    """Makes the backend encode text that looks like one of these tokens as any other text."""
    found = [token for token in backend.get_added_tokens_decoder().values() if not token.special]
    found = [token for token in found if token.content in controls]
    for token in found:
        token.special = True
    backend.add_special_tokens(found)


def _import_hf(package: str) -> ModuleType:
    return import_extra(package, "hf", "tokenizer 'hf'")


def _fetch_hf(name: str) -> dict[str, bytes]:
    """Fetches the tokenizer's files from the Hugging Face hub or its local cache."""
    hub = _import_hf("huggingface_hub")
    hub.utils.logging.set_verbosity_error()  # it logs each retry; the error below says it once
    found = {}
    source, revision = hub_name(name)
    for filename in _HF_FILES:
        try:
            with downloading(f"{filename} of {name}"):
                path = hub.hf_hub_download(source, filename, revision=revision)
            found[filename] = read_bounded(path, "a tokenizer's file")
        except Exception as error:  # the hub raises many kinds; only the first file is needed
            if filename == "tokenizer.json":
                reason = str(error).strip().partition("\n")[0]
                raise UserError(
                    f"tokenizer hf:{name} is neither a folder here nor fetched from the hub "
                    f"({reason}); give a folder with tokenizer.json or a name and a network"
                ) from error
    return found


def _hf_specials(found: dict[str, bytes], declared: Mapping[str, str]) -> dict[str, str | None]:
    """Special tokens that the folder declares, else the first customary name it contains."""
    backend = _import_hf("tokenizers").Tokenizer.from_str(found["tokenizer.json"].decode("utf8"))
    vocabulary = backend.get_vocab(with_added_tokens=True)
    # BERT's files declare the classifier's names for what frames a text.
    aliases = {"bos": ("bos_token", "cls_token"), "eos": ("eos_token", "sep_token")}
    specials: dict[str, str | None] = {}
    for role, customary in _HF_SPECIALS.items():
        names = [declared.get(key) for key in aliases.get(role, (f"{role}_token",))]
        known = [name for name in (*filter(None, names), *customary) if name in vocabulary]
        specials[role] = known[0] if known else None
    return specials
