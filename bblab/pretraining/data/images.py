"""One image: what it is inside, whether it decodes, its pixels upright as BGR, and its smaller copy.

JPEGs go through libjpeg-turbo (simplejpeg), everything else, and what that refuses, through OpenCV: the decoder that
mmpretrain uses, so that an image is unusable here if and only if it would end a training there.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError
from bblab.installing import how_to_install

if TYPE_CHECKING:
    import numpy as np

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")
"""What mmpretrain's CustomDataset takes for an image."""
MAX_FILE_BYTES = 256 * 1024 * 1024
MAX_PIXELS = 1 << 28  # 268 MP: a picture that costs 0.8 GB decoded; the largest in ImageNet has 51 MP
DCT_FACTORS = (8, 4, 2)  # the sizes that libjpeg-turbo decodes straight to, faster than the whole


class BadImage(ValueError):
    """This image cannot be used; the text says why in a word or two."""


@dataclass(frozen=True, slots=True)
class Header:
    """Height and width in pixels as stored, and whether simplejpeg gives the same picture as OpenCV would."""

    format: str
    height: int
    width: int
    is_plain: bool


def packages() -> tuple[Any, Any]:
    """(cv2, simplejpeg). Raises BblabError with the install command."""
    try:
        import cv2
        import simplejpeg
    except ImportError as error:
        raise BblabError(f"images need {error.name}", hint=how_to_install("simplejpeg")) from None
    return cv2, simplejpeg


_MAGIC = {
    b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png", b"BM": "bmp", b"GIF8": "gif", b"II*\0": "tiff",
    b"MM\0*": "tiff", b"P5": "pgm", b"P6": "ppm", b"P2": "pgm", b"P3": "ppm",
}  # fmt: skip


def format_of(data: bytes) -> str:
    """What the bytes are, whatever the file is called: "jpeg", "png", ... or "unknown"."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for magic, name in _MAGIC.items() if data.startswith(magic)), "unknown")


def header(data: bytes) -> Header:
    """Size and kind without decoding. Raises BadImage for what is no image or too large to be meant."""
    import simplejpeg

    if not data:
        raise BadImage("empty")
    kind = format_of(data)
    if kind == "jpeg":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return Header(kind, 0, 0, False)  # OpenCV has the last word
        plain = colours in ("YCbCr", "Gray") and orientation(data) == 1
    elif kind == "png" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        plain = False
    else:
        height = width = 0
        plain = False
    if height * width > MAX_PIXELS:
        raise BadImage(f"too large ({width}x{height})")
    return Header(kind, height, width, plain)


def orientation(data: bytes) -> int:
    """The EXIF orientation, 1 (upright) to 8. Cameras turn a picture by this mark; OpenCV obeys it, simplejpeg not."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and (0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE):
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return _from_tiff(data[at + 10 : at + 2 + size])
        at += 2 + size
    return 1


def _from_tiff(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for i in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * i)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


class Workspace:
    """Memory for decoded pixels that is used again: fresh pages for each image cost a fifth of the decoding."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def of(self, size: int) -> bytearray:
        if len(self._bytes) < size:
            self._bytes = bytearray(size)
        return self._bytes


def decode(
    data: bytes, head: Header | None = None, factor: int = 1, *, into: Workspace | None = None, is_rough: bool = False
) -> np.ndarray[Any, Any]:
    """The picture, upright, height x width x 3, uint8 BGR; each side divided by `factor` (rounded up) if it is plain.

    With `into` the pixels last until the next image is decoded there. `is_rough` repeats the colours of a subsampled
    JPEG instead of smoothing them: 0.7 of 255 levels off in the mean (one photo, quality 90), a quarter faster.
    Raises BadImage.
    """
    import simplejpeg

    head = head or header(data)
    if head.is_plain:
        try:
            height, width = -(-head.height // factor), -(-head.width // factor)
            least = {"min_height": height, "min_width": width, "min_factor": factor} if factor > 1 else {}
            buffer = into.of(height * width * 3) if into else None
            return simplejpeg.decode_jpeg(data, "BGR", fastupsample=is_rough, buffer=buffer, **least)
        except ValueError as error:
            if "Premature end" in str(error):
                raise BadImage("truncated") from None
    return _decode_cv2(data)


def _decode_cv2(data: bytes) -> np.ndarray[Any, Any]:
    import cv2
    import numpy as np

    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise BadImage("not an image" if format_of(data) == "unknown" else f"corrupt {format_of(data)}")
    return image


def factor_for(height: float, width: float, target_h: float, target_w: float) -> int:
    """The most that decoding may shrink so that a region of height x width still has the target's pixels."""
    return next((f for f in DCT_FACTORS if height >= f * target_h and width >= f * target_w), 1)


def smaller(data: bytes, short_side_px: int, quality: int) -> bytes:
    """The image as a JPEG whose short side is at most `short_side_px`; unchanged if it is one already.

    Raises BadImage.
    """
    import cv2
    import simplejpeg

    head = header(data)
    short = min(head.height, head.width)
    if head.is_plain and short <= short_side_px:
        decode(data, head)  # must be known to decode, although its bytes stay
        return data
    factor = factor_for(short, short, short_side_px, short_side_px) if head.is_plain else 1
    image = decode(data, head, factor)
    height, width = image.shape[:2]
    if min(height, width) > short_side_px:
        scale = short_side_px / min(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(image, quality, "BGR", "420")


def examine(data: bytes) -> tuple[str, int, int]:
    """(format, height, width) of an image that decodes. Raises BadImage.

    A JPEG is decoded at an eighth of its size: every byte is read, few pixels are made.
    """
    head = header(data)
    image = decode(data, head, 8 if head.is_plain and min(head.height, head.width) >= 8 else 1)
    if head.is_plain:
        return head.format, head.height, head.width
    return head.format, *image.shape[:2]


def read_file(path: str) -> bytes:
    """The bytes of a local file. Raises BadImage for one that is missing, unreadable or too large."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path for each of a million files costs time
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise BadImage("too large (above 256 MB)")
            return file.read()
    except FileNotFoundError:
        raise BadImage("missing") from None
    except OSError as error:
        raise BadImage(f"unreadable ({error.strerror})") from None
