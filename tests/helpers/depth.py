"""Runs a command and prints the deepest stack from its `main` to the network, as JSON.

python tests/helpers/depth.py OUT flm_jax.train --config=... ; the test reads OUT.
"""

import atexit
import json
import runpy
import sys
from pathlib import Path

import flm_jax
from flm_jax.models import dit

PACKAGE = Path(flm_jax.__file__).parent


def frames():
    """Functions of flm_jax on the stack, `main` first, closures included; [] outside `main`."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if Path(code.co_filename).is_relative_to(PACKAGE):
            found.append(f"{Path(code.co_filename).relative_to(PACKAGE)}:{code.co_name}")
            if code.co_name == "main":
                return found[::-1]
        frame = frame.f_back
    return []


def watch(seen):
    """Notes the stack at each call of a DiT's features, that function itself last."""
    as_network = dit.as_network

    def watched(cfg, init, features, **more):
        def noted(*args, **named):
            seen.append([*frames(), f"models/dit.py:{features.__name__}"])
            return features(*args, **named)

        return as_network(cfg, init, noted, **more)

    dit.as_network = watched


if __name__ == "__main__":
    out, module, *words = sys.argv[1:]
    stacks = []
    watch(stacks)
    atexit.register(lambda: Path(out).write_text(json.dumps(stacks)))
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__")
