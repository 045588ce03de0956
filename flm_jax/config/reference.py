"""Writes docs/reference/configuration.md, the table of all configuration keys.

python -m flm_jax.config.reference > docs/reference/configuration.md
"""

import dataclasses
from collections.abc import Iterator

from flm_jax.config.schema import GROUPS, NAMED
from flm_jax.config.training import PolicyRunConfig
from flm_jax.core.settings import Setting, settings_of

_HEAD = """# Configuration

Every key with its default; set one on the command line by `--config.KEY=VALUE`. A group with a
`name` holds the keys of that name: `--config.objective.name=lagrangian` changes the name first,
wherever it stands on the command line, and keys that both names have keep what the file set. Made
by `python -m flm_jax.config.reference > docs/reference/configuration.md`.

| key | default | |
|---|---|---|
| `seed` | `0` | Root of every random draw: initialisation, data order and noise. |
"""


def page() -> str:
    """Returns the complete page as Markdown."""
    parts = [_HEAD]
    for group, names in NAMED.items():
        parts += _named(group, names)
    for group, cls in GROUPS.items():
        parts += _section(f"config.{group}", cls)
    parts.append("\n# Configuration of `train_policy`\n")
    parts += _section("config", PolicyRunConfig)
    return "\n".join(parts) + "\n"


def _named(group: str, names: dict[str, type]) -> Iterator[str]:
    """Sections of each name; settings inherited from another class are listed once, there."""
    yield f"\n## config.{group}\n"
    yield f"`config.{group}.name` is one of {', '.join(f'`{name}`' for name in names)}."
    shared: dict[type, None] = {}
    for cls in names.values():
        for base in cls.__mro__[1:]:
            if dataclasses.is_dataclass(base) and settings_of(base):
                shared[base] = None
    for base in reversed(shared):
        users = [name for name, cls in names.items() if base in cls.__mro__]
        if base not in names.values():
            yield from _table(f"### Of {_list(users)}", _own(base), _first_line(base))
    for cls in names.values():
        users = [other for other, kind in names.items() if cls in kind.__mro__]
        yield from _table(f"### Of {_list(users)}", _own(cls), _first_line(cls))


def _list(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _own(cls: type) -> dict[str, Setting]:
    """Settings that a class adds to its bases, or changes."""
    above: dict[str, Setting] = {}
    for base in reversed(cls.__mro__[1:]):
        if dataclasses.is_dataclass(base):
            above |= settings_of(base)
    return {name: one for name, one in settings_of(cls).items() if above.get(name) != one}


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").split("\n")[0]


def _section(title: str, cls: type) -> Iterator[str]:
    yield from _table(f"## {title}", settings_of(cls), _first_line(cls))


def _table(title: str, found: dict[str, Setting], about: str) -> Iterator[str]:
    yield f"\n{title}\n"
    yield f"{about}\n"
    rows = list(_rows("", found))
    if rows:
        yield "| key | default | |\n|---|---|---|"
        yield from rows


def _rows(prefix: str, found: dict[str, Setting]) -> Iterator[str]:
    for name, one in found.items():
        if one.group:
            own = {k: s._replace(default=getattr(one.default, k)) for k, s in _inner(one).items()}
            yield from _rows(f"{prefix}{name}.", own)
        else:
            yield f"| `{prefix}{name}` | `{one.default!r}` | {_described(one)} |"


def _inner(one: Setting) -> dict[str, Setting]:
    return settings_of(type(one.default))


def _described(one: Setting) -> str:
    """The help of a setting, then its unit, range and choices where the help lacks them."""
    parts = [f"unit: {one.unit}"] if one.unit else []
    if one.range is not None:
        parts.append(f"range: {one.range.text}")
    if any(str(choice) not in one.help for choice in one.choices):
        parts.append("choices: " + ", ".join(str(choice) for choice in one.choices))
    bounds = "; ".join(parts)
    found = f"{one.help} {bounds[:1].upper()}{bounds[1:]}." if parts else one.help
    return found.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
