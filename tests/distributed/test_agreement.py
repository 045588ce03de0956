"""What processes decide alike: a vote on stopping, clocks that differ."""

import jax
import numpy as np

from flm_jax.distributed import agreement


def test_processes_vote_on_stopping():
    vote = agreement.StopVote()
    assert int(vote.cast(False)) == 0
    assert int(vote.cast(True)) == 1
    one_of_eight = jax.device_put(np.arange(8) == 5, vote._split)
    assert int(vote._any(one_of_eight)) == 1


def test_clock_skew_is_told():
    assert agreement.skew_warning([1.8e9, 1.8e9 + 59.0]) == ""
    line = agreement.skew_warning([1.8e9, 1.8e9 + 100.0, 1.8e9 - 20.0])
    assert "processes 2 and 1 differ by 120 s" in line and "\n" not in line


def test_each_process_does_its_part_and_gets_all(monkeypatch):
    """The second of two processes does every other item, the last one of an odd number again."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    done = []

    def work(item):
        done.append(item)
        return {"twice": np.int32(2 * item), "none": None}

    both = lambda own: {"twice": np.stack([own["twice"] - 2, own["twice"]]), "none": None}
    monkeypatch.setattr(agreement.multihost_utils, "process_allgather", both)
    assert [int(x["twice"]) for x in agreement.in_turn(range(4), work, True)] == [0, 2, 4, 6]
    assert done == [1, 3]
    done.clear()
    assert len(list(agreement.in_turn(range(3), work, True))) == 3 and done == [1, 2]
    done.clear()
    assert len(list(agreement.in_turn(iter(range(3)), work, False))) == 3 and done == [0, 1, 2]
