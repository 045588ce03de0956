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
