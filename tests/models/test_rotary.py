"""Rotary embeddings of positions."""

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.models.rotary import rotary_angles, rotate


def test_rotary_tables_are_constants_of_a_program():
    """Their definition to 1e-6, in a program without sines."""
    rotated = jax.jit(lambda x: rotate(x, rotary_angles(6, 8, condense=2.0)))
    x = jnp.ones((2, 6, 1, 8))
    text = rotated.lower(x).as_text()
    assert "sine" not in text and "power" not in text
    angles = np.arange(6)[:, None] / 2.0 * 10_000.0 ** (-np.arange(4) / 4)
    first, second = np.cos(angles) - np.sin(angles), np.cos(angles) + np.sin(angles)
    want = np.broadcast_to(np.concatenate([first, second], -1)[None, :, None], x.shape)
    np.testing.assert_allclose(rotated(x), want, rtol=0, atol=1e-6)


def test_rotary_tables_need_no_default_device():
    """The default device may be one that is absent and only compiled for."""
    here, other = jax.local_devices()[:2]
    with jax.default_device(other):
        tables = rotary_angles(5, 8)
    assert all(table.devices() == {here} for table in tables)
