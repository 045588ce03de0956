"""The named cases of the benchmark. The last variant of each is compared with the others."""

from typing import Any, NamedTuple

# The last variant is the library's own choice; "onehot_plain" is the reference's path: noise in R^V
# and losses over all positions at once.


def _noise(tile: int) -> dict[str, dict[str, Any]]:
    return {
        "onehot_plain": {"noise": "onehot", "loss_tile": 0},
        "onehot": {"noise": "onehot", "loss_tile": tile},
        "projected": {"noise": "projected", "loss_tile": tile},
    }


_SMALL = {"onehot": {"noise": "onehot"}, "projected": {"noise": "projected"}}


class Case(NamedTuple):
    """One size, several variants.

    Attributes:
      name: unique.
      kind: "train" (a train step) or "sample" (a sampler call).
      objective: "denoising" or "semigroup".
      sizes: vocab_size, length, batch, dim, depth, and steps for samplers.
      variants: name -> settings (noise, loss_tile).
    """

    name: str
    kind: str
    objective: str
    sizes: dict[str, Any]
    variants: dict[str, dict[str, Any]]

    @property
    def tokens(self) -> int:
        return self.sizes["batch"] * self.sizes["length"]


def _sizes(vocab_size: int, batch: int, length: int, dim: int, depth: int, **more) -> dict:
    return dict(
        vocab_size=vocab_size, batch=batch, length=length, dim=dim, depth=depth, heads=4, **more
    )


_CPU = (
    Case("flm_train_v50257", "train", "denoising", _sizes(50257, 16, 128, 256, 2), _noise(32)),
    Case("flm_train_v30522", "train", "denoising", _sizes(30522, 8, 128, 256, 4), _noise(64)),
    Case("flm_train_v1024", "train", "denoising", _sizes(1024, 64, 64, 128, 4), _SMALL),
    Case("fmlm_train_v50257", "train", "semigroup", _sizes(50257, 16, 128, 256, 2), _noise(32)),
    Case(
        "sample_v50257",
        "sample",
        "denoising",
        _sizes(50257, 16, 128, 256, 2, steps=4),
        {"onehot": {"noise": "onehot"}, "projected": {"noise": "projected", "loss_tile": 32}},
    ),
)
SUITES = {"cpu": _CPU}
CASES = {case.name: case for cases in SUITES.values() for case in cases}
