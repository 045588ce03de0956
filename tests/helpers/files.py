"""Files that tests read: JSON lines, a prepared corpus, shards of safetensors."""

import json

from safetensors.numpy import save_file

from flm_jax.data.corpus.prepare import PrepareConfig, prepare
from flm_jax.data.corpus.sources import SourceConfig
from flm_jax.data.corpus.store import Shard


def prepared_corpus(folder, tokenizer, text="to be or not to be\n"):
    (folder / "text.txt").write_text(text * 400)
    source = SourceConfig(
        source="text",
        path=str(folder / "text.txt"),
        split_documents="line",
        text_key="text",
        detokenize="",
        valid_fraction=0.1,
    )
    cfg = PrepareConfig(
        source=source,
        out=str(folder / tokenizer),
        tokenizer=tokenizer,
        vocab_size=64,
        sentencepiece_model="bpe",
        shard=Shard(0, 1),
        overwrite=False,
    )
    prepare(cfg, log=lambda line: None)
    return str(folder / tokenizer)


def write_shards(folder, state, shards):
    """Safetensors with their index, as published."""
    names, files = sorted(state), {}
    for k in range(shards):
        file = f"model-{k + 1:05}-of-{shards:05}.safetensors"
        part = {name: state[name] for name in names[k::shards]}
        save_file(part, folder / file)
        files |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def json_lines(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return str(path)
