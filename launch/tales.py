"""The parts of launch/tales.sh that are Python.

python launch/tales.py export WORKDIR FOLDER | pack FOLDER PACK | unpack PACK FOLDER
                       | report RUNS PACK | words PREPARED FILE
                       | join OUT FILE...
                       | ship FOLDER PREPARED BOOKS FIGURES REPORT OUT
"""

import io
import json
import lzma
import shutil
import sys
import tarfile
from pathlib import Path

import tales_card

PIECE = 14_900_000  # bytes of a packed file at most
# Halves of bfloat16 numbers are predicted apart: the upper one takes a third of its size.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 3, "lp": 1, "pb": 1}]


def export(workdir: str, folder: str) -> None:
    """Writes the averaged parameters in bfloat16, to be computed in float32 as CPUs do best."""
    import jax
    import jax.numpy as jnp

    from flm_jax.build.export import save_model
    from flm_jax.build.load import load_model

    model = load_model(workdir)
    config = model.config | {"model": model.config["model"] | {"dtype": "float32"}}
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    save_model(folder, model._replace(config=config, params=params))
    count = sum(x.size for x in jax.tree.leaves(params))
    print(f"{folder}: {count / 1e6:.2f} M parameters of step {model.step}")


def pack(folder: str, pack: str) -> None:
    """Writes a folder as NAME.tar.xz, in pieces NAME.tar.xz.0 and so on where it is too large."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.add(folder, arcname=Path(folder).name)
    content = lzma.compress(held.getvalue(), format=lzma.FORMAT_XZ, filters=_FILTERS)
    name = f"{Path(folder).name}.tar.xz"
    for old in Path(pack).glob(f"{name}*"):
        old.unlink()
    pieces = [content[at : at + PIECE] for at in range(0, len(content), PIECE)]
    for number, piece in enumerate(pieces):
        end = f".{number}" if len(pieces) > 1 else ""
        (Path(pack) / f"{name}{end}").write_bytes(piece)
    print(f"{name}: {len(content):,} bytes in {len(pieces)} files")


def unpack(pack: str, folder: str) -> None:
    """Opens all that `pack` wrote, each as a folder of its own."""
    names = {path.name.split(".tar.xz")[0] for path in Path(pack).glob("*.tar.xz*")}
    for name in sorted(names):
        pieces = sorted(Path(pack).glob(f"{name}.tar.xz*"), key=lambda path: path.name)
        content = lzma.decompress(b"".join(path.read_bytes() for path in pieces))
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(folder, filter="data")
        print(f"{Path(folder) / name}")


def report(runs: str, pack_folder: str) -> None:
    """Packs metrics, configurations, logs and samples, and prints what each stage came to."""
    root, kept = Path(runs), Path(runs) / "report"
    kept.mkdir(exist_ok=True)
    for path in sorted(root.glob("*/metrics.jsonl")):
        lines = path.read_text(encoding="utf8").splitlines()
        name = path.parent.name
        (kept / f"{name}.metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf8")
        config = json.loads((path.parent / "config.json").read_text(encoding="utf8"))
        (kept / f"{name}.config.json").write_text(json.dumps(config, indent=1), encoding="utf8")
        last = json.loads(lines[-1])
        tokens = last["step"] * config["train"]["batch"] * config["model"]["length"]
        print(f"{name}: {tokens / 1e6:.1f} M tokens; {json.dumps(last)}")
    others = ("logs/*.log", "samples.jsonl", "stages.tsv", "card.txt")
    for path in (path for pattern in others for path in root.glob(pattern)):
        (kept / path.name).write_bytes(path.read_bytes()[-1_000_000:])
    pack(str(kept), pack_folder)


def words(prepared: str, file: str) -> None:
    """Writes the list of words of the training texts, one a line."""
    from flm_jax.evaluation.wording import documents
    from flm_jax.metrics.words import word_list

    found = word_list(documents(prepared))
    Path(file).write_text("\n".join(found) + "\n", encoding="utf8")
    print(f"{file}: {len(found):,} words")


def join(out: str, *files: str) -> None:
    """Joins rows of `evaluate --json`; the row of the data comes once, at the end."""
    rows = [row for file in files for row in json.loads(Path(file).read_text(encoding="utf8"))]
    data = [row for row in rows if row["model"] == "data"]
    rows = [row for row in rows if row["model"] != "data"] + data[:1]
    Path(out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf8")


def ship(folder: str, prepared: str, books: str, figures: str, report: str, out: str) -> None:
    """Makes the folder that comes with the library: the model, its word list, its card.

    Args:
      folder: exported map.
      prepared: data it was trained on.
      books: table of documents, characters and author/title, one book a line.
      figures: rows that launch/tales_measure.sh wrote.
      report: opened report of launch/tales.sh.
      out: new folder.
    """
    shutil.copytree(folder, out)
    words(prepared, f"{out}/words.txt")
    rows = json.loads(Path(figures).read_text(encoding="utf8"))
    config = json.loads((Path(out) / "config.json").read_text(encoding="utf8"))
    card = tales_card.card(config, prepared, Path(books), rows, Path(report))
    (Path(out) / "README.md").write_text(card, encoding="utf8")
    sizes = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file())
    print(f"{out}: {sizes:,} bytes")


COMMANDS = {f.__name__: f for f in (export, pack, unpack, report, words, join, ship)}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
