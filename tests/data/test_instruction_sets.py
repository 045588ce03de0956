"""Records of instruction data sets as their publishers write them, and those that are refused."""

import json

import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.instruction_sets import Exchange, boxed, exchange, mathematical, read_exchanges
from helpers.goldens_mlfm import record


def lines(path, *records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return str(path)


@pytest.mark.parametrize(
    "given, prompt, response",
    [
        ({"prompt": "Hi", "response": "Yes <<1>>", "more": 3}, "Hi", "Yes <<1>>"),
        ({"prompt": "Hi", "completion": "Yes"}, "Hi", "Yes"),
        (
            {"question": "2+2?", "answer": "It is <<2+2=4>>4.\n#### 4"},
            "2+2?",
            "It is 4.\n### 4",
        ),
        (
            {"question": "2+2?", "cot": "2 and 2 make 4.", "answer": "4"},
            "2+2?",
            "2 and 2 make 4.\n### 4",
        ),
        (
            {"question": "2+2?", "steps": ["Take 2.", "<<2+2=4>>"], "answer": "#### 4"},
            "2+2?",
            "Take 2.\n### 4",
        ),
        ({"question": "2+2?", "cot": "So", "answer": 4}, "2+2?", "So\n### 4"),
        ({"question": "2?", "cot": "So", "answer": 3200000.0}, "2?", "So\n### 3200000"),
        (
            {
                "query": "2+2?",
                "response": "It is 4.\n#### 4\nThe answer is: 4",
                "type": "GSM_AnsAug",
            },
            "2+2?",
            "It is 4.\n### 4",
        ),
        (
            {
                "query": "x?",
                "response": "So $x=\\frac12$.\nThe answer is: \\frac12",
                "type": "MATH",
            },
            "x?",
            "So $x=\\frac12$.\n### \\frac12",
        ),
        ({"query": "x?", "response": "No idea."}, "x?", "No idea."),
        (
            {
                "problem": "x?",
                "solution": "So \\boxed{1} or \\boxed{\\frac{1}{2}}.",
                "source": "amc",
            },
            "x?",
            "So \\boxed{1} or \\boxed{\\frac{1}{2}}.\n### \\frac{1}{2}",
        ),
        ({"problem": "Prove it.", "solution": "Clear.", "messages": []}, "Prove it.", "Clear."),
        ({"instruction": "Sort.", "input": "3 1", "output": "1 3"}, "Sort.\n\n3 1", "1 3"),
        ({"instruction": "Sort.", "input": "", "output": "1 3"}, "Sort.", "1 3"),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Yes"},
                    {"role": "user", "content": "Oh"},
                ]
            },
            "Hi",
            "Yes",
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]},
            "Hi",
            "Yes",
        ),
    ],
)
def test_records(given, prompt, response):
    assert exchange(given, "here") == Exchange(prompt, response, "here")


def test_answers_end_as_those_of_the_authors_of_masked_flows():
    want = record("evals")["sft_format"]
    assert mathematical("It is 4", "4") == want["math_target_no_answer"]
    assert mathematical("", "4") == want["math_target_only_answer"]
    assert mathematical("2+2=4 ### note", "4") == want["math_target"]


def test_boxes():
    assert boxed("a \\boxed{x^{2}} b") == "x^{2}"
    assert boxed("none") == boxed("\\boxed{open") == ""


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: no JSON"),
        (
            {"prompt": "a"},
            r"line 2: expected one of 'prompt' with 'response'; .*, got \['prompt'\]",
        ),
        (
            {"prompt": "a", "response": None},
            "line 2: 'prompt' and 'response' must be text, got None",
        ),
        ({"question": "a", "answer": 4}, "line 2: .* got 4 for 'answer'"),
        ({"text": "a"}, r"line 2: expected one of .*, got \['text'\]"),
        ([1], "line 2: expected .*, got list"),
        ({"messages": "x"}, "line 2: expected 'messages' to be a list of objects"),
        ({"messages": [{"role": "user", "content": None}]}, "line 2: .* to be a list of objects"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = lines(tmp_path / "a.jsonl", {"prompt": "a", "response": "b"}, line)
    with pytest.raises(UserError, match=message):
        read_exchanges(path)


PAIRS = [{"query": f"{i}?", "response": f"The answer is: {i}"} for i in range(3)]


def check_pairs(path):
    found = read_exchanges(path)
    assert [one[:2] for one in found] == [(f"{i}?", f"### {i}") for i in range(3)]
    assert found[1].where.startswith(f"{path}, ")


def test_files_are_lines_or_arrays(tmp_path):
    array = tmp_path / "a.json"
    array.write_text(json.dumps(PAIRS))
    check_pairs(str(array))
    check_pairs(lines(tmp_path / "a.jsonl", *PAIRS))
    with pytest.raises(UserError, match="no file"):
        read_exchanges(str(tmp_path / "absent.jsonl"))


def test_files_may_be_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.Table.from_pylist(PAIRS), tmp_path / "a.parquet")
    check_pairs(str(tmp_path / "a.parquet"))
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    parquet.write_table(arrow.Table.from_pylist([{"messages": talk}]), tmp_path / "b.parquet")
    assert read_exchanges(str(tmp_path / "b.parquet"))[0][:2] == ("Hi", "Yes")
    with pytest.raises(UserError, match="no file"):
        read_exchanges(str(tmp_path / "absent.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="bad.parquet cannot be read"):
        read_exchanges(str(tmp_path / "bad.parquet"))


def test_records_without_an_exchange_are_left_out_and_told(tmp_path, caplog):
    turn = lambda who, text: {"from": who, "value": text}
    bad = [
        {"instruction": "Say nothing.", "input": "", "output": ""},
        {"messages": [{"role": "user", "content": "a"}]},
        {"conversations": [turn("gpt", "a"), turn("human", "b"), turn("gpt", "c")]},
        {"conversations": []},
    ]
    path = lines(tmp_path / "a.jsonl", *bad, {"prompt": "Hi", "response": "Yes"})
    assert read_exchanges(path) == [Exchange("Hi", "Yes", f"{path}, line 5")]
    said = f"{path}: 4 of 5 records hold no question with its answer"
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(said)
    with pytest.raises(UserError, match="4 of 4 records hold no question with its answer"):
        read_exchanges(lines(tmp_path / "b.jsonl", *bad))


def test_a_folder_holds_the_parts_of_a_set(tmp_path):
    names = [f"train-{i}.json{'l' * (i % 2)}" for i in range(8)]
    for name in (*names[::-2], *names[::2]):
        lines(tmp_path / name, {"problem": f"{name}?", "solution": "Clear."})
    (tmp_path / "README.md").write_text("no records")
    found = read_exchanges(str(tmp_path))
    assert [one.prompt for one in found] == [f"{name}?" for name in names]
    assert found[1].where == f"{tmp_path}/train-1.jsonl, line 1"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no file; expected files ending in .jsonl"):
        read_exchanges(str(tmp_path / "empty"))
