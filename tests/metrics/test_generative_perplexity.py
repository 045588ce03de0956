"""Generative perplexity: judges against exact laws, collapse and noise told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.tasks.grammar import GrammarTask
from flm_jax.data.tokenizers.builtin import ByteTokenizer, CharacterTokenizer
from flm_jax.losses.autoregressive import next_token_loss
from flm_jax.metrics.distribution import kernel_distance
from flm_jax.metrics.generative_perplexity import Judge, judge_samples, perplexity, text_of
from flm_jax.metrics.text import distinct_n, unigram_entropy
from flm_jax.models.causal import causal
from flm_jax.models.transformer import TransformerConfig
from helpers.networks import unigram_judge

RULES = {
    "S": [("N V", 0.7), ("N W", 0.3)],
    "N": [("D C", 1.0)],
    "D": [("a", 0.3), ("the", 0.7)],
    "C": [("dog", 0.5), ("cat", 0.3), ("child", 0.2)],
    "V": [("sings", 0.6), ("sleeps", 0.4)],
    "W": [("T N", 1.0)],
    "T": [("sees", 1.0)],
}


@pytest.fixture(scope="module")
def grammar():
    """A small grammar, and a judge trained on it for some seconds."""
    task = GrammarTask("tiny", RULES, length=6)
    sizes = dict(dim=32, depth=1, heads=2, mlp_ratio=2, dropout=0.0, dtype="float32")
    more = dict(attention_softcap=0.0, logit_softcap=0.0, remat="none", scan_blocks=False)
    net = causal(TransformerConfig(task.tokenizer.vocab_size, length=6, **sizes, **more))
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 250))
    weights = jnp.full((256, 6), 1 / (256 * 6))

    def step(carry, tokens):
        params, state = carry
        grads = jax.grad(lambda p: next_token_loss(p, tokens, weights, net=net)[0])(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    params = net.init(jax.random.key(0))
    batches = task.sample(250 * 256, 0).reshape(250, 256, 6)
    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), batches))
    return task, Judge("tiny", net, run(params)[0][0], task.tokenizer, "stream", True)


def test_a_trained_judge_gives_true_samples_the_exact_perplexity(grammar):
    """Of the law within the interval, and of these samples within 2%."""
    task, judge = grammar
    tokens = task.sample(600, 5)
    found = perplexity(judge_samples(judge, tokens, task.tokenizer, "stream"))
    exact = np.exp(task.entropy[0] / task.length)
    assert found.low < exact < found.high
    assert found.high - found.low < 0.1 * exact
    own = np.exp(-task.log_likelihood(tokens).mean() / task.length)
    assert own * 0.995 < found.value < own * 1.02


def test_planted_collapse_and_noise_are_told_from_true_samples(grammar):
    """Repeated text is too likely and has too few pairs; noise is too unlikely, and diverse."""
    task, judge = grammar
    true, other = task.sample(600, 5), task.sample(600, 6)
    likeliest = true[np.argmax(task.log_likelihood(true))]
    noise = np.random.default_rng(0).integers(0, task.tokenizer.vocab_size, true.shape)
    collapse = np.tile(likeliest, (600, 1))
    sets = {"true": true, "collapse": collapse, "noise": noise.astype(np.int32)}
    judged = {
        k: perplexity(judge_samples(judge, v, task.tokenizer, "stream")) for k, v in sets.items()
    }
    assert judged["collapse"].high < judged["true"].low
    assert judged["noise"].low > 3 * judged["true"].high
    assert distinct_n(sets["collapse"], 2) < 0.2 * distinct_n(true, 2)
    assert unigram_entropy(sets["noise"]) > unigram_entropy(true)
    apart = {k: kernel_distance(v, other) for k, v in sets.items()}
    assert apart["true"].low < 0.0 < apart["true"].high
    assert min(apart["collapse"].low, apart["noise"].low) > 0.05


@pytest.mark.parametrize(
    ("framing", "scored"), [("stream", [0, 1, 2, 3, 4]), ("wrap", [1, 2, 3]), ("pad", [1, 2])]
)
def test_what_frames_every_example_is_not_scored(framing, scored):
    tokenizer = ByteTokenizer()
    probs = np.random.default_rng(0).dirichlet(np.ones(tokenizer.vocab_size))
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    row = {"stream": [97, 98, 99, 97, 98], "wrap": [bos, 97, 98, 99, eos]}
    row = np.array(row.get(framing, [bos, 97, eos, tokenizer.pad_id, tokenizer.pad_id]))
    judge = unigram_judge(tokenizer, probs, framing)
    (nats, count), *_ = judge_samples(judge, row[None], tokenizer, framing)
    assert count == len(scored)
    np.testing.assert_allclose(nats, -np.log(probs[row[scored]]).sum(), rtol=1e-5)


def test_other_tokenizers_go_through_the_text_in_windows():
    """Every character counts once, whatever the judge's length; an empty text counts nothing."""
    probs = np.random.default_rng(0).dirichlet(np.ones(260))
    own, text = CharacterTokenizer("abc "), "abc cab bacca abba cc"
    rows = np.zeros((3, len(text)), np.int32)
    rows[0] = own.encode(text)
    rows[1, :3] = own.encode("cab")
    want = [-np.log(probs[np.frombuffer(t.encode(), np.uint8)]).sum() for t in (text, "cab", "")]
    for framing in ("stream", "wrap"):
        judge = unigram_judge(ByteTokenizer(), probs, framing)
        got = judge_samples(judge, rows, own, "stream", batch_size=2)
        np.testing.assert_allclose(got[:, 0], want, rtol=1e-5)
        np.testing.assert_array_equal(got[:, 1], [len(text), 3, 0])
    judge = unigram_judge(ByteTokenizer(), probs, first_counts=False)
    assert judge_samples(judge, rows, own, "stream")[:, 1].tolist() == [len(text) - 3, 2, 0]


def test_a_padded_sample_ends_at_its_first_eos():
    tokenizer = ByteTokenizer()
    row = np.array([tokenizer.bos_id, 97, tokenizer.eos_id, 98, 98])
    assert text_of(row, tokenizer, "pad") == "a"
    assert text_of(row, tokenizer, "stream") == "abb"


def test_samples_without_text_have_no_perplexity():
    with pytest.raises(UserError, match="texts are empty"):
        perplexity(np.zeros((3, 2)))


def test_perplexity_is_that_of_all_tokens_together():
    judged = np.array([[1.0, 1.0], [9.0, 3.0]])
    np.testing.assert_allclose(perplexity(judged).value, np.exp(10 / 4))
