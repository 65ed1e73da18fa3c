"""MATLAB, DICOM and NIfTI files: which slices they hold, how these look, and what damage is called."""

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
from scans import write_dicom, write_folds, write_mat, write_nifti

from brain_dist.collection.examination import BadImages
from brain_dist.collection.pixels import BadImage, Examined
from brain_dist.collection.recipes import Recipe, RecipePart, parse_recipe
from brain_dist.collection.records import find_records
from brain_dist.collection.slicefiles import examine_file, read_contents
from brain_dist.errors import UserError
from brain_dist.store.build import Options, build
from brain_dist.store.reader import ShardReader
from brain_dist.store.verify import verify

IMAGE = np.asarray(draw(1)).astype(np.int16) * 12  # 96 x 96, values up to 3,060
TALL = IMAGE[:, :60]


def part(kind: str, **keys) -> RecipePart:
    return parse_recipe({"parts": [{"format": kind, **keys}]}, "it").parts[0]


def gray(found: Examined | str) -> np.ndarray:
    assert isinstance(found, Examined), found
    assert found.payload is not None
    return np.asarray(Image.open(io.BytesIO(found.payload)))


def only(path: Path, of: RecipePart, frame: int | None = None) -> np.ndarray:
    (found,) = examine_file(path, of, [frame])
    return gray(found)


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


def test_matlab_file_gives_upright_image_class_and_person(tmp_path):
    path = write_mat(tmp_path / "7.mat", TALL, label=2, pid="MR024780D")
    contents = read_contents(path, part("mat"))
    assert (contents.slices, contents.label, contents.patient) == ([(None, {"pid": "MR024780D"})], "glioma", "MR024780")
    assert read_contents(write_mat(path, TALL, 3, "100360"), part("mat")).patient == "100360"
    low, high = np.percentile(TALL, (0.5, 99.5))
    np.testing.assert_array_equal(only(path, part("mat")), scaled(TALL, low, high))
    np.testing.assert_array_equal(
        only(path, part("mat", window={"center": 1000, "width": 800})), scaled(TALL, 600, 1400)
    )
    (found,) = examine_file(path, part("mat"), [None], max_side=48)
    assert (found.mode, found.width, found.height, found.ext) == ("int16", 30, 48, "png")


def test_dicom_frames_facts_and_patient(tmp_path):
    about = {"InstanceNumber": 12, "MagneticFieldStrength": 1.5, "Manufacturer": " ACME ", "PatientSex": ""}
    one = write_dicom(tmp_path / "one.dcm", IMAGE, PatientID="P7", StudyInstanceUID="1.2.9", **about)
    contents = read_contents(one, part("dicom"))
    assert contents.slices == [(None, {"slice": 12, "field_strength": 1.5, "manufacturer": "ACME"})]
    assert (contents.patient, contents.label, contents.volume) == ("P7", None, False)
    assert read_contents(write_dicom(one, IMAGE, StudyInstanceUID="1.2.9"), part("dicom")).patient == "1.2.9"
    several = write_dicom(tmp_path / "several.dcm", np.stack([IMAGE, TALL.repeat(2, axis=1)[:, :96]]))
    contents = read_contents(several, part("dicom"))
    assert contents.slices == [(1, {"frame": 1}), (2, {"frame": 2})]
    assert contents.volume
    first, second = map(gray, examine_file(several, part("dicom"), [1, 2]))
    np.testing.assert_array_equal(first, only(one, part("dicom")))
    assert (first != second).any()


def test_dicom_values_are_rescaled_windowed_and_inverted(tmp_path):
    path = tmp_path / "a.dcm"
    pixels = IMAGE.astype(np.uint16)
    values = IMAGE * 0.5 - 100.3
    rescale = {"RescaleSlope": 0.5, "RescaleIntercept": -100.3}
    fixed, own = part("dicom", window={"center": 500, "width": 600}), part("dicom", window="file")
    np.testing.assert_array_equal(only(write_dicom(path, pixels, **rescale), fixed), scaled(values, 200, 800))
    inverted = write_dicom(path, pixels, **rescale, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(only(inverted, fixed), 255 - scaled(values, 200, 800))
    windows = {"WindowCenter": [500, 90], "WindowWidth": [600, 20]}
    shown = only(write_dicom(path, pixels, **rescale, **windows, VOILUTFunction="LINEAR_EXACT"), own)
    np.testing.assert_array_equal(shown, scaled(values, 200, 800))  # the first of several
    shown = only(write_dicom(path, pixels, **rescale, **windows), own)  # LINEAR: C.11.2.1.2 shifts and narrows it
    np.testing.assert_array_equal(shown, scaled(values, 200, 799))
    with pytest.raises(AssertionError, match="states no window of its own"):
        only(write_dicom(path, pixels), own)
    lut = pydicom.Dataset()
    lut.LUTDescriptor = [4096, 0, 8]
    lut.LUTData = np.clip(255 - np.arange(4096), 0, 255).astype("<u2").tobytes()
    np.testing.assert_array_equal(
        only(write_dicom(path, pixels, VOILUTSequence=[lut]), own), np.clip(255 - IMAGE, 0, 255)
    )


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
    first, second = map(gray, examine_file(path, part("dicom", window="file"), [1, 2]))
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


def where(picture: np.ndarray, value: int) -> tuple[str, str]:
    """(top, middle or bottom; left, centre or right): where a landmark lies in a picture."""
    rows, columns = np.nonzero(picture == value)
    thirds = [int(3 * place.mean() / size) for place, size in zip((rows, columns), picture.shape, strict=True)]
    return ("top", "middle", "bottom")[thirds[0]], ("left", "centre", "right")[thirds[1]]


def test_nifti_slices_lie_as_radiologists_look_at_them(tmp_path):
    whole = {"center": 127.5, "width": 255}  # values stay what they are
    path = write_nifti(tmp_path / "head.nii.gz", landmarks())
    axial = only(path, part("nifti", window=whole), 28)
    assert axial.shape == (50, 40)
    assert where(axial, 150) == ("top", "centre")
    assert where(axial, 200) == ("middle", "left")  # the patient's right
    coronal = only(path, part("nifti", window=whole, slices={"axis": 1}), 25)
    assert coronal.shape == (60, 40)
    assert where(coronal, 250) == ("top", "centre")
    assert where(coronal, 200) == ("middle", "left")
    sagittal = only(path, part("nifti", window=whole, slices={"axis": 0}), 20)
    assert sagittal.shape == (60, 50)
    assert where(sagittal, 250) == ("top", "centre")
    assert where(sagittal, 150) == ("middle", "left")


@pytest.mark.parametrize("axes", ["LPS", "PIR", "ASL", "SRA"])
def test_nifti_looks_the_same_in_whatever_order_it_is_stored(tmp_path, axes):
    expected = write_nifti(tmp_path / "ras.nii", landmarks())
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes)
    )
    turned = nibabel.Nifti1Image(landmarks(), np.eye(4)).as_reoriented(turn)
    path = write_nifti(tmp_path / "turned.nii", np.asarray(turned.dataobj), turned.affine)
    for axis, length in enumerate((40, 50, 60)):
        how = part("nifti", slices={"axis": axis})
        assert len(read_contents(path, how).slices) == length
        np.testing.assert_array_equal(only(path, how, 24), only(expected, how, 24))


def test_nifti_scaling_and_choice_of_slices(tmp_path):
    image = nibabel.Nifti1Image(landmarks(), np.eye(4))
    image.header.set_slope_inter(2.0, 7.0)
    nibabel.save(image, tmp_path / "a.nii")
    values = landmarks()[:, :, 28][::-1, ::-1].T
    shown = only(tmp_path / "a.nii", part("nifti", window={"center": 257, "width": 500}), 28)
    np.testing.assert_array_equal(shown, scaled(values * 1.0, 0, 250))

    def chosen(**slices):
        return [frame for frame, _ in read_contents(tmp_path / "a.nii", part("nifti", slices=slices)).slices]

    assert chosen(**{"from": 0.2, "to": 0.8, "step": 12}) == [12, 24, 36]
    assert chosen(axis=0, step=39) == [0, 39]
    assert chosen(**{"from": 0.5, "to": 0.501}) == [30]
    facts = read_contents(tmp_path / "a.nii", part("nifti", slices={"axis": 1, "from": 0.99})).slices
    assert facts == [(49, {"plane": "coronal", "slice": 49})]


def test_a_volume_is_read_once_for_all_its_slices(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", landmarks())
    found = examine_file(path, part("nifti"), list(range(60)))
    first = next(found)
    path.write_bytes(b"gone")
    rest = list(found)
    assert len(rest) == 59
    assert all(isinstance(item, Examined) for item in [first, *rest])


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


PID = np.array([[52]], dtype=np.uint16)
UNFIT = {
    "MATLAB 5": ("mat", lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(2000)), "is no MATLAB v7.3 file"),
    "no struct": ("mat", lambda path: save_h5(path, image=IMAGE), "holds no struct cjdata with label, PID"),
    "other label": ("mat", lambda path: write_mat(path, IMAGE, label=4), r"has label 4; known are 1 \(meningioma\)"),
    "cube": ("mat", lambda path: save_h5(path, image=np.zeros((2, 20, 20)), label=[[1.0]], PID=PID), "3 dimensions"),
    "text": ("mat", lambda path: save_h5(path, image="words", label=[[1.0]], PID=PID), "0 dimensions"),
    "tiny": ("mat", lambda path: write_mat(path, IMAGE[:4]), "96 x 4 pixels; a slice has at least 16"),
    "JPEG": ("dicom", lambda path: draw(1).save(path, "JPEG"), "is no DICOM file"),
    "colour": ("dicom", lambda path: write_dicom(path, IMAGE, PhotometricInterpretation="RGB"), "no gray picture"),
    "no picture": ("dicom", lambda path: write_dicom(path, IMAGE, Rows=0), "without a picture"),
    "many frames": ("dicom", lambda path: write_dicom(path, IMAGE, NumberOfFrames=10**6), "holds 1000000 frames"),
    "fewer frames": ("dicom", lambda path: write_dicom(path, IMAGE, NumberOfFrames=9), "less than expected"),
    "page": ("nifti", lambda path: path.write_bytes(b"<html>404</html>"), "is no NIfTI file"),
    "series": ("nifti", lambda path: nifti_of(path, (20, 20, 20, 3)), "20 x 20 x 20 x 3; one volume"),
    "flat": ("nifti", lambda path: nifti_of(path, (20, 20)), "holds values in 20 x 20;"),
    "thin": ("nifti", lambda path: nifti_of(path, (20, 3, 20)), "20 x 3 pixels; a slice has at least 16"),
    "complex": ("nifti", lambda path: nifti_of(path, (20, 20, 20), np.complex64), "values of type complex64"),
    "no orientation": ("nifti", lambda path: flattened(path), "an affine that gives no orientation"),
    "not finite": ("nifti", lambda path: write_nifti(path, np.full((20, 20, 20), np.nan, np.float32)), "not finite"),
    "empty": ("nifti", lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
    "loop": ("dicom", lambda path: path.symlink_to(path), "leads nowhere"),
}  # fmt: skip


def fault(path: Path, of: RecipePart) -> str:
    """What the header's reader says against a file, or else the reader of its first slice."""
    try:
        frames = read_contents(path, of).slices
    except BadImage as error:
        return str(error)
    (found,) = examine_file(path, of, [frames[0][0]])
    return found if isinstance(found, str) else ""


@pytest.mark.parametrize("what", UNFIT)
def test_unfit_files_say_why(tmp_path, what):
    kind, write, reason = UNFIT[what]
    path = tmp_path / ("a.nii" if kind == "nifti" else "a")
    write(path)
    assert re.search(reason, fault(path, part(kind)))


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
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
def test_damage_is_never_anything_but_a_reason(whole_files, tmp_path_factory, data):
    kind = data.draw(st.sampled_from(sorted(whole_files)))
    file = bytearray(whole_files[kind])
    head = st.integers(0, min(len(file), 3000) - 1)  # where the structure is
    for place, value in data.draw(st.lists(st.tuples(head, st.integers(0, 255)), max_size=6)):
        file[place] = value
    del file[data.draw(st.one_of(st.just(len(file)), st.integers(1, len(file)))) :]
    path, how = tmp_path_factory.getbasetemp() / "damaged", part(kind.removesuffix(".gz"))
    path.write_bytes(file)
    try:
        frames = [frame for frame, _ in read_contents(path, how).slices[:3]]
    except BadImage:
        frames = [None if kind == "mat" else 1]
    assert all(isinstance(found, str | Examined) for found in examine_file(path, how, frames))


def test_flipped_bytes_of_compressed_volumes_are_noticed(whole_files, tmp_path):
    file = bytearray(whole_files["nifti.gz"])
    file[-6] ^= 1  # of the checksum
    (tmp_path / "a.nii.gz").write_bytes(file)
    (found,) = examine_file(tmp_path / "a.nii.gz", part("nifti"), [10])
    assert "CRC" in str(found)


# Whole builds


def make(source: Path, out: Path, recipe: Recipe, **options):
    return build(source, out, recipe, Options(**options), workers=1, progress=lambda *stage: None)


def told(dataset) -> dict[str, tuple[str, str | None, dict]]:
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


def test_matlab_collection_keeps_labels_persons_and_published_folds(tmp_path):
    recipe = mat_collection(tmp_path / "raw")
    dataset = make(tmp_path / "raw", tmp_path / "out", recipe).dataset
    rows = told(dataset)
    assert len(rows) == 12
    assert rows["cheng-brainTumorDataPublic_1-6-5"] == ("glioma", "MR02", {"fold": 1, "pid": "MR02B"})
    assert rows["cheng-brainTumorDataPublic_7-12-12"] == ("pituitary", "MR06", {"fold": 3, "pid": "MR06A"})
    assert verify(dataset.root) == []
    assert dataset.manifest["recipe"]["parts"][0]["window"] == {"percentiles": [0.5, 99.5]}
    reader, sources = ShardReader(dataset), dataset.columns["source"].tolist()
    stored = Image.open(io.BytesIO(reader.read(sources.index("brainTumorDataPublic_1-6/5.mat"))))
    values = np.asarray(draw(5)).astype(float) * 9
    np.testing.assert_array_equal(np.asarray(stored), scaled(values, *np.percentile(values, (0.5, 99.5))))


def test_faults_of_the_published_folds_are_named(tmp_path):
    recipe = mat_collection(tmp_path)
    write_folds(tmp_path / "cvind.mat", [1, 2, 3])
    with pytest.raises(UserError, match=r"4\.mat has no fold in cvind.mat, which knows files 1.mat to 3.mat"):
        find_records(recipe, tmp_path)
    (tmp_path / "cvind.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(UserError, match=r"published folds .*cvind.mat cannot be read .* remove `folds`"):
        find_records(recipe, tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    write_folds(empty / "cvind.mat", [1])
    with pytest.raises(UserError, match=r"the folder . holds no \.mat files"):
        find_records(recipe, empty)
    shutil.rmtree(empty)
    (tmp_path / "cvind.mat").unlink()
    with pytest.raises(UserError, match=r"published folds .*cvind.mat cannot be read"):
        find_records(recipe, tmp_path)


def test_dicom_and_nifti_collections_end_to_end(tmp_path):
    rng = np.random.default_rng(0)
    for number, kind in enumerate(("glioma", "notumor")):
        for person in range(3):
            frames = np.stack([np.asarray(draw(100 * number + 10 * person + frame)) for frame in range(2)])
            about = {"PatientID": f"{kind}-{person}", "InstanceNumber": person}
            write_dicom(tmp_path / "raw" / "d" / kind / f"p{person}.dcm", frames.astype(np.uint16) * 16, **about)
            noise = rng.integers(0, 40, (32, 32, 32)) + np.asarray(draw(person, 32))[:, :, None] * (2 + number)
            write_nifti(tmp_path / "raw" / "n" / kind / f"v{person}.nii.gz", noise.astype(np.int16))
    parts = [
        {"dataset": "d", "root": "d", "format": "dicom", "expected": {"glioma": 6}},
        {"dataset": "n", "root": "n", "format": "nifti", "slices": {"from": 0.25, "to": 0.75, "step": 8}},
    ]
    recipe = parse_recipe({"parts": parts}, "it")
    dataset = make(tmp_path / "raw", tmp_path / "out", recipe, fractions=(0.5, 0.25, 0.25)).dataset
    rows = told(dataset)
    assert len(rows) == 12 + 12
    assert rows["d-glioma-p2-0002"] == ("glioma", "glioma-2", {"frame": 2, "slice": 2})
    assert rows["n-notumor-v1-0016"] == ("notumor", "n/notumor/v1", {"plane": "axial", "slice": 16})
    assert set(dataset.columns["mode"]) == {"uint16", "int16"}
    assert verify(dataset.root) == []
    groups = {}
    for patient, group in zip(dataset.columns["patient"], dataset.columns["group"], strict=True):
        groups.setdefault(patient, set()).add(group)
    assert all(len(names) == 1 for names in groups.values())


def test_damaged_scans_are_listed_once_each_and_left_out_on_demand(tmp_path):
    root = tmp_path / "raw"
    recipe = mat_collection(root)
    cut = root / "brainTumorDataPublic_1-6" / "3.mat"
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(BadImages) as caught:
        make(root, tmp_path / "out", recipe)
    assert [line.split(" (")[0] for line in caught.value.files] == ["brainTumorDataPublic_1-6/3.mat: cannot be decoded"]
    dataset = make(root, tmp_path / "out", recipe, skip_bad=True).dataset
    assert len(dataset) == 11
    assert [entry["source"] for entry in dataset.manifest["skipped"]] == ["brainTumorDataPublic_1-6/3.mat"]
    volumes = tmp_path / "volumes"
    for name in ("glioma/a", "glioma/b", "notumor/c", "notumor/d"):
        noise = np.random.default_rng(ord(name[-1])).normal(size=(20, 20, 20)).astype(np.float32)
        if name == "glioma/a":
            noise[3, 3, 0] = np.inf
        path = write_nifti(volumes / f"{name}.nii.gz", noise)
        if name == "notumor/c":
            path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(BadImages) as caught:
        make(volumes, tmp_path / "none", parse_recipe({"parts": [{"format": "nifti"}]}, "it"))
    first, second = caught.value.files
    assert first == "glioma/a.nii.gz, slice 0: holds values that are not finite"
    assert second.startswith("notumor/c.nii.gz: cannot be decoded (Compressed file ended")
    for path in root.rglob("*.mat"):
        if path.name != "cvind.mat":
            path.write_bytes(b"")
    with pytest.raises(UserError, match="no image at all"):
        make(root, tmp_path / "none", recipe, skip_bad=True)


def test_a_changed_table_is_another_request(tmp_path):
    root = tmp_path / "raw"
    recipe = mat_collection(root)
    make(root, tmp_path / "out", recipe)
    assert not make(root, tmp_path / "out", recipe).fresh
    write_folds(root / "cvind.mat", [1] * 12)
    with pytest.raises(UserError, match="built from another list of source files"):
        make(root, tmp_path / "out", recipe)
