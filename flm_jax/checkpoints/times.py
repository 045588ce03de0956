"""What is learnt of the law of times, read in the form that it was saved in."""

from collections.abc import Sequence
from typing import Any

import orbax.checkpoint as ocp
from etils import epath


def fitting(forms: Sequence[Any], names: set[str]) -> Any:
    """The first form whose fields have these names; None where there is none."""
    return next((form for form in forms if set(form._fields) == names), None)


def read_times(path: epath.Path, forms: Sequence[Any]) -> Any:
    """What is learnt, from the item of a checkpoint; None where it is missing or of no form.

    Args:
      path: of the item.
      forms: named tuples of ShapeDtypeStruct, with shardings.
    """
    if not forms or not path.exists():
        return None
    handler = ocp.StandardCheckpointHandler()
    form = fitting(forms, set(handler.metadata(path).tree))
    return None if form is None else handler.restore(path, args=ocp.args.StandardRestore(form))
