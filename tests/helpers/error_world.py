"""A folder of good and of broken files, for the commands that `error_cases` tries.

Nothing here is trained or compiled: the parameters of models are zeros.
"""

import gzip
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np

from flm_jax.build.export import save_model
from flm_jax.build.flow import make_flow
from flm_jax.build.load import Model
from flm_jax.build.model import make_network
from flm_jax.checkpoints.config_file import write_config
from flm_jax.checkpoints.workdir import save_ema
from flm_jax.config.check import check
from flm_jax.config.schema import base_config, choose
from flm_jax.data.corpus.prepare import PrepareConfig, prepare
from flm_jax.data.corpus.sources import SourceConfig
from flm_jax.data.tasks.registry import make_task
from flm_jax.data.tokenizers.builtin import ByteTokenizer

LINES = "\n".join(f"line {n} of a small text" for n in range(60))


def _config(goal: str, task: str = "") -> dict:
    config = base_config()
    choose(config, model="causal" if goal == "autoregressive" else "dit", objective=goal)
    length = 2 if task else 16
    config.model.update({"length": length, "dim": 8, "depth": 1, "heads": 2})
    config.data.task, config.data.packing = task, "stream"
    if goal == "denoising":
        config.flow.clock = "identity"  # the other one takes half a second a command
    config.model.vocab_size = 4 if task else 260
    return check(config)


def _model(goal: str, task: str = "") -> Model:
    config = _config(goal, task)
    net = make_network(config)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    tokenizer = make_task(task).tokenizer if task else ByteTokenizer()
    return Model(config, net, params, make_flow(config, net.vocab_size), tokenizer, 0)


def build(world: Path) -> None:
    """Fills an empty folder, which becomes the working folder of the commands."""
    _texts(world)
    _records(world)
    _corpora(world)
    _models(world)
    _checkpoints(world)


def _texts(world: Path) -> None:
    (world / "text.txt").write_text(LINES)
    (world / "empty.txt").write_text("")
    (world / "spaces.txt").write_text("\n \n")
    (world / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    (world / "cut.txt.gz").write_bytes(gzip.compress(LINES.encode())[:60])
    (world / "plain.txt.gz").write_text(LINES)
    (world / "no_texts").mkdir()
    (world / "no_texts/a.dat").write_text("1")
    (world / "file").write_text("a file")
    (world / "folder").mkdir()
    (world / "broken.py").write_text("def get_config(:\n")
    (world / "none.py").write_text("x = 1\n")
    (world / "raises.py").write_text("def get_config():\n    return 1 / 0\n")
    (world / "number.py").write_text("def get_config():\n    return 5\n")
    (world / "imports.py").write_text("import no_such_module_here\n")
    (world / "binary.py").write_bytes(b"\0\xff\xfe")


def _records(world: Path) -> None:
    files = {
        "no_json.jsonl": '{"text": "a"}\n{"text": \n',
        "list.jsonl": '{"text": "a"}\n[1]\n[2]\n',
        "other_key.jsonl": '{"body": "a"}\n',
        "number.jsonl": '{"text": 5}\n',
        "deep.jsonl": "[" * 100_000,
        "blank.jsonl": "\n\n",
        "prompts_number.jsonl": '{"prompt": 5}\n',
        "prompts_none.jsonl": '{"answer_length": 5}\n',
        "prompts_length.jsonl": '{"prompt": "a", "answer_length": "long"}\n',
        "prompts_zero.jsonl": '{"prompt": "a", "answer_length": 0}\n',
        "prompts_long.jsonl": json.dumps({"prompt": "a" * 40}) + "\n",
        "prompts_room.jsonl": '{"prompt": "a", "answer_length": 400}\n',
        "prompts_gap.jsonl": '{"infill": "{999999999999}"}\n',
        "gsm8k_number.jsonl": '{"question": "1+1?", "answer": "two"}\n',
        "gsm8k_field.jsonl": '{"question": "1+1?"}\n',
        "gsm8k.jsonl": '{"question": "1+1?", "answer": "So.\\n#### 2"}\n',
        "humaneval_field.jsonl": '{"task_id": "a/0", "prompt": "def f():"}\n',
        "mt_field.jsonl": '{"question_id": 1, "turns": "one"}\n',
        "chat_empty.jsonl": '{"prompt": "", "answer": "b"}\n',
        "words_latin.txt": "",
    }
    for name, content in files.items():
        (world / name).write_text(content)
    (world / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    (world / "words_latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    same = '{"task_id": "a/0", "prompt": "def f():\\n", "entry_point": "f", "test": "", '
    same += '"canonical_solution": " pass"}\n'
    (world / "humaneval_twice.jsonl").write_text(same * 2)


def _corpora(world: Path) -> None:
    def prepared(out: str, tokenizer: str) -> None:
        text = str(world / "text.txt")
        source = SourceConfig("text", text, split_documents="line", valid_fraction=0.2)
        prepare(PrepareConfig(source, str(world / out), tokenizer), log=lambda line: None)

    prepared("data", "bytes")
    prepared("letters", "characters")
    _variant(
        world, "data", "data_cut", {"train-00000-of-00001.tokens": lambda content: content[:-3]}
    )
    _variant(world, "data", "data_torn", {"manifest.json": lambda content: content[:40]})
    _variant(world, "data", "data_list", {"manifest.json": lambda content: b"[]"})
    _variant(world, "data", "data_lost", {"train-00000-of-00001.tokens": None})
    _variant(world, "data", "data_open", {"manifest.json": None})
    _variant(world, "data", "data_spec", {"tokenizer/spec.json": lambda content: b"{}"})
    _variant(world, "data", "data_kind", {"tokenizer/spec.json": lambda c: b'{"kind": "runes"}'})
    _variant(world, "data", "data_no_tokenizer", {"tokenizer/spec.json": None})


def _variant(world: Path, name: str, other: str, changes: dict) -> Path:
    """A copy of a folder, some files changed (content -> content) or left out (None)."""
    shutil.copytree(world / name, world / other)
    for file, change in changes.items():
        path = world / other / file
        content = path.read_bytes()
        path.unlink()
        if change is not None:
            path.write_bytes(change(content))
    return world / other


def _models(world: Path) -> None:
    for name, goal, task in (
        ("model", "denoising", ""),
        ("ar", "autoregressive", ""),
        ("md", "masked_diffusion", ""),
        ("phrases", "denoising", "phrases2"),
    ):
        save_model(world / name, _model(goal, task))

    def key(group: str, name: str, value):
        def change(content: bytes) -> bytes:
            config = json.loads(content)
            config[group][name] = value
            return json.dumps(config).encode()

        return {"config.json": change}

    weights = "model.safetensors"
    _variant(world, "model", "model_torn", {weights: lambda content: content[:200]})
    _variant(world, "model", "model_text", {weights: lambda content: b"weights"})
    _variant(world, "model", "model_lost", {weights: None})
    _variant(world, "model", "config_torn", {"config.json": lambda content: content[:99]})
    _variant(world, "model", "config_list", {"config.json": lambda content: b"[]"})
    _variant(world, "model", "config_none", {"config.json": None})
    _variant(world, "model", "config_dim", key("model", "dim", 16))
    _variant(world, "model", "config_key", key("model", "dims", 16))
    _variant(world, "model", "config_type", key("model", "heads", "two"))
    _variant(world, "model", "config_name", key("model", "name", "dot"))
    _variant(world, "model", "config_rows", key("model", "vocab_size", 100))
    _variant(world, "model", "spec_torn", {"tokenizer/spec.json": lambda content: content[:9]})
    _variant(world, "model", "spec_none", {"tokenizer/spec.json": None})
    (_variant(world, "model", "config_pipe", {"config.json": None}) / "config.json").mkdir()


def _checkpoints(world: Path) -> None:
    model = _model("denoising")
    write_config(world / "run", model.config)
    model.tokenizer.save(world / "run/tokenizer")
    shutil.copytree(world / "run", world / "run_empty")
    save_ema(world / "run", model.params, 5, {})
    shutil.copytree(world / "run", world / "run_damaged")
    for place, _, files in os.walk(world / "run_damaged/checkpoints/5/ema"):
        for file in files:
            (Path(place) / file).write_bytes(b"")
    shutil.copytree(world / "run", world / "run_other")
    config = _config("masked_diffusion")
    write_config(world / "run_other", config)
