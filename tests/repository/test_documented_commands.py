"""Every command of the documentation runs: its blocks, as a shell reads them, at small sizes.

What a page marks as needing more than this is not run: a block whose first line is `# needs ...`,
or a command that ends so.
"""

import gzip
import json
import os
import re
import string
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from flm_jax.data.tokenizers.builtin import CharacterTokenizer
from helpers import llama
from helpers.benchmarks import HUMANEVAL, Judge, gsm8k_problems, mbpp_problem, mt_bench_questions
from helpers.compiling import FAST
from helpers.files import json_lines
from helpers.llada2 import llada2_folder, llada2_weights
from helpers.pages import commands
from helpers.prompts import BYTES

ROOT = Path(__file__).parents[2]
# The page of errors is made of commands that fail, by the test that runs them.
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "errors.md"),
]
PREPARE = "python -m flm_jax.prepare_data --source=text --path="
QUICKSTART = f"""{PREPARE}book.txt --vocab_size=512 --out=runs/quickstart/data
python -m flm_jax.train --config=configs/quickstart/flm.py --workdir=runs/quickstart/flm
python -m flm_jax.train --config=configs/quickstart/fmlm.py --workdir=runs/quickstart/fmlm
python -m flm_jax.train --config=configs/quickstart/ar.py --workdir=runs/quickstart/ar
{PREPARE}other.txt --tokenizer=runs/quickstart/fmlm/tokenizer --out=data/other
(cd runs; for name in flm fmlm ar; do ln -s quickstart/$name $name; done)
chat="--config.data.task= --config.data.tokenizer=bytes --config.model.length=512"
chat="$chat --config.data.chat=(('gsm8k/train.jsonl',1.0),)"
python -m flm_jax.train --config=configs/masked_flow/small_base.py $chat --workdir=runs/chat
python -m flm_jax.train --config=configs/masked_flow/small_adapt.py $chat --workdir=runs/mlfm \\
    --config.adapters.base=runs/chat
"""
# Commands for what a page takes as given.
BEFORE = {
    "x_prediction.md": "python -m flm_jax.train --config=configs/x_prediction/sums_base.py "
    "--workdir=runs/xflow/base; ln -s runs/xflow/base W",
    "masked_flow_map.md": "; ".join(
        f"python -m flm_jax.train --config=configs/masked_flow/small_{name}.py "
        f"--workdir=runs/small/{name}"
        for name in ("base", "adapt", "sft")
    ),
    "masked_flow.md": "ln -s runs/mlfm_sft W",
    "benchmarks.md": "ln -s runs/chat W",
}
# A record of each set that masked flows are fine-tuned on, in its own fields.
INSTRUCTIONS = {
    "general": {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Oh"}]
    },
    "code": {"instruction": "Print 1.", "input": "", "output": "print(1)"},
    "gsm8k_aug_nl": {"question": "2+2?", "cot": "2 and 2.", "answer": "4"},
    "metamathqa": {"query": "1+1?", "response": "It is 2.\nThe answer is: 2"},
    "numinamath": {"problem": "x?", "solution": "So \\boxed{1}."},
}
INLINE = re.compile(r"`(python -m flm_jax\.\w+ --[^`]+)`")
NEEDS = re.compile(r"^(?:[^\n]*\\\n)*[^\n]*# needs [^\n]*\n", re.MULTILINE)


def blocks(text):
    """Pieces of shell: fenced as bash, indented by four, or in the midst of a sentence.

    Those about "W", any model, come last: here it is one which the page trains.
    """
    fenced = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = [re.sub(r"(?m)^ {4}", "", b) for b in re.findall(r"(?m)(?:^ {4}.*\n)+", rest)]
    inline = [re.sub(r"\s+", " ", line) for line in INLINE.findall(rest)]
    # For devices that are not there: tests/test_compile.py.
    inline = [line for line in inline if "--topology" not in line]
    found = [block for block in fenced + indented + inline if "-m flm_jax." in block]
    found = [NEEDS.sub("", block) for block in found if not block.startswith("# needs ")]
    return sorted(found, key=lambda block: "--workdir=W " in block)


def marked(text):
    """What `blocks` leaves out."""
    fenced = re.findall(r"^```bash\n(# needs .*?)^```", text, re.DOTALL | re.MULTILINE)
    return "\n".join(fenced + NEEDS.findall(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_command_is_left_out(page):
    """Each with flags stands in a block that is run, or is marked."""
    text = page.read_text()
    found = lambda text: [
        (name, *words)
        for name, words in commands(text)
        if any(word.startswith("--") for word in words) and "--topology" not in str(words)
    ]
    ran = found("\n".join(blocks(text)))
    assert not set(found(text)) - set(ran) - set(found(marked(text)))
    assert not set(ran) & set(found(marked(text)))


def bash(text, folder, judge=""):
    """Runs `text` in `folder`, where `python` is small_python.py."""
    for name, value in {"TASK": "phrases2", "https://host/v1": judge}.items():
        text = text.replace(name, value)
    env = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": FAST,
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def weights(folder):
    """Small random ones under the names of the published files."""
    for name in ("LLaDA-8B-Base", "LLaDA2.0-mini"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama, "VOCAB", BYTES.vocab_size)
        save_file(llama.smdm(), folder / "mdm-1028M.safetensors")
        llama.llada_folder(folder / "LLaDA-8B-Base", llama.llada(vocab=BYTES.vocab_size))
    llada2_folder(folder / "LLaDA2.0-mini", llada2_weights())
    BYTES.save(folder / "bytes_tokenizer")
    CharacterTokenizer(list(string.ascii_lowercase[:18])).save(folder / "letters")


def files(folder):
    """What a reader brings along: texts, problems, prompts."""
    pages = "".join(page.read_text() for page in PAGES)
    for name in ("book.txt", "other.txt"):
        (folder / name).write_text(pages)
    (folder / "stories.txt").write_text(pages.replace("\n\n", "\n<|endoftext|>\n"))
    texts = [{"text": paragraph} for paragraph in pages.split("\n\n")]
    json_lines(folder / "corpus.jsonl", *texts)
    json_lines(folder / "prompts.jsonl", {"prompt": "The flow "}, {"infill": "The {3} of"})
    for name in ("gsm8k", "data/gsm8k"):
        (folder / name).mkdir(parents=True)
        json_lines(folder / name / "train.jsonl", *gsm8k_problems(40))
        json_lines(folder / name / "test.jsonl", *gsm8k_problems(2))
    json_lines(folder / "test.jsonl", *gsm8k_problems(2))
    (folder / "data/sft").mkdir()
    for name, record in INSTRUCTIONS.items():
        json_lines(folder / f"data/sft/{name}.jsonl", *[record] * 21)
    json_lines(folder / "mbpp.jsonl", *(mbpp_problem(n) for n in (2, 3, 4, 11, 12)))
    json_lines(folder / "question.jsonl", *mt_bench_questions(2))
    with gzip.open(folder / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps(HUMANEVAL) + "\n")


def place(folder):
    """An empty folder but for configs, the files of `files` and the python of the commands."""
    folder.mkdir(exist_ok=True)
    files(folder)
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "gpt2-large").symlink_to(ROOT / "tests/goldens/gpt2")
    (folder / "bin").mkdir()
    python = folder / "bin/python"
    stand_in = ROOT / "tests/helpers/small_python.py"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in} "$@"\n')
    python.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def judge():
    with Judge() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.endpoint.url
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The runs that pages take as given."""
    folder = place(tmp_path_factory.mktemp("quickstart") / "all")
    bash(QUICKSTART, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_run(page, quickstart, judge, tmp_path):
    folder = place(tmp_path / "page")
    weights(folder)
    for name in ("runs", "data"):
        (folder / name).mkdir(exist_ok=True)
        for path in (quickstart / name).iterdir():
            if not (folder / name / path.name).exists():
                (folder / name / path.name).symlink_to(path)
    bash(BEFORE.get(page.name, ""), folder)
    for block in blocks(page.read_text()):
        bash(block, folder, judge)
