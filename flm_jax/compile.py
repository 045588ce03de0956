"""Plans a run: compiles its train step or sampler for devices that need not be present.

python -m flm_jax.compile --config=configs/owt/flm.py --vocab_size=50257 --topology=v5e:4x4 \\
    --config.mesh.fsdp=16 --config.model.attention=splash [--batch=512] [--sample_steps=8] \\
    [--find_batch] --json=plan.json

Planning needs the compiler of the platform (pip install "flm-jax[tpu]" or "flm-jax[cuda]"), but no
data and no workdir of a teacher, which has the student's sizes. Exit status: 0 fits, 1 does not
fit, 2 bad input.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from flm_jax.cli.config_flag import DEFINE_config
from flm_jax.cli.path_flags import DEFINE_output
from flm_jax.core.files import to_json, write_output

_CONFIG = DEFINE_config()
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    "",
    "Devices to plan for, FAMILY:SIZES, such as v5e:4x4, v5p:4x4x4, h200:8 or cpu:8.",
)
_VOCAB = flags.DEFINE_integer(
    "vocab_size", 0, "Vocabulary size in tokens; 0 is config.model.vocab_size."
)
_BATCH = flags.DEFINE_integer(
    "batch", 0, "Global batch size in sequences; 0 is config.train.batch."
)
_SAMPLE = flags.DEFINE_integer(
    "sample_steps",
    0,
    "Number of network calls of a sampler to plan instead of a train step; 0 plans the train step.",
)
_ROLLOUT = flags.DEFINE_bool(
    "rollout",
    False,
    "Plan the rollout of train_policy, which keeps its states; needs --sample_steps.",
)
_FIND = flags.DEFINE_bool("find_batch", False, "Also search for the largest batch that fits.")
_TRIES = flags.DEFINE_integer("tries", 6, "Largest number of compilations in that search.")
_JSON = DEFINE_output("json", "", "JSON file to write the report to.")
_HLO = DEFINE_output("hlo", "", "File to write the compiled program of one device to.")


def environment(argv: Sequence[str]) -> dict[str, str]:
    """Returns the variables that JAX and libtpu read at start, for --topology of a command line.

    JAX itself stays on the CPU. libtpu would otherwise look for the machine it runs on, and for the
    lock of another process.
    """
    words = [word for arg in argv for word in arg.split("=", 1)]
    name = next((b for a, b in zip(words, words[1:]) if a.lstrip("-") == "topology"), "")
    family, _, sizes = name.partition(":")
    variables = {"JAX_PLATFORMS": "cpu"}
    if family == "cpu" and sizes.isdigit():
        flag = f"--xla_force_host_platform_device_count={sizes}"
        return variables | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()}
    return variables | {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def _write_hlo(text: str) -> None:
    if _HLO.value:
        write_output(_HLO.value, text)


def main(argv) -> int:
    # Imported only now: JAX must not start before `environment` was applied.
    import jax

    from flm_jax.cli.config_flag import given_config
    from flm_jax.cli.run import no_arguments
    from flm_jax.config.check import check
    from flm_jax.config.schema import settings
    from flm_jax.core.errors import require
    from flm_jax.distributed.sharding import make_mesh
    from flm_jax.profiling import plan, topologies

    # What reads flags has imported JAX already, which reads this variable as it is imported.
    jax.config.update("jax_platforms", "cpu")
    no_arguments(argv)
    given = given_config(_CONFIG)
    require(bool(_TOPOLOGY.value), f"no --topology; expected one such as {topologies.EXAMPLES}.")
    config = plan.resolve(check(given), _VOCAB.value, _BATCH.value)
    topology, cfg = topologies.parse(_TOPOLOGY.value), settings(config, "mesh")
    mesh = make_mesh(cfg, topologies.devices(topology, cfg.slices))
    result = plan.plan(
        config,
        mesh,
        topology.chip.memory,
        sample_steps=_SAMPLE.value,
        rollout=_ROLLOUT.value,
        tries=_TRIES.value if _FIND.value else 0,
        keep=_write_hlo,
    )
    result = {"topology": _TOPOLOGY.value} | result
    print("\n".join(plan.lines(result)), flush=True)
    if _JSON.value:
        write_output(_JSON.value, to_json(result, indent=2) + "\n")
    return 0 if result["fits"] else 1


if __name__ == "__main__":
    os.environ.update(environment(sys.argv))
    from flm_jax.cli.run import run_cli

    run_cli(main)
