"""Writes docs/reference/commands.md, the flags of every command, from their definitions.

python -m flm_jax.cli.reference > docs/reference/commands.md
"""

import importlib
import re
from collections.abc import Iterator

from absl import flags

from flm_jax.cli import judging_flags, process_flags, sampling_flags
from flm_jax.cli.main import commands
from flm_jax.core.settings import settings_of
from flm_jax.samplers.registry import SAMPLERS

_HEAD = """# Commands

`flm COMMAND` runs a command, as `python -m` does with its module (`flm_jax.sample`); `--help`
prints what stands here. A flag is given as `--FLAG=VALUE`, a true or false one also as `--FLAG` or
`--noFLAG`; items of a list are separated by commas. `--config.KEY=VALUE` changes a key of a
[configuration](configuration.md). Exit statuses stand in
[endurance](../guides/endurance.md#exit-codes). Made by
`python -m flm_jax.cli.reference > docs/reference/commands.md`.
"""
_REPEATED = "; repeat this option to specify a list of values"
_SHARED = {
    judging_flags: "[the flags of judges](#flags-of-judges)",
    sampling_flags: "[Flags that choose a sampler](#flags-that-choose-a-sampler)",
    process_flags: "[flags of several processes](#flags-of-several-processes)",
}


def page() -> str:
    """Returns the page as Markdown; imports every command, so a program can build it only once."""
    parts = [_HEAD]
    for name, about in commands().items():
        parts += _command(name, about)
    parts += _sampling()
    for title, module in (("judges", judging_flags), ("several processes", process_flags)):
        parts.append(f"\n## Flags of {title}\n")
        parts += _table(_defined(module.__name__))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)) + "\n"


def _command(name: str, about: str) -> Iterator[str]:
    """The flags that a command defines, and which shared ones it has besides."""
    module = importlib.import_module(f"flm_jax.{name}")
    own = _defined(module.__name__)
    key = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(module.__name__)}
    yield f"\n## {name}\n\n{about}\n"
    yield from _table(own)
    also = [text for one, text in _SHARED.items() if key & {f.name for f in _defined(one.__name__)}]
    if also:
        yield "\nAlso: " + " and ".join(also) + "."
    for flag in own:  # the next command may have one of the same name
        delattr(flags.FLAGS, flag.name)


def _defined(module: str) -> list[flags.Flag]:
    """Flags that a module defines, in its order."""
    return list(flags.FLAGS.flags_by_module_dict().get(module, []))


def _table(found: list[flags.Flag]) -> Iterator[str]:
    yield "| flag | default | |\n|---|---|---|"
    for flag in found:
        yield f"| `--{flag.name}` | {_default(flag)} | {_said(flag)} |"


def _default(flag: flags.Flag) -> str:
    value = flag.default
    if value is None or value == "" or value == []:
        return ""
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _said(flag: flags.Flag) -> str:
    text = " ".join((flag.help or "").split()).removesuffix(_REPEATED)
    choices = getattr(flag.parser, "enum_values", None)
    if choices:
        text += f" One of {', '.join(f'`{one}`' for one in choices)}."
    return text.replace("|", "\\|").replace("<", "&lt;")


def _sampling() -> Iterator[str]:
    """The samplers with the names of their settings, which configuration.md explains."""
    yield "\n## Flags that choose a sampler\n"
    yield (
        "`--sampler=NAME` takes another sampler than the model's own; `--KEY=VALUE`, short for\n"
        "`--sampler.KEY=VALUE`, changes a setting of it. "
        "[Configuration](configuration.md#configsampler) explains the settings.\n"
    )
    yield "| `--sampler` | settings |\n|---|---|"
    for name, sampler in SAMPLERS.items():
        keys = ", ".join(f"`--{key}`" for key in settings_of(sampler.settings))
        yield f"| `{name}` | {keys} |"


if __name__ == "__main__":
    print(page(), end="")
