"""Draws the frontier of models: quality against entropy, a line for each number of network calls.

python -m flm_jax.sweep --workdir=runs/mdlm --steps=4,16 --option=temperature \\
    --values=0.7,0.8,0.9,1 --judge=runs/ar --json=mdlm.json
python -m flm_jax.frontier --rows=mdlm.json --rows=fmlm.json --out=frontier.png

A temperature trades entropy for quality in every model, so that two models compare where their
lines have one entropy, that of the data before all.
"""

from absl import flags
from etils import epath

from flm_jax.cli.path_flags import DEFINE_output, check_plots
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.core.errors import require
from flm_jax.evaluation.frontiers import QUALITIES, draw_frontier, read_rows

_ROWS = flags.DEFINE_multi_string(
    "rows", [], "JSON file of rows that sweep or evaluate wrote; may be repeated."
)
_OUT = DEFINE_output("out", "", "PNG file to write the picture to.")
_QUALITY = flags.DEFINE_enum(
    "quality", "judge_perplexity", list(QUALITIES), "Figure of the rows that stands for quality."
)


def main(argv) -> None:
    no_arguments(argv)
    require(bool(_ROWS.value), "no --rows; expected a JSON file of sweep or evaluate.")
    require(bool(_OUT.value), "no --out; expected a PNG file to write.")
    check_plots(_OUT)
    rows = read_rows(_ROWS.value, _QUALITY.value)
    draw_frontier(epath.Path(_OUT.value), rows, _QUALITY.value)
    print(f"wrote {_OUT.value}")


if __name__ == "__main__":
    run_cli(main)
