"""The documentation: its links lead somewhere, its commands have the flags that they are given."""

import functools
import re
from pathlib import Path

import pytest

from flm_jax.config.reference import page
from flm_jax.config.schema import NAMED, base_config, policy_config
from flm_jax.core.settings import settings_of
from flm_jax.samplers.registry import SAMPLERS
from helpers.pages import commands

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MODULES = sorted((ROOT / "flm_jax").rglob("*.py")) + sorted((ROOT / "configs").glob("*/*.py"))
SAMPLING = {key for one in SAMPLERS.values() for key in settings_of(one.settings)}
FLAG = re.compile(r'DEFINE_\w+\(\s*"(\w+)"')
KEY = re.compile(r"^config\.([\w.]+)$")


def _source(name):
    """The file of `python -m flm_jax.NAME`."""
    return ROOT / "flm_jax" / f"{name.replace('.', '/')}.py"


@functools.cache
def flags_of(name):
    """Flags that a command defines, with those of the modules of flags that it imports."""
    text = _source(name).read_text()
    found = set(FLAG.findall(text))
    if "sampling_flags" in text:
        found |= {"sampler"} | {f"sampler.{key}" for key in SAMPLING} | SAMPLING
    if "process_flags" in text:
        found.add("distributed")
    if "judging_flags" in text:
        found |= {"judge", "features"}
    return found | ({"config"} if "given_config" in text or "DEFINE_config" in text else set())


@functools.cache
def keys(policy=False):
    """All keys: those of every name of a group, or those of `train_policy`."""
    if policy:
        return dict(_flat(policy_config().to_dict()))
    found = {}
    for group, names in NAMED.items():
        for name in names:
            found |= dict(_flat(base_config(**{group: name}).to_dict()))
    return found


def _flat(tree, prefix=""):
    for name, value in tree.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")


def problems(text):
    """What is wrong with the commands of a text."""
    for name, words in commands(text):
        if not _source(name).exists():
            yield f"no module flm_jax.{name}"
            continue
        known = flags_of(name)
        own = keys(policy=name == "train_policy")
        for word in words:
            if not word.startswith("--"):
                continue
            flag = word[2:].split("=")[0]
            if flag.startswith("config."):
                # Of a comparison the keys are its own.
                key = flag.removeprefix("config.")
                if not any("configs/comparisons/" in w for w in words) and key not in own:
                    yield f"flm_jax.{name}: no key config.{key}"
            elif flag not in known and flag.removeprefix("no") not in known and flag != "help":
                yield f"flm_jax.{name}: no flag --{flag}"
            if flag == "config":
                file = word.split("=")[1].split(":")[0]
                if file.startswith("configs/") and "$" not in file and not (ROOT / file).exists():
                    yield f"no file {file}"


@pytest.mark.parametrize("path", [*PAGES, *MODULES], ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_are_as_written(path):
    assert not list(problems(path.read_text()))


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(path):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", path.read_text()):
        if "://" not in target:
            found = path.parent / target if target else path
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


@functools.cache
def anchors(path):
    """What links may name in a page: its headings, in small letters with dashes."""
    text = re.sub(r"(?ms)^```.*?^```", "", path.read_text())
    heads = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_site_has_every_page_in_its_menu():
    listed = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [
        str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")
    ]
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_files_that_pages_name_exist(path):
    for name in re.findall(
        r"`((?:tests|configs|launch|docs|notebooks)/[\w./]+)`", path.read_text()
    ):
        assert list(ROOT.glob(f"{name.rstrip('/')}*")), name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("python -m flm_jax.smaple --steps=1", "no module flm_jax.smaple"),
        ("python -m flm_jax.sample --step=1", "no flag --step"),
        ("python -m flm_jax.train --config=configs/nothing.py", "no file configs/nothing.py"),
        ("python -m flm_jax.train \\\n  --config.optim.rate=1", "no key config.optim.rate"),
        ("python -m flm_jax.train --config.completion=1", "no key config.completion"),
    ],
)
def test_the_check_bites(line, message):
    assert any(message in problem for problem in problems(f"text `{line}` text"))


def test_the_reference_of_configurations_is_up_to_date():
    assert (ROOT / "docs/reference/configuration.md").read_text() == page()
    text = page()
    for key, value in (keys() | keys(policy=True)).items():
        last = key.split(".", 1)[-1]
        assert isinstance(value, dict) or f"`{last}`" in text or f"`{key}`" in text, key
