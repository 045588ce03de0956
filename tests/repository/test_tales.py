"""The launcher of the tales: what it would run, what it refuses, what it packs, and the card."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.launching import launch, load

ROOT = Path(__file__).parents[2]
CHAIN = ("ar", "flm", "fmlm", "dmd", "mdlm")


@pytest.fixture(scope="module")
def helper():
    return load("tales")


def trained(output):
    lines = [line for line in output.splitlines() if "-m flm_jax.train " in line]
    return [line.partition("configs/tales/")[2].partition(".py")[0] for line in lines], lines


def test_a_dry_run_in_turn_prints_all_stages_within_their_time(tmp_path):
    flags = ("--dry_run", "--in_turn", "--seconds=5000", f"--out={tmp_path / 'out'}")
    done = launch("tales.sh", "texts.jsonl", *flags)
    assert done.returncode == 0, done.stderr
    names, lines = trained(done.stdout)
    assert names == list(CHAIN)
    assert "flm_jax.prepare_data --source=jsonl" in done.stdout
    ends = [int(line.split("--config.train.seconds=")[1].split()[0]) for line in lines]
    assert ends == sorted(ends) and ends[-1] < 4900
    assert done.stdout.count("launch/tales.py pack ") == 5
    assert not (tmp_path / "out").exists()


def test_a_dry_run_at_once_warms_the_later_steps(tmp_path):
    flags = ("--dry_run", "--smoke", f"--out={tmp_path / 'out'}", f"--work={tmp_path / 'work'}")
    done = launch("tales.sh", f"--data={tmp_path}", *flags)
    assert done.returncode == 0, done.stderr
    names, lines = trained(done.stdout)
    assert sorted(names) == sorted((*CHAIN, "mdlm", "fmlm", "dmd"))
    assert sum(f"--workdir={tmp_path}/work/warm/" in line for line in lines) == 3
    assert "JAX_PLATFORMS=cpu" in done.stdout and "XLA_PYTHON_CLIENT_PREALLOCATE" in done.stdout


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("tales.sh", [], "no texts; expected a path such as tales.jsonl.gz, or --data=PREPARED"),
        ("tales.sh", ["a", "b"], "got two paths of texts, a and b; expected one"),
        ("tales.sh", ["a", "--second=5"], "unknown option --second=5; expected --dry_run, --smoke"),
        ("tales.sh", ["a", "--seconds=soon"], "got --seconds=soon; expected a positive number"),
        ("tales_measure.sh", [], "no folder of models"),
        ("tales_measure.sh", ["models"], "no --data; expected the prepared folder"),
    ],
)
def test_bad_options_are_refused_in_one_line(script, flags, message):
    done = launch(script, "--dry_run", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr and not done.stdout


def test_what_is_packed_is_unpacked(helper, tmp_path, monkeypatch):
    monkeypatch.setattr(helper, "PIECE", 5000)
    (tmp_path / "map/tokenizer").mkdir(parents=True)
    content = np.random.default_rng(0).bytes(12_000)
    (tmp_path / "map/weights").write_bytes(content)
    (tmp_path / "map/tokenizer/spec").write_text("pieces")
    (tmp_path / "pack").mkdir()
    for _ in range(2):  # the second replaces the first
        helper.pack(str(tmp_path / "map"), str(tmp_path / "pack"))
    assert len(list((tmp_path / "pack").iterdir())) == 3
    helper.unpack(str(tmp_path / "pack"), str(tmp_path / "out"))
    assert (tmp_path / "out/map/weights").read_bytes() == content
    assert (tmp_path / "out/map/tokenizer/spec").read_text() == "pieces"


def test_rows_are_joined_with_those_of_data_once_and_last(helper, tmp_path):
    for name in "ab":
        rows = [{"model": name}, {"model": "data", "entropy_nats": 1.0}]
        (tmp_path / name).write_text(json.dumps(rows))
    helper.join(str(tmp_path / "c"), str(tmp_path / "a"), str(tmp_path / "b"))
    joined = json.loads((tmp_path / "c").read_text())
    assert [row["model"] for row in joined] == ["a", "b", "data"]


def test_the_card_says_data_recipe_and_figures(helper, tmp_path):
    counts = {"documents": 4538, "tokens": 15_904_060}
    (tmp_path / "manifest.json").write_text(json.dumps({"splits": {"train": counts}}))
    (tmp_path / "books.tsv").write_text(
        "9\t38\tAlcott, Louisa May/Garland.txt\n1\t2\tLang/Red.txt\n"
    )
    (tmp_path / "stages.tsv").write_text("flm\t0\t60\nflm\t75\t60\ndmd\t0\t30\nar\t0\t99\n")
    (tmp_path / "card.txt").write_text("a card\n")
    config = json.loads(Path(ROOT / "flm_jax/pretrained/tales/config.json").read_text())
    for name in ("flm", "dmd"):
        (tmp_path / f"{name}.config.json").write_text(json.dumps(config))
        (tmp_path / f"{name}.metrics.jsonl").write_text('{"step": 50}\n{"step": 1000}\n')
    figures = {
        "judge_perplexity": 350.0,
        "judge_perplexity_low": 324.0,
        "judge_perplexity_high": 377.0,
    }
    figures |= {"known_words": 0.9876}
    rows = [{"model": "x/map", "calls": 1.0, **figures}, {"model": "data", "entropy_nats": 3.267}]
    text = helper.tales_card.card(config, str(tmp_path), tmp_path / "books.tsv", rows, tmp_path)
    for part in (
        "2 books",
        "4,538 chapters and tales",
        "15.9 million tokens",
        "- Alcott, Louisa May: Garland.\n- Lang: Red.",
        "| **this model** | 1 | 350 [324, 377] |  |  | 0.9876 |",
        "2.5\nminutes in all on: a card",
        "1,000 steps",
    ):
        assert part in text, part
