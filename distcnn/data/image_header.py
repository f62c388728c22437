"""Size and EXIF orientation of an encoded image, from its first bytes."""

import io
import struct
from dataclasses import dataclass

from PIL import ExifTags, Image

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
"""The first bytes of a file of these formats."""

# A closed list: Pillow has plug-ins for some 40 formats, of which EPS starts another program.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WebP", "TIFF", "AVIF")
"""The image formats that are decoded."""

_EXIF = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_SHORT = 3
_MAX_ENTRIES = 512
_NO_SEGMENT = frozenset({0x01, *range(0xD0, 0xD9)})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image say.

    Attributes:
        is_jpeg: Whether it is a JPEG file with a readable header.
        height: Rows of the stored pixels, or 0 if unknown; for formats other than JPEG of the
            decoded pixels, which are upright.
        width: Columns of the same.
        orientation: EXIF orientation of a JPEG file, from 1 (upright) to 8; 1 for other formats.
    """

    is_jpeg: bool
    height: int
    width: int
    orientation: int


def read_header(contents: bytes) -> ImageHeader:
    """Returns the size and orientation of an image; never fails."""
    if contents.startswith(JPEG):
        height, width, orientation = _walk_jpeg(contents)
        if height and width:
            return ImageHeader(True, height, width, orientation)
    try:
        with Image.open(io.BytesIO(contents), formats=FORMATS) as image:
            width, height = image.size
            orientation = orientation_of(image)
            if image.format in ("JPEG", "MPO"):
                return ImageHeader(False, height, width, orientation)
            # Pillow's TIFF reader turns pixels itself, and gives the size after that.
            if orientation >= 5 and image.format not in ("TIFF", "PNG"):
                width, height = height, width
            return ImageHeader(False, height, width, 1)
    except Exception:  # a damaged file may raise anything; decoding it says what is wrong
        return ImageHeader(False, 0, 0, 1)


def jpeg_orientation(contents: bytes) -> int:
    """Returns the EXIF orientation of a JPEG file, from 1 to 8; 1 if it has none or is no JPEG."""
    return _walk_jpeg(contents)[2] if contents.startswith(JPEG) else 1


def orientation_of(image: Image.Image) -> int:
    """Returns the EXIF orientation of an image that Pillow has opened."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def _walk_jpeg(contents: bytes) -> tuple[int, int, int]:
    """Returns height, width and orientation from the segments before the first scan."""
    height, width, orientation = 0, 0, None
    position, size = 2, len(contents)
    while position + 4 <= size:
        marker = contents[position + 1]
        if contents[position] != 0xFF:  # libjpeg skips what is between segments
            position = contents.find(b"\xff", position)
            if position < 0:
                break
        elif marker == 0xFF or marker in _NO_SEGMENT:
            position += 1 if marker == 0xFF else 2
        elif marker in (_SCAN, _END):
            break
        else:
            length = int.from_bytes(contents[position + 2 : position + 4], "big")
            if marker in _FRAMES and not height:
                height = int.from_bytes(contents[position + 5 : position + 7], "big")
                width = int.from_bytes(contents[position + 7 : position + 9], "big")
            elif marker == _APP1 and orientation is None:
                segment = contents[position + 4 : position + 2 + length]
                if segment.startswith(_EXIF):
                    orientation = _orientation_in(segment[len(_EXIF) :])
            position += 2 + max(length, 2)
    return height, width, orientation or 1


def _orientation_in(exif: bytes) -> int:
    """Returns the orientation in the first directory of an EXIF block, or 1."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        if order is None:
            return 1
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for number in range(min(entries, _MAX_ENTRIES)):
            entry = start + 2 + 12 * number
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == _ORIENTATION_TAG:
                return value if kind == _SHORT and value in range(1, 9) else 1
    except struct.error:
        pass
    return 1
