"""Finds the judge that a command names: a workdir of this library, or a GPT-2 folder."""

import json

from etils import epath

from flm_jax import build
from flm_jax.data.hf_tokenizer import HuggingFaceTokenizer
from flm_jax.evals.judge import Judge
from flm_jax.interop.gpt2 import load_gpt2
from flm_jax.types import require


def framing(config: build.Config) -> str:
    """How a model's examples look, see `Judge.framing`; those of tasks have no frame."""
    return "stream" if config["data"]["task"] else config["data"]["packing"]


def load_judge(path: str) -> Judge:
    """Reads a judge.

    Args:
      path: workdir of an autoregressive model, or a local folder of a Hugging Face GPT-2 with
        config.json, model.safetensors and tokenizer.json (extra `hf` for its tokenizer). GPT-2's
        texts have no BOS before them, and their first token is not scored.

    Raises:
      UserError: nothing there, or a model that is not autoregressive.
    """
    folder = epath.Path(path)
    require(
        (folder / "config.json").exists(),
        f"judge {path} has no config.json; expected a workdir of train, or a local folder of a "
        "Hugging Face GPT-2.",
    )
    if "model_type" in json.loads((folder / "config.json").read_text()):
        net, params = load_gpt2(folder)
        tokenizer = HuggingFaceTokenizer.load(str(folder))
        require(
            tokenizer.vocab_size <= net.vocab_size,
            f"judge {path}: its tokenizer has {tokenizer.vocab_size} tokens, its model "
            f"{net.vocab_size}; put the two of one model there.",
        )
        return Judge(folder.name, net, params, tokenizer, "stream", False)
    model = build.load_model(path)
    goal = model.config["objective"]["name"]
    require(
        goal == "autoregressive",
        f"judge {path} is a model of objective {goal}; expected an autoregressive one, whose "
        "likelihood is exact.",
    )
    frame = framing(model.config)
    return Judge(folder.name, model.net, model.params, model.tokenizer, frame, True)
