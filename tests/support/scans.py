"""Synthetic MATLAB, DICOM and NIfTI files for the tests, as publishers of collections write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage


def write_mat(path: Path, image: np.ndarray, label: int = 1, pid: str = "100360") -> Path:
    """A file of Cheng's collection: MATLAB v7.3, which is HDF5 with every matrix transposed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        group = file.create_group("cjdata")
        group["image"] = np.asarray(image, dtype=np.int16).T
        group["label"] = np.array([[float(label)]])
        group["PID"] = np.array([[ord(letter)] for letter in pid], dtype=np.uint16)
        group["tumorBorder"] = np.array([[1.0, 2.0, 3.0, 4.0]])
        group["tumorMask"] = (np.asarray(image) > 0).astype(np.uint8).T
    return path


def write_folds(path: Path, folds: list[int]) -> None:
    """Write the published folds: one number per file, from 1.mat on."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file["cvind"] = np.array([folds], dtype=float)


def write_dicom(path: Path, pixels: np.ndarray, **elements: Any) -> Path:
    """A gray 16-bit MR image [H, W] or its frames [F, H, W]; ``elements`` are additional DICOM elements by keyword."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = int(pixels.dtype == np.int16)
    data.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    data.save_as(path, enforce_file_format=True)
    return path


def write_nifti(path: Path, volume: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """A NIfTI volume; the default affine is that of RAS+ voxels of 1 mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)
    return path
