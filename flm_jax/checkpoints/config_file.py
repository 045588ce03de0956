"""config.json of a workdir or an exported folder: what was configured, as JSON values."""

import json
from typing import Any

from etils import epath

from flm_jax.core.errors import require
from flm_jax.core.files import to_json, write_whole


def write_config(workdir: str | epath.Path, config: dict[str, Any]) -> None:
    """Writes the resolved configuration, in one step: a kill leaves the old or the new one."""
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.json", to_json(config, indent=2) + "\n")


def read_config(workdir: str | epath.Path) -> dict[str, Any]:
    """The resolved configuration of a workdir."""
    path = epath.Path(workdir) / "config.json"
    require(
        path.exists(),
        f"{workdir} is no workdir (it has no config.json); expected that of a training run.",
    )
    return json.loads(path.read_text())
