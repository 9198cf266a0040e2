"""Pictures with more than 8 bits a channel, brought to the 8 bits that a network sees."""

import numpy as np
from PIL import ExifTags, Image

SIGNED = 2
"""A value of TIFF's tag `SampleFormat`."""
REMEDY = "store it with 8 bits a channel, or stretched over all 16"


def declared_bits(image: Image.Image) -> int:
    """Bits in a channel of a picture, as its file declares before it is decoded; at least 8.

    >>> declared_bits(Image.new("I;16", (1, 1))), declared_bits(Image.new("RGB", (1, 1)))
    (16, 8)

    Raises:
        ValueError: The file does not tell which numbers are black and white.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    bits = max(8, *tags.get(ExifTags.Base.BitsPerSample, (8,)))
    is_signed = SIGNED in tags.get(ExifTags.Base.SampleFormat, ())
    if image.mode == "F":
        raise ValueError(f"its pixels are floats of unknown range; {REMEDY}")
    if bits > 16 or (is_signed and bits > 8):
        sign = "signed " if is_signed else ""
        raise ValueError(f"its pixels are {sign}numbers of {bits} bits, of unknown range; {REMEDY}")
    if tags:
        return bits
    is_deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    return 16 if is_deep or image.mode.startswith("I") else 8


def eight_bits(image: Image.Image, bits: int) -> Image.Image:
    """A decoded picture with its upper 8 bits of so many.

    Raises:
        ValueError: Its pixels lie outside of that range, or fill too little of it to be seen.
    """
    if bits == 8:
        return image
    if image.mode.startswith("I"):  # Pillow itself would clip 16 bits to 255: a white picture
        pixels = np.asarray(image).astype(np.int64)
        refuse_unused_bits(int(pixels.min()), int(pixels.max()), bits)
        return Image.fromarray((pixels >> (bits - 8)).astype(np.uint8))
    # Of colours Pillow reads the upper byte alone: what the lower one held cannot be seen.
    if image.mode != "CMYK":
        upper = np.asarray(image.convert("RGB")).astype(np.int64)
        refuse_unused_bits(0, int(upper.max()) << (bits - 8) | 255, bits)
    return image


def refuse_unused_bits(low: int, high: int, bits: int) -> None:
    """Refuse pixels that would be black, or white, for they use another range than all bits.

    >>> refuse_unused_bits(0, 4095, 16)
    Traceback (most recent call last):
    ...
    ValueError: its pixels go from 0 to 4095, but 16 bits to 65535: it would be dark, or black; ...
    """
    white = 2**bits - 1
    if low < 0 or high > white:
        found = "its black or its white would be lost"
    elif 0 < high < (white + 1) // 4:
        found = "it would be dark, or black"
    else:
        return
    raise ValueError(
        f"its pixels go from {low} to {high}, but {bits} bits to {white}: {found}; {REMEDY}"
    )
