"""Settings: fields of frozen dataclasses that state default, unit, choices and range once.

Checks, documentation, flags and default configurations are generated from them. A settings class
may hold further fields, defined without `setting`, for derived values that no user gives.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from flm_jax.core.errors import one_of, require

T = TypeVar("T")
_LARGEST = 2**53  # whole number that a float is as well; sizes beyond it fit in no memory


class Interval(NamedTuple):
    """An interval of numbers that includes an end where its bracket is square: "[0, 1)".

    Attributes:
      text: interval as written.
      low, high: bounds of the interval; either may be infinite.
    """

    text: str
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside; NaN never does."""
        above = value >= self.low if self.text[0] == "[" else value > self.low
        below = value <= self.high if self.text[-1] == "]" else value < self.high
        return above and below


class Setting(NamedTuple):
    """Description of one setting.

    Attributes:
      name: key of the setting.
      default: default value; for a group, an instance of its class.
      help: noun phrase that says what the value is, with a capital and a stop.
      unit: unit of the value, or "".
      choices: valid values, or () for all of the type.
      range: interval of valid numbers, or None for all.
    """

    name: str
    default: Any
    help: str
    unit: str
    choices: tuple
    range: Interval | None

    @property
    def group(self) -> bool:
        """Whether this is a group of settings."""
        return dataclasses.is_dataclass(self.default)


def _interval(text: str) -> Interval:
    low, high = (float(end) for end in text[1:-1].split(","))
    return Interval(text, low, high)


def setting(
    default: Any, help: str, *, unit: str = "", choices: Iterable = (), range: str = ""
) -> Any:
    """Defines a dataclass field that is a setting.

    Args:
      default: default value: bool, int, float, str or tuple; for a group, an instance of its class.
      help: noun phrase that says what the value is, with a capital and a stop; documentation and
        flags show it.
      unit: unit of the value.
      choices: valid values.
      range: interval of valid numbers, such as "[0, 1)" or "(0, inf)".
    """
    about = {"help": help, "unit": unit, "choices": tuple(choices)}
    about["range"] = _interval(range) if range else None
    return dataclasses.field(default=default, metadata={"setting": about})


def settings_of(cls: type) -> dict[str, Setting]:
    """Returns the settings of a class by name, in the order of its fields."""
    found = {}
    for field in dataclasses.fields(cls):
        about = field.metadata.get("setting")
        if about is not None:
            found[field.name] = Setting(field.name, field.default, **about)
    return found


def plain(settings: Any) -> dict[str, Any]:
    """Returns the values of an instance of a settings class, with groups as nested dicts."""
    return {
        name: plain(getattr(settings, name)) if found.group else getattr(settings, name)
        for name, found in settings_of(type(settings)).items()
    }


def read_settings(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds an instance of a settings class from plain values, such as JSON's.

    Args:
      cls: frozen dataclass of settings.
      values: value of each setting; lists stand for tuples, and ints for floats.
      where: name of the group, for messages: "config.optim".

    Raises:
      UserError: a value that is missing, unknown, of another type, not among the choices, or out of
        its range; or values that the class itself refuses.
    """
    known, read = settings_of(cls), {}
    for name in values:
        one_of(f"key in {where}", name, known)
    for name, found in known.items():
        place = f"{where}.{name}"
        require(
            name in values, f"{place} is missing; start from a configuration of flm_jax.config."
        )
        value = values[name]
        if found.group:
            require(isinstance(value, Mapping), f"{place} must hold keys, got {value!r}.")
            read[name] = read_settings(type(found.default), value, place)
        else:
            read[name] = _checked(found, value, place)
    return cls(**read)


def check_values(settings: Any, where: str) -> None:
    """Checks types, choices and ranges of an instance that was built in Python.

    Raises:
      UserError: for the same values as `read_settings`.
    """
    for name, found in settings_of(type(settings)).items():
        if not found.group:
            _checked(found, getattr(settings, name), f"{where}.{name}")


def _checked(found: Setting, value: Any, place: str) -> Any:
    wanted = type(found.default)
    require(
        type(value) is not int or abs(value) <= _LARGEST,
        f"{place} has more digits than any setting; expected a number up to {_LARGEST}.",
    )
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted is tuple and isinstance(value, list):
        value = tuple(value)
    require(type(value) is wanted, f"{place} must be {wanted.__name__}, got {value!r}.")
    if found.choices:
        one_of(place, value, found.choices)
    if found.range is not None:
        unit = f" {found.unit}" if found.unit else ""
        require(
            found.range.holds(value),
            f"{place} is {value}; expected a number in {found.range.text}{unit}.",
        )
    return value
