"""Records expected/ in the working directory with the code that wrote the folders.

In older_runs/: PYTHONPATH=CHECKOUT:FOLDER_OF_CONFTEST_AND_TEST PYTHON record.py [OUT]
"""

import json
import sys
import tempfile
from pathlib import Path

import test_older_runs as tests

import conftest  # noqa: F401  the environment of the tests, before JAX starts
import flm_jax

print(flm_jax.__file__)
out = Path(sys.argv[1] if len(sys.argv) > 1 else "expected")
out.mkdir(exist_ok=True)
kinds = {
    "model": (tests.of_model, [n for n in tests.MODELS if not n.startswith("exported/")]),
    "steered": (tests.of_steered, tests.STEERED),
    "continued": (tests.of_continued, tests.CONTINUED),
}
for kind, (observe, names) in kinds.items():
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = observe(name, Path(folder))
        print(kind, name, str(found)[:600], flush=True)
        (out / tests.file_of(kind, name).name).write_text(json.dumps(found, indent=1) + "\n")
