"""Convert images with more than 8 bits per channel to 8 bits."""

import numpy as np
from PIL import ExifTags, Image

_SIGNED = 2
"""The value of TIFF's tag `SampleFormat` for signed integers."""
_HINT = "store it with 8 bits a channel, or stretched over all 16"


def declared_bits(image: Image.Image) -> int:
    """The bits per channel that an image's file declares, read before decoding; at least 8.

    >>> declared_bits(Image.new("I;16", (1, 1))), declared_bits(Image.new("RGB", (1, 1)))
    (16, 8)

    Raises:
        ValueError: The file does not declare which numbers are black and white.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    bits = max(8, *tags.get(ExifTags.Base.BitsPerSample, (8,)))
    is_signed = _SIGNED in tags.get(ExifTags.Base.SampleFormat, ())
    if image.mode == "F":
        raise ValueError(f"its pixels are floats of unknown range; {_HINT}")
    if bits > 16 or (is_signed and bits > 8):
        sign = "signed " if is_signed else ""
        raise ValueError(f"its pixels are {sign}numbers of {bits} bits, of unknown range; {_HINT}")
    if tags:
        return bits
    is_deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    return 16 if is_deep or image.mode.startswith("I") else 8


def to_8_bits(image: Image.Image, bits: int) -> Image.Image:
    """The upper 8 of a decoded image's `bits` bits per channel.

    Raises:
        ValueError: Its pixels exceed the range of these bits, or are too dark to be visible.
    """
    if bits == 8:
        return image
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 255: a white image
        pixels = np.asarray(image).astype(np.int64)
        refuse_unused_bits(int(pixels.min()), int(pixels.max()), bits)
        return Image.fromarray((pixels >> (bits - 8)).astype(np.uint8))
    # Of colours Pillow reads only the upper byte; the lower one is lost.
    if image.mode != "CMYK":
        upper = np.asarray(image.convert("RGB")).astype(np.int64)
        refuse_unused_bits(0, int(upper.max()) << (bits - 8) | 255, bits)
    return image


def refuse_unused_bits(low: int, high: int, bits: int) -> None:
    """Refuse pixels that would be black or white because they do not use the range of all bits.

    >>> refuse_unused_bits(0, 4095, 16)
    Traceback (most recent call last):
    ...
    ValueError: its pixels go from 0 to 4095, but 16 bits to 65535: it would be dark, or black; ...
    """
    white = 2**bits - 1
    if low < 0 or high > white:
        effect = "its black or its white would be lost"
    elif 0 < high < (white + 1) // 4:
        effect = "it would be dark, or black"
    else:
        return
    raise ValueError(
        f"its pixels go from {low} to {high}, but {bits} bits to {white}: {effect}; {_HINT}"
    )
