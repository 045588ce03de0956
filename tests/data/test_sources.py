"""Documents from files and the standard library, the split, and detokenisation."""

import gzip
import json

import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.corpus.sources import SourceConfig, is_valid, open_corpus


def _texts(corpus, split):
    return [text for _, text in corpus.splits[split]()]


def _all_texts(corpus):
    return sorted(pair for split in corpus.splits.values() for pair in split())


def test_pydoc_is_english_and_repeats_itself():
    corpus = open_corpus(SourceConfig("pydoc"))
    train, valid = _texts(corpus, "train"), _texts(corpus, "valid")
    assert sum(map(len, train)) > 1_000_000
    assert 0.03 < len(valid) / len(train) < 0.07
    assert train == _texts(corpus, "train")
    assert any("statement" in text for text in train[:20])


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", ["one\ntwo\n\nthree\n", "four"]),
        ("paragraph", ["one\ntwo", "three", "four"]),
        ("line", ["one", "two", "three", "four"]),
    ],
)
def test_text_units_over_nested_and_gzipped_files(tmp_path, unit, expected):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt.gz").write_bytes(gzip.compress(b"four"))
    (tmp_path / "ignored.md").write_text("no")
    corpus = open_corpus(SourceConfig("text", str(tmp_path), split_documents=unit))
    assert [text for _, text in _all_texts(corpus)] == expected


def test_single_document_is_cut_by_position(tmp_path):
    lines = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "a.txt").write_text(lines)
    corpus = open_corpus(SourceConfig("text", str(tmp_path / "a.txt"), valid_fraction=0.1))
    (train,), (valid,) = _texts(corpus, "train"), _texts(corpus, "valid")
    assert train + valid == lines.strip()
    assert train.endswith("\n")
    assert 0.09 < len(valid) / len(lines) < 0.11


@pytest.mark.parametrize("fraction", [0.5, 0.3, 0.05, 0.01])
def test_split_is_exact_and_never_empty(fraction):
    period = round(1 / fraction)
    assert sum(is_valid(i, fraction) for i in range(period * 50)) == 50
    assert [is_valid(i, fraction) for i in range(2)] == [False, True]
    places = {i % period for i in range(period * 50) if is_valid(i, fraction)}
    assert len(places) > period // 4 + 1


def test_jsonl_reads_the_named_field(tmp_path):
    rows = [{"body": f"document {i}"} for i in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = open_corpus(SourceConfig("jsonl", str(tmp_path), text_key="body"))
    assert [text for _, text in _all_texts(corpus)] == [row["body"] for row in rows]


@pytest.mark.parametrize(
    ("third_line", "message"),
    [
        ("{broken", r"a\.jsonl line 3 is not JSON"),
        ('{"title": "x"}', r"a\.jsonl line 3 has no field 'text'; it has title"),
        ('{"text": 5}', r"a\.jsonl line 3: field 'text' holds int"),
        ("[1]", r"a\.jsonl line 3 holds list"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path, third_line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n' + third_line + "\n")
    with pytest.raises(UserError, match=message):
        _all_texts(open_corpus(SourceConfig("jsonl", str(tmp_path))))


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (SourceConfig("text", "/no/such/place"), "does not exist"),
        (SourceConfig("text"), "needs a path"),
        (SourceConfig("pidoc"), "did you mean 'pydoc'"),
        (SourceConfig("pydoc", detokenize="lm2b"), "did you mean 'lm1b'"),
        (SourceConfig("pydoc", split_documents="page"), "valid: file, line, paragraph"),
        (SourceConfig("pydoc", valid_fraction=0.0), "valid_fraction is 0.0"),
    ],
)
def test_bad_settings(cfg, message):
    with pytest.raises(UserError, match=message):
        open_corpus(cfg)


def test_empty_corpora(tmp_path):
    with pytest.raises(UserError, match="holds no file ending in .txt"):
        open_corpus(SourceConfig("text", str(tmp_path)))
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(UserError, match="has no text"):
        open_corpus(SourceConfig("text", str(tmp_path)))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="expected UTF-8"):
        open_corpus(SourceConfig("text", str(tmp_path)))


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("pack", [lambda content: content, gzip.compress])
@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", ["one\ntwo\n\nthree\n", "four"]),
        ("paragraph", ["one\ntwo", "three", "four"]),
        ("line", ["one", "two", "three", "four"]),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_text_is_read_as_an_editor_reads_it(tmp_path, end, unit, expected, pack):
    ending = ".txt.gz" if pack is gzip.compress else ".txt"
    text = BOM + b"one\ntwo\n\nthree\n".replace(b"\n", end)
    (tmp_path / f"a{ending}").write_bytes(pack(text))
    (tmp_path / f"b{ending}").write_bytes(pack(BOM + b"four"))
    corpus = open_corpus(SourceConfig("text", str(tmp_path), split_documents=unit))
    assert [text for _, text in _all_texts(corpus)] == expected


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_json_lines_are_read_as_an_editor_reads_them(tmp_path, end):
    lines = [BOM + rb'{"text": "\ufeffa\r\nb\rc"}', b"", BOM + '{"text": "d\u2028e"}'.encode()]
    (tmp_path / "a.jsonl").write_bytes(end.join(lines))
    corpus = open_corpus(SourceConfig("jsonl", str(tmp_path)))
    assert [text for _, text in _all_texts(corpus)] == ["a\nb\nc", "d\u2028e"]


def test_the_line_of_a_fault_counts_every_kind_of_line_end(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(BOM + b'{"text": "a"}\r{"text": "b"}\r{broken')
    with pytest.raises(UserError, match=r"a\.jsonl line 3 is not JSON"):
        _all_texts(open_corpus(SourceConfig("jsonl", str(tmp_path))))


def test_hidden_files_are_no_documents(tmp_path):
    (tmp_path / "book.txt").write_text("one\ntwo")
    hidden = "._book.txt", ".ipynb_checkpoints/book-checkpoint.txt", "__MACOSX/book.txt"
    for name in (*hidden, "sub/.git/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7\xff no text")
    for root in (tmp_path, tmp_path / "book.txt"):
        corpus = open_corpus(SourceConfig("text", str(root)))
        assert "".join(text for _, text in _all_texts(corpus)) == "one\ntwo"
    with pytest.raises(UserError, match="holds no file ending in .txt"):
        open_corpus(SourceConfig("text", str(tmp_path / "sub")))


def test_a_hidden_file_that_is_named_is_read(tmp_path):
    (tmp_path / ".kept").mkdir()
    (tmp_path / ".kept" / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}')
    corpus = open_corpus(SourceConfig("jsonl", str(tmp_path / ".kept")))
    assert [text for _, text in _all_texts(corpus)] == ["a", "b"]


def test_links_are_followed_once(tmp_path):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("data/a", "data/sub/b", "elsewhere/c"):
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "sub" / "up").symlink_to("..")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "same.txt").symlink_to("a.txt")
    corpus = open_corpus(SourceConfig("text", str(tmp_path / "data")))
    assert [text for _, text in _all_texts(corpus)] == ["data/a", "elsewhere/c", "data/sub/b"]
    assert corpus.identity.startswith("3 files")


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(UserError, match=r"b\.txt is a link to nothing"):
        open_corpus(SourceConfig("text", str(tmp_path)))


def test_lone_surrogates_are_told_once_and_read_as_replacements(tmp_path, caplog):
    good, bad = '{"text": "pair \\ud83d\\ude00"}', '{"text": "hello \\ud800 world"}'
    (tmp_path / "a.jsonl").write_text("\n".join([good, bad, bad, good]))
    corpus = open_corpus(SourceConfig("jsonl", str(tmp_path)))
    smile, mended = "pair \U0001f600", "hello \ufffd world"
    for _ in range(2):
        assert [text for _, text in _all_texts(corpus)] == [smile, mended, mended, smile]
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path}/a.jsonl line 2: got a lone surrogate")


STORIES = (
    "One.\n\nMore.\n<|endoftext|>\n\nTwo.\n  <|endoftext|> \n<|endoftext|>\nThree <|endoftext|>"
)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", ["One.\n\nMore.", "Two.", "Three <|endoftext|>"]),
        ("paragraph", ["One.", "More.", "Two.", "Three <|endoftext|>"]),
        ("line", ["One.", "More.", "Two.", "Three <|endoftext|>"]),
    ],
)
def test_a_separator_ends_documents(tmp_path, unit, expected, caplog):
    (tmp_path / "a.txt").write_text(STORIES)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": STORIES}))
    cfg = SourceConfig("text", str(tmp_path), separator="<|endoftext|>", split_documents=unit)
    assert [text for _, text in _all_texts(open_corpus(cfg))] == expected
    cfg = SourceConfig("jsonl", str(tmp_path), separator="<|endoftext|>")
    whole = ["One.\n\nMore.", "Two.", "Three <|endoftext|>"]
    assert [text for _, text in _all_texts(open_corpus(cfg))] == whole
    assert not caplog.messages


def test_separators_that_separate_nothing_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text(STORIES)
    for separator, message in (
        (" ", "one line"),
        ("a\nb", "one line"),
        ("<eot>", "no line .*<eot>"),
    ):
        with pytest.raises(UserError, match=message):
            open_corpus(SourceConfig("text", str(tmp_path), separator=separator))
    with pytest.raises(UserError, match="pydoc.* got a separator"):
        open_corpus(SourceConfig("pydoc", separator="<eot>"))


@pytest.mark.parametrize("source, place", [("text", "a.txt line 4"), ("jsonl", "b.jsonl line 1")])
def test_a_line_that_looks_like_a_separator_is_told_once(tmp_path, caplog, source, place):
    (tmp_path / "a.txt").write_text(STORIES)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": STORIES}))
    corpus = open_corpus(SourceConfig(source, str(tmp_path)))
    for _ in range(2):
        assert "".join(text for _, text in _all_texts(corpus)) == STORIES
    (said,) = caplog.messages
    assert place in said and "--separator='<|endoftext|>'" in said


def test_a_separator_within_a_line_is_none(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("one <|endoftext|> two\nthree\n")
    open_corpus(SourceConfig("text", str(tmp_path)))
    assert not caplog.messages
