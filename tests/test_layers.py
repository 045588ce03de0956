"""Imports go downwards only: parses every module and enforces the order of the layers."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flm_jax"
# What each part of the package may import from it, besides itself. Parts that are not named are
# command lines and what belongs to them: they may import everything, and nothing imports them.
BASE = ["types"]
MATHEMATICS = [*BASE, "flows"]
METHODS = [*MATHEMATICS, "losses", "samplers"]
SYSTEMS = [*METHODS, "models", "data", "interop", "training", "evals"]
ALLOWED = {
    "types": [],
    "defaults": [],
    "config": [*BASE, "defaults"],
    "cli": BASE,
    "flows": BASE,
    "models": BASE,
    "losses": MATHEMATICS,
    "samplers": MATHEMATICS,
    "data": BASE,
    "interop": [*BASE, "models"],
    "training": SYSTEMS,
    "evals": SYSTEMS,
    "routes": SYSTEMS,
    "datasets": SYSTEMS,
    "adaptation": [*SYSTEMS, "defaults"],
    "objectives": [*SYSTEMS, "routes"],
    "alignment": [*SYSTEMS, "adaptation"],
    "build": [*SYSTEMS, "adaptation", "alignment", "config", "defaults", "routes", "objectives"],
}
LIBRARY = ALLOWED.keys() - {"defaults", "config", "build"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    """("flm_jax", "flows", "clocks") of flm_jax/flows/clocks.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(source, module=()):
    """Full names of all modules that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module[: len(module) - node.level]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield f"{origin}.{alias.name}"


def violations(module, source):
    """What a module imports against the rules; `module` as name_of gives it."""
    part = module[1] if len(module) > 1 else ""
    for full in imports(source, module):
        root, *rest = full.split(".")
        if root == "flax" and part != "models":
            yield f"imports {full}: only models may"
        # Command lines take configurations from their flags and hand them on.
        if root == "ml_collections" and part in LIBRARY:
            yield f"imports {full}: only build reads configurations"
        if root == "jax" and part == "data":
            yield f"imports {full}: data is NumPy and grain"
        if root != "flm_jax" or not rest or rest[0] == part:
            continue
        if part in ALLOWED and rest[0] not in ALLOWED[part]:
            yield f"imports {full}: {part} may import {', '.join(ALLOWED[part]) or 'nothing'}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: ".".join(name_of(p)[1:]) or "flm_jax")
def test_module_imports_only_from_below(path):
    assert not list(violations(name_of(path), path.read_text(encoding="utf8")))


def test_configurations_import_ml_collections_and_defaults_alone():
    for path in sorted((PACKAGE.parent / "configs").rglob("*.py")):
        for full in imports(path.read_text(encoding="utf8")):
            root = full.split(".")[0]
            allowed = root in ("ml_collections", "configs") or full.startswith("flm_jax.defaults")
            assert allowed, f"{path.name} imports {full}"


@pytest.mark.parametrize(
    "module, source",
    [
        (("flm_jax", "flows", "x"), "from flm_jax.losses import denoising"),
        (("flm_jax", "flows", "x"), "def f():\n    import flm_jax.models.dit"),
        (("flm_jax", "losses", "x"), "from ..samplers import common"),
        (("flm_jax", "losses", "x"), "from flm_jax.samplers.common import Given"),
        (("flm_jax", "models", "x"), "from flm_jax.flows import clocks"),
        (("flm_jax", "training", "x"), "from flax import nnx"),
        (("flm_jax", "training", "x"), "from flm_jax import build"),
        (("flm_jax", "types"), "from flm_jax import flows"),
        (("flm_jax", "data", "x"), "import jax"),
        (("flm_jax", "train"), "import flax.nnx"),
    ],
)
def test_the_rule_bites(module, source):
    assert list(violations(module, source))


def test_the_rule_lets_downward_imports_pass():
    source = (
        "from flm_jax.flows.clocks import Clock\nfrom flm_jax.losses import denoising\nimport jax"
    )
    assert not list(violations(("flm_jax", "losses", "x"), source))
    assert not list(violations(("flm_jax", "train"), "from flm_jax import build, cli"))
