"""Questions and answers as training data: frames, masks, cropping, refusals, and a run."""

import json

import jax
import numpy as np
import pytest

import flm_jax
from flm_jax.build.load import load_model
from flm_jax.build.model import make_network
from flm_jax.checkpoints.config_file import write_config
from flm_jax.checkpoints.workdir import save_ema
from flm_jax.config.check import check
from flm_jax.config.schema import base_config, choose
from flm_jax.core.errors import UserError
from flm_jax.data.chat import (
    ChatSource,
    Exchange,
    Framing,
    cropped,
    framed,
    framed_row,
    open_chat,
    read_exchanges,
)
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.training.trainer import train_run
from helpers.goldens_mlfm import arrays

BYTES = ByteTokenizer()


def lines(path, *records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return str(path)


def test_examples_are_framed_and_masked():
    prompt, length = framed("Hi"), 40
    assert prompt == "USER:\nHi\nASSISTANT:\n"
    pairs, how = (
        [Exchange("Hi", "Yes"), Exchange("Hi", "Y" * 90)],
        Framing(length, "ignored", "cut"),
    )
    row = ChatSource(pairs, BYTES, how)
    first, cut = row[0], row[1]
    valid = len(prompt) + 4
    assert BYTES.decode(first["tokens"][: valid - 1]) == prompt + "Yes"
    assert first["tokens"][valid - 1] == BYTES.eos_id
    assert first["mask"].tolist() == [i < valid for i in range(length)]
    assert first["prompt"].tolist() == [i < len(prompt) for i in range(length)]
    assert cut["mask"].all() and BYTES.decode(cut["tokens"][len(prompt) :]) == "Y" * 20
    with pytest.raises(UserError, match=r"^the question takes 20 tokens .*model.length 20"):
        ChatSource([Exchange("Hi", "Yes")], BYTES, how._replace(length=20))


def test_padding_counts_as_answer_and_long_exchanges_are_left_out(caplog):
    pairs = [
        Exchange("Hi", "Yes", "a.jsonl, line 1"),
        Exchange("Hi", "Y" * 90),
        Exchange("H" * 99, "Y"),
    ]
    rows = ChatSource(pairs, BYTES, Framing(40, "answer", "skip"))
    assert len(rows) == 1
    said = "a.jsonl: 2 of 3 exchanges are longer than 40 tokens with their end of text"
    assert caplog.messages == [f"{said}, and are left out"]
    prompt, row = len(framed("Hi")), rows[0]
    assert BYTES.decode(row["tokens"][prompt : prompt + 3]) == "Yes"
    assert (row["tokens"][prompt + 3 :] == BYTES.eos_id).all() and row["mask"].all()
    assert row["prompt"].sum() == prompt and row["written"].sum() == prompt + 4
    ignored = ChatSource(pairs, BYTES, Framing(40, "ignored", "skip"))
    assert ignored.fingerprint != rows.fingerprint and ignored[0]["mask"].sum() == prompt + 4
    with pytest.raises(UserError, match="a.jsonl: 1 of 1 exchanges are longer than 20 tokens"):
        ChatSource(pairs[:1], BYTES, Framing(20, "answer", "skip"))


def test_rows_and_crops_are_those_of_the_authors_of_masked_flows():
    golden = {name: np.asarray(value) for name, value in arrays("masks").items()}
    how, rows = Framing(20, "answer", "skip"), []
    for i in (0, 1, 2, 3, 4):  # the last is longer than a row, and left out before
        prompt, length = golden["sft_prompt_lengths"][i], golden["sft_true_lengths"][i]
        rows.append(framed_row(prompt, golden["sft_input_ids"][i, :length], 2, how))
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    np.testing.assert_array_equal(batch["tokens"], golden["sft_input_ids"][:5])
    np.testing.assert_array_equal(batch["mask"] & ~batch["prompt"], golden["sft_response_mask"][:5])
    short = {name: value[[0, 1, 3]] for name, value in batch.items()}
    np.testing.assert_array_equal(short["written"].sum(axis=1), golden["crop_in_true_lengths"])
    crop = cropped(short, 4)
    np.testing.assert_array_equal(crop["tokens"], golden["crop_out_input_ids"])
    np.testing.assert_array_equal(crop["mask"] & ~crop["prompt"], golden["crop_out_response_mask"])


def test_a_question_that_leaves_no_room_is_named(tmp_path):
    pairs = [{"prompt": "p" * n, "response": "r"} for n in (1, 2, 30, 3, 50)]
    path = lines(tmp_path / "a.jsonl", *pairs[:2], "", *pairs[2:])
    message = rf"{path}, line 4: the question takes 48 tokens .*model.length 40; .* 1 more"
    with pytest.raises(UserError, match=message):
        open_chat([(path, 1.0)], BYTES, Framing(40, "ignored", "cut"))
    held_out = lines(tmp_path / "b.jsonl", pairs[2], *pairs[:2])
    with pytest.raises(UserError, match=rf"{held_out}, line 1: the question takes 48 tokens"):
        open_chat([(held_out, 1.0)], BYTES, Framing(40, "ignored", "cut"))


def test_batches_are_cropped_to_multiples_of_64():
    def batch(valid, length=200):
        written = np.arange(length)[None] < np.array(valid)[:, None]
        tokens = np.zeros((len(valid), length), np.int32)
        return {"tokens": tokens, "mask": np.ones_like(written), "written": written}

    for valid, want in (([3, 64], 64), ([65, 1], 128), ([193, 5], 200), ([0, 0], 64)):
        crop = cropped(batch(valid))
        assert {v.shape[1] for v in crop.values()} == {want} and set(crop) == {"tokens", "mask"}


def test_every_20th_line_is_held_out_and_mixtures_keep_weights(tmp_path):
    pairs = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(41)]
    one, two = lines(tmp_path / "a.jsonl", *pairs), lines(tmp_path / "b.jsonl", *pairs[:2])
    train, valid = open_chat([(one, 3.0), (two, 1.0)], BYTES, Framing(64, "answer", "skip"))
    assert [(len(source), weight) for source, weight in train] == [(38, 3.0), (1, 1.0)]
    assert len(valid) >= 1 and train[0][0].fingerprint != train[1][0].fingerprint


def test_adapters_are_fine_tuned_on_answers(tmp_path):
    pairs = [{"prompt": f"{i}+1?", "response": str(i + 1) * (i % 60 + 1)} for i in range(60)]
    path = lines(tmp_path / "a.jsonl", *pairs)
    config = base_config()
    choose(config, model="llama", objective="masked_diffusion")
    config.model.length, config.model.dim, config.model.depth, config.model.heads = 160, 16, 1, 2
    config.model.attention_softcap = config.model.logit_softcap = 0.0
    config.model.vocab_size = BYTES.vocab_size
    base = check(config)
    params = make_network(base).init(jax.random.key(0))
    save_ema(tmp_path / "base", params, 0, {})
    write_config(tmp_path / "base", base)
    BYTES.save(tmp_path / "base" / "tokenizer")

    config.data.chat, config.adapters.base = ((path, 1.0),), str(tmp_path / "base")
    config.adapters.rank = config.adapters.head_rank = 2
    choose(config, objective="masked_flow")
    config.flow.law.learnt = "empirical"
    config.train.steps, config.train.batch, config.eval.sample_steps = 2, 8, 1
    config.eval.samples, config.eval.batches, config.mesh.data = 1, 1, 8
    assert train_run(check(config), str(tmp_path / "sft")) == 0
    model = load_model(tmp_path / "sft")
    assert model.config["objective"]["eos_id"] == BYTES.eos_id


def test_flows_learn_answers_beside_clean_questions(tmp_path):
    pairs = [{"prompt": f"{i}+1?", "response": str(i + 1)} for i in range(60)]
    config = base_config()
    config.data.chat = ((lines(tmp_path / "a.jsonl", *pairs), 1.0),)
    config.data.tokenizer, config.model.length, config.mesh.data = "bytes", 40, 8
    config.model.update({"dim": 16, "depth": 1, "heads": 2, "cond_dim": 16})
    config.train.update({"steps": 2, "batch": 8})
    config.eval.update({"samples": 0, "batches": 0})
    with pytest.raises(UserError, match="config.data.chat gives each row a prompt.*context above"):
        train_run(check(config), str(tmp_path / "flow"))
    config.objective.context = 0.5
    assert train_run(check(config), str(tmp_path / "flow")) == 0
    model = flm_jax.load(tmp_path / "flow")
    assert model._model.net.any_order
    made = model.sample(2, steps=1, prompt=framed("7+1?"))
    assert all(text.startswith(framed("7+1?")) for text in made.texts)


def test_questions_are_read_as_an_editor_reads_them(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = rb'{"prompt": "a\r\nb", "response": "c\rd"}', b'{"prompt": "e", "response": "f"}'
    path.write_bytes(b"\xef\xbb\xbf" + b"\r".join(lines))
    assert [one[:2] for one in read_exchanges(str(path))] == [("a\nb", "c\nd"), ("e", "f")]


def test_lone_surrogates_are_told_once_and_read_as_replacements(tmp_path, caplog):
    bad = {"prompt": "a\ud800", "response": "\udfffb"}
    path = lines(tmp_path / "a.jsonl", {"prompt": "a", "response": "b"}, bad, bad)
    train, valid = open_chat([(path, 1.0)], BYTES, Framing(40, "ignored", "cut"))
    assert len(train[0][0]) == 2 and len(valid) == 1
    assert read_exchanges(path)[1][:2] == ("a\ufffd", "\ufffdb")
    assert [said.partition(":")[0] for said in caplog.messages] == [f"{path}, line 2"] * 2
