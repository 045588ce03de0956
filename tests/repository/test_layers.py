"""The order of the packages, their contents, and who may know what: read from the sources."""

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "flm_jax"
# A package imports from packages on earlier floors alone, and the commands from all of them.
ORDER = (
    ("core",),
    ("flows", "models", "data"),
    ("denoiser", "interop", "distributed"),
    ("losses", "samplers", "checkpoints"),
    ("metrics", "config"),
    ("build",),
    ("inference",),
    ("training", "serving"),
    ("evaluation", "profiling"),
    ("cli",),
)
FLOOR = {package: floor for floor, packages in enumerate(ORDER) for package in packages}
COMMANDS = {
    "bench",
    "compile",
    "convert",
    "evaluate",
    "frontier",
    "generate_data",
    "prepare_data",
    "run_benchmark",
    "sample",
    "serve",
    "sweep",
    "train",
    "train_policy",
    "train_reward",
}
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


def floor_of(part):
    """The floor of a package; that of the commands lies above all."""
    return FLOOR.get(part, len(ORDER))


def violations(module, source):
    """What a module imports against the rules; `module` as name_of gives it."""
    part = module[1] if len(module) > 1 else ""
    for full in imports(source, module):
        root, *rest = full.split(".")
        if root == "flax" and part != "models":
            yield f"imports {full}: only models may"
        # Command lines take configurations from their flags and hand them on as plain dicts.
        if root == "ml_collections" and part in FLOOR.keys() - {"config", "cli"}:
            yield f"imports {full}: only config and cli read configurations"
        if root == "jax" and part == "data":
            yield f"imports {full}: data is NumPy and grain"
        if root == "flm_jax" and rest and rest[0] != part and floor_of(rest[0]) >= floor_of(part):
            yield f"imports {full}, which does not stand below {part or 'flm_jax'}"


def names_read(source):
    """Lines that read the name of a configuration's objective or model."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Subscript(
                value=ast.Subscript(slice=ast.Constant(value="objective" | "model")),
                slice=ast.Constant(value="name"),
                ctx=ast.Load(),
            ):
                yield node.lineno


@functools.cache
def graph():
    """Module -> modules of flm_jax that it imports, as dotted names."""
    paths = {".".join(name_of(path)): path for path in MODULES}
    found = {}
    for name, path in paths.items():
        every = imports(path.read_text(encoding="utf8"), name_of(path))
        known = (full if full in paths else full.rpartition(".")[0] for full in every)
        found[name] = {other for other in known if other in paths and other != name}
    return found


def circle(edges):
    """A circle among the edges as a list of names, [] where there is none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        found = next(filter(None, map(visit, sorted(edges.get(name, ())))), [])
        path.pop()
        done.add(name)
        return found

    return next(filter(None, map(visit, sorted(edges))), [])


def chain(edges):
    """The number of names on the longest path; the edges have no circle."""

    @functools.cache
    def below(name):
        return 1 + max(map(below, edges.get(name, ())), default=0)

    return max(map(below, edges))


def packages(edges):
    """The same between packages; the commands are one."""
    part = lambda name: name.split(".")[1] if name.split(".")[1:2][0:1] else ""
    shown = lambda name: part(name) if part(name) in FLOOR else "commands"
    found = {}
    for name, others in edges.items():
        found.setdefault(shown(name), set()).update(map(shown, others))
    return {name: others - {name} for name, others in found.items()}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: ".".join(name_of(p)[1:]) or "flm_jax")
def test_module_imports_only_from_below(path):
    source = path.read_text(encoding="utf8")
    assert not list(violations(name_of(path), source))
    assert source.count("\n") <= 400
    # Files of build/families know objectives by name; build/model.py finds the network.
    if "families" not in path.parts and path.name not in ("model.py", "portable.py"):
        assert not list(names_read(source)), "ask build.families.registry.family"


def test_the_root_holds_the_commands_and_the_packages():
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert files == COMMANDS | {"__init__", "__main__"}
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(FLOOR)


def test_no_module_imports_itself_by_way_of_others():
    assert not circle(graph())


def test_packages_stand_on_at_most_ten_floors():
    assert chain(packages(graph())) <= 10


def test_configurations_import_ml_collections_and_the_schema_alone():
    paths = sorted((PACKAGE.parent / "configs").rglob("*.py"))
    assert len(paths) > 30
    for path in paths:
        for full in imports(path.read_text(encoding="utf8")):
            root = full.split(".")[0]
            allowed = root in ("ml_collections", "configs") or full.startswith("flm_jax.config.")
            assert allowed, f"{path.name} imports {full}"


@pytest.mark.parametrize(
    "module, source",
    [
        (("flm_jax", "flows", "x"), "from flm_jax.losses import denoising"),
        (("flm_jax", "flows", "x"), "def f():\n    import flm_jax.models.dit"),
        (("flm_jax", "losses", "x"), "from ..samplers import base"),
        (("flm_jax", "losses", "x"), "from flm_jax.samplers.base import Given"),
        (("flm_jax", "models", "x"), "from flm_jax.flows import clocks"),
        (("flm_jax", "training", "x"), "from flax import nnx"),
        (("flm_jax", "training", "x"), "from flm_jax.evaluation import measure"),
        (("flm_jax", "build", "x"), "from ml_collections import ConfigDict"),
        (("flm_jax", "core", "types"), "from flm_jax import flows"),
        (("flm_jax", "inference", "x"), "from flm_jax import train"),
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


def test_circles_chains_and_names_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert chain({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == 3
    assert list(names_read("x = 1\nif config['objective']['name'] == 'masked': pass")) == [2]
    assert not list(names_read("config['objective']['name'] = 'masked'"))
