"""Compares models: a table of speed, diversity and loss, and sample texts.

python -m flm_jax.evaluate --model=runs/flm:64 --model=runs/fmlm:1,2,4 --json=report.json
python -m flm_jax.evaluate --config=configs/compare_tasks.py:phrases4 --workdir=runs/compare

The second trains what is missing, measures what is missing, and writes report.md, report.json and
plots into the workdir; stopped, it continues when run again.
"""

import json

from absl import flags
from etils import epath
from ml_collections import config_flags

from flm_jax import compare, sampling_flags
from flm_jax.cli import given_config, run_cli
from flm_jax.measure import measure, table
from flm_jax.types import require

_MODELS = flags.DEFINE_multi_string("model", [], "WORKDIR:STEPS, for example runs/fmlm:1,2,4.")
_CONFIG = config_flags.DEFINE_config_file("config", None, "A comparison, configs/compare_*.py.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the comparison that --config names.")
_NUM = flags.DEFINE_integer("num_samples", 64, "Samples for each row of the table.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Samples, and validation rows, at a time.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
_SHOW = flags.DEFINE_integer("show", 2, "Samples printed for each row.")
_JSON = flags.DEFINE_string("json", "", "File for the rows and all samples.")


def _parse(text: str) -> tuple[str, list[int]]:
    workdir, _, steps = text.rpartition(":")
    counts = steps.split(",")
    require(
        bool(workdir) and all(c.isdigit() for c in counts),
        f"got --model={text}; expected WORKDIR:STEPS such as runs/fmlm:1,2,4.",
    )
    return workdir, [int(c) for c in counts]


def main(argv) -> int:
    require(len(argv) == 1, f"got positional arguments {argv[1:]}; expected flags alone.")
    require(
        bool(_MODELS.value) != (_CONFIG.value is not None),
        "expected either --model=WORKDIR:STEPS, several times if wanted, or --config=FILE with "
        "--workdir.",
    )
    if _CONFIG.value is not None:
        require(bool(_WORKDIR.value), "no --workdir; expected the folder of the comparison.")
        return compare.run(given_config(_CONFIG), _WORKDIR.value)
    options = sampling_flags.options()
    rows = []
    for workdir, steps in [_parse(text) for text in _MODELS.value]:
        rows += measure(
            workdir,
            steps,
            samples=_NUM.value,
            batch_size=_BATCH.value,
            seed=_SEED.value,
            options=options,
        )
    print(table(rows))
    for row in rows:
        print(f"\n{row['model']}, {row['calls']:g} network calls:")
        for sample in row["samples"][: _SHOW.value]:
            print(f"  {sample}")
    if _JSON.value:
        epath.Path(_JSON.value).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
