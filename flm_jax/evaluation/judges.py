"""Opens the judge that a command names: a workdir of this library, or a GPT-2 folder."""

import jax
from etils import epath

from flm_jax.build.data import framing
from flm_jax.build.families.registry import family, objective_name
from flm_jax.build.load import load_model
from flm_jax.core.errors import require
from flm_jax.core.paths import expanded
from flm_jax.core.progress import Progress
from flm_jax.core.reading import read_object
from flm_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from flm_jax.interop.gpt2 import load_gpt2
from flm_jax.metrics.generative_perplexity import Judge


def load_judge(path: str) -> Judge:
    """Reads a judge.

    Args:
      path: workdir of an autoregressive model, or a local folder of a Hugging Face GPT-2 with
        config.json, model.safetensors and tokenizer.json (extra `hf` for its tokenizer). GPT-2's
        texts have no BOS, and their first token is not scored.

    Raises:
      UserError: there is no model, or it is not autoregressive.
    """
    folder = epath.Path(expanded(path))
    require(
        (folder / "config.json").exists(),
        f"judge {path} has no config.json; expected a workdir of train, or a local folder of a "
        "Hugging Face GPT-2.",
    )
    if "model_type" in read_object(folder / "config.json", "that of a judge"):
        with Progress(f"reading {folder}", quiet=jax.process_index() > 0):
            net, params = load_gpt2(folder)
        tokenizer = HuggingFaceTokenizer.load(str(folder))
        require(
            tokenizer.vocab_size <= net.vocab_size,
            f"judge {path}: its tokenizer has {tokenizer.vocab_size} tokens, its model "
            f"{net.vocab_size}; put the two of one model there.",
        )
        return Judge(folder.name, net, params, tokenizer, "stream", False)
    model = load_model(folder)
    require(
        family(model.config).likelihood == "exact",
        f"judge {path} is a model of objective {objective_name(model.config)}; expected "
        "an autoregressive one, whose likelihood is exact.",
    )
    frame = framing(model.config)
    return Judge(folder.name, model.net, model.params, model.tokenizer, frame, True)
