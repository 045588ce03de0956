"""Parts of a text as tokens: none begins a text but the first, words go on where they go on."""

import pytest

from flm_jax.data.tokenizers import in_context
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from helpers import chat_tokenizers

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    folders = {
        "first": chat_tokenizers.metaspace(folder / "first"),
        "always": chat_tokenizers.metaspace(folder / "always", "always"),
        "pieces": chat_tokenizers.word_pieces(folder / "pieces"),
        "bytes": chat_tokenizers.save(folder / "bytes", chat_tokenizers.byte_level(["</s>"])),
    }
    return {name: HuggingFaceTokenizer.load(str(path)) for name, path in folders.items()}


def pieces(tokenizer, parts):
    return [
        [tokenizer._backend.id_to_token(int(i)) for i in ids]
        for ids in tokenizer.encode_parts(parts)
    ]


@pytest.mark.parametrize("name", ["first", "always"])
def test_a_space_stands_before_the_text_alone(tokenizers, name):
    found = pieces(tokenizers[name], ["ab", "c a", " a", "", "x"])
    assert found == [["\u2581a", "b"], ["c", "\u2581a"], ["\u2581a"], [], ["x"]]
    assert pieces(tokenizers[name], ["", "ab"]) == [[], ["a", "b"]]
    assert pieces(tokenizers[name], ["ab"]) == [["\u2581a", "b"]]


def test_words_go_on(tokenizers):
    assert pieces(tokenizers["pieces"], ["un", "able"]) == [["un"], ["##able"]]
    assert pieces(tokenizers["pieces"], ["the ", " cat", "s."]) == [["the"], ["cat"], ["##s", "."]]


def test_bytes_stand_for_themselves(tokenizers):
    parts = ["The ", " of the\n", "(x)", "\ufdd1"]
    own = tokenizers["bytes"]
    found = own.encode_parts(parts)
    assert [own.decode(ids) for ids in found] == parts
    for ids, part in zip(found, parts):
        assert ids.tolist() == own.encode(part).tolist()
    assert [ids.tolist() for ids in ByteTokenizer().encode_parts(["a", ""])] == [[97], []]


def test_parts_that_cannot_be_told_apart_stand_alone(tokenizers, monkeypatch):
    monkeypatch.setattr(in_context, "_STAND_INS", ("\ufdd1",))
    assert pieces(tokenizers["pieces"], ["un", "able"]) == [["un"], ["able"]]
