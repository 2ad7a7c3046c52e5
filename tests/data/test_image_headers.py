"""What an encoded image takes is known from its header, before a pixel is decoded."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, UnidentifiedImageError

from ebjr.data.examples import decode_image, image_cost, image_formats

KINDS = [("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
KINDS += [("JPEG", mode) for mode in ("L", "RGB", "CMYK")] + [("WEBP", "RGB"), ("WEBP", "RGBA")]
KINDS += [("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "I"), ("JPEG2000", "RGBA")]
TURNED = Image.Exif()
TURNED[0x112] = 6

PEAK = """
import io, sys
from PIL import Image
from ebjr.data.examples import decode_image, image_cost

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

first = io.BytesIO()
Image.new("RGB", (8, 8)).save(first, sys.argv[2])
decode_image(first.getvalue())
file = open(sys.argv[1], "rb").read()
_, cost = image_cost(file)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
pixels = decode_image(file)
print(status("VmHWM") - before, cost, pixels.size)
"""


def encoded(form: str, mode: str, side: int, **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 4), np.uint8)
    pixels = np.kron(noise, np.ones((8, 8, 1), np.uint8))
    image = Image.fromarray(pixels).convert("RGB" if mode in ("CMYK", "YCbCr") else "RGBA")
    if mode in ("I;16", "I"):
        image = Image.fromarray(pixels[..., 0].astype(np.uint16 if mode == "I;16" else np.int32))
    file = io.BytesIO()
    image.convert(mode).save(file, form, **options)
    return file.getvalue()


def tiff_of_one_pixel(side: int) -> bytes:
    """A TIFF of one pixel in a tile of `side` x `side`."""
    tile = zlib.compress(bytes(3 * side * side))
    about = [(256, 1), (257, 1), (258, 8), (259, 8), (262, 2), (277, 3), (284, 1)]
    about += [(322, side), (323, side), (324, 8 + 2 + 12 * 11 + 4), (325, len(tile))]
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in about)
    return b"II*\0" + struct.pack("<IH", 8, len(about)) + tags + bytes(4) + tile


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc of Linux")
@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "I;16"), ("JPEG", "RGB"), ("WEBP", "RGBA"), ("TIFF", "I"), ("JPEG2000", "RGBA")],
)
def test_an_image_takes_no_more_than_its_header_says(form, mode, tmp_path) -> None:
    options = {"progressive": True, "exif": TURNED} if form == "JPEG" else {}
    (tmp_path / "image").write_bytes(encoded(form, mode, 2048, **options))
    command = [sys.executable, "-c", PEAK, tmp_path / "image", form]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, cost, size = map(int, done.stdout.split())
    assert peak < cost < 12 * size


@pytest.mark.parametrize(("form", "mode"), KINDS)
def test_the_pixels_are_checked_before_any_is_decoded(form, mode, monkeypatch) -> None:
    def stop(count: int) -> None:
        raise ValueError(f"{count} pixels")

    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _image: pytest.fail("it is decoded"))
    file = encoded(form, mode, 64)
    with pytest.raises(ValueError, match="4096 pixels"):
        decode_image(file, check=stop)
    pixels, cost = image_cost(file)
    assert pixels == 4096
    assert 18 * 4096 <= cost <= 30 * 4096 + len(file)


def test_a_frame_beyond_its_gif_and_a_tile_beyond_its_tiff_are_counted() -> None:
    file = bytearray(encoded("GIF", "P", 256))
    file[6:10] = struct.pack("<HH", 1, 1)  # what the GIF says that it measures
    counts: list[int] = []
    decode_image(bytes(file), check=counts.append)
    decode_image(tiff_of_one_pixel(512), check=counts.append)
    assert counts == [256 * 256, 512 * 512]
    assert image_cost(tiff_of_one_pixel(4096))[1] > 18 * 4096**2


def test_what_is_no_image_costs_nothing_but_an_error() -> None:
    for file, error in ((b"", ValueError), (b"no image", UnidentifiedImageError)):
        with pytest.raises(error):
            image_cost(file)
    with pytest.raises(UnidentifiedImageError):
        image_cost(encoded("GIF", "P", 64), formats=["PNG"])
    assert "PNG" in image_formats()
