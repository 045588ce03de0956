"""A small probabilistic context-free grammar with exact likelihoods by dynamic programming.

Sentences of more than L tokens are rejected and drawn again: the distribution is the grammar's,
given that the sentence has at most L words, and all likelihoods include that condition.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from flm_jax.core.errors import require
from flm_jax.data.tasks.base import Task, chance_total_variation, repeated, total_variation
from flm_jax.data.tokenizers.builtin import WordTokenizer

Rules = Mapping[str, Sequence[tuple[str, float]]]

FILLER = "."
_CHUNK = 1024  # sentences whose charts are held at a time, at most 17 * 16 * 17 * 8 KiB = 36 MiB
_ENTROPY_DRAWS, _ENTROPY_SEED = 100_000, 2024

# Two right-hand symbols or one word. Verbs agree in number with a subject that may stand any number
# of words before ("the dog near many cats sleeps"), and a phrase with "near" may belong to noun or
# verb, so that many sentences have several trees. Names: N noun phrase, C noun, V verb phrase, T
# transitive verb, R relative clause, D determiner, each (S)ingular or (P)lural.
ENGLISH: Rules = {
    "S": [("NS VS", 0.5), ("NP VP", 0.5)],
    "NS": [("DS CS", 0.7), ("NS PP", 0.2), ("NS RS", 0.1)],
    "NP": [("DP CP", 0.7), ("NP PP", 0.2), ("NP RP", 0.1)],
    "VS": [("TS NS", 0.25), ("TS NP", 0.25), ("VS PP", 0.1), ("sleeps", 0.3), ("sings", 0.1)],
    "VP": [("TP NS", 0.25), ("TP NP", 0.25), ("VP PP", 0.1), ("sleep", 0.3), ("sing", 0.1)],
    "PP": [("P NS", 0.5), ("P NP", 0.5)],
    "RS": [("W VS", 1.0)],
    "RP": [("W VP", 1.0)],
    "CS": [("A CS", 0.2), ("dog", 0.4), ("cat", 0.3), ("child", 0.1)],
    "CP": [("A CP", 0.2), ("dogs", 0.4), ("cats", 0.3), ("children", 0.1)],
    "DS": [("a", 0.3), ("every", 0.2), ("the", 0.5)],
    "DP": [("many", 0.3), ("some", 0.2), ("the", 0.5)],
    "TS": [("sees", 0.6), ("likes", 0.4)],
    "TP": [("see", 0.6), ("like", 0.4)],
    "A": [("old", 0.7), ("happy", 0.3)],
    "P": [("near", 0.8), ("behind", 0.2)],
    "W": [("that", 1.0)],
}


class GrammarTask(Task):
    """Sentences of a grammar in Chomsky normal form, filled up with "." to L tokens.

    Attributes:
      binary: rules A -> B C, int [R, 3] of symbol indices, with probabilities `binary_p` [R].
      words_p: probabilities of A -> word, [symbols, vocabulary]; 0 for the filler.
      length_law: probability of each number of words given that it is at most L, [L + 1].
    """

    has_problems = True

    def __init__(self, name: str = "grammar", rules: Rules = ENGLISH, length: int = 16):
        """Compiles the rules of a grammar.

        Args:
          name: name of the task.
          rules: dict from a symbol to (right-hand side, probability); the first symbol is the
            start. A right-hand side is two symbols or one word.
          length: length of a sequence in tokens, L.
        """
        require(length >= 1, f"task {name!r} got length={length}; expected at least 1")
        self.name = name
        self.length = length
        self._symbols = {symbol: i for i, symbol in enumerate(rules)}
        sides = [(a, side.split(), p) for a, options in rules.items() for side, p in options]
        for symbol, options in rules.items():
            total = sum(p for _, p in options)
            require(
                abs(total - 1) < 1e-9,
                f"rules of {symbol!r} have probabilities adding up to {total}; expected 1",
            )
        words = sorted({side[0] for _, side, _ in sides if len(side) == 1})
        wrong = [s for _, s, _ in sides if len(s) > 2 or len(s) == 2 and not rules.keys() >= {*s}]
        wrong += [[w] for w in words if w in rules or w == FILLER]
        require(
            not wrong,
            f"right-hand sides {wrong}: expected two symbols, or one word other than {FILLER!r}",
        )
        self.tokenizer = WordTokenizer([FILLER, *words])
        ids = {word: i for i, word in enumerate([FILLER, *words])}
        pairs = [(a, s, p) for a, s, p in sides if len(s) == 2]
        self.binary = np.array([[self._symbols[x] for x in (a, *s)] for a, s, _ in pairs], int)
        self.binary = self.binary.reshape(-1, 3)
        self.binary_p = np.array([p for _, _, p in pairs])
        self.words_p = np.zeros((len(rules), len(ids)))
        for a, side, p in sides:
            if len(side) == 1:
                self.words_p[self._symbols[a], ids[side[0]]] += p
        self._yields = self._length_probabilities()
        unbounded = self._yields[0]
        self._within = float(unbounded.sum())  # probability of a sentence of at most L words
        require(self._within > 0, f"task {name!r}: no sentence has at most {length} words")
        self.length_law = unbounded / self._within

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        parts, missing = [], count
        while missing > 0:
            # A few per cent more than expected, so that one round mostly suffices.
            parts.append(self._expand(rng, int(1.05 * missing / self._within) + 16))
            missing -= len(parts[-1])
        return np.concatenate([*parts, np.zeros((0, self.length), np.int32)])[:count]

    def log_likelihood(self, tokens: np.ndarray) -> np.ndarray:
        """Log likelihood ln p(sequence), nats, float64 [N]; -inf outside the language.

        It is computed by the inside algorithm (Baker 1979; Lari and Young 1990), summed over all
        trees.

        Args:
          tokens: tokens, int [N, L].
        """
        tokens = self._checked(tokens)
        known = ((tokens >= 0) & (tokens < self.tokenizer.vocab_size)).all(axis=1)
        filler = tokens == 0
        ends = np.where(filler.any(axis=1), filler.argmax(axis=1), self.length)
        tail = (filler == (np.arange(self.length) >= ends[:, None])).all(axis=1)
        out = np.full(len(tokens), -np.inf)
        for words in np.unique(ends[known & tail & (ends > 0)]):
            # One chart size a length: the work grows with its cube, and most sentences are short.
            rows = np.flatnonzero(known & tail & (ends == words))
            for some in np.split(rows, range(_CHUNK, len(rows), _CHUNK)):
                with np.errstate(divide="ignore"):
                    out[some] = np.log(self._inside(tokens[some, :words])) - np.log(self._within)
        return out

    @functools.cached_property
    def entropy(self) -> tuple[float, float]:
        """Entropy of the distribution in nats/sequence, and the standard error of this estimate.

        It is the mean of -ln p over 100,000 sentences with a fixed seed: if sentences have several
        trees there is no closed form.
        """
        nll = -self.log_likelihood(self.sample(_ENTROPY_DRAWS, _ENTROPY_SEED))
        return float(nll.mean()), float(nll.std(ddof=1) / np.sqrt(len(nll)))

    def report(self, tokens: np.ndarray) -> dict[str, float]:
        """Fraction in the language, and likelihood under the distribution.

        Returns:
          valid: fraction of rows that are sentences followed by filler.
          nll_nats_per_token: mean of -ln p over the valid rows, divided by L (filler included, so
            that it is comparable with the loss of a model over all L positions); absent if there
            are none.
          perplexity: exponential of that. Below law_perplexity the samples are too likely, a
            collapse.
          law_nats_per_token, law_perplexity: mean values for true samples (`entropy`).
          length_total_variation: total variation of the number of words; invalid rows count in
            full. Its *_chance is the value for the same number of true samples.
          repeated: fraction of rows equal to an earlier one.
        """
        tokens = self._checked(tokens)
        likelihood = self.log_likelihood(tokens)
        valid = np.isfinite(likelihood)
        lengths = (tokens != 0).sum(axis=1)
        share = np.bincount(lengths[valid], minlength=self.length + 1) / len(tokens)
        law = self.entropy[0] / self.length
        figures = {"valid": float(valid.mean())}
        if valid.any():
            nll = float(-likelihood[valid].mean()) / self.length
            figures |= {"nll_nats_per_token": nll, "perplexity": float(np.exp(nll))}
        return figures | {
            "law_nats_per_token": law,
            "law_perplexity": float(np.exp(law)),
            "length_total_variation": total_variation(share, self.length_law),
            "length_total_variation_chance": chance_total_variation(self.length_law, len(tokens)),
            "repeated": repeated(tokens),
        }

    def problems(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Sentences with half of their words hidden, from the second quarter on.

        The filler is prescribed, and with it the number of words; a completion has to agree with
        both sides.
        """
        tokens = self.sample(count, seed)
        words = (tokens != 0).sum(axis=1, keepdims=True)
        place = np.arange(self.length)
        given = (place < words // 4) | (place >= words // 4 + (words + 1) // 2)
        return tokens * given, given

    def report_problems(
        self, tokens: np.ndarray, problems: np.ndarray, given: np.ndarray
    ) -> dict[str, float]:
        """Figures; `solved` is the fraction of rows in the language, with the prompt unchanged."""
        tokens = self._checked(tokens)
        kept = self.kept(tokens, problems, given)
        valid = np.isfinite(self.log_likelihood(tokens))
        return {"solved": float((kept & valid).mean()), "kept": float(kept.mean())}

    def _length_probabilities(self) -> np.ndarray:
        """Unconditional probability that each symbol yields n words, [symbols, L + 1]."""
        law = np.zeros((len(self._symbols), self.length + 1))
        law[:, 1] = self.words_p.sum(axis=1)
        for n in range(2, self.length + 1):
            for (a, b, c), p in zip(self.binary, self.binary_p):
                # A convolution over the lengths of the two parts.
                law[a, n] += p * (law[b, 1:n] @ law[c, n - 1 : 0 : -1])
        return law

    def _inside(self, sentences: np.ndarray) -> np.ndarray:
        """Probabilities [N] that the start symbol yields the sentences [N, n], all without filler.

        chart[width, start] holds each symbol's probability of the words there, [symbols, N].
        """
        count, n = sentences.shape
        chart = np.zeros((n + 1, n, len(self._symbols), count))
        chart[1] = self.words_p[:, sentences].transpose(2, 0, 1)
        can = self._yields > 0
        for width in range(2, n + 1):
            starts = n - width + 1
            out = chart[width, :starts]
            for first in range(1, width):
                one = chart[first, :starts]
                two = chart[width - first, first : first + starts]
                for (a, b, c), p in zip(self.binary, self.binary_p):
                    # Most symbols have one word: most splits are impossible for most rules.
                    if can[b, first] and can[c, width - first]:
                        out[:, a] += p * (one[:, b] * two[:, c])
        return chart[n, 0, 0]

    def _expand(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws derivations of `count` sentences at once, leftmost first; keeps up to L words.

        Every pending symbol yields at least one word, so a derivation is given up as soon as words
        and pending symbols exceed L together.
        """
        options = [self._options(symbol) for symbol in range(len(self._symbols))]
        stack = np.zeros((count, self.length + 2), int)  # the start symbol is number 0
        pending = np.ones(count, int)
        words = np.zeros((count, self.length), np.int32)
        written = np.zeros(count, int)
        active = np.arange(count)
        while len(active):
            top = stack[active, pending[active] - 1]
            uniform = rng.random(len(active))
            for symbol in np.unique(top):
                rows = active[top == symbol]
                cumulative, kinds, first, second = options[symbol]
                pick = np.searchsorted(cumulative, uniform[top == symbol], side="right")
                pick = np.minimum(pick, len(kinds) - 1)  # the last sum may be below 1 by rounding
                pair, pick_word = rows[kinds[pick]], rows[~kinds[pick]]
                chosen = pick[kinds[pick]]
                # The leftmost symbol is on top: the second one takes the place of A, the first
                # comes above it.
                stack[pair, pending[pair] - 1] = second[chosen]
                stack[pair, pending[pair]] = first[chosen]
                pending[pair] += 1
                words[pick_word, written[pick_word]] = first[pick[~kinds[pick]]]
                written[pick_word] += 1
                pending[pick_word] -= 1
            fits = written + pending <= self.length
            active = active[(pending[active] > 0) & fits[active]]
        return words[(pending == 0) & fits]

    def _options(self, symbol: int) -> tuple[np.ndarray, ...]:
        """Rules: (cumulative probabilities, is pair, first symbol or word, second symbol), [K]."""
        mine = self.binary[:, 0] == symbol
        words = np.flatnonzero(self.words_p[symbol])
        p = np.concatenate([self.binary_p[mine], self.words_p[symbol, words]])
        kinds = np.arange(len(p)) < mine.sum()
        first = np.concatenate([self.binary[mine, 1], words])
        second = np.concatenate([self.binary[mine, 2], np.zeros(len(words), int)])
        return np.cumsum(p), kinds, first, second
