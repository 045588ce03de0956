"""Statistics of sampled token sequences."""

import numpy as np


def unigram_entropy(tokens: np.ndarray) -> float:
    """Mean over rows of the entropy of the row's token frequencies, nats.

    The diversity measure of arXiv 2602.16813v3: low for repetitive text. It depends on the row's
    length, so only sequences of one length compare.

    Args:
      tokens: int [N, L].
    """
    return float(np.mean([_row_entropy(row) for row in np.asarray(tokens)]))


def _row_entropy(row: np.ndarray) -> float:
    counts = np.unique(row, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())
