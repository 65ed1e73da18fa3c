"""MATLAB, DICOM and NIfTI files: which slices they contain, how these are displayed, and errors of damaged files."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import draw
from PIL import Image
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian
from scans import write_dicom, write_folds, write_mat, write_nifti

from brain_dist.building.build import build
from brain_dist.building.verify import verify
from brain_dist.collection.decoding import BadImage
from brain_dist.collection.discovery import find_records
from brain_dist.collection.examination import BadImages
from brain_dist.collection.masks import mask_attributes
from brain_dist.collection.pixels import MeasuredImage, Smaller
from brain_dist.collection.recipes import Recipe, RecipePart, parse_recipe
from brain_dist.collection.slicefiles import examine_file, read_contents
from brain_dist.errors import UserError
from brain_dist.store.options import BuildOptions
from brain_dist.store.reader import ShardReader

IMAGE = np.asarray(draw(1)).astype(np.int16) * 12  # 96 x 96, values up to 3,060
TALL = IMAGE[:, :60]


def part_of(kind: str, **keys) -> RecipePart:
    return parse_recipe({"parts": [{"format": kind, **keys}]}, "it").parts[0]


def decode(image: MeasuredImage | str) -> np.ndarray:
    assert isinstance(image, MeasuredImage), image
    assert image.payload is not None
    return np.asarray(Image.open(io.BytesIO(image.payload)))


def read_slice(path: Path, part: RecipePart, frame: int | None = None) -> np.ndarray:
    (image,) = examine_file(path, part, [frame])
    return decode(image)


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


def test_matlab_file_gives_upright_image_class_and_patient(tmp_path):
    path = write_mat(tmp_path / "7.mat", TALL, label=2, pid="MR024780D")
    contents = read_contents(path, part_of("mat"))
    assert (contents.slices, contents.label, contents.patient) == ([(None, {"pid": "MR024780D"})], "glioma", "MR024780")
    assert read_contents(write_mat(path, TALL, 3, "100360"), part_of("mat")).patient == "100360"
    low, high = np.percentile(TALL, (0.5, 99.5))
    np.testing.assert_array_equal(read_slice(path, part_of("mat")), scaled(TALL, low, high))
    np.testing.assert_array_equal(
        read_slice(path, part_of("mat", window={"center": 1000, "width": 800})), scaled(TALL, 600, 1400)
    )
    (image,) = examine_file(path, part_of("mat"), [None], Smaller(48))
    assert (image.mode, image.width, image.height, image.ext) == ("int16", 30, 48, "png")


def test_dicom_frames_attributes_and_patient(tmp_path):
    about = {"InstanceNumber": 12, "MagneticFieldStrength": 1.5, "Manufacturer": " ACME ", "PatientSex": ""}
    one = write_dicom(tmp_path / "one.dcm", IMAGE, PatientID="P7", StudyInstanceUID="1.2.9", **about)
    contents = read_contents(one, part_of("dicom"))
    assert contents.slices == [(None, {"slice": 12, "field_strength": 1.5, "manufacturer": "ACME"})]
    assert (contents.patient, contents.label, contents.volume) == ("P7", None, False)
    assert read_contents(write_dicom(one, IMAGE, StudyInstanceUID="1.2.9"), part_of("dicom")).patient == "1.2.9"
    several = write_dicom(tmp_path / "several.dcm", np.stack([IMAGE, TALL.repeat(2, axis=1)[:, :96]]))
    contents = read_contents(several, part_of("dicom"))
    assert contents.slices == [(1, {"frame": 1}), (2, {"frame": 2})]
    assert contents.volume
    first, second = map(decode, examine_file(several, part_of("dicom"), [1, 2]))
    np.testing.assert_array_equal(first, read_slice(one, part_of("dicom")))
    assert (first != second).any()


def test_dicom_values_are_rescaled_windowed_and_inverted(tmp_path):
    path = tmp_path / "a.dcm"
    pixels = IMAGE.astype(np.uint16)
    values = IMAGE * 0.5 - 100.3
    rescale = {"RescaleSlope": 0.5, "RescaleIntercept": -100.3}
    fixed, of_file = part_of("dicom", window={"center": 500, "width": 600}), part_of("dicom", window="file")
    np.testing.assert_array_equal(read_slice(write_dicom(path, pixels, **rescale), fixed), scaled(values, 200, 800))
    inverted = write_dicom(path, pixels, **rescale, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_slice(inverted, fixed), 255 - scaled(values, 200, 800))
    windows = {"WindowCenter": [500, 90], "WindowWidth": [600, 20]}
    shown = read_slice(write_dicom(path, pixels, **rescale, **windows, VOILUTFunction="LINEAR_EXACT"), of_file)
    np.testing.assert_array_equal(shown, scaled(values, 200, 800))  # the first of several
    shown = read_slice(
        write_dicom(path, pixels, **rescale, **windows), of_file
    )  # LINEAR shifts and narrows it (C.11.2.1.2)
    np.testing.assert_array_equal(shown, scaled(values, 200, 799))
    with pytest.raises(AssertionError, match="states no window"):
        read_slice(write_dicom(path, pixels), of_file)
    with pytest.raises(AssertionError, match="states no window"):
        read_slice(write_dicom(path, pixels, WindowCenter="", WindowWidth=""), of_file)
    lut = pydicom.Dataset()
    lut.LUTDescriptor = [4096, 0, 8]
    lut.LUTData = np.clip(255 - np.arange(4096), 0, 255).astype("<u2").tobytes()
    np.testing.assert_array_equal(
        read_slice(write_dicom(path, pixels, VOILUTSequence=[lut]), of_file), np.clip(255 - IMAGE, 0, 255)
    )
    entries = np.arange(4096)[::-1]
    lut.LUTDescriptor = [4096, 0, 12]
    expected = np.rint(entries[IMAGE] * 255 / 4095)
    for syntax, order in ((ExplicitVRLittleEndian, "<"), (ExplicitVRBigEndian, ">")):
        lut.add_new("LUTData", "OW", entries.astype(f"{order}u2").tobytes())
        write_dicom(path, pixels, VOILUTSequence=[lut])
        data = pydicom.dcmread(path)
        data.PixelData, data.file_meta.TransferSyntaxUID = pixels.astype(f"{order}u2").tobytes(), syntax
        again = pydicom.Dataset({each.tag: each for each in data})  # one that knows no byte order
        again.file_meta = data.file_meta
        again.save_as(path, enforce_file_format=True, little_endian=order == "<", implicit_vr=False)
        np.testing.assert_array_equal(read_slice(path, of_file), expected)


def test_enhanced_dicom_keeps_rescale_and_window_for_each_frame(tmp_path):
    def item(**elements):
        data = pydicom.Dataset()
        for keyword, value in elements.items():
            setattr(data, keyword, value)
        return data

    def window(center):
        return item(FrameVOILUTSequence=[item(WindowCenter=center, WindowWidth=400, VOILUTFunction="LINEAR_EXACT")])

    shared = item(PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=0, RescaleType="US")])
    groups = {
        "PerFrameFunctionalGroupsSequence": [window(600), window(2000)],
        "SharedFunctionalGroupsSequence": [shared],
    }
    path = write_dicom(tmp_path / "a.dcm", np.stack([IMAGE, IMAGE]), **groups)
    first, second = map(decode, examine_file(path, part_of("dicom", window="file"), [1, 2]))
    np.testing.assert_array_equal(first, scaled(IMAGE * 2.0, 400, 800))
    np.testing.assert_array_equal(second, scaled(IMAGE * 2.0, 1800, 2200))


def landmarks() -> np.ndarray:
    """A head of 40 x 50 x 60 RAS+ voxels with a nose in front, a bright right ear and a brighter crown."""
    volume = np.zeros((40, 50, 60), dtype=np.int16)
    volume[5:35, 5:45, 5:55] = 100
    volume[15:25, 45:50, 20:30] = 150  # nose: anterior
    volume[35:40, 20:30, 25:35] = 200  # ear: x grows to the right
    volume[15:25, 20:30, 55:60] = 250  # crown: superior
    return volume


def position(image: np.ndarray, value: int) -> tuple[str, str]:
    """(top, middle or bottom; left, centre or right) of the landmark with this gray value."""
    rows, columns = np.nonzero(image == value)
    thirds = [int(3 * index.mean() / size) for index, size in zip((rows, columns), image.shape, strict=True)]
    return ("top", "middle", "bottom")[thirds[0]], ("left", "centre", "right")[thirds[1]]


def test_nifti_slices_are_in_radiological_display(tmp_path):
    identity = {"center": 127.5, "width": 255}  # gray values equal the stored ones
    path = write_nifti(tmp_path / "head.nii.gz", landmarks())
    axial = read_slice(path, part_of("nifti", window=identity), 28)
    assert axial.shape == (50, 40)
    assert position(axial, 150) == ("top", "centre")
    assert position(axial, 200) == ("middle", "left")  # the patient's right
    coronal = read_slice(path, part_of("nifti", window=identity, slices={"axis": 1}), 25)
    assert coronal.shape == (60, 40)
    assert position(coronal, 250) == ("top", "centre")
    assert position(coronal, 200) == ("middle", "left")
    sagittal = read_slice(path, part_of("nifti", window=identity, slices={"axis": 0}), 20)
    assert sagittal.shape == (60, 50)
    assert position(sagittal, 250) == ("top", "centre")
    assert position(sagittal, 150) == ("middle", "left")


@pytest.mark.parametrize("axes", ["LPS", "PIR", "ASL", "SRA"])
def test_nifti_display_does_not_depend_on_the_stored_orientation(tmp_path, axes):
    expected = write_nifti(tmp_path / "ras.nii", landmarks())
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes)
    )
    turned = nibabel.Nifti1Image(landmarks(), np.eye(4)).as_reoriented(turn)
    path = write_nifti(tmp_path / "turned.nii", np.asarray(turned.dataobj), turned.affine)
    for axis, length in enumerate((40, 50, 60)):
        part = part_of("nifti", slices={"axis": axis})
        assert len(read_contents(path, part).slices) == length
        np.testing.assert_array_equal(read_slice(path, part, 24), read_slice(expected, part, 24))


def test_nifti_scaling_and_slice_range(tmp_path):
    image = nibabel.Nifti1Image(landmarks(), np.eye(4))
    image.header.set_slope_inter(2.0, 7.0)
    nibabel.save(image, tmp_path / "a.nii")
    values = landmarks()[:, :, 28][::-1, ::-1].T
    shown = read_slice(tmp_path / "a.nii", part_of("nifti", window={"center": 257, "width": 500}), 28)
    np.testing.assert_array_equal(shown, scaled(values * 1.0, 0, 250))

    def numbers(**slices):
        return [frame for frame, _ in read_contents(tmp_path / "a.nii", part_of("nifti", slices=slices)).slices]

    assert numbers(**{"from": 0.2, "to": 0.8, "step": 12}) == [12, 24, 36]
    assert numbers(axis=0, step=39) == [0, 39]
    assert numbers(**{"from": 0.5, "to": 0.501}) == [30]
    slices = read_contents(tmp_path / "a.nii", part_of("nifti", slices={"axis": 1, "from": 0.99})).slices
    assert slices == [(49, {"plane": "coronal", "slice": 49})]


def test_a_volume_is_read_once_for_all_its_slices(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", landmarks())
    images = examine_file(path, part_of("nifti"), list(range(60)))
    first = next(images)
    path.write_bytes(b"gone")
    rest = list(images)
    assert len(rest) == 59
    assert all(isinstance(image, MeasuredImage) for image in [first, *rest])


def save_h5(path: Path, **datasets) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[f"cjdata/{name}"] = value
    return path


def nifti_of(path: Path, shape: tuple[int, ...], kind=np.int16) -> Path:
    return write_nifti(path, np.zeros(shape, dtype=kind))


def flattened(path: Path) -> None:
    data = bytearray(nifti_of(path, (20, 20, 20)).read_bytes())
    data[280:296] = bytes(16)  # srow_x, the affine's first row
    path.write_bytes(data)


def three_samples(path: Path) -> None:
    """A file that says that it is gray, with three values for each pixel."""
    data = np.stack([IMAGE] * 3, axis=-1).astype("<u2").tobytes()
    write_dicom(path, IMAGE, SamplesPerPixel=3, PlanarConfiguration=0, PixelData=data)


PID = np.array([[52]], dtype=np.uint16)
UNUSABLE = {
    "MATLAB 5": ("mat", lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(2000)), "not a MATLAB v7.3 file"),
    "no struct": ("mat", lambda path: save_h5(path, image=IMAGE), "contains no label .cjdata.image, label, PID."),
    "other label": ("mat", lambda path: write_mat(path, IMAGE, label=4), "has label 4; the known labels are 1"),
    "cube": ("mat", lambda path: save_h5(path, image=np.zeros((2, 20, 20)), label=[[1.0]], PID=PID), "3 dimensions"),
    "text": ("mat", lambda path: save_h5(path, image="words", label=[[1.0]], PID=PID), "0 dimensions"),
    "tiny": ("mat", lambda path: write_mat(path, IMAGE[:4]), "96 x 4 pixels; a slice has at least 16"),
    "JPEG": ("dicom", lambda path: draw(1).save(path, "JPEG"), "is not a DICOM file"),
    "colour": ("dicom", lambda path: write_dicom(path, IMAGE, PhotometricInterpretation="RGB"), "is not a gray image"),
    "samples": ("dicom", lambda path: three_samples(path), r"is not a gray image \(3 samples per pixel\)"),
    "no image": ("dicom", lambda path: write_dicom(path, IMAGE, Rows=0), "without an image"),
    "many frames": ("dicom", lambda path: write_dicom(path, IMAGE, NumberOfFrames=10**6), "contains 1000000 frames"),
    "fewer frames": ("dicom", lambda path: write_dicom(path, IMAGE, NumberOfFrames=9), "less than expected"),
    "page": ("nifti", lambda path: path.write_bytes(b"<html>404</html>"), "is not a NIfTI file"),
    "series": ("nifti", lambda path: nifti_of(path, (20, 20, 20, 3)), "contains 3 volumes; choose"),
    "flat": ("nifti", lambda path: nifti_of(path, (20, 20)), "contains 20 x 20 values;"),
    "thin": ("nifti", lambda path: nifti_of(path, (20, 3, 20)), "20 x 3 pixels; a slice has at least 16"),
    "complex": ("nifti", lambda path: nifti_of(path, (20, 20, 20), np.complex64), "values of type complex64"),
    "no orientation": ("nifti", lambda path: flattened(path), "an affine without a defined orientation"),
    "not finite": ("nifti", lambda path: write_nifti(path, np.full((20, 20, 20), np.nan, np.float32)), "not finite"),
    "empty": ("nifti", lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
    "loop": ("dicom", lambda path: path.symlink_to(path), "a broken link"),
}  # fmt: skip


def read_error(path: Path, part: RecipePart) -> str:
    """The error of reading a file's header or, if it has none, of reading its first slice."""
    try:
        slices = read_contents(path, part).slices
    except BadImage as error:
        return str(error)
    (image,) = examine_file(path, part, [slices[0][0]])
    return image if isinstance(image, str) else ""


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_files_have_a_reason(tmp_path, case):
    kind, write, reason = UNUSABLE[case]
    path = tmp_path / ("a.nii" if kind == "nifti" else "a")
    write(path)
    assert re.search(reason, read_error(path, part_of(kind)))


@pytest.fixture(scope="module")
def intact_files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("intact")
    image, volume = IMAGE[::4, ::4], landmarks()[::2, ::2, ::2]
    files = {
        "mat": write_mat(folder / "1.mat", image),
        "dicom": write_dicom(folder / "1.dcm", np.stack([image, image]), PatientID="P"),
        "nifti": write_nifti(folder / "1.nii", volume),
        "nifti.gz": write_nifti(folder / "1.nii.gz", volume),
    }
    return {kind: path.read_bytes() for kind, path in files.items()}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_never_raises_anything_but_bad_image(intact_files, tmp_path_factory, data):
    kind = data.draw(st.sampled_from(sorted(intact_files)))
    file = bytearray(intact_files[kind])
    head = st.integers(0, min(len(file), 3000) - 1)  # the file's structure is there
    for index, value in data.draw(st.lists(st.tuples(head, st.integers(0, 255)), max_size=6)):
        file[index] = value
    del file[data.draw(st.one_of(st.just(len(file)), st.integers(1, len(file)))) :]
    path, part = tmp_path_factory.getbasetemp() / "damaged", part_of(kind.removesuffix(".gz"))
    path.write_bytes(file)
    try:
        frames = [frame for frame, _ in read_contents(path, part).slices[:3]]
    except BadImage:
        frames = [None if kind == "mat" else 1]
    assert all(isinstance(image, str | MeasuredImage) for image in examine_file(path, part, frames))


def test_flipped_bytes_of_compressed_volumes_are_detected(intact_files, tmp_path):
    file = bytearray(intact_files["nifti.gz"])
    file[-6] ^= 1  # of the checksum
    (tmp_path / "a.nii.gz").write_bytes(file)
    (error,) = examine_file(tmp_path / "a.nii.gz", part_of("nifti"), [10])
    assert "CRC" in str(error)


# Complete builds


def run_build(source: Path, out: Path, recipe: Recipe, **options):
    return build(source, out, recipe, BuildOptions(**options), workers=1, allow_missing=True)


def samples(dataset) -> dict[str, tuple[str, str | None, dict]]:
    """Key → class, patient and attributes."""
    columns = dataset.columns
    rows = zip(columns["key"], columns["label"], columns["patient"], columns["attributes"], strict=True)
    return {key: (dataset.classes[label], patient, json.loads(text)) for key, label, patient, text in rows}


def mat_collection(root: Path) -> Recipe:
    for number in range(1, 13):
        folder = root / f"brainTumorDataPublic_{'1-6' if number <= 6 else '7-12'}"
        image = np.asarray(draw(number)).astype(np.int16) * 9
        write_mat(
            folder / f"{number}.mat", image, label=(number - 1) % 3 + 1, pid=f"MR0{number // 2}{'AB'[number % 2]}"
        )
    write_folds(root / "cvind.mat", [number % 5 + 1 for number in range(1, 13)])
    return parse_recipe({"parts": [{"dataset": "cheng", "format": "mat", "folds": "cvind.mat"}]}, "it")


def test_matlab_collection_keeps_labels_patients_and_published_folds(tmp_path):
    recipe = mat_collection(tmp_path / "raw")
    dataset = run_build(tmp_path / "raw", tmp_path / "out", recipe).dataset
    rows = samples(dataset)
    assert len(rows) == 12
    masks = {number: mask_attributes(np.asarray(draw(number)) > 0) for number in (5, 12)}  # as write_mat writes them
    assert rows["cheng-brainTumorDataPublic_1-6-5"] == ("glioma", "MR02", {"fold": 1, "pid": "MR02B", **masks[5]})
    assert rows["cheng-brainTumorDataPublic_7-12-12"] == ("pituitary", "MR06", {"fold": 3, "pid": "MR06A", **masks[12]})
    assert verify(dataset.root) == []
    assert dataset.manifest.recipe["parts"][0]["window"] == {"percentiles": [0.5, 99.5]}
    reader, sources = ShardReader(dataset), dataset.columns["source"].tolist()
    stored = Image.open(io.BytesIO(reader.read(sources.index("brainTumorDataPublic_1-6/5.mat"))))
    values = np.asarray(draw(5)).astype(float) * 9
    np.testing.assert_array_equal(np.asarray(stored), scaled(values, *np.percentile(values, (0.5, 99.5))))


def test_errors_of_the_published_folds(tmp_path):
    recipe = mat_collection(tmp_path)
    write_folds(tmp_path / "cvind.mat", [1, 2, 3])
    with pytest.raises(UserError, match=r"4\.mat has no fold in cvind.mat, which has folds for 1.mat to 3.mat"):
        find_records(recipe, tmp_path)
    (tmp_path / "cvind.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(UserError, match=r"published folds .*cvind.mat cannot be read .* remove `folds`"):
        find_records(recipe, tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    write_folds(empty / "cvind.mat", [1])
    with pytest.raises(UserError, match=r"the folder . contains no \.mat files"):
        find_records(recipe, empty)
    shutil.rmtree(empty)
    (tmp_path / "cvind.mat").unlink()
    with pytest.raises(UserError, match=r"published folds .*cvind.mat cannot be read"):
        find_records(recipe, tmp_path)


def test_dicom_and_nifti_collections_end_to_end(tmp_path):
    rng = np.random.default_rng(0)
    for number, kind in enumerate(("glioma", "notumor")):
        for patient in range(3):
            frames = np.stack([np.asarray(draw(100 * number + 10 * patient + frame)) for frame in range(2)])
            about = {"PatientID": f"{kind}-{patient}", "InstanceNumber": patient}
            write_dicom(tmp_path / "raw" / "d" / kind / f"p{patient}.dcm", frames.astype(np.uint16) * 16, **about)
            noise = rng.integers(0, 40, (32, 32, 32)) + np.asarray(draw(patient, 32))[:, :, None] * (2 + number)
            write_nifti(tmp_path / "raw" / "n" / kind / f"v{patient}.nii.gz", noise.astype(np.int16))
    parts = [
        {"dataset": "d", "root": "d", "format": "dicom", "expected": {"glioma": 6}},
        {"dataset": "n", "root": "n", "format": "nifti", "slices": {"from": 0.25, "to": 0.75, "step": 8}},
    ]
    recipe = parse_recipe({"parts": parts}, "it")
    dataset = run_build(tmp_path / "raw", tmp_path / "out", recipe, fractions=(0.5, 0.25, 0.25)).dataset
    rows = samples(dataset)
    assert len(rows) == 12 + 12
    assert rows["d-glioma-p2-0002"] == ("glioma", "glioma-2", {"frame": 2, "slice": 2})
    assert rows["n-notumor-v1-0016"] == ("notumor", "n/notumor/v1", {"plane": "axial", "slice": 16})
    assert set(dataset.columns["mode"]) == {"uint16", "int16"}
    assert verify(dataset.root) == []
    groups = {}
    for patient, group in zip(dataset.columns["patient"], dataset.columns["group"], strict=True):
        groups.setdefault(patient, set()).add(group)
    assert all(len(names) == 1 for names in groups.values())


def test_damaged_scans_are_listed_once_each_and_left_out_with_skip_bad(tmp_path):
    root = tmp_path / "raw"
    recipe = mat_collection(root)
    cut = root / "brainTumorDataPublic_1-6" / "3.mat"
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(BadImages) as error:
        run_build(root, tmp_path / "out", recipe)
    assert [line.split(" (")[0] for line in error.value.files] == ["brainTumorDataPublic_1-6/3.mat: cannot be decoded"]
    dataset = run_build(root, tmp_path / "out", recipe, skip_bad=True).dataset
    assert len(dataset) == 11
    assert [entry["source"] for entry in dataset.manifest.skipped] == ["brainTumorDataPublic_1-6/3.mat"]
    volumes = tmp_path / "volumes"
    for name in ("glioma/a", "glioma/b", "notumor/c", "notumor/d"):
        noise = np.random.default_rng(ord(name[-1])).normal(size=(20, 20, 20)).astype(np.float32)
        if name == "glioma/a":
            noise[3, 3, 0] = np.inf
        path = write_nifti(volumes / f"{name}.nii.gz", noise)
        if name == "notumor/c":
            path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(BadImages) as error:
        run_build(
            volumes, tmp_path / "none", parse_recipe({"parts": [{"format": "nifti"}]}, "it"), fractions=(0.5, 0, 0.5)
        )
    first, second = error.value.files
    assert first == "glioma/a.nii.gz, slice 0: contains values that are not finite"
    assert second.startswith("notumor/c.nii.gz: cannot be decoded (Compressed file ended")
    for path in root.rglob("*.mat"):
        if path.name != "cvind.mat":
            path.write_bytes(b"")
    with pytest.raises(UserError, match="no image at all"):
        run_build(root, tmp_path / "none", recipe, skip_bad=True)


def test_blank_slices_at_the_ends_of_volumes_do_not_join_patients(tmp_path):
    for kind in ("glioma", "notumor"):
        for patient in range(6):
            volume = np.random.default_rng([ord(kind[0]), patient]).integers(1, 1000, (24, 24, 6), dtype=np.int16)
            volume[..., [0, 5]] = 0
            write_nifti(tmp_path / "raw" / kind / f"{patient}.nii.gz", volume)
    recipe = parse_recipe({"parts": [{"format": "nifti"}], "classes": ["glioma", "notumor"]}, "it")
    dataset = run_build(tmp_path / "raw", tmp_path / "out", recipe, fractions=(0.5, 0.25, 0.25)).dataset
    assert len(dataset) == 12 * 4
    assert dataset.manifest.groups == 12
    assert all(min(by_class.values()) > 0 for by_class in dataset.manifest.counts.values())
    assert dataset.manifest.skipped[0] == {"source": "glioma/0.nii.gz", "reason": "is blank in 2 slices: 0, 5"}
    assert len(dataset.manifest.skipped) == 12
    kept = run_build(tmp_path / "raw", tmp_path / "kept", recipe, fractions=(0.5, 0.25, 0.25), keep_blank=True).dataset
    assert (len(kept), kept.manifest.groups, kept.manifest.skipped) == (12 * 6, 12, [])
    assert verify(dataset.root) == verify(kept.root) == []
    with pytest.raises(UserError, match="was built with --keep-blank False, not True"):
        run_build(tmp_path / "raw", tmp_path / "out", recipe, fractions=(0.5, 0.25, 0.25), keep_blank=True)


def test_a_class_of_blank_images_only_is_an_error(tmp_path):
    for name in ("glioma/1", "glioma/2", "notumor/1", "notumor/2", "notumor/3"):
        image = Image.new("L", (64, 64), 3) if name.startswith("glioma") else draw(ord(name[-1]))
        path = tmp_path / "raw" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    recipe = parse_recipe({"parts": [{}]}, "it")
    with pytest.raises(UserError, match=r"no image of class glioma is left: all of them are blank; .* --keep-blank"):
        run_build(tmp_path / "raw", tmp_path / "out", recipe, fractions=(0.5, 0, 0.5))


def test_changed_folds_are_another_request(tmp_path):
    root = tmp_path / "raw"
    recipe = mat_collection(root)
    run_build(root, tmp_path / "out", recipe)
    assert not run_build(root, tmp_path / "out", recipe).fresh
    write_folds(root / "cvind.mat", [1] * 12)
    with pytest.raises(UserError, match="built from another list of source files"):
        run_build(root, tmp_path / "out", recipe)
