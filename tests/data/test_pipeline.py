"""Order, resumption, epochs and mixtures of the batches."""

import json
import threading

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.pipeline import eval_batches, make_iterator


class Numbers:
    """Example i is the pair (first + i, 0); records what is read."""

    def __init__(self, size, first=0):
        self.size, self.first = size, first
        self.fingerprint = f"numbers {first} {size}"
        self.read = []
        self._lock = threading.Lock()

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        with self._lock:
            self.read.append(index)
        return {"tokens": np.array([self.first + index, 0], np.int32), "mask": np.ones(2, bool)}


def _take(iterator, batches):
    return [next(iterator)["tokens"][:, 0].tolist() for _ in range(batches)]


def _part(process, count, global_batch=8):
    """The rows of one process of several."""
    size = global_batch // count
    return range(process * size, (process + 1) * size)


def _iterator(source, *, seed=0, global_batch=8, **kwargs):
    how = {"threads": 1, "prefetch": 4, "prefix_crop": 0.0} | kwargs
    return make_iterator(source, global_batch=global_batch, seed=seed, **how)


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_global_batch_does_not_depend_on_the_processes(process_count, threads):
    expected = _take(_iterator(Numbers(37), threads=0), 12)
    parts = [
        _take(_iterator(Numbers(37), rows=_part(p, process_count), threads=threads), 12)
        for p in range(process_count)
    ]
    assert [sum(rows, []) for rows in zip(*parts)] == expected


def test_a_process_reads_its_own_rows_alone():
    source = Numbers(64)
    iterator = _iterator(source, rows=_part(1, 4), threads=0, repeat=False)
    rows = sum(_take(iterator, 8), [])
    assert source.read == rows
    assert len(rows) == 16


def test_every_epoch_is_a_new_permutation():
    size = 40  # five batches of eight
    iterator = _iterator(Numbers(size))
    epochs = [sum(_take(iterator, 5), []) for _ in range(6)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(size))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert tuple(range(size)) not in {tuple(epoch) for epoch in epochs}


def test_batches_straddle_epochs():
    stream = sum(_take(_iterator(Numbers(13)), 13), [])
    assert len(stream) == 8 * 13
    for start in range(0, len(stream), 13):
        assert sorted(stream[start : start + 13]) == list(range(13))


def test_neighbouring_seeds_share_no_epoch():
    epochs = set()
    for seed in range(4):
        iterator = _iterator(Numbers(40), seed=seed)
        epochs |= {tuple(sum(_take(iterator, 5), [])) for _ in range(4)}
    assert len(epochs) == 16


def test_without_shuffle_and_repeat():
    batches = list(_iterator(Numbers(21), shuffle=False, repeat=False))
    assert [b["tokens"][:, 0].tolist() for b in batches] == [list(range(8)), list(range(8, 16))]
    assert batches[0]["tokens"].dtype == np.int32
    assert batches[0]["mask"].shape == (8, 2)


@pytest.mark.parametrize("process_count", [1, 2])
@pytest.mark.parametrize("done", [0, 3, 11])
def test_resumes_to_the_exact_example_on_any_number_of_processes(done, process_count):
    expected = _take(_iterator(Numbers(37)), done + 6)[done:]
    first = _iterator(Numbers(37), rows=_part(3, 4))
    _take(first, done)
    state = json.loads(json.dumps(first.get_state()))
    assert state["batches"] == done
    parts = []
    for p in range(process_count):
        again = _iterator(Numbers(37), rows=_part(p, process_count))
        _take(again, 2)  # a state replaces whatever came before
        again.set_state(state)
        parts.append(_take(again, 6))
    assert [sum(rows, []) for rows in zip(*parts)] == expected


def test_some_batches_are_cut_to_a_prefix_alike_on_all_processes_and_when_resumed():
    class Long(Numbers):
        def __getitem__(self, index):
            return {"tokens": np.full(200, index, np.int32), "mask": np.ones(200, bool)}

    make = lambda **more: _iterator(Long(37), prefix_crop=0.5, **more)
    whole = make()
    shapes = [next(whole)["tokens"].shape[1] for _ in range(200)]
    counts = {length: shapes.count(length) / 200 for length in set(shapes)}
    assert set(counts) == {64, 128, 192, 200}
    # 64 and 128 with probability 64/200 each of a half; the rest is whole or nearly so.
    np.testing.assert_allclose([counts[64], counts[128]], [0.16, 0.16], atol=0.07)
    part = make(rows=_part(1, 2))
    state = whole.get_state() | {"batches": 120}
    part.set_state(state)
    assert [next(part)["tokens"].shape[1] for _ in range(80)] == shapes[120:]


def test_resuming_skips_without_reading():
    source = Numbers(1000)
    iterator = _iterator(source, threads=0)
    iterator.set_state({**iterator.get_state(), "batches": 100_000})
    _take(iterator, 1)
    assert len(source.read) == 8


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"global_batch": 4}, "global_batch"),
        ({"source": Numbers(38)}, "sources"),
        ({"shuffle": False}, "shuffle"),
    ],
)
def test_state_of_another_run_is_refused(changed, name):
    state = _iterator(Numbers(37)).get_state()
    other = _iterator(**{"source": Numbers(37), **changed})
    with pytest.raises(UserError, match=f"saved data position has {name}"):
        other.set_state(state)


def test_mixture_respects_weights_and_repeats_each_source():
    parts = [Numbers(30), Numbers(50, first=1000)]
    rows = np.array(_take(_iterator([(parts[0], 3), (parts[1], 1)]), 100)).ravel()
    small, large = rows[rows < 1000], rows[rows >= 1000]
    assert abs(len(small) / len(rows) - 0.75) < 0.01
    assert sorted(small[:30]) == list(range(30))
    assert sorted(large[:50]) == list(range(1000, 1050))


def test_mixture_of_equal_sources_is_shuffled_independently():
    rows = np.array(_take(_iterator([(Numbers(40), 1), (Numbers(40, first=100), 1)]), 10)).ravel()
    assert (rows[rows < 100].tolist()) != (rows[rows >= 100] - 100).tolist()


def test_stall_is_counted_and_close_is_safe():
    iterator = _iterator(Numbers(37))
    _take(iterator, 2)
    assert iterator.stall_seconds > 0
    expected = _take(_iterator(Numbers(37)), 3)[2]
    iterator.close()
    assert _take(iterator, 1) == [expected]


def test_eval_pads_the_last_batch_with_masked_rows():
    batches = list(eval_batches(Numbers(10), 4))
    assert [b["tokens"].shape for b in batches] == [(4, 2)] * 3
    kept = np.concatenate([b["tokens"][:, 0][b["mask"].all(1)] for b in batches])
    assert kept.tolist() == list(range(10))
    assert not batches[-1]["mask"][2:].any()
    assert len(list(eval_batches(Numbers(10), 4, max_batches=2))) == 2


def test_eval_on_two_processes_covers_the_same_rows():
    whole = list(eval_batches(Numbers(10), 4))
    parts = [list(eval_batches(Numbers(10), 4, rows=_part(p, 2, 4))) for p in range(2)]
    for batch, low, high in zip(whole, *parts):
        joined = np.concatenate([low["tokens"], high["tokens"]])
        np.testing.assert_array_equal(joined, batch["tokens"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch": 0}, "global batch is 0"),
        ({"rows": [7, 8]}, "rows are .7, 8. of a global batch of 8"),
        ({"rows": []}, "rows are"),
        ({"source": Numbers(5), "repeat": False}, "5 examples do not fill"),
        ({"source": []}, "mixture is empty"),
        ({"source": [(Numbers(5), 0.0)]}, "weights are"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        _iterator(**{"source": Numbers(37), **arguments})
