"""Reads the collectives of a compiled program from the text of its HLO."""

import collections
import math
import re
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "token": 0, "u4": 1, "s4": 1, "bf16": 2}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^(?:ROOT )?%[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"= [su]\d+\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
# Groups written out, as [number, size], or as axes of a mesh.
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")


class Collective(NamedTuple):
    """Number of runs of a kind in one call of the program, and its bytes on a device."""

    count: int
    bytes: int


class Collectives(NamedTuple):
    """Collectives by kind; loops whose length the text does not state count once."""

    kinds: dict[str, Collective]
    unknown_loops: int


def collectives(text: str) -> Collectives:
    """Counts the collectives of one call, those in loops once for each iteration.

    Args:
      text: result of `compiled.as_text()`, the program of one device.

    Returns:
      The kinds that occur. Bytes are counted for the full array: gathered, or before it is
      scattered.
    """
    computations, entry = _split(text)
    turns = collections.Counter()
    loops = [0]

    def visit(name: str, times: int) -> None:
        turns[name] += times
        for line in computations.get(name, ()):
            inner = times
            if " while(" in line:
                trips = _trips(line, computations)
                loops[0] += trips is None
                inner = times * (trips or 1)
            called = _CALLED.findall(line)
            for group in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in group.split(",")]
            for other in called:
                visit(other, inner)

    visit(entry, 1)
    # One that overlaps with computation stands in each step of that computation, inner loops
    # included, under one channel: the fewest turns are its own.
    channels: dict[object, tuple[int, str, int]] = {}
    for name, times in turns.items():
        for number, line in enumerate(computations.get(name, ())):
            if found := _collective(line):
                channel = _CHANNEL.search(line)
                place = channel.group(1) if channel else (name, number)
                channels[place] = min(channels.get(place, (times, *found)), (times, *found))
    total = collections.defaultdict(lambda: Collective(0, 0))
    for times, kind, size in channels.values():
        old = total[kind]
        total[kind] = Collective(old.count + times, old.bytes + times * size)
    return Collectives(dict(sorted(total.items())), loops[0])


def _trips(line: str, computations: dict[str, list[str]]) -> int | None:
    """Number of iterations of a loop: the compiler's, else the one constant above its counter.

    The TPU compiler records none, but all its loops count up from 0 by 1.
    """
    if said := _TRIPS.search(line):
        return int(said.group(1))
    condition = computations.get(_CONDITION.search(line).group(1), ())
    constants = [c.group(1) for text in condition if (c := _CONSTANT.search(text))]
    below = any("compare(" in text and "direction=LT" in text for text in condition)
    return int(constants[0]) if below and len(constants) == 1 else None


def _split(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the name of the one that runs first."""
    computations, entry, lines = {}, "", None
    for raw in text.splitlines():
        line = raw.strip()
        if not raw.startswith(" ") and (head := _COMPUTATION.match(line)):
            lines = computations.setdefault(head.group(2), [])
            entry = head.group(2) if head.group(1) else entry
        elif lines is not None:
            lines.append(line)
    return computations, entry


def _collective(line: str) -> tuple[str, int] | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    shape, operation = match.groups()
    kind = operation.removesuffix("-start")
    if kind not in KINDS:
        return None
    if operation.endswith("-start") and kind != "all-reduce":
        shape = _result(shape)
    size = sum(
        math.prod(int(n) for n in dims.split(",") if n) * _width(dtype)
        for dtype, dims in _ARRAY.findall(shape)
    )
    # Its result is a part of the array: one for each device of the group.
    if kind == "reduce-scatter":
        size *= _group(line)
    return kind, size


def _group(line: str) -> int:
    """Number of devices that take part in a collective together."""
    if listed := _LISTED.search(line):
        return len(listed.group(1).split(","))
    if counted := _COUNTED.search(line):
        return int(counted.group(1))
    if axes := _AXES.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes.group(1)))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes.group(2)))
    return 1


def _result(shape: str) -> str:
    """Second part of the tuple (operands, results, ...) that an asynchronous start returns."""
    parts, depth, last = [], 0, 1
    inner = shape[1:-1]
    for i, char in enumerate(inner):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(inner[last - 1 : i])
            last = i + 2
    parts.append(inner[last - 1 :])
    return parts[1] if len(parts) > 1 else shape


def _width(dtype: str) -> int:
    """Size of one element in bytes: "f32" 4, "bf16" 2, "f8e4m3" 1."""
    if dtype in _BYTES:
        return _BYTES[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits.group(1)) // 8 if digits else 0
