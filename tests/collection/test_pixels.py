"""What is stored of each kind of image file, and what is measured on it."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import draw, png_bytes
from PIL import Image, ImageCms

from brain_dist.collection import decoding
from brain_dist.collection.decoding import BadImage, encoded_size
from brain_dist.collection.measures import head_and_thumbnails, head_box
from brain_dist.collection.pixels import MeasuredImage, Smaller, examine
from brain_dist.collection.window import Window

SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG of any bit depth and colour type, which Pillow itself cannot write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return png_bytes(header, zlib.compress(rows))


def decode(stored: MeasuredImage) -> np.ndarray:
    """The pixels of a new encoding."""
    assert stored.payload is not None
    image = Image.open(io.BytesIO(stored.payload))
    assert (image.format, image.mode, stored.ext) == ("PNG", "L", "png")
    assert image.size == (stored.width, stored.height)
    assert (len(stored.payload), zlib.crc32(stored.payload)) == (stored.size, stored.crc32)
    return np.asarray(image)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "L"), ("JPEG", "RGB"), ("PNG", "L"), ("PNG", "RGB")])
def test_plain_files_are_kept_byte_for_byte(kind, mode):
    data = encode(draw(1).convert(mode), kind)
    image = examine(data)
    assert image.payload is None
    assert (image.size, image.crc32, image.mode) == (len(data), zlib.crc32(data), mode)
    assert image.ext == {"JPEG": "jpg", "PNG": "png"}[kind]
    assert (image.width, image.height) == (96, 96)


@pytest.mark.parametrize(
    ("kind", "content"),
    [(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455)), (b"iCCP", b"name\0\0" + zlib.compress(SRGB_PROFILE))],
)
def test_a_stated_gamma_changes_no_gray_pixel(kind, content):
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def with_chunk(image: Image.Image) -> bytes:
        png = encode(image, "PNG")
        return png[:33] + chunk + png[33:]  # after IHDR

    bands = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    stored = examine(with_chunk(Image.fromarray(bands)))
    assert stored.payload is not None
    assert kind not in stored.payload
    assert (stored.ext, stored.mode, stored.size) == ("png", "RGB", len(stored.payload))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored.payload))), bands)
    gray = cv2.imdecode(np.frombuffer(stored.payload, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.abs(gray.astype(int) - np.asarray(Image.fromarray(bands).convert("L"))).max() <= 1
    assert examine(stored.payload).payload is None
    assert examine(with_chunk(draw(1).convert("RGB"))).payload is None, "decoders agree on RGB without colours"


def test_transparency_goes_on_black():
    gray = draw(2)
    alpha = Image.fromarray(np.tile(np.where(np.arange(96) < 48, 0, 255).astype(np.uint8), (96, 1)))
    expected = np.asarray(gray) * (np.asarray(alpha) > 0)
    rgba = Image.merge("RGBA", [gray, gray, gray, alpha])
    image = examine(encode(rgba, "PNG"))
    assert image.mode == "RGBA"
    np.testing.assert_array_equal(decode(image), expected)
    np.testing.assert_array_equal(decode(examine(encode(Image.merge("LA", [gray, alpha]), "PNG"))), expected)
    keyed = examine(encode(gray, "PNG", transparency=int(np.asarray(gray).max())))
    assert decode(keyed).max() < np.asarray(gray).max()


def test_palettes_and_other_formats_become_gray_png():
    gray = draw(3)
    image = examine(encode(gray.convert("P"), "PNG"))
    assert image.mode == "P"
    np.testing.assert_array_equal(decode(image), np.asarray(gray.convert("P").convert("RGB").convert("L")))
    np.testing.assert_array_equal(decode(examine(encode(gray, "BMP"))), np.asarray(gray))
    np.testing.assert_array_equal(decode(examine(encode(gray, "TIFF"))), np.asarray(gray))
    np.testing.assert_array_equal(decode(examine(encode(gray, "GIF"))), np.asarray(gray))
    webp = decode(examine(encode(gray.convert("RGB"), "WEBP", lossless=True)))
    np.testing.assert_array_equal(webp, np.asarray(gray))
    np.testing.assert_array_equal(np.unique(decode(examine(encode(gray.convert("1"), "PNG")))), [0, 255])


def test_wide_values_are_scaled_between_percentiles():
    values = np.linspace(1000, 41000, 64 * 64).reshape(64, 64)
    low, high = np.percentile(values.astype(np.uint16), (0.5, 99.5))
    expected = np.rint(np.clip((values.astype(np.uint16) - low) / (high - low), 0, 1) * 255)
    image = examine(encode(Image.fromarray(values.astype(np.uint16)), "PNG"))
    assert image.mode == "I;16"
    np.testing.assert_array_equal(decode(image), expected)
    floats = decode(examine(encode(Image.fromarray((values / 41000).astype(np.float32)), "TIFF")))
    assert abs(floats.astype(int) - expected).max() <= 1
    flat = decode(examine(encode(Image.fromarray(np.full((16, 16), 7000, dtype=np.uint16)), "PNG")))
    assert (flat == 0).all()
    fixed = decode(
        examine(encode(Image.fromarray(values.astype(np.uint16)), "PNG"), None, Window(center=9e3, width=4e3))
    )
    np.testing.assert_array_equal(fixed, np.rint(np.clip((values.astype(np.uint16) - 7000.0) / 4000, 0, 1) * 255))
    with pytest.raises(BadImage, match="not finite"):
        examine(encode(Image.fromarray(np.full((16, 16), np.nan, dtype=np.float32)), "TIFF"))


def test_the_white_zero_of_a_tiff_is_white_in_any_depth():
    gray = np.asarray(draw(1))
    for values in (gray, gray.astype(np.uint16) * 200, gray.astype(np.float32) / 255):
        black, white = (encode(Image.fromarray(values), "TIFF", tiffinfo={262: meaning}) for meaning in (1, 0))
        shown = decode(examine(black))
        # Pillow stores an inverted picture for 8 bits, which shows the same
        expected = shown if values.dtype == np.uint8 else 255 - shown
        np.testing.assert_array_equal(decode(examine(white)), expected)


def test_png_with_other_bit_depths_is_encoded_again():
    ramp = np.linspace(0, 65535, 16 * 16).astype(">u2").reshape(16, 16)
    rows = b"".join(b"\0" + np.repeat(line, 3).astype(">u2").tobytes() for line in ramp)
    assert abs(decode(examine(raw_png(16, 16, 16, 2, rows))).astype(int) - (ramp >> 8)).max() <= 1
    two_bits = b"".join(b"\0" + bytes([0b00011011] * 4) for _ in range(16))
    np.testing.assert_array_equal(decode(examine(raw_png(16, 16, 2, 0, two_bits)))[0], [0, 85, 170, 255] * 4)


def test_cmyk_and_rotated_jpegs_become_upright_gray_png():
    gray = draw(4)
    cmyk = examine(encode(gray.convert("RGB").convert("CMYK"), "JPEG", quality=98))
    assert cmyk.mode == "CMYK"
    assert abs(decode(cmyk).astype(int) - np.asarray(gray)).mean() < 3
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    data = encode(gray.crop((0, 0, 96, 60)), "JPEG", quality=98, exif=exif)
    rotated = examine(data)
    assert (rotated.width, rotated.height) == (60, 96)
    expected = np.asarray(Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(decode(rotated), expected)
    exif[0x0112] = 1
    assert examine(encode(gray, "JPEG", exif=exif)).payload is None


def test_max_side_resizes_only_larger_images():
    jpeg, png = encode(draw(5, 200), "JPEG"), encode(draw(5, 200).crop((0, 0, 200, 100)), "PNG")
    smaller = examine(jpeg, Smaller(64))
    assert (smaller.ext, smaller.width, smaller.height) == ("jpg", 64, 64)
    decoded = np.asarray(Image.open(io.BytesIO(smaller.payload)))
    assert smaller.pixel_hash == examine(smaller.payload).pixel_hash  # of the stored image, including its JPEG loss
    assert abs(decoded.astype(int) - np.asarray(draw(5, 200).resize((64, 64), Image.Resampling.LANCZOS))).mean() < 4
    assert (examine(png, Smaller(64)).width, examine(png, Smaller(64)).height, examine(png, Smaller(64)).ext) == (
        64,
        32,
        "png",
    )
    assert examine(jpeg, Smaller(200)).payload is None


def test_an_image_that_would_become_too_narrow_is_a_bad_file():
    """It could be built, but neither verified nor joined."""
    narrow = draw(1, 160).crop((0, 0, 160, 30))
    assert examine(encode(narrow, "PNG"), Smaller(100)).height == 19
    for smaller in (Smaller(64), Smaller(16)):
        with pytest.raises(BadImage, match=r"is 160 x 30 pixels, and (64 x 12|16 x 3) when it is made smaller"):
            examine(encode(narrow, "PNG"), smaller)


def test_a_lower_jpeg_quality_gives_fewer_bytes_of_the_same_picture():
    jpeg, png = encode(draw(5, 200), "JPEG", quality=98), encode(draw(5, 200), "PNG")
    stored = [examine(jpeg, Smaller(64, quality)) for quality in (95, 85, 40)]
    assert stored[0].payload == examine(jpeg, Smaller(64)).payload
    assert stored[0].size > 1.3 * stored[1].size > 1.6 * stored[2].size
    assert all(image.pixel_hash == examine(image.payload).pixel_hash for image in stored)
    assert examine(png, Smaller(64, 40)).payload == examine(png, Smaller(64)).payload


def bad_files() -> dict[str, tuple[bytes, str]]:
    gray = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    jpeg, png = encode(gray, "JPEG"), encode(gray, "PNG")
    frames = [gray, gray.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return {
        "empty": (b"", "empty"),
        "cut JPEG": (jpeg[: len(jpeg) // 2], "cannot be decoded"),
        "cut PNG": (png[: len(png) // 2], "cannot be decoded"),
        "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        "text": (b"not an image at all", "not an image"),
        "animation": (encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), "contains several images"),
        "stack": (encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]), "contains several images"),
        "large": (raw_png(9000, 9000, 8, 0, b"\0" * 100), "9000 x 9000"),
        "dot": (encode(gray.crop((0, 0, 1, 1)), "PNG"), "1 x 1 pixels; a slice has at least 16 on each side"),
        "strip": (encode(gray.crop((0, 0, 64, 15)), "JPEG"), "64 x 15 pixels; a slice has at least 16 on each side"),
        "bomb": (raw_png(60000, 60000, 1, 0, b"\0" * 100), "bomb"),
    }


@pytest.mark.parametrize("case", bad_files())
def test_bad_files_have_a_reason(case):
    data, reason = bad_files()[case]
    with pytest.raises(BadImage, match=reason):
        examine(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_never_raises_anything_but_bad_image(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP"]))
    file = bytearray(
        encode(Image.fromarray(np.arange(32 * 32, dtype=np.uint16).reshape(32, 32).astype(np.uint8)), kind)
    )
    for index, value in data.draw(st.lists(st.tuples(st.integers(0, len(file) - 1), st.integers(0, 255)), max_size=6)):
        file[index] = value
    del file[data.draw(st.integers(1, len(file))) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = examine(bytes(file))
        except BadImage:
            return
    assert image.thumbs.shape == (2, 64, 64)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The file cut, with a part missing, zeroed or overwritten by noise, or with a few other bytes."""
    file, start = bytearray(data), int(rng.integers(2, len(data)))
    stop = min(len(data), start + int(rng.choice([1, 30, 1000])))
    match rng.integers(5):
        case 0:
            del file[start:]
        case 1:
            del file[start : min(stop, len(data) - 2)]
        case 2:
            file[start:stop] = bytes(stop - start)
        case 3:
            file[start:stop] = rng.bytes(stop - start)
        case _:
            for position in rng.integers(2, min(len(data), int(rng.choice([640, len(data)]))), 3):
                file[position] = int(rng.integers(256))
    return bytes(file)


def test_damaged_jpegs_give_what_pillow_gives(monkeypatch):
    """The fast decoder decides about flawless files only, so that it neither misses damage nor changes pixels."""
    files = [
        encode(draw(number, 96).convert(mode), "JPEG", quality=quality, **options)
        for number, mode in enumerate(("L", "RGB"))
        for quality in (50, 95)
        for options in ({}, {"progressive": True}, {"restart_marker_blocks": 3}, {"subsampling": 0})
    ]
    rng = np.random.default_rng(0)
    files += [damaged(files[number % len(files)], rng) for number in range(600)]
    fast = decoding._decode_plain_jpeg
    flawless = sum(fast(data) is not None for data in files)
    assert len(files) - 600 < flawless < 0.6 * len(files)

    def outcome(data: bytes) -> str | tuple[object, ...]:
        try:
            image = examine(data)
        except BadImage as error:
            return str(error)
        return image.pixel_hash, image.mode, image.ext, image.payload, image.head, image.thumbs.tobytes()

    outcomes = [outcome(data) for data in files]
    assert sum(isinstance(one, str) for one in outcomes) > 100
    monkeypatch.setattr(decoding, "_decode_plain_jpeg", lambda data: None)
    assert [outcome(data) for data in files] == outcomes


def test_rotation_is_found_wherever_a_jpeg_states_it():
    image, exif = draw(4).crop((0, 0, 96, 60)), Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for options in ({"exif": exif}, {"xmp": xmp}, {"exif": exif, "comment": b"x" * 60000, "progressive": True}):
        rotated = examine(encode(image, "JPEG", **options))
        assert (rotated.width, rotated.height, rotated.ext) == (60, 96, "png")
    jpeg = encode(image, "JPEG", exif=exif)
    thumbnail = encode(image.resize((16, 16)), "JPEG")  # as Photoshop stores one, in a segment of its own
    segment = b"\xff\xed" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail
    rotated = examine(jpeg[:2] + segment + jpeg[2:])
    assert (rotated.width, rotated.height, rotated.ext) == (60, 96, "png")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"\xff\xc0" * 99}, {"exif": b"Exif\0\0"}])
def test_the_header_of_a_stored_image_gives_its_size(options):
    image = draw(1).crop((0, 0, 96, 60))
    jpeg = encode(image, "JPEG", **options)
    assert encoded_size(jpeg) == encoded_size(encode(image.convert("RGB"), "JPEG", **options)) == (96, 60)
    assert encoded_size(jpeg[:2] + b"\xff\xff\xff\x01\xff\xd0" + jpeg[2:]) == (96, 60)  # padding, and markers alone
    assert encoded_size(encode(image, "PNG")) == (96, 60)
    for data in (b"", b"\x89PNG\r\n\x1a\n", jpeg[:2], jpeg[:20], encode(image, "BMP")):
        with pytest.raises(BadImage, match="no header of a JPEG or PNG"):
            encoded_size(data)


def test_head_box_ignores_gray_background_frame_and_specks():
    y, x = np.mgrid[:200, :160]
    pixels = np.full((200, 160), 45, dtype=np.uint8)
    pixels[((x - 70) / 40) ** 2 + ((y - 110) / 60) ** 2 < 1] = 150
    pixels[[0, 1, -1]] = pixels[:, [0, 1, -1]] = 255  # a frame, as some publishers' images have
    pixels[20, 20] = pixels[30, 140] = 255
    left, top, width, height = head_box(pixels)
    assert abs(left - 30) <= 3
    assert abs(top - 50) <= 4
    assert abs(left + width - 111) <= 3
    assert abs(top + height - 171) <= 4
    assert head_box(np.full((50, 70), 99, dtype=np.uint8)) == (0, 0, 70, 50)
    filling = np.full((100, 100), 180, dtype=np.uint8)
    filling[:12, :12] = filling[:12, -12:] = filling[-12:, :12] = filling[-12:, -12:] = 0
    assert head_box(filling) == (0, 0, 100, 100)


def edges(box: tuple[int, int, int, int]) -> np.ndarray:
    return np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]])


@pytest.mark.parametrize(("width", "height"), [(256, 256), (300, 271), (511, 256)])
@pytest.mark.parametrize("factor", [2, 3])
def test_an_enlarged_picture_has_the_same_thumbnails_and_its_box_enlarged(width, height, factor):
    pixels = np.asarray(draw(8, 512).resize((width, height)))
    head, thumbs = head_and_thumbnails(pixels)
    assert head == head_box(pixels)  # nothing is reduced
    large = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    again, same = head_and_thumbnails(large)
    assert again == tuple(factor * side for side in head)
    np.testing.assert_array_equal(same, thumbs)


def test_a_box_that_reaches_the_end_of_a_reduced_picture_includes_what_is_beyond_its_last_block():
    pixels = np.full((515, 1030), 200, dtype=np.uint8)
    pixels[:100] = pixels[:, :100] = 0
    assert head_and_thumbnails(pixels)[0] == (100, 100, 930, 415)


def test_the_box_of_a_reduced_picture_is_that_of_the_full_one_up_to_a_block(real_data):
    files = sorted((real_data / "cheng").glob("*/*.jpg"))[::30]
    pictures = [np.asarray(Image.open(file).convert("L")) for file in files]
    pictures += [np.asarray(draw(number, 640)) for number in range(20)]
    distances = []
    for pixels in pictures:
        box = head_and_thumbnails(pixels)[0]
        assert all(edge % 2 == 0 or edge == end for edge, end in zip(edges(box), pixels.shape[::-1] * 2, strict=True))
        distances.append(abs(edges(box) - edges(head_box(pixels))).max())
    assert np.mean(np.array(distances) <= 2) >= 0.95
    assert max(distances[-20:]) <= 2  # without noise


def test_hashes_and_thumbnails():
    original = examine(encode(draw(6), "PNG"))
    again = examine(encode(draw(6).convert("RGB"), "PNG"))
    other = examine(encode(draw(7), "PNG"))
    recoded = examine(encode(draw(6), "JPEG", quality=60))
    assert original.pixel_hash == again.pixel_hash
    assert len({original.pixel_hash, recoded.pixel_hash, other.pixel_hash}) == 3

    def bits(one: MeasuredImage, two: MeasuredImage) -> int:
        return (int(one.phash, 16) ^ int(two.phash, 16)).bit_count()

    assert len(original.phash) == 16
    assert bits(original, recoded) <= 4 < 16 <= bits(original, other)
    tall = Image.fromarray(np.zeros((40, 20), dtype=np.uint8))
    assert (
        examine(encode(tall, "PNG")).pixel_hash
        != examine(encode(tall.transpose(Image.Transpose.ROTATE_90), "PNG")).pixel_hash
    )
    whole, head = head_and_thumbnails(np.asarray(draw(6)))[1]
    assert (whole[0] == 0).all()
    assert (head[0] > 0).any()
