"""Tests and the program under test, in two processes that exchange values and no objects.

`sandbox_runner` loads this module, which uses the standard library alone. The program's process
(`serve`) executes requests, and reports how its first run ended. The tests' process (`judge`) runs
the tests; where they call a function of the program, the arguments are sent as JSON and the result
comes back: numbers, texts, lists and the like, rebuilt from a closed list of types, so that no
comparison in the tests is the program's own. Functions, classes and other objects stay where they
are: the tests get a `Remote`, which forwards calls, attributes, items and iteration.
"""

import builtins
import contextlib
import importlib
import json
import operator
import os
import sys
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Set

_LONGEST = 1 << 26  # bytes of a message
_SMALL = 1 << 53  # whole numbers below are plain JSON
_SEQUENCES = {kind.__name__: kind for kind in (list, tuple, set, frozenset, deque)}
_MAPPINGS = {kind.__name__: kind for kind in (Counter, OrderedDict, dict)}
# Types of modules that few programs import: what makes one from a text.
_TEXTS = {
    "Fraction": ("fractions", "Fraction"),
    "Decimal": ("decimal", "Decimal"),
    "datetime": ("datetime", "datetime.fromisoformat"),
    "date": ("datetime", "date.fromisoformat"),
    "time": ("datetime", "time.fromisoformat"),
}
_ACTIONS = {
    "call": lambda whom, args, named: whom(*args, **named),
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "put": operator.setitem,
    "has": operator.contains,
    "iter": iter,
    "next": next,
    "len": len,
    "truth": operator.truth,
    "text": str,
}


class Gone(BaseException):
    """The program's process has ended."""


class Link:
    """One end of a socket; a message is a line of JSON."""

    def __init__(self, number):
        self._number, self._lines = number, os.fdopen(number, "rb", closefd=False)
        self.gone = False

    def send(self, message):
        rest = json.dumps(message).encode() + b"\n"
        try:
            while rest:
                rest = rest[os.write(self._number, rest) :]
        except OSError:
            self.gone = True
            raise Gone from None

    def receive(self):
        try:
            line = self._lines.readline(_LONGEST)
        except OSError:
            line = b""
        if not line:
            self.gone = True
            raise Gone
        return json.loads(line)


class Remote:
    """Handle in the tests for an object that stays in the program's process.

    Two handles of the same object are equal; a handle equals no value, whatever the object's own
    comparison would say.
    """

    def __init__(self, ask, key):
        # Past __setattr__, which asks the program.
        self.__dict__.update(_ask=ask, _key=key)

    def __call__(self, *args, **named):
        return self._ask("call", self, list(args), named)

    def __eq__(self, other):
        return isinstance(other, Remote) and other._key == self._key

    def __hash__(self):
        return hash(self._key)

    def __repr__(self):
        return f"<object {self._key} of the program>"


def _handed_on(action):
    return lambda self, *args: self._ask(action, self, *args)


for _name, _action in {
    "__getattr__": "get",
    "__setattr__": "set",
    "__getitem__": "item",
    "__setitem__": "put",
    "__contains__": "has",
    "__iter__": "iter",
    "__next__": "next",
    "__len__": "len",
    "__bool__": "truth",
    "__str__": "text",
}.items():
    setattr(Remote, _name, _handed_on(_action))


def encoded(value, other):
    """Encodes a value as JSON: lists are [kind, ...], everything else stands for itself.

    Args:
      value: any value.
      other: function from an object that is no value to its encoding.
    """
    each = lambda items: [encoded(item, other) for item in items]
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        # Larger ones in hexadecimal, for which Python has no limit of digits.
        number = int(value)
        return number if -_SMALL < number < _SMALL else ["int", hex(number)]
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, (bytes, bytearray)):
        return [type(value).__name__, value.hex()]
    if isinstance(value, range):
        return ["range", *each((value.start, value.stop, value.step))]
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return [name, *each(value)]
    if isinstance(value, Set):  # keys of a mapping
        return ["set", *each(value)]
    for name, kind in _MAPPINGS.items():
        if isinstance(value, kind):
            return [name, *(each(pair) for pair in value.items())]
    home, name = type(value).__module__, type(value).__name__
    if home == _TEXTS.get(name, ("",))[0]:
        return [name, value.isoformat() if home == "datetime" else str(value)]
    if home == "datetime" and name == "timedelta":
        return [name, value.days, value.seconds, value.microseconds]
    if isinstance(value, type) and vars(builtins).get(value.__name__) is value:
        return ["type", value.__name__]
    if home == "numpy" and getattr(value, "shape", None) == ():
        return encoded(value.item(), other)
    return other(value)


def decoded(message, other):
    """Decodes a value of `encoded`, using the types of this list alone.

    Args:
      message: encoding from `encoded`.
      other: function from (kind, content) to a value, for other kinds.
    """
    if not isinstance(message, list):
        return message
    kind, *rest = message
    each = lambda items: [decoded(item, other) for item in items]
    if kind == "int":
        return int(rest[0], 16)
    if kind == "complex":
        return complex(*map(float, rest))
    if kind in ("bytes", "bytearray"):
        return getattr(builtins, kind).fromhex(rest[0])
    if kind == "range":
        return range(*each(rest))
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](each(rest))
    if kind in _MAPPINGS:
        return _MAPPINGS[kind](dict(map(each, rest)))
    if kind in _TEXTS:
        home, maker = _TEXTS[kind]
        return operator.attrgetter(maker)(importlib.import_module(home))(str(rest[0]))
    if kind == "timedelta":
        return importlib.import_module("datetime").timedelta(*rest)
    if kind == "type" and isinstance(found := vars(builtins).get(rest[0]), type):
        return found
    return other(kind, rest[0])


def word(error):
    """Describes an exception in one line."""
    try:
        return f"{type(error).__name__}: {str(error)[:500]}"
    except BaseException:
        return type(error).__name__


def serve(number, code):
    """Runs a program, then executes the requests of the tests; never returns.

    Args:
      number: file descriptor of this end.
      code: code of the program.
    """
    link, process, kept = Link(number), os.getpid(), []
    module = types.ModuleType("program")
    sys.modules["program"], sys.argv = module, ["program.py"]

    def other(value):
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        if not any(value is one for one in kept):
            kept.append(value)
        return ["object", next(n for n, one in enumerate(kept) if one is value)]

    def done(action, args):
        try:
            if action == "names":
                found = {n: module.__dict__[n] for n in args[0] if n in module.__dict__}
                return ["names", {n: encoded(value, other) for n, value in found.items()}]
            whom, *args = [decoded(arg, lambda kind, key: kept[key]) for arg in args]
            return ["value", encoded(_ACTIONS[action](whom, *args), other)]
        except BaseException as error:
            return ["raised", type(error).__name__, word(error).partition(": ")[2]]

    def tell(message):
        if os.getpid() != process:
            os._exit(0)  # a copy that the program made of itself
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        link.send(message)

    try:
        exec(compile(code, "program.py", "exec", dont_inherit=True), module.__dict__)
        ended = ["ran"]
    except BaseException as error:
        ended = ["raised", word(error)]
    with contextlib.suppress(Gone):
        tell(ended)
        while True:
            action, *args = link.receive()
            tell(done(action, args))
    os._exit(0)


def judge(number, setup, tests, names):
    """Runs tests against the program at the other end of the link.

    Args:
      number: file descriptor of this end.
      setup: code before the tests, which is not the program's.
      tests: code that fails by an exception.
      names: names that the program must define, even if the setup or Python define them too.

    Returns:
      "passed"; "failed" with the exception; "gone" if the program ended before.
    """
    link = Link(number)
    try:
        said = link.receive()
        if said != ["ran"]:
            return f"failed {said[1]}"
        _run_tests(link, setup, tests, names)
    except Gone:
        pass
    except BaseException as error:
        return "gone" if link.gone else f"failed {word(error)}"
    return "gone" if link.gone else "passed"  # a test may have suppressed it


def _run_tests(link, setup, tests, names):
    def other(value):
        if isinstance(value, Remote):
            return ["object", value._key]
        raise TypeError(f"a test hands over {type(value).__name__}, which is no value")

    def found(kind, said):
        # None inside a package: some of them run what lies in a folder (unittest.__main__).
        if kind == "module" and said in sys.stdlib_module_names:
            return importlib.import_module(said)
        if kind == "object":
            return Remote(ask, said)
        raise TypeError(f"the program gives {kind}, which is no value")

    def ask(action, *args):
        link.send([action, *(encoded(arg, other) for arg in args)])
        kind, said, *rest = link.receive()
        if kind == "raised":
            error = getattr(builtins, str(said), None)
            known = isinstance(error, type) and issubclass(error, Exception)
            # It ends what iterates in the tests, as `all(map(f, ...))`, as if all had been right.
            known = known and (error is not StopIteration or action == "next")
            raise (error if known else RuntimeError)(*rest)
        return decoded(said, found)

    module = types.ModuleType("tests")
    before, after = compile(setup, "setup.py", "exec"), compile(tests, "tests.py", "exec")
    _name_all(link, module, names, found, [before, after])
    exec(before, module.__dict__)
    _name_all(link, module, names, found, [])
    exec(after, module.__dict__)


def _name_all(link, module, names, found, codes):
    """Gives the tests what they name of the program, where it is not their own or Python's."""
    used = [name for code in codes for name in _used(code) if not hasattr(builtins, name)]
    asked = [*names, *used]
    link.send(["names", asked])
    said = link.receive()[1]
    module.__dict__.update((name, decoded(said[name], found)) for name in asked if name in said)


def _used(code):
    """Names that code, and the code of functions in it, may look up."""
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return [*code.co_names, *(name for one in inner for name in _used(one))]
