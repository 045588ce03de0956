"""Progress of downloads from the Hugging Face hub."""

import contextlib
import sys
from collections.abc import Iterator

from flm_jax.core.extras import import_extra
from flm_jax.core.progress import Progress, on_terminal


def _in_notebook() -> bool:
    """Whether a kernel of Jupyter runs this code; a program may import its packages too."""
    shell = sys.modules.get("IPython")
    return "ipykernel" in sys.modules and shell is not None and shell.get_ipython() is not None


@contextlib.contextmanager
def downloading(name: str) -> Iterator[None]:
    """Shows the progress of a download while its `with` block lasts.

    On a terminal and in a notebook these are the hub's own bars. Elsewhere, where they would fill a
    log, it is a line a minute.

    Args:
      name: name of the model, data set or tokenizer.
    """
    if on_terminal(sys.stderr) or _in_notebook():
        yield
        return
    bars = import_extra("huggingface_hub.utils", "hf", f"the download of {name}")
    silent = bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        with Progress(f"downloading {name}"):
            yield
    finally:
        if not silent:
            bars.enable_progress_bars()
