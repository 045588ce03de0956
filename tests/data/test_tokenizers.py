"""Round trips, determinism, special tokens and persistence of every tokenizer."""

import base64
import json
import os
import pickle
import signal
import subprocess
import sys
from pydoc_data.topics import topics

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.core.reading import read_object
from flm_jax.data.corpus import encoder as corpus_encoder
from flm_jax.data.tokenizers.builtin import (
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    WordTokenizer,
    byte_pieces_from,
)
from flm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from flm_jax.data.tokenizers.registry import load_tokenizer, make_tokenizer

TEXT = "Flow maps, naïve café - 漢字 🙂\n\n\tdef f(x):\r\n    return  x  # ok \n"
ENGLISH = "\n".join(topics[name] for name in ("assert", "for", "if", "import", "with"))
SPECIAL_TEXT = "<mask> [MASK] <s> </s> [CLS] <|endoftext|> <pad> <unk>"


def _train(vocab_size=600, model="bpe"):
    return SentencePieceTokenizer.train([ENGLISH, TEXT], vocab_size, model)


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    """A byte-level BPE with BERT's special tokens, as a Hugging Face folder."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("hf")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([ENGLISH], trainer)
    backend.enable_truncation(8)  # to be undone: documents are never cut by the tokenizer
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def every_tokenizer(hf_folder):
    return {
        "bytes": ByteTokenizer(),
        "characters": CharacterTokenizer.train([TEXT, SPECIAL_TEXT]),
        "sentencepiece": _train(),
        "hf": HuggingFaceTokenizer.load(str(hf_folder)),
    }


KINDS = ["bytes", "characters", "sentencepiece", "hf"]


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(every_tokenizer, kind):
    tokenizer = every_tokenizer[kind]
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == TEXT
    framed = [tokenizer.bos_id, *ids, tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(framed) == TEXT
    assert [list(x) for x in tokenizer.encode_batch([TEXT, "a"])] == [
        list(tokenizer.encode(TEXT)),
        list(tokenizer.encode("a")),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_encodes_to_a_special_token(every_tokenizer, kind):
    tokenizer = every_tokenizer[kind]
    assert len(tokenizer.special_ids) == (5 if kind == "hf" else 4)  # [UNK] is none of this model
    assert not tokenizer.special_ids & set(tokenizer.encode(SPECIAL_TEXT).tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_written_and_read_where_they_are_asked_for(every_tokenizer, kind):
    tokenizer = every_tokenizer[kind]
    framed = [tokenizer.bos_id, *tokenizer.encode("def f(x)"), tokenizer.eos_id, tokenizer.eos_id]
    text = tokenizer.decode_whole(framed)
    assert "def f(x)" in text and len(text) > len("def f(x)") + 6
    found = tokenizer.encode_whole([text, "f(x)"])
    assert [list(ids) for ids in found] == [framed, list(tokenizer.encode("f(x)"))]
    assert found[0].dtype == np.int32 and tokenizer.encode_whole([""])[0].shape == (0,)


def test_an_id_without_a_piece_is_a_replacement_character(every_tokenizer):
    """A model whose vocabulary was padded to a round number may write one."""
    kinds = every_tokenizer | {"words": WordTokenizer(["one", "two"])}
    for kind, tokenizer in kinds.items():
        text = "one two" if kind == "words" else "def f(x)"
        ids = [int(i) for i in tokenizer.encode(text)]
        for beyond in (tokenizer.vocab_size, tokenizer.vocab_size + 999, -1):
            if kind == "words":
                assert tokenizer.decode([ids[0], beyond, ids[1]]) == "one \ufffd two"
            else:
                assert tokenizer.decode([*ids, beyond, beyond, *ids]) == f"{text}\ufffd\ufffd{text}"
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(every_tokenizer, kind, tmp_path):
    tokenizer = every_tokenizer[kind]
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.special_ids == tokenizer.special_ids
    np.testing.assert_array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))


@pytest.mark.parametrize("kind", KINDS)
def test_workers_make_the_tokenizer_again(every_tokenizer, kind, monkeypatch):
    tokenizer = every_tokenizer[kind]
    texts = [TEXT, SPECIAL_TEXT, ""]
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Ctrl-C of the tests stays theirs
    sent = pickle.dumps((type(tokenizer), tokenizer.spec(), tokenizer.files()))
    corpus_encoder._start(*pickle.loads(sent))
    ids, ends = corpus_encoder._encode(texts)
    for found, expected in zip(np.split(ids, ends[:-1]), tokenizer.encode_batch(texts)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_sentencepiece_training_is_deterministic(model):
    first = _train(400, model)
    assert first.fingerprint == _train(400, model).fingerprint
    other = SentencePieceTokenizer.train([ENGLISH.upper(), TEXT], 400, model)
    assert first.fingerprint != other.fingerprint


def test_sentencepiece_training_is_deterministic_across_processes(tmp_path):
    (tmp_path / "a.txt").write_text(ENGLISH)
    program = (
        "import sys; from flm_jax.data.tokenizers.builtin import SentencePieceTokenizer as T;"
        "print(T.train([open(sys.argv[1]).read()], 520).fingerprint)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.txt")]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert other == SentencePieceTokenizer.train([ENGLISH], 520).fingerprint


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_sentencepiece_has_byte_pieces_wherever_they_fit(model):
    """Beside the characters that have pieces, and 64 that are learnt."""
    texts = [ENGLISH, "cafe\u0301 漢 é\r\n" * 40, "🙂"]
    for small, unknown in ((128, True), (None, True), (None, False)):
        small = small or least - unknown
        tokenizer = SentencePieceTokenizer.train(texts, small, model)
        least = byte_pieces_from(tokenizer)
        assert tokenizer.vocab_size == small
        assert (tokenizer.unknown_id in tokenizer.encode("🙂")) == unknown
        assert (tokenizer.decode(tokenizer.encode(TEXT)) == TEXT) == (not unknown)
        assert tokenizer.decode(tokenizer.encode("the map")) == "the map"
    assert tokenizer.vocab_size == least
    # Not all characters have pieces: one of them is in 99.95% of the texts.
    assert 326 + 60 < least < byte_pieces_from(CharacterTokenizer.train(texts))
    assert len(tokenizer.encode(ENGLISH)) < 0.65 * len(ENGLISH)
    assert byte_pieces_from(ByteTokenizer()) is None


def test_sentencepiece_learns_from_lines_longer_than_the_trainer_takes():
    tokenizer = SentencePieceTokenizer.train(["zyzzyva " * 2000], 32)
    assert len(tokenizer.encode("zyzzyva ")) < 4


def test_sentencepiece_learns_from_a_sample_of_the_whole_corpus():
    documents = ["ab\n" * 2000, "zyzzyva\n" * 2000]
    tokenizer = SentencePieceTokenizer.train(documents, 16, characters=400)
    assert len(tokenizer.encode("zyzzyva")) <= 2
    whole = SentencePieceTokenizer.train([ENGLISH], 400)
    assert SentencePieceTokenizer.train([ENGLISH], 400, "bpe", len(ENGLISH)).fingerprint == (
        whole.fingerprint
    )
    part = SentencePieceTokenizer.train([ENGLISH], 400, "bpe", len(ENGLISH) // 2)
    assert part.fingerprint != whole.fingerprint
    with pytest.raises(UserError, match="a sample of 0 characters"):
        SentencePieceTokenizer.train([ENGLISH], 400, "bpe", 0)


def test_sentencepiece_vocabulary_too_large():
    with pytest.raises(UserError, match="vocabulary of 9000 .* Vocabulary size too high"):
        SentencePieceTokenizer.train(["a few words"], 9000)


def test_characters_unknown():
    tokenizer = CharacterTokenizer.train(["abc"])
    assert tokenizer.vocab_size == 8
    assert tokenizer.decode(tokenizer.encode("abz")) == "ab\N{REPLACEMENT CHARACTER}"


def test_words():
    tokenizer = WordTokenizer(["new", "york"])
    assert tokenizer.special_ids == frozenset()
    assert tokenizer.decode(tokenizer.encode("york new")) == "york new"
    with pytest.raises(UserError, match="unknown word 'jork'; did you mean 'york'"):
        tokenizer.encode("jork")


def test_hf_specials_by_custom_and_by_declaration(hf_folder, tmp_path):
    tokenizer = HuggingFaceTokenizer.load(str(hf_folder))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (0, 2, 3, 4)
    (tmp_path / "tokenizer.json").write_bytes((hf_folder / "tokenizer.json").read_bytes())
    declared = {"eos_token": {"content": "[UNK]"}, "bos_token": None}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(declared))
    tokenizer = HuggingFaceTokenizer.load(str(tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 1)


def test_gpt2_like_vocabulary_has_one_special(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a")
    )
    backend.add_special_tokens(["<|endoftext|>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HuggingFaceTokenizer.load(str(tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 1)
    assert tokenizer.pad_id is None
    assert tokenizer.mask_id is None


def test_errors_name_the_mend(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="did you mean 'bytes'"):
        make_tokenizer("byte", lambda: [])
    with pytest.raises(UserError, match="spec.json is missing"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="has no tokenizer.json"):
        make_tokenizer(f"hf:{tmp_path}", lambda: [])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="needs the package `tokenizers`"):
        make_tokenizer(f"hf:{tmp_path}", lambda: [])


def test_hub_failure_is_one_line(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def offline(*args, **kwargs):
        raise OSError("no network\nlong advice")

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"fetched from the hub \(no network\)") as caught:
        make_tokenizer("hf:bert-base-uncased", lambda: [])
    assert "\n" not in str(caught.value)


def test_a_spec_of_another_s_hand_reads_its_own_files_alone(every_tokenizer, tmp_path):
    """Devices, pipes, files elsewhere; files too large; damaged ones of every kind."""
    folder = tmp_path / "tokenizer"
    every_tokenizer["sentencepiece"].save(folder)
    spec, model = json.loads((folder / "spec.json").read_text()), folder / "sentencepiece.model"
    (tmp_path / "secret").write_text("hush")
    for files in (
        ["/dev/zero"],
        ["../secret"],
        ["sentencepiece.model", "../secret"],
        [],
        None,
        "a",
    ):
        (folder / "spec.json").write_text(json.dumps(spec | {"files": files}))
        with pytest.raises(UserError, match=r"names the files .* has \['sentencepiece.model'\]"):
            load_tokenizer(folder)
    (folder / "spec.json").write_text(json.dumps(spec))
    model.write_bytes(b"garbage")
    with pytest.raises(UserError, match="tokenizer .* is damaged .*; restore its files"):
        load_tokenizer(folder)
    model.unlink()
    os.mkfifo(model)
    with pytest.raises(UserError, match="sentencepiece.model is no plain file; expected"):
        load_tokenizer(folder)
    for kind, value in (("characters", 5), ("words", [["a"]]), ("bytes", None), ("nothing", 1)):
        told = {"kind": kind, "files": [], "characters": value, "words": value}
        (folder / "spec.json").write_text(json.dumps(told))
        if kind == "bytes":
            assert load_tokenizer(folder).kind == kind
            continue
        with pytest.raises(UserError, match="is damaged|unknown tokenizer kind"):
            load_tokenizer(folder)
    for damage in (b"", b"{", b"[]", b"5", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000):
        (folder / "spec.json").write_bytes(damage)
        with pytest.raises(UserError, match="spec.json (is no JSON|holds a JSON)"):
            load_tokenizer(folder)
    (folder / "spec.json").write_bytes(b" " * 101)
    with pytest.raises(UserError, match="spec.json has more than 100 bytes"):
        read_object(folder / "spec.json", "settings", most=100)


def test_damaged_files_of_hugging_face_are_named(hf_folder, tmp_path):
    for damage in (b"", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "tokenizer.json").write_bytes(damage)
        with pytest.raises(UserError, match="tokenizer hf:.* is damaged"):
            make_tokenizer(f"hf:{tmp_path}", lambda: [])
    (tmp_path / "tokenizer.json").write_bytes((hf_folder / "tokenizer.json").read_bytes())
    for name in ("tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_bytes(b"[" * 100_000)
        with pytest.raises(UserError, match=f"{name} is no JSON"):
            make_tokenizer(f"hf:{tmp_path}", lambda: [])
        (tmp_path / name).unlink()


def test_what_the_library_of_hugging_face_gives_up_on_is_named(hf_folder, tmp_path):
    """It panics, which is no `Exception`, as it reads a file, or only when it uses it."""
    definition = json.loads((hf_folder / "tokenizer.json").read_bytes())
    for content in (b"", b"\x04\0\0\0" + b"\xff" * 60):
        charsmap = base64.b64encode(content).decode()
        normalizer = {"type": "Precompiled", "precompiled_charsmap": charsmap}
        text = json.dumps(definition | {"normalizer": normalizer})
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match="is damaged .*restore"):
            make_tokenizer(f"hf:{tmp_path}", lambda: []).encode("words")
    model = {"type": "Unigram", "unk_id": None, "vocab": [["</s>", 0.0], ["a", -1.0]]}
    unigram = definition | {"model": model, "added_tokens": [], "pre_tokenizer": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    tokenizer = make_tokenizer(f"hf:{tmp_path}", lambda: [])
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(UserError, match="tokenizer of this model or data is damaged"):
            encode("words")


def test_a_revision_is_asked_for(hf_folder, monkeypatch):
    hub, asked = pytest.importorskip("huggingface_hub"), []

    def download(name, filename, revision):
        asked.append((name, filename, revision))
        if not (hf_folder / filename).exists():
            raise OSError("none")
        return str(hf_folder / filename)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert make_tokenizer("hf:owner/name@abc123", lambda: []).kind == "hf"
    assert asked[0] == ("owner/name", "tokenizer.json", "abc123")
    make_tokenizer("hf:owner/name", lambda: [])
    assert asked[-1][::2] == ("owner/name", None)
