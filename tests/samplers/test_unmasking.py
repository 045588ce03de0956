"""The network calls of a row, over its blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.build.sampler import choose_sampler, make_sampler
from flm_jax.config.check import check
from flm_jax.config.schema import base_config
from flm_jax.core.errors import UserError
from flm_jax.samplers.base import Given, Share, plain_steps, read_steps
from flm_jax.samplers.unmasking import check_calls, schedule
from helpers.laws import EXACT

CAUSAL = dataclasses.replace(EXACT, block_length=4)


def given(*rows):
    """A row a text: "x" where a token is given, "." where one is to be written."""
    mask = jnp.asarray([[c == "x" for c in row] for row in rows])
    return Given(jnp.zeros(mask.shape, jnp.int32), mask)


def spread(rows, steps, block_length, net=EXACT):
    found = jax.jit(lambda g: schedule(net, g, steps, block_length))(given(*rows))
    return jax.tree.map(np.asarray, found)


def test_blocks_begin_where_a_prompt_ends():
    rows = ["..........", "xxx.......", "xxxxxxxxx.", "xxxxxxxxxx", "xx.xxxxx.."]
    found = spread(rows, 5, 4)
    n = found.blocks
    assert n == 3
    want = [
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2],
        [n, n, n, 0, 0, 0, 0, 1, 1, 1],
        [n] * 9 + [0],
        [n] * 10,
        [n, n, 0, n, n, n, n, n, 1, 1],  # a block without anything to write is none
    ]
    np.testing.assert_array_equal(found.place, want)
    np.testing.assert_array_equal(
        found.total, [[4, 4, 2], [4, 3, 0], [1, 0, 0], [0, 0, 0], [1, 2, 0]]
    )
    # One call a block, and the rest as the positions.
    np.testing.assert_array_equal(found.ends[:3], [[2, 4, 5], [3, 5, 5], [5, 5, 5]])
    np.testing.assert_array_equal(found.ends[4], [2, 5, 5])
    at = [found._replace(ends=jnp.asarray(found.ends)).at(jnp.int32(k)) for k in range(6)]
    np.testing.assert_array_equal(np.stack(at)[:, 0], [0, 0, 1, 1, 2, n])
    first, calls = found.span(jnp.asarray([1, 1, 0, n, n]))
    assert first.tolist()[:3] == [2, 3, 0] and calls.tolist() == [2, 2, 5, 0, 0]
    assert found.todo(jnp.asarray([2, 1, n, n, 1])).tolist() == [2, 3, 0, 0, 2]


def test_a_network_that_sees_blocks_is_written_in_its_own():
    found = spread(["xxx.......", "xxxx......"], 3, 4, CAUSAL)
    assert found.place[0].tolist() == [3, 3, 3, 0, 1, 1, 1, 1, 2, 2]
    assert found.place[1].tolist() == [3, 3, 3, 3, 0, 0, 0, 0, 1, 1]
    assert found.ends.tolist() == [[1, 2, 3], [2, 3, 3]]


def test_a_share_is_of_the_tokens_to_write():
    rows = ["xxxxxxxxxxx.", "xxxxxxx.....", "............", "xxxxxxxxxxxx"]
    assert spread(rows, Share(1, 4), 0).ends[:, 0].tolist() == [1, 2, 3, 0]
    assert spread(rows, Share(1, 1), 0).ends[:, 0].tolist() == [1, 5, 12, 0]
    # Calls of a row in equal blocks are equal.
    assert spread(rows, Share(1, 2), 4).ends[2].tolist() == [2, 4, 6]


def test_fewer_calls_than_blocks_are_refused_and_still_write_all():
    assert spread(["........"], 2, 2).place[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    check_calls(EXACT, given("........"), 4, 2)
    check_calls(EXACT, given("........"), 1, 0)
    for steps, said in ((3, "steps=3 are 3"), (Share(1, 4), "steps=1/4 are 2")):
        with pytest.raises(UserError, match=f"{said} network calls for the 4 blocks of 2 tokens"):
            check_calls(EXACT, given("xxxxxxx.", "........"), steps, 2)


def test_steps_are_read():
    assert read_steps("64") == 64 and read_steps("1/4") == read_steps("0.25") == Share(1, 4)
    assert read_steps("1.0") == Share(1, 1) != 1 and plain_steps(Share(1, 4)) == "1/4"
    assert [Share(1, 3).calls(n) for n in (0, 1, 3, 4)] == [0, 1, 1, 2]
    for text in ("many", "1/0", "", "1/2/3", "nan.0"):
        with pytest.raises(UserError, match=f"got steps={text}; expected a whole number"):
            read_steps(text)
    for text in ("5/4", "0.0", "-1/4"):
        with pytest.raises(UserError, match="at most 1, such as 1/4"):
            read_steps(text)


def test_shares_are_for_masked_diffusion():
    config = check(base_config())
    with pytest.raises(UserError, match="steps=1/4 with sampler euler.*ancestral and confidence"):
        make_sampler(config, EXACT, None, Share(1, 4), choose_sampler(config))
