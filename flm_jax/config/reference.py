"""Writes docs/configuration.md, the table of all configuration keys, from `schema.py`.

python -m flm_jax.config.reference > docs/configuration.md
"""

import re
from collections.abc import Iterator
from pathlib import Path

_SECTION = re.compile(r"config\.([\w.]+) = (?:ConfigDict|base_config)\(\)")
_KEY = re.compile(r"config\.([\w.]+) = (.*?)\s*(?:#\s*(.*))?$")
_HEAD = """# Configuration

Every key with its default; set one on the command line by `--config.KEY=VALUE`. Made from
`flm_jax/config/schema.py` by `python -m flm_jax.config.reference > docs/configuration.md`.
"""


def rows(source: str) -> list[tuple[str, str, str]]:
    """(key, default, what it says) of each assignment, in order; sections have no default.

    A comment before assignments, on lines of its own, belongs to the first of them.
    """
    found, before = [], []
    for line in source.splitlines():
        text = line.strip()
        if text.startswith("# "):
            before.append(text[2:])
            continue
        if section := _SECTION.match(text):
            said = text.partition("  # ")[2]
            found.append((section[1], "", " ".join([*before, said]).strip()))
        elif key := _KEY.match(text):
            found.append((key[1], key[2].strip(), " ".join([*before, key[3] or ""]).strip()))
        before = []
    return found


def page() -> str:
    """The whole page."""
    source = Path(__file__).with_name("schema.py").read_text()
    _, model, policy = source.split("    config = ConfigDict()\n")
    own = "\n# Configuration of `train_policy`\n"
    return "\n".join([_HEAD, *_tables(model), own, *_tables(policy)]) + "\n"


def _tables(source: str) -> Iterator[str]:
    table = False
    for key, default, said in rows(source):
        said = said.replace("|", "\\|")
        if not default:
            yield f"\n## config.{key}\n"
            if said:
                yield said[0].upper() + said[1:].rstrip(".") + ".\n"
        if not default or not table:
            yield "| key | default | |\n|---|---|---|"
            table = True
        if default:
            yield f"| `{key.rpartition('.')[2]}` | `{default}` | {said} |"


if __name__ == "__main__":
    print(page(), end="")
