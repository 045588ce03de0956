"""What can be wrong with what the library is given, and the page of what it says then.

PYTHONPATH=.:tests python -m helpers.error_cases > docs/reference/errors.md
"""

import re
import shlex
import tempfile
from pathlib import Path
from typing import NamedTuple

from helpers.command_server import ROOT, Outcome, run_commands
from helpers.error_world import build

T = "train --config=quickstart/flm --workdir=new --config.data.path=data"
S = "sample --workdir=model --steps=1 --num_samples=1"
PYTHON, LONGEST = "3.11", 300
E = "evaluate --model=model:1 --num_samples=2"
P = "prepare_data --tokenizer=bytes --out=new"
B = "run_benchmark --workdir=ar --out=new"
R = "run_benchmark --reference --out=new"
G = "generate_data --workdir=md --out=new"

# Heading -> (command, what is wrong); VARIABLE=value before a command is of its environment.
CASES: dict[str, list[tuple[str, str]]] = {
    "Flags": [
        ("sample", "no workdir"),
        ("sample --workdr=model", "no such flag"),
        ("sample --workdir=model more", "an argument that is no flag"),
        ("sample --workdir=model --num_samples=two", "no number"),
        ("sample --workdir=model --num_samples=0", "nothing to do"),
        ("sample --workdir=model --num_samples=-3", "a negative number"),
        ("sample --workdir=model --seed=-1", "a seed below 0"),
        ("sample --workdir=model --seed=4294967296", "a seed beyond 32 bits"),
        ("sample --workdir=model --steps=", "no steps"),
        ("sample --workdir=model --steps=x", "steps that are no number"),
        ("sample --workdir=model --steps=0", "no step"),
        ("sample --workdir=model --steps=1/4", "a share with a sampler that has none"),
        ("sample --workdir=md --steps=5/4", "a share above 1"),
        ("sample --workdir=md --steps=1/0", "a share of nothing"),
        ("sample --workdir=model --batch_size=0", "no row"),
        (f"{S} --length=17", "longer than trained"),
        (f"{S} --length=-1", "a negative length"),
        (f"{S} --sampler=eular", "no such sampler"),
        (f"{S} --sampler=confidence", "the sampler of another family"),
        (f"{S} --temperature=-1", "a temperature below 0"),
        (f"{S} --temperature=nan", "a temperature that is no number"),
        (f"{S} --gamma=0.5", "a setting of another sampler"),
        (f"{S} --sampler.nothing=1", "no such setting"),
        ("sample --workdir=ar --steps=1 --num_samples=1 --top_p=0", "no probability kept"),
        ("sample --workdir=md --steps=1 --num_samples=1 --block_length=3", "a setting of another"),
        (f"{S} --prompt=a --infill=b", "two kinds of prompt"),
        (f"{S} --problems=3", "problems of a model without a task"),
        (f"{S} --weak=nowhere --guidance=2", "a weaker model that is not there"),
        (f"{S} --reward=folder --reward_scale=1", "a reward that is none"),
        ("sample --workdir=md --steps=2 --sampler=x_prediction --policy=folder", "no policy"),
        ("sweep --workdir=model --option=depth --values=1", "no such option"),
        ("sweep --workdir=model --option=temperature --values=a,b", "values that are no numbers"),
        ("sweep --workdir=model --option=temperature", "no values"),
        ("bench --suite=fast", "no such suite"),
        ("bench --suite=cpu --baseline=file", "a baseline that is no JSON"),
        ("compile --config=quickstart/flm --vocab_size=64", "no topology"),
        ("compile --config=quickstart/flm --vocab_size=64 --topology=v9:4", "no such chip"),
        ("compile --config=quickstart/flm --topology=cpu:1", "no vocabulary"),
        ("train_reward --workdir=model --out=new", "no pattern"),
        ("train_reward --workdir=phrases --match=( --out=new", "no regular expression"),
        ("train_reward --workdir=model --match=a --out=new", "a model that names no data"),
        ("convert --workdir=new", "nothing to import or export"),
        ("convert --source=elsewhere --checkpoint=file --workdir=new", "no such source"),
    ],
    "Paths": [
        (f"{S} --out=file/x.jsonl", "a file where a folder should be"),
        (f"{S} --html=folder", "a folder where a file should be"),
        (f"{S} --trajectory=/proc/none/x", "a place that takes no file"),
        (f"{E} --json=folder", "a folder where a file should be"),
        (f"{T.replace('=new', '=file')}", "a file where a workdir should be"),
        (f"{P.replace('=new', '=file/x')} --source=text --path=text.txt", "a folder below a file"),
        ("convert --workdir=model --export=model", "a folder that holds a model"),
        (f"{R} --task=gsm8k --data=nowhere.jsonl", "data that are not there"),
        (f"{R.replace('=new', '=file')} --task=gsm8k --data=gsm8k.jsonl", "records in a file"),
        (f"{E} --words=nowhere", "a list of words that is not there"),
        (f"{E} --words=words_latin.txt", "a list of words that is no UTF-8"),
    ],
    "Configurations": [
        ("train --workdir=new", "none"),
        ("train --config=nowhere.py --workdir=new", "no such file"),
        ("train --config=quickstart/flow --workdir=new", "no such recipe"),
        ("train --config=broken.py --workdir=new", "no Python"),
        ("train --config=none.py --workdir=new", "no function get_config"),
        ("train --config=raises.py --workdir=new", "a function that raises"),
        ("train --config=number.py --workdir=new", "a function that returns a number"),
        ("train --config=imports.py --workdir=new", "a module that is missing"),
        ("train --config=binary.py --workdir=new", "bytes that are no text"),
        ("train --config=quickstart/flm", "no workdir"),
        (f"{T} --config.optim.lrr=1", "no such key"),
        (f"{T} --config.optim.lr=fast", "no number"),
        (f"{T} --config.optim.lr=-1", "a negative rate"),
        (f"{T} --config.optim.lr=nan", "a rate that is no number"),
        (f"{T} --config.optim.name=sgdm", "no such optimizer"),
        (f"{T} --config.model.name=dot", "no such network"),
        (f"{T} --config.model.heads=3", "heads that do not divide the width"),
        (f"{T} --config.model.dim=0", "no width"),
        (f"{T} --config.model.vocab_size=7", "fewer rows than the tokenizer has tokens"),
        (f"{T} --config.model.tokens=7", "other tokens than the tokenizer's"),
        (f"{T} --config.model.attention=flash", "no such kernel"),
        (f"{T} --config.model.attention=splash", "a kernel of another device"),
        (f"{T} --config.objective.name=denoise", "no such objective"),
        (f"{T} --config.objective.teacher=model", "a key of another objective"),
        (f"{T} --config.objective.name=semigroup --config.model.two_time=True"
         " --config.objective.teacher=nowhere", "a teacher that is not there"),
        (f"{T} --config.objective.name=semigroup --config.model.two_time=True"
         " --config.objective.teacher=md", "a teacher of another family"),
        (f"{T} --config.objective.name=semigroup --config.model.two_time=True"
         " --config.objective.teacher=model", "a teacher without clean context"),
        (f"{T} --config.objective.name=semigroup --config.model.two_time=True"
         " --config.objective.teacher=model --config.objective.context=0", "one of another clock"),
        (f"{T} --config.objective.name=autoregressive", "a network that sees ahead"),
        (f"{T} --config.flow.clock=wall", "no such clock"),
        (f"{T} --config.train.batch=7 --config.mesh.data=2", "more devices than there are"),
        (f"{T} --config.train.batch=6 --config.train.microbatches=4", "a batch that splits not"),
        (f"{T} --config.train.steps=0", "no step"),
        (f"{T} --config.seed=-1", "a seed below 0"),
        (f"{T} --config.adapters.base=md", "adapters of a network that has none"),
        ("train_policy --config=x_prediction/sums_policy --workdir=new", "a policy of no model"),
        ("evaluate --config=comparisons/tasks:phrases9 --workdir=new", "no such task"),
        ("evaluate --config=comparisons/text:pydoc,FMLN --workdir=new", "no such model to compare"),
        ("evaluate --config=comparisons/tasks:phrases4", "a comparison without a folder"),
    ],
    "Texts to prepare": [
        (f"{P}", "no source"),
        (f"{P} --source=txt --path=text.txt", "no such source"),
        ("prepare_data --source=text --path=text.txt", "no folder to write"),
        (f"{P} --source=text", "no path"),
        (f"{P} --source=text --path=nowhere", "no such file"),
        (f"{P} --source=text --path=empty.txt", "no text"),
        (f"{P} --source=text --path=spaces.txt --split_documents=line", "blank lines alone"),
        (f"{P} --source=text --path=latin.txt", "no UTF-8"),
        (f"{P} --source=text --path=no_texts", "a folder without texts"),
        (f"{P} --source=text --path=cut.txt.gz", "a packed file that ends early"),
        (f"{P} --source=text --path=plain.txt.gz", "a packed file that is none"),
        (f"{P} --source=text --path=text.txt --split_documents=page", "no such unit"),
        (f"{P} --source=text --path=text.txt --valid_fraction=2", "a share above 1"),
        (f"{P} --source=text --path=text.txt --valid_fraction=nan", "a share that is no number"),
        (f"{P} --source=text --path=text.txt --detokenize=german", "no such corpus"),
        (f"{P} --source=text --path=text.txt --separator=---", "a separator that no line has"),
        (f"{P} --source=text --path=text.txt --shard=2/2", "a part beyond the last"),
        (f"{P} --source=text --path=text.txt --shard=one", "a part that is no number"),
        ("prepare_data --out=folder --merge", "no parts to join"),
        ("prepare_data --out=new --source=text --path=text.txt --vocab_size=9999",
         "more pieces than the text has"),
        ("prepare_data --out=new --source=text --path=text.txt --vocab_size=1", "too few pieces"),
        ("prepare_data --out=new --source=text --path=text.txt --sentencepiece_model=word2",
         "no such model"),
        ("prepare_data --out=new --source=text --path=text.txt --tokenizer=words9",
         "no such tokenizer"),
        ("prepare_data --out=new --source=text --path=text.txt --tokenizer=folder",
         "a folder without a tokenizer"),
        ("prepare_data --out=new --source=text --path=text.txt --tokenizer=data_spec",
         "a tokenizer without its kind"),
        ("prepare_data --out=new --source=text --path=text.txt --tokenizer=data_kind",
         "a tokenizer of an unknown kind"),
        ("prepare_data --out=new --source=text --path=text.txt --tokenizer=hf:folder",
         "a folder without a tokenizer"),
        (f"{P.replace('=new', '=data')} --source=text --path=text.txt", "a folder already full"),
        (f"{P} --source=text --path=text.txt --normal_form=NFC", "a form for a ready tokenizer"),
        ("prepare_data --out=new --source=text --path=text.txt --tokenizer=characters"
         " --normal_form=NFX", "no such normal form"),
        (f"{P} --source=jsonl --path=no_json.jsonl", "a line that is no JSON"),
        (f"{P} --source=jsonl --path=list.jsonl", "a line that is no object"),
        (f"{P} --source=jsonl --path=other_key.jsonl", "a line without its text"),
        (f"{P} --source=jsonl --path=number.jsonl", "a text that is a number"),
        (f"{P} --source=jsonl --path=deep.jsonl", "JSON nested without end"),
        (f"{P} --source=jsonl --path=blank.jsonl", "no line"),
        (f"{P} --source=jsonl --path=latin.jsonl", "no UTF-8"),
        (f"{P} --published=wiki", "no such data set"),
        (f"{P} --source=hf", "no name"),
    ],
    "Prepared data": [
        (T.replace("=data", "=nowhere"), "not there"),
        (T.replace("=data", "=folder"), "no prepared folder"),
        (T.replace("=data", "=data_cut"), "tokens that end early"),
        (T.replace("=data", "=data_lost"), "no tokens"),
        (T.replace("=data", "=data_torn"), "a manifest that ends early"),
        (T.replace("=data", "=data_list"), "a manifest that is a list"),
        (T.replace("=data", "=data_open"), "a preparation that was stopped"),
        (T.replace("=data", "=data_spec"), "a tokenizer without its kind"),
        (T.replace("=data", "=data_no_tokenizer"), "no tokenizer"),
        (f"{T} --config.data.task=phrases2", "data and a task"),
        (f"{T.replace('=data', '=')}", "no data"),
        (f"{T.replace('=data', '=')} --config.data.task=phrases99", "no such task"),
        (f"{T} --config.data.packing=wrap2", "no such packing"),
        (f"{T} --config.model.length=100000", "rows longer than the text"),
        (f"{T.replace('.path=data', '.path= --config.data.mixture=data')}", "a mixture of a text"),
        (f"{E} --data=letters", "another tokenizer than the model's"),
        (f"{E} --data=folder", "no prepared folder"),
        ("evaluate --workdir=model --corpus=letters", "another tokenizer than the model's"),
        ("evaluate --workdir=model --corpus=data --split=dev", "no such split"),
        ("evaluate --workdir=model --corpus=data --batch_size=0", "no row"),
        ("evaluate --workdir=model --corpus=data --corpus_sequences=-1", "a negative number"),
    ],
    "Models": [
        ("sample --workdir=nowhere", "not there"),
        ("sample --workdir=folder", "no workdir"),
        ("sample --workdir=file", "a file"),
        ("sample --workdir=talez", "no such name"),
        ("sample --workdir=config_none", "no configuration"),
        ("sample --workdir=config_torn", "a configuration that ends early"),
        ("sample --workdir=config_list", "a configuration that is a list"),
        ("sample --workdir=config_pipe", "a folder where the configuration should be"),
        ("sample --workdir=config_type", "a configuration with a word for a number"),
        ("sample --workdir=config_name", "a network that is not known"),
        ("sample --workdir=config_dim", "weights of other sizes"),
        ("sample --workdir=config_rows", "fewer rows than tokens"),
        ("sample --workdir=model_torn", "weights that end early"),
        ("sample --workdir=model_text", "weights that are none"),
        ("sample --workdir=model_lost", "no weights"),
        ("sample --workdir=spec_torn", "a tokenizer that ends early"),
        ("sample --workdir=spec_none", "no tokenizer"),
        ("sample --workdir=run_empty", "a run without a checkpoint"),
        ("sample --workdir=run_damaged", "damaged checkpoints"),
        ("sample --workdir=run_other", "checkpoints of another objective"),
        (T.replace("=new", "=run"), "a run of another configuration"),
        (f"{T} --config.train.start=nowhere", "a start that is not there"),
        ("evaluate --model=model", "no steps"),
        (f"{E} --questions=8", "a model of no exchanges"),
        (f"{E} --questions=8 --prompted=2 --judge=model", "questions and other figures"),
        ("evaluate --model=model:x", "steps that are no number"),
        ("evaluate --model=model:0", "no step"),
        # The first cannot be loaded: the second is refused before any is.
        ("evaluate --model=run_empty:1 --model=nowhere:1", "one of several models not there"),
        ("evaluate", "no model"),
        (f"{E} --judge=nowhere", "a judge that is not there"),
        (f"{E} --judge=md", "a judge that is no autoregressive model"),
        (f"{E} --judge=folder", "a judge's folder without a model"),
        ("convert --checkpoint=nowhere --workdir=new", "weights that are not there"),
        ("convert --checkpoint=file --workdir=new", "a file of another kind"),
        ("convert --checkpoint=owner/name --workdir=new", "a name without hf:"),
        ("convert --checkpoint=model_text/model.safetensors --workdir=new", "no weights"),
        ("convert --checkpoint=model/model.safetensors --workdir=new", "weights of other names"),
        ("convert --checkpoint=model/model.safetensors --workdir=run", "a workdir in use"),
        ("convert --source=llada --checkpoint=folder --workdir=new", "a folder without weights"),
        ("convert --source=smdm --checkpoint=model/model.safetensors --workdir=new",
         "weights of other names"),
        ("convert --source=mlfm --checkpoint=file --workdir=new", "a file of another kind"),
    ],
    "Prompts": [
        (f"{S} --prompt={'a' * 16}", "a prompt that fills the row"),
        (f"{S} --infill={{99}}", "a gap longer than the row"),
        (f"{S} --chat --prompt=a", "questions to a model that learnt none"),
        (f"{S} --prompts=nowhere", "a file that is not there"),
        (f"{S} --prompts=empty.txt", "a file without a line"),
        (f"{S} --prompts=no_json.jsonl", "a line that is no JSON"),
        (f"{S} --prompts=list.jsonl", "lines without a prompt"),
        (f"{S} --prompts=prompts_number.jsonl", "a prompt that is a number"),
        (f"{S} --prompts=prompts_none.jsonl", "a line without a prompt"),
        (f"{S} --prompts=prompts_length.jsonl", "a length that is a word"),
        (f"{S} --prompts=prompts_zero.jsonl", "no length"),
        (f"{S} --prompts=prompts_long.jsonl", "a prompt longer than the row"),
        (f"{S} --prompts=prompts_room.jsonl", "an answer longer than the row"),
        (f"{S} --prompts=prompts_gap.jsonl", "a gap longer than any row"),
        ("sample --workdir=phrases --steps=1 --problems=2", "problems of a task that has none"),
        (f"{G} --num=0", "no text"),
        (f"{G} --steps=x", "steps that are no number"),
        (f"{G} --chat=nowhere", "questions that are not there"),
        (f"{G} --answer_length=-1", "a negative length"),
        ("generate_data --workdir=md", "no folder to write"),
        ("generate_data --exchanges=sums --out=new", "no such exchanges"),
        ("generate_data --exchanges=topics --workdir=md --out=new", "a model beside exchanges"),
    ],
    "Benchmarks": [
        ("run_benchmark --task=gsm8k --data=gsm8k.jsonl --reference", "no folder"),
        (f"{R} --task=gsm9k --data=gsm8k.jsonl", "no such benchmark"),
        (f"{R} --task=gsm8k", "no data"),
        ("run_benchmark --task=gsm8k --data=gsm8k.jsonl --out=new", "no model"),
        (f"{B} --task=gsm8k --data=gsm8k.jsonl --samples=2", "two answers where one counts"),
        (f"{B} --task=gsm8k --data=gsm8k.jsonl --batch_size=0", "no row"),
        (f"{B} --task=gsm8k --data=gsm8k.jsonl --length=99", "longer than trained"),
        (f"{B} --task=gsm8k --data=gsm8k.jsonl", "no prompt that fits"),
        (f"{R} --task=gsm8k --data=gsm8k_number.jsonl", "an answer without a number"),
        (f"{R} --task=gsm8k --data=gsm8k_field.jsonl", "a problem without its answer"),
        (f"{R} --task=gsm8k --data=no_json.jsonl", "a line that is no JSON"),
        (f"{R} --task=gsm8k --data=gsm8k.jsonl --shots=2", "more examples than there are"),
        (f"{R} --task=gsm8k --data=gsm8k.jsonl --limit=-1", "a negative number"),
        (f"{R} --task=gsm8k --data=gsm8k.jsonl --prompt_style=short", "no such style"),
        (f"{R} --task=humaneval --data=humaneval_field.jsonl", "a problem without its tests"),
        (f"{R} --task=humaneval --data=humaneval_twice.jsonl", "a problem twice"),
        (f"{R} --task=humaneval --data=humaneval_twice.jsonl --pass_at=2", "k above the samples"),
        (f"{R} --task=humaneval --data=humaneval_twice.jsonl --isolation=none", "no such one"),
        (f"{R} --task=mbpp --data=gsm8k.jsonl", "problems of another benchmark"),
        (f"{R} --task=mt_bench --data=mt_field.jsonl", "turns that are a text"),
        (f"{B} --task=mt_bench --data=mt_field.jsonl --judge_prompts=nowhere", "no prompts"),
    ],
    "Serving": [
        ("serve", "no workdir"),
        ("serve --workdir=nowhere", "no such model"),
        ("serve --workdir=model more", "an argument that is no flag"),
        ("serve --workdir=model --port=65536", "no such port"),
        ("serve --workdir=model --port=0 --host=host.invalid", "no address of this machine"),
        ("serve --workdir=model --port=0 --max_batch=0", "no row"),
        ("serve --workdir=model --port=0 --max_seconds=0", "no time"),
        ("serve --workdir=model --port=0 --rate=-1", "a rate below 0"),
        ("serve --workdir=model --port=0 --steps=x", "steps that are no number"),
        ("serve --workdir=model --port=0 --warm=1,0", "no step"),
        ("serve --workdir=model --port=0 --steps=4 --warm=1 --closed", "steps not in --warm"),
        ("serve --workdir=model --port=0 --sampler=eular", "no such sampler"),
        ("serve --workdir=model --port=0 --sampler=confidence", "the sampler of another family"),
        ("serve --workdir=model --port=0 --gamma=0.5", "a setting of another sampler"),
        ("serve --workdir=model --port=0 --steps=1/4", "a share with a sampler that has none"),
        ("serve --workdir=model --port=0 --steps=4 --sampler=adaptive", "too few calls"),
        ("serve --workdir=model --port=0 --weak=nowhere --guidance=2",
         "a weaker model that is not there"),
        ("serve --workdir=model --port=0 --max_programs=0", "no program to keep"),
    ],
    "Environment": [
        (f"JAX_NUM_PROCESSES=2 {T}", "some of three variables"),
        (f"JAX_COORDINATOR_ADDRESS=a:1 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=2 {T}",
         "a process beyond the last"),
        (f"JAX_COORDINATOR_ADDRESS=a JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 {T}",
         "an address without a port"),
    ],
}  # fmt: skip


class Row(NamedTuple):
    """A command that was tried."""

    heading: str
    command: str
    wrong: str
    outcome: Outcome

    @property
    def line(self) -> str:
        """The last line on stderr."""
        return (self.outcome.err.strip().splitlines() or [""])[-1]


def tried() -> list[Row]:
    """All commands, each with a new folder of its own.

    Raises:
      AssertionError: one of them left a file behind, or took one.
    """
    flat = [(heading, *case) for heading, cases in CASES.items() for case in cases]
    with tempfile.TemporaryDirectory() as name:
        world = Path(name).resolve()
        build(world)
        before = _contents(world)
        found = run_commands([_words(one[1], i) for i, one in enumerate(flat)], world)
        changed = _contents(world) ^ before
        assert not changed, f"commands that were refused left or took {sorted(changed)[:9]}"
        found = [one._replace(err=_placeless(one.err, world)) for one in found]
    return [Row(*case, outcome) for case, outcome in zip(flat, found)]


def _words(command: str, place: int) -> dict:
    words = [word.replace("=new", f"=new{place}") for word in shlex.split(command)]
    first = next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
    return {"words": words[first:], "env": dict(word.split("=", 1) for word in words[:first])}


def _placeless(text: str, world: Path) -> str:
    """A text without what differs from machine to machine and from try to try."""
    for found, name in (
        (re.escape(str(world)), "."),
        (re.escape(f"{ROOT}/"), ""),
        (r"new\d+", "new"),
    ):
        text = re.sub(found, name, text)
    return text


def _contents(world: Path) -> set[tuple[str, int]]:
    return {
        (str(path.relative_to(world)), path.stat().st_size if path.is_file() else -1)
        for path in world.rglob("*")
    }


COLUMNS = "| command | what is wrong | it says | status |"
HEAD = f"""# Errors

What the commands say to input that is wrong, and their exit status; made by the test that tries
them all (`tests/cli/test_errors.py`, by Python {PYTHON}) with

    PYTHONPATH=.:tests python -m helpers.error_cases > docs/reference/errors.md

Each was refused before anything was computed, left no file behind and changed none. `model` is a
flow, `md` masked diffusion and `ar` autoregressive, all of 16 bytes a row; `data` is prepared; the
other names say what is wrong with them (`tests/helpers/error_world.py`). Long lines and lists of
names are cut here. What else can be wrong with files of others stands in [security](security.md),
faults of machines in [endurance](../guides/endurance.md#faults).
"""


def page(rows: list[Row]) -> str:
    """docs/reference/errors.md."""
    parts, heading = [HEAD], ""
    for row in rows:
        if row.heading != heading:
            heading = row.heading
            parts.append(f"\n## {heading}\n\n{COLUMNS}\n|---|---|---|---|\n")
        cells = (f"`{row.command}`", row.wrong, f"`{_short(row.line)}`", str(row.outcome.status))
        parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(parts)


def _short(line: str) -> str:
    """A line that does not change with each name that the library gets."""
    line = re.sub(r"valid: ([^,.]+), .*", r"valid: \1, ...", line.replace("`", "'"))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


if __name__ == "__main__":
    from helpers.error_requests import answers, section  # needs the extra serve

    print(page(tried()) + section(answers()), end="")
