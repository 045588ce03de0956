"""The model card of the model of the tales, from its configuration, data, figures and report."""

import json
from pathlib import Path

STAGES = {
    "flm": "flow",
    "fmlm": "flow map",
    "dmd": "distribution matching",
    "dmd_again": "distribution matching, from the map of the stage before",
}
# Figure of a row -> head of its column.
COLUMNS = {
    "judge_perplexity": "judge perplexity",
    "entropy_nats": "entropy, nats",
    "kernel_distance": "kernel distance",
    "known_words": "words in the list",
    "distinct_2": "distinct pairs",
    "copied": "copied",
}
NAMES = {"map": "**this model**", "fmlm": "before distribution matching", "flm": "its flow"}
NAMES["mdlm"] = "masked diffusion"


def _cell(row: dict, key: str) -> str:
    if key not in row:
        return ""
    text = f"{row[key]:.4g}"
    low, high = (row.get(f"{key}_{end}") for end in ("low", "high"))
    return text if low is None or key != "judge_perplexity" else f"{text} [{low:.4g}, {high:.4g}]"


def _figures(rows: list[dict]) -> str:
    lines = ["| model | calls | " + " | ".join(COLUMNS.values()) + " |"]
    lines.append("|---|---|" + "---|" * len(COLUMNS))
    for row in rows:
        name = Path(row["model"]).name
        cells = " | ".join(_cell(row, key) for key in COLUMNS)
        calls = f"{row['calls']:g}" if "calls" in row else ""
        lines.append(f"| {NAMES.get(name, name)} | {calls} | {cells} |")
    return "\n".join(lines)


def _books(table: Path) -> tuple[str, int]:
    """One line an author with the titles, and how many books there are."""
    titles: dict[str, list[str]] = {}
    for line in table.read_text(encoding="utf8").splitlines():
        author, _, title = line.split("\t")[-1].partition("/")
        titles.setdefault(author, []).append(title.removesuffix(".txt"))
    lines = [f"- {author}: {'; '.join(sorted(found))}." for author, found in sorted(titles.items())]
    return "\n".join(lines), sum(map(len, titles.values()))


def _stages(report: Path) -> tuple[str, float]:
    """One line a stage, and the minutes of all; a stage may have run several times."""
    spent: dict[str, float] = {}
    for line in (report / "stages.tsv").read_text(encoding="utf8").splitlines():
        name, _, seconds = line.split("\t")
        spent[name] = spent.get(name, 0.0) + float(seconds)
    lines = []
    for name, title in STAGES.items():
        if name not in spent:
            continue
        config = json.loads((report / f"{name}.config.json").read_text(encoding="utf8"))
        last = (report / f"{name}.metrics.jsonl").read_text(encoding="utf8").splitlines()[-1]
        steps, rows = json.loads(last)["step"], config["train"]["batch"]
        tokens = steps * rows * config["model"]["length"] / 1e6
        optim, told = config["optim"], ""
        if (temperature := config["objective"].get("teacher_temperature", 1.0)) != 1.0:
            told = f", teacher at a temperature of {temperature:g}"
        lines.append(
            f"- {title} (objective {config['objective']['name']}): {steps:,} steps of {rows} rows, "
            f"{tokens:,.0f} million tokens, {optim['name']} at {optim['lr']:g}, "
            f"{optim['schedule']}, average of {optim['ema_decay']:g}{told}; "
            f"{spent[name] / 60:.1f} minutes."
        )
    return "\n".join(lines), sum(spent.get(name, 0.0) for name in STAGES) / 60


def _joined(config: dict) -> str:
    if not config["sampler"].get("bigram"):
        return ""
    both = config["sampler"].get("trigram", 0.0) > 0
    kinds = "bigrams and trigrams" if both else "bigrams"
    files = "`bigrams.safetensors` and `trigrams.safetensors`" if both else "`bigrams.safetensors`"
    return f"""
It chooses the tokens of a call together, by the {kinds} of its training texts
({files}); `bigram=0` leaves that out.
"""


def card(config: dict, prepared: str, books: Path, rows: list[dict], report: Path) -> str:
    """Writes the model card in Markdown.

    Args:
      config: config of the model.
      prepared: folder of the data.
      books: table of the books.
      rows: rows of `evaluate --json`, with the row of the data last.
      report: opened report of launch/tales.sh.
    """
    model, counts = config["model"], _counts(Path(prepared))
    listed, number = _books(books)
    stages, minutes = _stages(report)
    where = (report / "card.txt").read_text(encoding="utf8").strip()
    return f"""---
library_name: flm-jax
pipeline_tag: text-generation
license: apache-2.0
language: en
tags: [flow-language-model, jax]
---
# Tales in one call

A flow map that writes {model["length"]} tokens of a children's tale in one network call, or better
ones in a few: width {model["dim"]}, {model["depth"]} blocks, {model["vocab_size"]:,} pieces. It was
trained with clean context, so that it continues prompts and fills gaps.

```python
import flm_jax

model = flm_jax.load("tales")
print(model.sample(4, steps=1).texts)
print(model.sample(4, steps=4, prompt="Once upon a time").texts)
```

On the command line, where more than one call renews half of the noise (`--gamma=0.5`, its own
setting):
`python -m flm_jax.sample --workdir=tales --steps=4 --prompt="Once upon a time"`.
{_joined(config)}
## Data

{number} books of classic children's literature from Project Gutenberg, in the public domain in the
United States, without headers and footers: {counts["documents"]:,} chapters and tales,
{counts["tokens"] / 1e6:.1f} million tokens to train on; another 2% of the documents were held out.
`words.txt` lists every word of the training texts.

## Recipe

`bash launch/tales.sh PATH_OF_TEXTS` with the configurations of `configs/tales`; {minutes:.1f}
minutes in all on: {where}, which other trainings shared.

{stages}

## Figures

256 samples, of maps in more than one call with `--gamma=0.5`; a judge that was trained on the same
texts; intervals of 95%. Entropy, kernel
distance and distinct pairs are to be compared with those of data. Words in the list: share of the
words of samples that the training texts have, without the first and last of each. Copied: share
of samples with 12 words in a row that stand in the training texts. Masked diffusion has the same
size.

{_figures(rows)}

## Limits

It knows these books alone: their English, a hundred years old and more, their manners and their
prejudices. A sample is a window of a text: it begins and ends in the middle of sentences, and no
story goes beyond it. What it says is not true. It is small and was trained for minutes: its
sentences seldom make sense, and the share of its words outside the list are mostly no words at all.

## Books

{listed}
"""


def _counts(prepared: Path) -> dict:
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf8"))
    return manifest["splits"]["train"]
