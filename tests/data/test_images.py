"""Image files of every kind, whole and damaged."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from detr_fast.data import ImageError, load_image
from detr_fast.data.images import read_header

RAMP = np.tile(np.linspace(0, 255, 32).round().astype(np.uint8), (24, 1))
COLORS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P"])
def test_png_modes(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(COLORS).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels(saved(tmp_path / "a.png", image)), expected)


def test_grayscale_jpeg(tmp_path: Path) -> None:
    got = pixels(saved(tmp_path / "a.jpg", Image.fromarray(RAMP), quality=95))
    assert (got == got[..., :1]).all()
    np.testing.assert_allclose(got[..., 0].astype(int), RAMP, atol=3)


def test_cmyk_jpeg_keeps_the_colors(tmp_path: Path) -> None:
    red = Image.new("RGB", (32, 24), (230, 20, 20)).convert("CMYK")
    got = pixels(saved(tmp_path / "a.jpg", red, quality=95)).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(got, (230, 20, 20), atol=5)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_is_scaled_by_its_range(tmp_path: Path, suffix: str) -> None:
    wide = Image.fromarray(RAMP.astype(np.uint16) * 257)
    got = pixels(saved(tmp_path / f"a{suffix}", wide))
    np.testing.assert_array_equal(got, np.repeat(RAMP[..., None], 3, 2))


def test_32_bit_integers_in_the_16_bit_range(tmp_path: Path) -> None:
    got = pixels(saved(tmp_path / "a.tif", Image.fromarray(RAMP.astype(np.int32) * 257)))
    np.testing.assert_array_equal(got[..., 0], RAMP)


def test_values_without_a_range_are_refused(tmp_path: Path) -> None:
    floats = saved(tmp_path / "float.tif", Image.fromarray(RAMP.astype(np.float32)))
    with pytest.raises(ImageError, match=r"float\.tif: a floating-point image"):
        load_image(floats)
    huge = saved(tmp_path / "huge.tif", Image.fromarray(RAMP.astype(np.int32) * 70000))
    with pytest.raises(ImageError, match=r"huge\.tif: pixel values 0\.\.17850000 are outside"):
        load_image(huge)


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(COLORS).convert("P")
    path = saved(tmp_path / "a.png", image, transparency=bytes(range(256)))
    np.testing.assert_array_equal(pixels(path), np.asarray(image.convert("RGB")))


def test_exif_orientation_only_on_demand(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.png", Image.fromarray(COLORS), exif=exif)
    assert load_image(path).size == (32, 24)
    turned = load_image(path, exif_transpose=True)
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(COLORS, -1))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path)


def encoded(image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(COLORS).save(buffer, image_format)
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_file(tmp_path: Path, image_format: str, kept: float) -> None:
    data = encoded(image_format)
    path = tmp_path / "broken.img"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ImageError, match=r"broken\.img: "):
        load_image(path)


def test_damaged_png_header(tmp_path: Path) -> None:
    data = bytearray(encoded("PNG"))
    data[20] ^= 0xFF
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"broken\.png"):
        load_image(path)


def test_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("<html>404 Not Found</html>")
    with pytest.raises(ImageError, match=r"page\.jpg: not an image"):
        load_image(path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"page\.jpg: the file is empty"):
        load_image(path)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "bomb.png", Image.fromarray(COLORS))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"bomb\.png"):
        load_image(path)


@pytest.mark.parametrize(
    "error",
    [RuntimeError, NotImplementedError, IndexError, KeyError, ZeroDivisionError, OverflowError, struct.error,
     SyntaxError, EOFError, TypeError, AttributeError, MemoryError, Image.DecompressionBombError],
)  # fmt: skip
def test_whatever_a_decoder_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Plug-ins stumble over damaged files in ways of their own."""
    path = saved(tmp_path / "a.png", Image.fromarray(COLORS))

    def stumble(*_: object) -> None:
        raise error("odd bytes")

    monkeypatch.setattr(PngImageFile, "load", stumble)
    with pytest.raises(ImageError, match=r"a\.png: .*(odd bytes|more memory)"):
        load_image(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.dds", b"DDS " + b"\x7c\0\0\0" + b"\xff" * 120),
        ("a.spi", np.full(256, 1.0, ">f4").tobytes()),
        ("a.avif", b"\0\0\0\x1cftypavif" + b"\0" * 40),
        ("a.webp", b"RIFF\x20\0\0\0WEBPVP8 " + b"\0" * 20),
        ("a.ico", b"\0\0\1\0\1\0" + b"\xff" * 30),
        ("a.psd", b"8BPS\0\1" + b"\0" * 6 + b"\xff" * 30),
        ("a.qoi", b"qoif" + b"\xff" * 20),
        ("a.gif", b"GIF89a\xff\xff\xff\xff\xff\0\0," + b"\xff" * 20),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n"),
    ],
)
def test_damaged_files_of_plug_ins(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (load_image, read_header):
        if read is load_image or name.endswith("eps"):
            with pytest.raises(ImageError, match=name):
                read(tmp_path / name)


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "x" * 300 + ".png", "../" * 3000 + "a.png"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises((FileNotFoundError, ImageError)):
        load_image(tmp_path / name)
