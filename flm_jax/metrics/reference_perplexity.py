"""Generative perplexity as in the published tables of FLM and its relatives.

This is the measure of MDLM, Duo, FLM and FMLM+ (arXiv 2406.07524, 2506.10892, 2602.16813,
2606.24773) as their code computes it, including its accidental details; `generative_perplexity` is
the library's own.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from flm_jax.core.errors import require
from flm_jax.metrics.generative_perplexity import Judge, Window, scores

SAMPLES = 1024  # of which a published figure is made
TEXTS_AT_A_TIME = 16  # drawn together in the published scripts: the longest sets their padding
JUDGED_AT_A_TIME = 8


def judge_as_reference(
    judge: Judge,
    texts: Sequence[str],
    length: int,
    texts_at_a_time: int = TEXTS_AT_A_TIME,
    judged_at_a_time: int = JUDGED_AT_A_TIME,
) -> np.ndarray:
    """Scores samples by the judge as in the reference.

    Each text, with its special tokens written out, is encoded by the judge's tokenizer, which
    recognises them, and cut to `length` tokens. Texts in a batch are padded by EOS to the longest
    of them, and judged a few at a time; an incomplete batch is left out. Rows are cut into chunks
    of the judge's length, each judged by itself. In a chunk all tokens are scored except the first
    and except EOS, but the first EOS in it is scored: in a text without one, the first padding.

    Args:
      judge: judge without a token before its texts, and with an EOS: GPT-2.
      texts: texts from `Tokenizer.decode_whole`, in the order of drawing.
      length: length of the model's sequences in tokens.
      texts_at_a_time: number of texts that are padded together.
      judged_at_a_time: number of these that are judged together, or all if there are fewer.

    Returns:
      float64 [M, 2], M <= N: nats, -ln p summed over the scored tokens of a text, and their number.
      `generative_perplexity.perplexity` of them is the published figure.

    Raises:
      UserError: another judge.
    """
    require(
        judge.framing == "stream" and judge.tokenizer.eos_id is not None,
        f"judge {judge.name} begins its texts by a token, or has no EOS; expected a GPT-2 folder "
        "for the reference's protocol.",
    )
    windows: list[Window] = []
    rows = 0
    for start in range(0, len(texts), texts_at_a_time):
        ids = judge.tokenizer.encode_whole(texts[start : start + texts_at_a_time])
        some = min(judged_at_a_time, len(ids))
        width = min(max(map(len, ids)), length)
        for row in ids[: len(ids) // some * some]:
            windows += _chunks(judge, rows, row[:length], width)
            rows += 1
    return scores(judge, windows, rows, judged_at_a_time)


def _chunks(judge: Judge, row: int, ids: np.ndarray, width: int) -> Iterator[Window]:
    eos, size = judge.tokenizer.eos_id, judge.net.max_length
    padded = np.concatenate([ids, np.full(width - len(ids), eos)]).astype(np.int32)
    for start in range(0, width, size):
        tokens = padded[start : start + size]
        ends = tokens == eos
        scored = ~ends | (np.cumsum(ends) == 1)
        scored[0] = False
        yield Window(row, tokens, scored)
