"""Animated pictures of sampling: a frame before the first network call and one after each call."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flm_jax.core.printing import shown

_COLUMNS = 76  # characters of a line
_SIZE, _ROW, _MARGIN = 26, 40, 28  # of the letters, of a line and of the border, in pixels
_PAPER, _INK, _SOFT, _DOUBT = (255, 255, 255), (26, 26, 26), (85, 85, 85), (246, 150, 108)
_NOISE = "\N{LIGHT SHADE}"
_BEFORE, _BETWEEN, _AFTER = 1400, 500, 4500  # milliseconds that a frame stays
_ROUND = 10

_Place = tuple[int, int, str, float]  # column, line, letters, confidence


def to_gif(samples: Sequence[Sequence[Sequence[Any]]]) -> bytes:
    """An animated GIF of texts, dark letters on white with the model's doubt as colour.

    It has its own background, so that it is legible on light and dark pages.

    Args:
      samples: for each sample and step, L pairs (piece, confidence in [0, 1]), as from
        `trajectories.frames`.

    Returns:
      The content of the GIF file.

    Raises:
      ImportError: no Pillow or no matplotlib, whose font is used.
    """
    import matplotlib
    from PIL import ImageFont

    fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
    font = ImageFont.truetype(str(fonts / "DejaVuSansMono.ttf"), _SIZE)
    steps = len(samples[0])
    noise = [[(_NOISE * len(piece), 1.0) for piece, _ in sample[-1]] for sample in samples]
    views = [noise, *([sample[k] for sample in samples] for k in range(steps))]
    of = f" of {steps}" if steps > 1 else ""
    titles = ["noise", *(f"network call {k}{of}" for k in range(1, steps + 1))]
    placed = [[_placed(pairs) for pairs in view] for view in views]
    heights = [max(1 + max(p[1] for p in view[i]) for view in placed) for i in range(len(samples))]
    pictures = [_picture(*one, heights, font) for one in zip(titles, placed)]
    times = [_BEFORE, *[_BETWEEN] * (steps - 1), _AFTER]
    file = io.BytesIO()
    first, *rest = pictures
    first.save(file, "GIF", save_all=True, append_images=rest, duration=times, loop=0)
    return file.getvalue()


def _placed(pairs: Sequence[Any]) -> list[_Place]:
    """Positions of the letters of a text; a piece that does not fit starts the next line."""
    places: list[_Place] = []
    column = line = 0
    for piece, confidence in pairs:
        letters = shown(piece.replace("\n", " "), lines=False)[:_COLUMNS]
        if column + len(letters.rstrip()) > _COLUMNS:
            column, line = 0, line + 1
            letters = letters.lstrip()
        places.append((column, line, letters, confidence))
        column += len(letters)
    return places or [(0, 0, "", 1.0)]


def _picture(title: str, samples: list[list[_Place]], heights: list[int], font: Any) -> Any:
    from PIL import Image, ImageDraw

    letter = font.getlength("m")
    width = round(letter * _COLUMNS) + 4 * _MARGIN
    height = _MARGIN + _ROW + sum(h * _ROW + 2 * _MARGIN for h in heights)
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN / 2), title, _SOFT, font)
    top = _MARGIN + _ROW
    for places, lines in zip(samples, heights):
        box = (_MARGIN, top, width - _MARGIN, top + lines * _ROW + _MARGIN)
        draw.rounded_rectangle(box, _ROUND, outline=(204, 204, 204))
        for column, line, letters, confidence in places:
            x = 2 * _MARGIN + column * letter
            y = top + _MARGIN / 2 + line * _ROW
            colour = tuple(round(d + (p - d) * confidence) for p, d in zip(_PAPER, _DOUBT))
            draw.rectangle((x, y, x + len(letters) * letter, y + _ROW - 2), colour)
            draw.text((x, y + 1), letters, _SOFT if _NOISE in letters else _INK, font)
        top = box[3] + _MARGIN
    # Few colours: letters, and shades of one hue.
    return picture.quantize(48)
