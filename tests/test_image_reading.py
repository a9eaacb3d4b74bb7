"""Every kind of image has one documented conversion to RGB; everything else is a clear error."""

import contextlib
import http.server
import io
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from hf_igpt.image_reading_igpt import array_to_rgb, open_image, to_rgb


RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG of some bytes whose header claims any size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_8_bit_modes_are_as_pillow_converts_them(mode):
    source = Image.fromarray(RGB).convert("L" if mode in ("LA", "PA") else "RGB")
    image = source.convert("P").convert("PA") if mode == "PA" else source.convert(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(to_rgb(image), image.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_alpha_is_dropped_not_composited(mode):
    opaque = Image.fromarray(RGB).convert("LA" if mode in ("LA", "La") else "RGBA")
    image = opaque.copy()
    image.putalpha(100)
    reached = np.asarray(to_rgb(image.convert(mode))).astype(int)
    # Premultiplied modes lose up to 255 / 100 levels by rounding.
    assert np.abs(reached - np.asarray(opaque.convert("RGB"))).max() <= (3 if mode.endswith("a") else 0)


@pytest.mark.parametrize("transparency", [0, b"\x00\x80\xff"])
def test_palette_transparency_is_dropped(transparency, recwarn):
    image = Image.fromarray(RGB).quantize(8)
    data = encode(image, transparency=transparency)
    np.testing.assert_array_equal(to_rgb(data), image.convert("RGB"))
    assert not recwarn


def test_16_bit_grey_is_scaled_not_clipped():
    levels = np.array([[0, 1, 128, 129, 257, 256 * 257 - 300, 65535]], dtype=np.uint16)
    expected = np.rint(levels / 257.0).astype(np.uint8)
    for image in (Image.fromarray(levels), Image.fromarray(levels.astype(np.int32)), encode(Image.fromarray(levels))):
        grey = np.asarray(to_rgb(image))
        np.testing.assert_array_equal(grey, np.repeat(expected[..., None], 3, axis=-1))


def test_16_bit_big_endian():
    levels = np.array([[0, 257, 65535]], dtype=">u2")
    image = Image.frombytes("I;16B", (3, 1), levels.tobytes())
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_out_of_the_16_bit_range_is_refused(value):
    with pytest.raises(ValueError, match=r"mode I must have values in 0...65535.*shape \(2, 2\), type int32"):
        to_rgb(Image.fromarray(np.array([[0, value], [0, 0]], dtype=np.int32)))


def test_float_image_is_in_0_1():
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match=r"\[0, 1\] for floats.*float32, range 0.0...2.0"):
        to_rgb(Image.fromarray(values * 2))


def test_a_mode_that_pillow_cannot_convert(monkeypatch):
    def convert(self, mode):
        raise ValueError(f"conversion from {self.mode} to {mode} not supported")

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(ValueError, match="mode LAB cannot be converted to RGB: conversion from LAB"):
        to_rgb(Image.new("LAB", (2, 2)))


def test_image_without_pixels():
    with pytest.raises(ValueError, match=r"must have pixels, got mode RGB of size \(0, 3\)"):
        to_rgb(Image.new("RGB", (0, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation, format):
    upright = Image.fromarray(np.kron(RGB[:4, :6], np.ones((8, 8, 1), dtype=np.uint8)))
    turn_back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if turn_back is None else upright.transpose(turn_back)
    quality = (
        {"lossless": True} if format == "WEBP" else {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    )
    data = encode(stored, format, exif=exif, **quality)
    for image in (data, Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data)).copy(), open_image(data)):
        read = np.asarray(to_rgb(image)).astype(int)
        assert np.abs(read - np.asarray(upright)).max() <= (8 if format == "JPEG" else 0)


def test_animated_file_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert to_rgb(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_formats_from_bytes_and_paths(format, tmp_path):
    image = Image.new("RGB", (6, 4), (255, 0, 0))
    path = tmp_path / f"an image [1] é.{format.lower()}"
    image.save(path, format)
    for source in (path, str(path), path.read_bytes()):
        read = open_image(source)
        assert read.size == (6, 4)
        assert np.abs(np.asarray(read.convert("RGB")).astype(int) - np.asarray(image)).max() <= 2


def test_other_formats_are_refused():
    for format in ("ICO", "TGA", "EPS"):
        with pytest.raises(ValueError, match="not an image of the formats"):
            open_image(encode(Image.fromarray(RGB), format))


@pytest.mark.parametrize("data", [b"", b"not an image", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"<html></html>"])
def test_no_image(data, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(ValueError, match=r"image (bytes|file '.*x.png')"):
            open_image(source)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged tags
@settings(max_examples=60, deadline=None)
@given(
    format=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]), cut=st.floats(0, 0.95), flip=st.integers(0)
)
def test_damaged_files_are_value_errors(format, cut, flip):
    """A truncated file never passes; one with a wrong byte either decodes or is a ValueError, nothing else."""
    data = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)), format)
    with pytest.raises(ValueError):
        open_image(data[: int(len(data) * cut)])
    damaged = bytearray(data)
    damaged[flip % len(data)] ^= 0xFF
    with contextlib.suppress(ValueError):
        open_image(bytes(damaged))


def test_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "missing.png")


def test_too_many_pixels_are_refused_from_the_header():
    data = png_header(20_000, 20_000)
    assert len(data) < 100
    with pytest.raises(ValueError, match=r"20000 x 20000 pixels are more than|exceeds limit"):
        open_image(data)
    with pytest.raises(ValueError, match=r"8200 x 8200 pixels are more than `max_pixels`=67108864"):
        open_image(png_header(8200, 8200))
    with pytest.raises(ValueError, match="5 x 7|7 x 5"):
        open_image(encode(Image.fromarray(RGB)), max_pixels=34)
    assert open_image(encode(Image.fromarray(RGB)), max_pixels=35).size == (7, 5)


@pytest.fixture
def counting_server():
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_addresses_are_refused_and_never_fetched(counting_server):
    host, requests = counting_server
    for address in (f"http://{host}/a.png", f"HTTP://{host}/a.png", f"ftp://{host}/a", "data:image/png;base64,AAAA"):
        with pytest.raises(ValueError, match="got the address"):
            to_rgb(address)
    assert requests == []


def channels(array, count):
    grey = array[..., :1]
    return {1: grey, 3: array, 4: np.concatenate([array, 255 - grey], axis=-1)}[count]


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.uint16, np.float32, np.float64, torch.uint8, torch.bfloat16])
def test_arrays_and_tensors(count, layout, kind):
    array = channels(RGB, count)
    expected = array[..., :3] if count > 1 else np.repeat(array, 3, axis=-1)
    if layout == "channels_first":
        array = np.moveaxis(array, -1, 0)
    if isinstance(kind, torch.dtype):
        array = torch.from_numpy(array.copy())
        array = (array / 255).to(kind) if kind.is_floating_point else array.to(kind)
    else:
        array = (array / 255).astype(kind) if np.dtype(kind).kind == "f" else array.astype(kind)
    for given_format in (None, layout):
        read = array_to_rgb(array, given_format)
        assert read.dtype == np.uint8
        tolerance = 1 if kind == torch.bfloat16 else 0
        assert np.abs(read.astype(int) - expected).max() <= tolerance
    np.testing.assert_array_equal(to_rgb(array), read)


def test_grey_and_boolean_arrays():
    mask = np.array([[True, False], [False, True], [True, True]])
    assert array_to_rgb(mask)[..., 1].tolist() == [[255, 0], [0, 255], [255, 255]]
    assert array_to_rgb(RGB[..., 0]).shape == (5, 7, 3)


def test_batches():
    batch = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(array_to_rgb(batch), batch)
    np.testing.assert_array_equal(array_to_rgb(np.moveaxis(batch, -1, 1)), batch)


@pytest.mark.parametrize("shape", [(3, 5, 3), (1, 5, 1), (4, 5, 4), (1, 5, 4), (2, 3, 5, 3)])
def test_ambiguous_axes_need_a_word(shape):
    array = np.zeros(shape, dtype=np.uint8)
    with pytest.raises(ValueError, match="input_data_format"):
        array_to_rgb(array)
    assert array_to_rgb(array, "channels_last").shape[-3:] == (*shape[-3:-1], 3)
    assert array_to_rgb(array, "channels_first").shape[-3:] == (*shape[-2:], 3)


def test_three_channels_go_before_one_and_four():
    assert array_to_rgb(np.zeros((4, 4, 3), dtype=np.uint8)).shape == (4, 4, 3)
    assert array_to_rgb(np.zeros((3, 4, 4), dtype=np.uint8)).shape == (4, 4, 3)


def test_unknown_format_is_refused():
    with pytest.raises(ValueError, match="`input_data_format` must be"):
        array_to_rgb(RGB, "HWC")


@settings(max_examples=200, deadline=None)
@given(
    shape=npst.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=6),
    dtype=st.sampled_from(["uint8", "int16", "int64", "uint64", "float16", "float32", "float64", "bool"]),
    values=st.sampled_from([(0, 1), (0, 255), (-1, 1), (0, 300), (0.0, np.nan), (0.0, np.inf), (-0.01, 1.0)]),
)
def test_arrays_become_rgb_or_a_described_error(shape, dtype, values):
    array = np.resize(np.array(values), shape)
    if np.dtype(dtype).kind in "ui" and not np.isfinite(array).all():
        array = np.nan_to_num(array, posinf=0)
    array = array.astype(dtype)
    low, high = 0, 1 if array.dtype.kind == "f" else 255
    suitable = array.size > 0 and array.ndim in (2, 3, 4) and bool(np.all((array >= low) & (array <= high)))
    try:
        rgb = array_to_rgb(array)
    except ValueError as error:
        assert str(array.shape) in str(error)
        assert str(array.dtype) in str(error)
        assert not suitable or array.ndim > 2  # only the channels can be wrong then
    else:
        assert suitable
        assert rgb.dtype == np.uint8
        assert rgb.shape[-1] == 3


@pytest.mark.parametrize("channels", [2, 5])
def test_wrong_channels(channels):
    with pytest.raises(
        ValueError, match=rf"1, 3 or 4 channels, got {channels}: .*\(6, 7, {channels}\), type uint8, range"
    ):
        array_to_rgb(np.zeros((6, 7, channels), dtype=np.uint8))


@pytest.mark.parametrize(
    "image", [None, 3, {"a": 1}, np.array(["a"]), np.zeros((2, 2), dtype=complex), [[1, 2], [3, 4]]]
)
def test_no_images(image):
    with pytest.raises(ValueError, match="an image must be"):
        to_rgb(image)


def test_object_arrays_are_refused_without_being_looked_into():
    class Trap:
        def __float__(self):
            raise AssertionError("opened")

    with pytest.raises(ValueError, match="numeric array"):
        array_to_rgb(np.array([[Trap()]], dtype=object))
