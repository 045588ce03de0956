"""The published tables: a row names its source, its size and the configuration that makes it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/results/published.md").read_text()
_FIGURE = re.compile(r"[\d.]+( / \d\.\d\d)?(, collapsed)?")


def _rows(title):
    """(cells of a row) of the first table below a title, without its head."""
    part = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = part[part.index("| model |") :].partition("\n\n")[0].splitlines()
    head, rows = lines[0], lines[2:]
    assert head.count("|") == 9
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.parametrize("title, folder", [("OpenWebText", "owt"), ("LM1B", "lm1b")])
def test_rows_name_source_size_and_configuration(title, folder):
    rows = _rows(title)
    assert len(rows) >= 7
    for name, *figures, size, source, config in rows:
        assert name and re.fullmatch(r"\d+ M", size), name
        assert re.search(r"arXiv \d{4}\.\d{5}", source), name
        assert any(figures) and all(_FIGURE.fullmatch(cell) for cell in figures if cell), name
        if not config.startswith("not here"):
            found = re.match(rf"`(configs/{folder}/\w+\.py)`( \(.*\))?$", config)
            assert found and (ROOT / found[1]).exists(), name
