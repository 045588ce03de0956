"""Reads the state of learnt times in the format in which it was saved."""

from collections.abc import Sequence
from typing import Any

import orbax.checkpoint as ocp
from etils import epath


def fitting(forms: Sequence[Any], names: set[str]) -> Any:
    """Returns the first format whose fields have these names; None if there is none."""
    return next((form for form in forms if set(form._fields) == names), None)


def read_times(path: epath.Path, forms: Sequence[Any]) -> Any:
    """Reads the state of learnt times from an item of a checkpoint; None if missing or unknown.

    Args:
      path: path of the item.
      forms: formats, named tuples of ShapeDtypeStruct, with shardings.
    """
    if not forms or not path.exists():
        return None
    handler = ocp.StandardCheckpointHandler()
    form = fitting(forms, set(handler.metadata(path).tree))
    return None if form is None else handler.restore(path, args=ocp.args.StandardRestore(form))
