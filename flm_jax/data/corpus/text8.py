"""The corpus text8: 100 million characters of Wikipedia, in lower case without punctuation.

The splits follow the published models (arXiv 2107.03006, 2406.07524): the first 90% of the
characters for training, the last 5% as the test set, and the 5% between them are left out here;
each split is cut in chunks of 256 characters, which are its documents.
"""

import functools
import zipfile
from collections.abc import Callable, Iterator

from etils import epath

from flm_jax.core.errors import require
from flm_jax.core.reading import named_damage
from flm_jax.data.corpus.files import find_files
from flm_jax.data.text import LONGEST_TEXT

CHUNK = 256  # characters of a document


def open_text8(path: str) -> tuple[dict[str, Callable[[], Iterator[str]]], str, str]:
    """Returns splits, an identity and a digest of text8.

    Args:
      path: path of the file text8 or text8.zip, as its author publishes them.

    Raises:
      UserError: no such file, or a text that is not text8.
    """
    (file, *_), identity, content = find_files(path, ("text8", "text8.zip"))
    text = _text(file)
    # Thousandths, so that 100 million characters are cut at exactly 90 and 95 million.
    parts = {"train": (0, 900), "valid": (950, 1000)}

    def chunks(start: int, stop: int) -> Iterator[str]:
        first, last = (len(text) * part // 1000 for part in (start, stop))
        return (text[i : i + CHUNK] for i in range(first, last - CHUNK + 1, CHUNK))

    splits = {name: functools.partial(chunks, *part) for name, part in parts.items()}
    return splits, identity, content


def _text(file: epath.Path) -> str:
    most = LONGEST_TEXT + 1
    with named_damage(file, f"expected {file.name}, whole"), file.open("rb") as stream:
        if file.name.endswith(".zip"):
            with zipfile.ZipFile(stream).open("text8") as unpacked:
                content = unpacked.read(most)
        else:
            content = stream.read(most)
    require(
        len(content) < most,
        f"{file} holds more than {LONGEST_TEXT} bytes; expected text8, of 100 million",
    )
    other = set(content) - set(b"abcdefghijklmnopqrstuvwxyz ")
    require(
        not other,
        f"{file} holds other characters than a to z and spaces, such as {chr(min(other or [0]))!r};"
        " expected text8 as its author publishes it",
    )
    return content.decode("ascii")
