"""Data sets in the hub's layout: a local folder, a fetched snapshot, splits, published settings."""

import sys
import types

import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.corpus.hub import CONVERTED, open_hub
from flm_jax.data.corpus.published import PUBLISHED, published_source
from flm_jax.data.corpus.sources import SourceConfig, open_corpus

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def _write(root, key="text", **files):
    """Parquet files by names in which __ stands for a slash; they end in .parquet."""
    for name, texts in files.items():
        place = root / (name.replace("__", "/") + ".parquet")
        place.parent.mkdir(parents=True, exist_ok=True)
        table = arrow.table({key: list(texts), "label": range(len(texts))})
        parquet.write_table(table, place, row_group_size=2)
    return root


def _texts(cfg):
    splits = open_corpus(cfg).splits
    return {name: [text for _, text in read()] for name, read in splits.items()}


@pytest.mark.parametrize(
    "files",
    [
        {"data__train-00000-of-00002": "ab", "data__train-00001-of-00002": "c"},
        {"train-0": "ab", "train-1": "c"},
        {"train__0000": "ab", "train__0001": "c"},
        {"plain_text__train__0000": "ab", "plain_text__train__0001": "c"},
        {"plain_text__train-00000-of-00002": "ab", "plain_text__train-00001-of-00002": "c"},
        {"plain_text__partial-train__0000": "ab", "plain_text__partial-train__0001": "c"},
    ],
)
def test_layouts_of_the_hub(tmp_path, files):
    first = next(iter(files)).replace("partial-", "").replace("train", "validation", 1)
    _write(tmp_path, **files, **{first: "v"})
    assert _texts(SourceConfig("hf", str(tmp_path))) == {"train": ["a", "b", "c"], "valid": ["v"]}


def test_splits_that_are_chosen(tmp_path):
    _write(tmp_path, train="abcdef", validation="v", test="tu")

    def texts(**how):
        return _texts(SourceConfig("hf", str(tmp_path), **how))

    assert texts() == {"train": list("abcdef"), "valid": ["v"]}
    assert texts(valid_split="test")["valid"] == ["t", "u"]
    assert texts(valid_split="test", valid_only=True) == {"valid": ["t", "u"]}
    assert texts(valid_only=True) == {"valid": ["v"]}
    assert texts(valid_last=2) == {"train": list("abcd"), "valid": ["e", "f"]}
    with pytest.raises(UserError, match="has no text in 'train'"):
        texts(valid_last=6)
    with pytest.raises(UserError, match="splits train, validation, test; expected one called dev"):
        texts(valid_split="dev")
    with pytest.raises(UserError, match="expected one of them"):
        texts(valid_split="test", valid_last=1)
    with pytest.raises(UserError, match="'text' has no splits to choose from"):
        _texts(SourceConfig("text", str(tmp_path), valid_only=True))


def test_a_dataset_of_one_split_holds_documents_out(tmp_path):
    _write(tmp_path, train=[f"d{i}" for i in range(40)])
    assert len(_texts(SourceConfig("hf", str(tmp_path)))["valid"]) == 2


def test_texts_are_tidied_unless_they_stay(tmp_path):
    _write(tmp_path, train=["\ufeffa\r\nb", "", " "], test=["t"])
    tidy = _texts(SourceConfig("hf", str(tmp_path)))
    kept = _texts(SourceConfig("hf", str(tmp_path), verbatim=True))
    assert tidy["train"] == ["a\nb"]
    assert kept["train"] == ["\ufeffa\r\nb", "", " "]
    _write(tmp_path / "own", train=["a\n***\nb", "c"], test=["t\n***\nu"])
    cut = _texts(SourceConfig("hf", str(tmp_path / "own"), separator="***"))
    assert cut == {"train": ["a", "b", "c"], "valid": ["t", "u"]}


def test_configurations_are_named(tmp_path):
    _write(tmp_path, en__train="a", en__test="t", fr__train="b", fr__test="u")
    assert _texts(SourceConfig("hf", f"{tmp_path}:fr")) == {"train": ["b"], "valid": ["u"]}
    with pytest.raises(UserError, match="has the configurations en, fr; name one"):
        _texts(SourceConfig("hf", str(tmp_path)))
    with pytest.raises(UserError, match="did you mean 'fr'"):
        _texts(SourceConfig("hf", f"{tmp_path}:frr"))


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(UserError, match="holds no file ending in .parquet"):
        open_hub(str(tmp_path))
    _write(tmp_path, some="a")
    with pytest.raises(UserError, match="no parquet file whose name or folder tells its split"):
        open_hub(str(tmp_path))
    _write(tmp_path, train="a", test="b")
    with pytest.raises(UserError, match="text_key of .*train.parquet"):
        open_corpus(SourceConfig("hf", str(tmp_path), text_key="body"))


def _fake_hub(monkeypatch, snapshots, calls):
    """A hub that has snapshots: {revision: folder}."""

    def snapshot_download(name, *, repo_type, revision, allow_patterns):
        calls.append((name, repo_type, revision, allow_patterns, shown[-1]))
        if revision not in snapshots:
            raise OSError(f"no revision {revision}\nsecond line")
        return str(snapshots[revision])

    fake = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    shown = [True]
    bars = types.SimpleNamespace(
        are_progress_bars_disabled=lambda: not shown[-1],
        disable_progress_bars=lambda: shown.append(False),
        enable_progress_bars=lambda: shown.append(True),
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", bars)
    return shown


def test_fetched_at_a_pinned_commit(tmp_path, monkeypatch):
    commit, calls = "0123456789abcdef", []
    _write(tmp_path / commit, plain_text__train="ab", plain_text__test="t")
    shown = _fake_hub(monkeypatch, {commit: tmp_path / commit}, calls)
    corpus = open_corpus(SourceConfig("hf", f"own/name:plain_text@{commit}"))
    # Without a terminal the hub's bars would fill a log.
    assert calls == [("own/name", "dataset", commit, ["plain_text/*.parquet"], False)]
    assert shown[-1]
    assert corpus.identity == f"own/name:plain_text@{commit}: train 2, test 1"
    assert corpus.content == ""
    with pytest.raises(UserError, match=r"was not loaded \(no revision other\); expected"):
        open_hub("own/name@other")
    assert shown[-1]
    monkeypatch.setattr("flm_jax.core.downloads.on_terminal", lambda stream: True)
    open_hub(f"own/name:plain_text@{commit}")
    assert calls[-1][-1]


def test_a_dataset_that_is_a_program_is_read_from_its_conversion(tmp_path, monkeypatch):
    calls = []
    (tmp_path / "one").mkdir()
    _write(tmp_path / "two", default__test__0000="t", default__train__0000="a")
    _fake_hub(monkeypatch, {None: tmp_path / "one", CONVERTED: tmp_path / "two"}, calls)
    assert open_hub("own/name").identity == "own/name:@two: train 1, test 1"
    assert [revision for _, _, revision, *_ in calls] == [None, CONVERTED]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'flm-jax\[hf\]'"):
        open_hub("own/name")


_LOCAL = {
    "lm1b": ("text", "plain_text__train__0000", "plain_text__test__0000"),
    "openwebtext": ("text", "plain_text__train-00000-of-00001", "plain_text__other"),
    "ptb": ("sentence", "penn_treebank__train__0000", "penn_treebank__validation__0000"),
    "wikitext103": ("text", "wikitext-103-raw-v1__train-0", "wikitext-103-raw-v1__validation-0"),
    "lambada": ("text", "default__train__0000", "default__test__0000"),
    "ag_news": ("text", "data__train-00000-of-00001", "data__test-00000-of-00001"),
    "arxiv": ("article", "arxiv__partial-train__0000", "arxiv__validation__0000"),
}


@pytest.mark.parametrize("name", _LOCAL)
def test_published_settings_read_a_local_copy(tmp_path, name):
    key, train, valid = _LOCAL[name]
    _write(
        tmp_path, key, **{train: ["first", "", "it 's N or , so"], valid: ["it 's N or , so", ""]}
    )
    cfg = published_source(name, str(tmp_path))
    if name == "openwebtext":
        assert cfg.valid_last == 100_000
        with pytest.raises(UserError, match="no text in 'train'"):
            open_corpus(cfg)
        return
    changed = {
        "lm1b": "it's N or, so",
        "ptb": "it's 1 or , so",
        "wikitext103": "it's 1 or, so",
        "lambada": "\nit 's N or , so",
        "ag_news": "it 's N or , so",
        "arxiv": "it's 1 or, so",
    }[name]
    empty = "\n" if name == "lambada" else ""
    texts = _texts(cfg)
    assert texts["valid"] == [changed, empty]
    assert texts.get("train") == (["first", "", changed] if name == "lm1b" else None)


def test_published_names_tell_configuration_and_revision():
    assert {"lm1b", "openwebtext", "text8"} < set(PUBLISHED)
    for name, cfg in PUBLISHED.items():
        assert cfg.verbatim
        assert name == "text8" or "@" in cfg.path
