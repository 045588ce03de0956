"""Settings: what a field states once is what is read, checked and told."""

import dataclasses

import pytest

from flm_jax.core.errors import UserError
from flm_jax.core.settings import check_values, plain, read_settings, setting, settings_of


@dataclasses.dataclass(frozen=True)
class Inner:
    """A group."""

    kind: str = setting("a", "kind of it", choices=("a", "bee"))


@dataclasses.dataclass(frozen=True)
class Outer:
    """Settings with a group, and a field that no user gives."""

    rate: float = setting(0.5, "rate", unit="1/s", range="[0, 1)")
    steps: int = setting(3, "steps", range="[1, inf)")
    pairs: tuple = setting((), "pairs")
    inner: Inner = setting(Inner("bee"), "group")
    derived: int = 7


def test_defaults_are_those_of_the_fields_and_groups_may_differ_from_their_class():
    assert plain(Outer()) == {"rate": 0.5, "steps": 3, "pairs": (), "inner": {"kind": "bee"}}
    assert list(settings_of(Outer)) == ["rate", "steps", "pairs", "inner"]


def test_values_are_read_as_json_gives_them():
    values = {"rate": 0, "steps": 2, "pairs": [1, 2], "inner": {"kind": "a"}}
    got = read_settings(Outer, values, "config.outer")
    assert got == Outer(0.0, 2, (1, 2), Inner("a"))
    assert type(got.rate) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 1.0}, r"config.outer.rate is 1.0; expected a number in \[0, 1\) 1/s"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"rate": "fast"}, "config.outer.rate must be float, got 'fast'"),
        ({"steps": 0}, r"steps is 0; expected a number in \[1, inf\)"),
        ({"steps": 2.0}, "steps must be int, got 2.0"),
        ({"steps": 10**30}, "steps has more digits than any setting"),
        ({"rate": 10**400}, "rate has more digits than any setting"),  # no float holds it
        ({"steps": True}, "steps must be int, got True"),
        ({"inner": {"kind": "be"}}, "unknown config.outer.inner.kind 'be'; did you mean 'bee'"),
        ({"inner": 3}, "config.outer.inner must hold keys, got 3"),
        ({"step": 1}, "unknown key in config.outer 'step'; did you mean 'steps'"),
        ({"derived": 1}, "unknown key in config.outer 'derived'"),
    ],
)
def test_refused_values(change, message):
    with pytest.raises(UserError, match=message):
        read_settings(Outer, plain(Outer()) | change, "config.outer")


def test_a_missing_key_is_named():
    values = plain(Outer())
    del values["steps"]
    with pytest.raises(UserError, match="config.outer.steps is missing"):
        read_settings(Outer, values, "config.outer")


def test_values_given_in_python_are_checked_too():
    check_values(Outer(), "outer")
    with pytest.raises(UserError, match="outer.rate is 2.0"):
        check_values(Outer(rate=2.0), "outer")
