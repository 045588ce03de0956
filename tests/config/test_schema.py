"""A setting is stated once, and configurations stay above the packages that they set."""

import ast
import importlib
from pathlib import Path

import pytest

from flm_jax.config.schema import GROUPS, NAMED, base_config, choose, policy_config, settings
from flm_jax.core.errors import UserError
from flm_jax.core.settings import settings_of
from flm_jax.flows.registry import FLOWS, flows_of

PACKAGE = Path(__file__).parents[2] / "flm_jax"
BELOW = (
    *("core", "flows", "models", "data", "denoiser", "interop", "distributed", "losses"),
    *("samplers", "checkpoints", "metrics"),
)
# Not settings of a configuration: what a network lacks, and the flags of prepare_data.
OTHERS = {"Network", "SourceConfig", "PrepareConfig"}


def defaults_of_settings():
    """name of a key -> the values that settings classes give it."""
    found = {}

    def add(cls):
        for name, one in settings_of(cls).items():
            found.setdefault(name, []).append(one.default)
            if one.group:
                add(type(one.default))

    for cls in [*GROUPS.values(), *(cls for names in NAMED.values() for cls in names.values())]:
        add(cls)
    return found


def own_defaults(tree):
    """(owner, name, expression) of parameters and of fields that have a default."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            args = node.args
            named = [*args.posonlyargs, *args.args]
            pairs = list(zip(named[len(named) - len(args.defaults) :], args.defaults))
            pairs += [(a, d) for a, d in zip(args.kwonlyargs, args.kw_defaults) if d is not None]
            owner = getattr(node, "name", "lambda")
            yield from ((owner, arg.arg, default) for arg, default in pairs)
        if isinstance(node, ast.ClassDef):
            fields = [s for s in node.body if isinstance(s, ast.AnnAssign) and s.value]
            made = [f for f in fields if ast.unparse(f.value).startswith("setting(")]
            if not made and node.name not in OTHERS:  # beside settings: derived, given by nobody
                yield from ((node.name, f.target.id, f.value) for f in fields)


def repeated(source, module):
    """Defaults in a source that repeat a setting's."""
    known = defaults_of_settings()
    for owner, name, expression in own_defaults(ast.parse(source)):
        try:
            value = eval(ast.unparse(expression), vars(module))
        except Exception:  # of names inside a function
            continue
        for default in known.get(name, []):
            if type(default) is type(value) and default == value:
                yield f"{module.__name__}.{owner}: {name} = {value!r}"


def test_no_default_is_written_twice():
    found = []
    for package in BELOW:
        for path in sorted((PACKAGE / package).rglob("*.py")):
            name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            if name.endswith("__init__") or "/benchmarks/sandbox" in str(path):
                continue
            found += repeated(path.read_text(), importlib.import_module(name))
    assert not found, "\n".join(found)


def test_a_default_that_is_written_twice_is_found():
    module = importlib.import_module("flm_jax.flows.interpolants.masked_bridge")
    source = "def f(x, sigma=SIGMA): ...\nclass A:\n    length: int = 64\n    dim: int = 3\n"
    assert len(set(repeated(source, module))) == 2


def test_no_configuration_travels_below_build():
    """Only config, which reads them, knows the type; the others take settings."""
    for package in BELOW:
        for path in sorted((PACKAGE / package).rglob("*.py")):
            names = {
                alias.name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom) and node.module == "flm_jax.core.types"
                for alias in node.names
            }
            keys = [f'config["{group}"]' for group in (*GROUPS, *NAMED)]
            assert "Config" not in names, path
            assert not [key for key in keys if key in path.read_text()], path


def test_flows_follow_the_objective():
    """The first flow of an objective is its default; another one stays where it is learnt too."""
    config = base_config()
    choose(config, flow="variance_preserving")
    choose(config, objective="semigroup")
    assert config.flow.name == "variance_preserving"
    for objective, first in (
        ("masked_flow", "masked_bridge"),
        ("masked_diffusion", "mask_anchored"),
        ("autoregressive", "none"),
        ("denoising", "linear"),
    ):
        choose(config, objective=objective)
        assert config.flow.name == first == flows_of(objective)[0]
        assert set(config.flow) == {"name", *settings_of(FLOWS[first].settings)}


def test_a_key_of_another_group_is_said_to_be_its():
    """Of older versions, for one: the clock and the noise of an objective."""
    values = base_config().to_dict()
    values["objective"]["clock"] = "identity"
    with pytest.raises(UserError, match="has no 'clock': that is a key of config.flow; set"):
        settings(values, "objective")


def test_a_key_that_two_paths_share_keeps_what_was_given():
    config = base_config()
    config.flow.noise = "onehot"
    choose(config, flow="variance_preserving")
    assert config.flow.noise == "onehot" and config.flow.clock == "learnt"
    with pytest.raises(UserError, match="unknown config.flow.name"):
        base_config(flow="lineer")


def test_lists_are_tuples_which_a_command_line_may_replace():
    """ml_collections refuses to override a list, and makes one of a tuple in its place."""
    config = choose(base_config(), model="llama", objective="masked_flow")
    assert config.data.chat == config.objective.special_ids == ()
    for path in (config.data.chat, config.objective.special_ids, policy_config().calls):
        assert isinstance(path, tuple)
    config.objective.special_ids = (1, 2)
    again = choose(config, objective="masked_diffusion")
    assert isinstance(again.data.mixture, tuple)
