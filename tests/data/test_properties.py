"""Properties of tokenizers, packing, prompts, infills and stored tokens: any text, any damage."""

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.corpus.prepare import PrepareConfig, prepare
from flm_jax.data.corpus.sources import SourceConfig
from flm_jax.data.corpus.store import load_prepared
from flm_jax.data.packing import PackedSource
from flm_jax.data.tokenizers.builtin import (
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
)
from flm_jax.inference.prompts import Prompt, answer_texts, lay_out
from helpers.prompts import byte_model

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as some  # noqa: E402

few = hypothesis.settings(max_examples=60, deadline=None, database=None, derandomize=True)
TEXTS = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
LINES = [*(Path(__file__).parents[2] / "CONTRIBUTING.md").read_text().split("\n"), "caf\u00e9"] * 4


@pytest.fixture(scope="module")
def trained():
    pieces = lambda form: SentencePieceTokenizer.train(LINES, 512, normal_form=form)
    return {form: pieces(form) for form in ("", "NFC")}


@few
@hypothesis.given(TEXTS)
@hypothesis.example("cafe\u0301")
def test_what_is_encoded_is_decoded(trained, text):
    for tokenizer in (ByteTokenizer(), CharacterTokenizer(text), *trained.values()):
        form = tokenizer.normal_form
        want = unicodedata.normalize(form, text) if form else text
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == want
        assert set(ids.tolist()) <= set(range(tokenizer.vocab_size)) - tokenizer.special_ids
        np.testing.assert_array_equal(tokenizer.encode_batch([text])[0], ids)


def test_a_normal_form_is_remembered(trained, tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    characters = [CharacterTokenizer.train([apart], form) for form in ("", "NFC")]
    for plain, nfc in (characters, trained.values()):
        assert len(plain.encode(apart)) > len(nfc.encode(apart)) == len(nfc.encode(composed))
        assert plain.fingerprint != nfc.fingerprint and "normal_form" not in plain.spec()
        again = type(nfc).from_spec(nfc.spec(), nfc.files())
        assert again.decode(again.encode(apart)) == composed
    (tmp_path / "a.txt").write_text("\n".join([apart] * 40))
    source = SourceConfig("text", str(tmp_path / "a.txt"), split_documents="line")
    how = dict(out=str(tmp_path / "data"), tokenizer="characters")
    prepare(PrepareConfig(source, normal_form="NFC", **how), log=lambda line: None)
    found = load_prepared(tmp_path / "data")
    assert found.tokenizer.decode(found.split("train").document(0)) == composed
    with pytest.raises(UserError, match="normal_form"):
        prepare(PrepareConfig(source, **how), log=lambda line: None)
    with pytest.raises(UserError, match="got normal_form=NFC for the tokenizer bytes; expected"):
        prepare(PrepareConfig(source, str(tmp_path / "b"), "bytes", normal_form="NFC"))
    with pytest.raises(UserError, match="unknown normal_form 'nfkc'; did you mean 'NFC'|unknown"):
        CharacterTokenizer("", "nfkc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored")
    (path / "a.txt").write_text("\n".join(f"{n} " + "x" * (n % 7) for n in range(50)))
    source = SourceConfig("text", str(path / "a.txt"), split_documents="line", valid_fraction=0.2)
    prepare(PrepareConfig(source, str(path / "data"), "bytes"), log=lambda line: None)
    return path


@few
@hypothesis.given(some.integers(3, 40), some.sampled_from(["wrap", "stream", "pad"]))
def test_packing_loses_a_last_block_alone(folder, length, packing):
    stream, tokenizer = load_prepared(folder / "data").split("train"), ByteTokenizer()
    source = PackedSource(stream, tokenizer, length, packing, 0)
    rows = [source[i] for i in range(len(source))]
    documents = [stream.document(i).tolist() for i in range(stream.documents)]
    assert all(row["tokens"].shape == row["mask"].shape == (length,) for row in rows)
    if packing == "pad":
        for row, document in zip(rows, documents, strict=True):
            want = [tokenizer.bos_id, *document, tokenizer.eos_id][:length]
            assert row["tokens"][row["mask"]].tolist() == want
        return
    edge = 0 if packing == "stream" else 1
    joined = [token for document in documents for token in (*document, tokenizer.eos_id)]
    cut = [token for row in rows for token in row["tokens"][edge : length - edge].tolist()]
    assert cut == joined[: len(cut)] and len(joined) - len(cut) < length - 2 * edge + 1
    assert all(row["mask"].all() for row in rows)


@few
@hypothesis.given(some.data())
def test_torn_files_are_refused_or_whole(folder, data):
    """A byte changed, or an end lost, in any file: one line, or the same tokens."""
    broken = folder / "broken"
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(folder / "data", broken)
    files = sorted(path for path in broken.rglob("*") if path.is_file())
    path = data.draw(some.sampled_from(files))
    content = bytearray(path.read_bytes())
    place = data.draw(some.integers(0, max(len(content) - 1, 0)))
    if data.draw(some.booleans()):
        content = content[:place]
    elif content:
        content[place] = data.draw(some.integers(0, 255))
    path.write_bytes(content)
    tokens = lambda where: [
        load_prepared(where, verify=True).split(name).read(0, 60).tolist()
        for name in ("train", "valid")
    ]
    try:
        found = tokens(broken)
    except UserError as error:
        assert "\n" not in str(error).strip()
    else:
        assert found == tokens(folder / "data")


MODELS = {packing: byte_model(packing=packing) for packing in ("stream", "pad")}


@few
@hypothesis.given(
    some.text(some.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    some.one_of(some.none(), some.integers(1, 20)),
    some.sampled_from(sorted(MODELS)),
)
def test_prompts_are_held_and_answers_cut_out(text, length, packing):
    model = MODELS[packing]
    rows = lay_out(model, [Prompt(text, answer_length=length)], 160)
    tokens, held = rows.given.tokens[0], rows.given.mask[0]
    start, stop = int(rows.starts[0]), int(rows.stops[0])
    assert held[:start].all() and not held[start:stop].any() and held[stop:].all()
    assert stop - start == length or (length is None and stop == len(tokens))
    written = np.array(tokens)
    written[start:stop] = 32
    assert answer_texts(model.tokenizer, written, start, stop).whole == text + " " * (stop - start)


@few
@hypothesis.given(
    some.lists(
        some.tuples(
            some.text(
                some.characters(exclude_categories=["Cs"], exclude_characters="{}"), max_size=5
            ),
            some.integers(1, 5),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_infills_hold_their_texts_and_leave_their_gaps(parts):
    model = MODELS["stream"]
    template = "".join(f"{text}{{{gap}}}" for text, gap in parts)
    given = lay_out(model, [Prompt(infill=template, answer_length=0)], 160).given
    number = sum(len(text.encode()) + gap for text, gap in parts)
    held = given.mask[0][:number]
    assert (~held).sum() == sum(gap for _, gap in parts) and given.mask[0][number:].all()
    kept = model.tokenizer.decode(given.tokens[0][:number][held])
    assert kept == "".join(text for text, _ in parts)
