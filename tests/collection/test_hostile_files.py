"""Files made to read other files, to start programs or to fill the memory are bad files like any other."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import jpeg_ls
import numpy as np
import pydicom
import pytest
from pictures import draw, png_bytes
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless
from scans import write_dicom, write_mat, write_nifti

from brain_dist.collection.decoding import BadImage
from brain_dist.collection.masks import load_mask
from brain_dist.collection.pixels import MeasuredImage
from brain_dist.collection.recipes import parse_recipe
from brain_dist.collection.slicefiles import examine_file, read_contents

IMAGE = np.asarray(draw(1)).astype(np.int16) * 12  # 96 x 96
BOMB = 600 * 2**20  # bytes that a bomb inflates to
MAX_GROWTH = 300 * 2**20  # bytes of memory that a bomb may take before it is refused


def read(path: Path, kind: str) -> str | MeasuredImage:
    """The first slice of a file, or the reason why it is a bad file."""
    part = parse_recipe({"parts": [{"format": kind}]}, "it").parts[0]
    try:
        frame = read_contents(path, part).slices[0][0]
    except BadImage as error:
        return str(error)
    return next(examine_file(path, part, [frame]))


def replaced(path: Path, name: str) -> h5py.File:
    """A file of Cheng's collection whose entry ``name`` is to be written again."""
    write_mat(path, IMAGE)
    file = h5py.File(path, "r+")
    del file[name]
    return file


def external_storage(path: Path, secret: Path) -> None:
    with replaced(path, "cjdata/image") as file:
        file.create_dataset("cjdata/image", (64, 64), dtype="u1", external=[(str(secret), 0, 4096)])


def external_label(path: Path, secret: Path) -> None:
    with replaced(path, "cjdata/label") as file:
        file.create_dataset("cjdata/label", (1, 1), dtype="u1", external=[(str(secret), 0, 1)])


def external_link(path: Path, secret: Path) -> None:
    with replaced(path, "cjdata/image") as file:
        file["cjdata/image"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "image")


def external_struct(path: Path, secret: Path) -> None:
    with replaced(path, "cjdata") as file:
        file["cjdata"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/")


def soft_link_to_an_external_link(path: Path, secret: Path) -> None:
    with replaced(path, "cjdata/image") as file:
        file["elsewhere"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "image")
        file["cjdata/image"] = h5py.SoftLink("/elsewhere")


def virtual_source(path: Path, secret: Path) -> None:
    layout = h5py.VirtualLayout((64, 64), dtype="u1")
    layout[:] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "image", (64, 64), "u1")
    with replaced(path, "cjdata/image") as file:
        file.create_virtual_dataset("cjdata/image", layout)


@pytest.mark.parametrize(
    "write",
    [
        external_storage,
        external_label,
        external_link,
        external_struct,
        soft_link_to_an_external_link,
        virtual_source,
    ],
)
def test_a_matlab_file_cannot_bring_in_other_files(tmp_path: Path, write: Callable[[Path, Path], None]) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes([1]) * 4096)
    with h5py.File(secret.with_suffix(".h5"), "w") as file:
        file["image"] = np.ones((64, 64), dtype="u1")
        file["label"], file["PID"] = np.array([[1.0]]), np.array([[52]], dtype="u2")
    write(tmp_path / "1.mat", secret)
    reason = read(tmp_path / "1.mat", "mat")
    assert isinstance(reason, str)
    assert "in another file, which is not allowed" in reason


def test_compressed_matlab_files_are_read(tmp_path: Path) -> None:
    plain = read(write_mat(tmp_path / "1.mat", IMAGE), "mat")
    assert isinstance(plain, MeasuredImage)
    for options in ({"compression": 3}, {"compression": 9, "shuffle": True, "fletcher32": True}, {"chunks": (16, 16)}):
        with replaced(tmp_path / "2.mat", "cjdata/image") as file:
            file.create_dataset("cjdata/image", data=IMAGE.T, **options)
        image = read(tmp_path / "2.mat", "mat")
        assert isinstance(image, MeasuredImage), image
        assert image.pixel_hash == plain.pixel_hash
    with replaced(tmp_path / "2.mat", "cjdata/image") as file:
        file.create_dataset("cjdata/image", data=IMAGE.T, compression="lzf")
    assert "an HDF5 compression other than gzip" in str(read(tmp_path / "2.mat", "mat"))
    with replaced(tmp_path / "2.mat", "cjdata/PID") as file:
        file.create_dataset("cjdata/PID", (2**40,), dtype="u2", chunks=(2**20,), compression=1)
    assert "values of PID, more than" in str(read(tmp_path / "2.mat", "mat"))


def test_only_the_listed_image_formats_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand PostScript to Ghostscript, whatever the file's name is."""
    called, program = tmp_path / "called", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >> {called}\necho 10.0\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "x.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")
    assert read(path, "images") == "is not an image"
    assert not called.exists()
    for name in ("PCX", "TGA", "SGI", "ICO"):
        draw(1).convert("RGB").save(path, name)
        assert read(path, "images") == "is not an image"


def deflated(size: int, wbits: int = -zlib.MAX_WBITS) -> bytes:
    """``size`` zero bytes, compressed; a block of 16 MiB is compressed once and repeated."""
    block = 2**24
    stream = zlib.compressobj(9, zlib.DEFLATED, wbits)
    first = stream.compress(bytes(block)) + stream.flush(zlib.Z_FULL_FLUSH)
    again = stream.compress(bytes(block)) + stream.flush(zlib.Z_FULL_FLUSH)
    return first + again * (size // block - 1) + stream.flush()


def deflated_dicom(path: Path) -> None:
    write_dicom(path, IMAGE)
    plain = path.read_bytes()
    start = 144 + struct.unpack("<I", plain[140:144])[0]
    syntax = DeflatedExplicitVRLittleEndian.encode().ljust(22, b"\0")
    meta = plain[:start].replace(b"UI\x14\x00" + b"1.2.840.10008.1.2.1\0", b"UI\x16\x00" + syntax)
    meta = meta[:140] + struct.pack("<I", len(meta) - 144) + meta[144:]
    assert syntax in meta
    element = struct.pack("<HH2sHI", 0x7FE1, 0x1010, b"OB", 0, BOMB)
    body = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = body.compress(plain[start:] + element) + body.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(meta + head + deflated(BOMB))


def gzip_of(head: bytes) -> bytes:
    """A gzip file that begins with ``head`` and inflates to zeros after it."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = stream.compress(head) + stream.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(7) + start + deflated(BOMB)


def volume(path: Path) -> bytes:
    return write_nifti(path.with_suffix(".nii"), np.zeros((20, 20, 20), np.int16)).read_bytes()


def nifti_with_bytes_behind_the_voxels(path: Path) -> None:
    path.write_bytes(gzip_of(volume(path)))


def nifti_with_a_long_extension(path: Path) -> None:
    head = bytearray(volume(path)[:352])
    head[108:112] = struct.pack("<f", 512)  # the voxels' position
    head[348:352] = b"\1\0\0\0"
    path.write_bytes(gzip_of(bytes(head) + struct.pack("<ii", BOMB - 16, 4)))


def nifti_with_distant_voxels(path: Path) -> None:
    head = bytearray(volume(path)[:352])
    head[108:112] = struct.pack("<f", BOMB)
    path.write_bytes(gzip_of(bytes(head)))


def matlab_chunk(path: Path) -> None:
    with replaced(path, "cjdata/image") as file:
        image = file.create_dataset("cjdata/image", (96, 96), dtype="i2", chunks=(96, 96), compression=9)
        image.id.write_direct_chunk((0, 0), deflated(BOMB, zlib.MAX_WBITS))


def png_data(path: Path) -> None:
    path.write_bytes(png_bytes(struct.pack(">IIBBBBB", 96, 96, 8, 0, 0, 0, 0), deflated(BOMB, zlib.MAX_WBITS)))


def png_text(path: Path) -> None:
    text = b"Comment\0\0" + deflated(BOMB, zlib.MAX_WBITS)
    buffer = io.BytesIO()
    draw(1).save(buffer, "PNG")
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    path.write_bytes(buffer.getvalue()[:33] + chunk + buffer.getvalue()[33:])


def tiff_strip(path: Path) -> None:
    draw(1).save(path, "TIFF", compression="tiff_adobe_deflate")
    data = bytearray(path.read_bytes())
    strip, start = deflated(BOMB, zlib.MAX_WBITS), len(data)
    with Image.open(path) as image:
        strips = {273: start, 279: len(strip)}  # StripOffsets and StripByteCounts
        assert all(len(image.tag_v2[tag]) == 1 for tag in strips)
    offset = struct.unpack("<I", data[4:8])[0]
    for entry in range(offset + 2, offset + 2 + 12 * struct.unpack("<H", data[offset : offset + 2])[0], 12):
        tag = struct.unpack("<H", data[entry : entry + 2])[0]
        if tag in strips:
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, strips[tag])
    path.write_bytes(bytes(data) + strip)


def tiff_tile(path: Path) -> None:
    """An image of 96 x 96 pixels in one tile of 600 million."""
    tile, side = deflated(BOMB, zlib.MAX_WBITS), 25_000
    tags = {256: 96, 257: 96, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(tile)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack("<4sI", b"II*\0", 8 + len(tile))
    path.write_bytes(start + tile + struct.pack("<H", len(tags)) + entries + bytes(4))


BOMBS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "deflated DICOM": ("dicom", deflated_dicom),
    "NIfTI, behind the voxels": ("nifti", nifti_with_bytes_behind_the_voxels),
    "NIfTI, extension": ("nifti", nifti_with_a_long_extension),
    "NIfTI, before the voxels": ("nifti", nifti_with_distant_voxels),
    "MATLAB": ("mat", matlab_chunk),
    "PNG": ("images", png_data),
    "PNG text": ("images", png_text),
    "TIFF": ("images", tiff_strip),
    "TIFF tile": ("images", tiff_tile),
}  # fmt: skip
MEASURE = """
import resource, sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_hostile_files import read, IMAGE
from scans import write_dicom, write_mat, write_nifti
from pictures import draw
import numpy as np
folder = Path({folder!r})
draw(1).save(folder / "warm.png"), draw(1).save(folder / "warm.tiff", compression="tiff_adobe_deflate")
read(folder / "warm.png", "images"), read(folder / "warm.tiff", "images")
read(write_dicom(folder / "warm.dcm", IMAGE), "dicom"), read(write_mat(folder / "warm.mat", IMAGE), "mat")
read(write_nifti(folder / "warm.nii.gz", np.zeros((20, 20, 20), np.int16)), "nifti")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = read(folder / "bomb", {kind!r})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, result if isinstance(result, str) else "")
"""


@pytest.fixture(scope="module")
def search_path() -> list[str]:
    """Folders of the tests' modules, for the process in which the memory is measured."""
    tests = Path(__file__).resolve().parents[1]
    return [str(tests / "support"), str(tests / "collection")]


@pytest.mark.parametrize("case", BOMBS)
def test_decoders_have_a_bound_on_what_they_inflate(tmp_path: Path, search_path: list[str], case: str) -> None:
    kind, write = BOMBS[case]
    write(tmp_path / "bomb")
    assert (tmp_path / "bomb").stat().st_size < BOMB / 400
    script = MEASURE.format(path=search_path, folder=str(tmp_path), kind=kind)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    growth, _, reason = result.stdout.strip().partition(" ")
    assert int(growth) < MAX_GROWTH
    # the decoders of PNG and TIFF stop when the picture is complete
    assert reason or case in ("PNG", "TIFF")


def test_files_that_would_be_decoded_for_minutes_are_refused_at_once(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4000, 4000), np.uint8)).save(buffer, "JPEG", progressive=True)
    jpeg = buffer.getvalue()
    (tmp_path / "normal").write_bytes(jpeg)
    assert isinstance(read(tmp_path / "normal", "images"), MeasuredImage)
    last_scan = jpeg[jpeg.rfind(b"\xff\xda") : -2]
    (tmp_path / "scans").write_bytes(jpeg[:-2] + 10_000 * last_scan + jpeg[-2:])
    draw(1).save(tmp_path / "pages", "TIFF", save_all=True, append_images=[draw(2)])
    pages = bytearray((tmp_path / "pages").read_bytes())
    with Image.open(tmp_path / "pages") as image:
        image.seek(1)
        second = image._frame_pos[1]
    length = 2 + 12 * int.from_bytes(pages[second : second + 2], "little")
    for _ in range(20_000):
        pages[second + length : second + length + 4] = struct.pack("<I", len(pages))
        pages += pages[second : second + length + 4]
        second = len(pages) - length - 4
    pages[second + length : second + length + 4] = bytes(4)
    (tmp_path / "pages").write_bytes(pages)
    start = time.process_time()
    assert read(tmp_path / "scans", "images") == "has more than 100 scans (decompression bomb)"
    assert read(tmp_path / "pages", "images") == "contains several images; a file must contain one slice"
    assert time.process_time() - start < 2


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "JPEG-LS"])
def test_compressed_frames_have_the_size_that_the_header_states(tmp_path: Path, kind: str) -> None:
    def frame(side: int) -> bytes:
        pixels = np.asarray(draw(1).resize((side, side + 2)))
        if kind == "JPEG-LS":
            return bytes(jpeg_ls.encode_array(pixels))
        buffer = io.BytesIO()
        options = {"no_jp2": True, "irreversible": False} if kind == "JPEG2000" else {}
        Image.fromarray(pixels).save(buffer, kind, **options)
        return buffer.getvalue()

    syntaxes = {"JPEG": JPEGBaseline8Bit, "JPEG2000": JPEG2000Lossless, "JPEG-LS": JPEGLSLossless}
    path = write_dicom(tmp_path / "1.dcm", IMAGE)
    data = pydicom.dcmread(path)
    data.Rows, data.Columns, data.NumberOfFrames = 98, 96, 2
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.file_meta.TransferSyntaxUID = syntaxes[kind]
    for side, good in ((96, True), (2000, False)):
        data.PixelData = encapsulate([frame(96), frame(side)])
        data.save_as(path, enforce_file_format=True)
        part = parse_recipe({"parts": [{"format": "dicom"}]}, "it").parts[0]
        first, second = examine_file(path, part, [1, 2])
        assert isinstance(first, MeasuredImage), first
        reason = "has a compressed frame of 2000 x 2002 pixels, but states 96 x 98"
        assert (
            (isinstance(second, MeasuredImage) and second.pixel_hash == first.pixel_hash)
            if good
            else (second == reason)
        )


def test_gzip_still_checks_the_whole_volume(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "1.nii.gz", np.arange(8000, dtype=np.int16).reshape(20, 20, 20))
    assert isinstance(read(path, "nifti"), MeasuredImage)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(1000)))
    assert isinstance(read(path, "nifti"), MeasuredImage)  # padding is allowed


def test_deflated_dicom_files_are_read(tmp_path: Path) -> None:
    plain = read(write_dicom(tmp_path / "1.dcm", IMAGE, PatientID="P"), "dicom")
    data = pydicom.dcmread(tmp_path / "1.dcm")
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "2.dcm", enforce_file_format=True)
    image = read(tmp_path / "2.dcm", "dicom")
    assert isinstance(plain, MeasuredImage)
    assert isinstance(image, MeasuredImage), image
    assert image.pixel_hash == plain.pixel_hash
    path = tmp_path / "2.dcm"
    path.write_bytes(path.read_bytes()[:-300])
    assert "incomplete compressed data" in str(read(path, "dicom"))


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    os.truncate(tmp_path / "a.png", 2**31)  # sparse: it takes no space
    assert read(tmp_path / "a.png", "images") == "has 2,147,483,648 bytes, more than 1,073,741,824"
    with pytest.raises(BadImage, match=r"has 2,147,483,648 bytes"):
        load_mask(tmp_path / "a.png")
