"""Exports a trained model as a portable folder, with a configuration without paths and a card."""

import os

import jax

from flm_jax.build.bigrams import model_bigrams, model_trigrams
from flm_jax.build.families.registry import objective_name
from flm_jax.build.load import Model
from flm_jax.checkpoints.portable import save_folder
from flm_jax.core.types import Config

# What config.json says of adapters whose base lies in the same file.
INCLUDED = "included"


def save_model(folder: str | os.PathLike[str], model: Model) -> None:
    """Writes a model as a folder that every command accepts as a workdir.

    A model whose own sampler joins tokens by bigrams and trigrams takes them along.

    Raises:
      UserError: the folder already holds a model.
    """
    parts = (portable_config(model.config), model_card(model), model.params, model.tokenizer)
    sampler = model.config["sampler"]
    tables = {}
    if sampler.get("bigram"):
        tables["bigrams"] = model_bigrams(model, sampler["bigrams"])
        if sampler["trigram"]:
            tables["trigrams"] = model_trigrams(model, sampler["bigrams"])
    save_folder(os.fspath(folder), *parts, step=model.step, times=model.times, **tables)


def portable_config(config: Config) -> Config:
    """Returns the configuration without the paths of data and of other models."""
    data = config["data"] | {
        "path": "",
        "mixture": (),
        "chat": (),
        "generated": "",
        "tokenizer": "",
    }
    places = {key: "" for key in ("teacher", "start") if key in config["objective"]}
    out = config | {"data": data, "objective": config["objective"] | places}
    out["train"] = config["train"] | {"start": ""}
    out["sampler"] = _alone(config["sampler"])
    if config.get("adapters", {}).get("base"):
        out["adapters"] = config["adapters"] | {"base": INCLUDED, "start": ""}
    return out


def _alone(sampler: Config) -> Config:
    """Settings of a sampler without the helper models that guide it, and their weights."""
    kept = dict(sampler) | ({"bigrams": ""} if "bigrams" in sampler else {})
    for place, weight, none in (("weak", "guidance", 1.0), ("reward", "reward_scale", 0.0)):
        if kept.get(place):
            kept |= {place: "", weight: none}
    return kept


def model_card(found: Model) -> str:
    """Returns README.md of an exported folder, with a header that the hub reads."""
    config, tokenizer, step = found.config, found.tokenizer, found.step
    model, count = config["model"], sum(x.size for x in jax.tree.leaves(found.params))
    return f"""---
library_name: flm-jax
pipeline_tag: text-generation
tags: [flow-language-model, jax]
---
# A {model["name"]} of objective {objective_name(config)}

{count / 1e6:.2f} M parameters: width {model["dim"]}, {model["depth"]} blocks, {model["heads"]}
heads, sequences of up to {model["length"]} tokens of a {tokenizer.kind} tokenizer with
{tokenizer.vocab_size} tokens; the average of step {step} of its training.

```python
import flm_jax

model = flm_jax.load("FOLDER")  # or hf:OWNER/NAME
print(model.sample(4, steps={config["eval"]["sample_steps"]}).texts)
```

Training data, intended use and limits: to be told by who publishes it.
"""
