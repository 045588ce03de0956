"""Reads and writes config.json of a workdir or an exported folder, as JSON values."""

from typing import Any

from etils import epath

from flm_jax.core.errors import require
from flm_jax.core.files import to_json, write_whole
from flm_jax.core.reading import read_object

_MOST_BYTES = 16 << 20


def write_config(workdir: str | epath.Path, config: dict[str, Any]) -> None:
    """Writes the resolved configuration atomically: a kill leaves the old or the new one."""
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.json", to_json(config, indent=2) + "\n")


def read_config(workdir: str | epath.Path) -> dict[str, Any]:
    """Reads the resolved configuration of a workdir, as it was written.

    Raises:
      UserError: no workdir, or a damaged configuration.
    """
    path = epath.Path(workdir) / "config.json"
    require(
        path.exists(),
        f"{workdir} is no workdir (it has no config.json); expected that of a training run.",
    )
    return read_object(path, "the configuration of a run", _MOST_BYTES)
