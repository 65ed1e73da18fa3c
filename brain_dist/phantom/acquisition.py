"""The scanner: coil profile, acquisition of a finite matrix in k-space, Rician noise, and display."""

from __future__ import annotations

import numpy as np
from scipy import fft

from brain_dist.phantom.patients import Patient, Scanner

Array = np.ndarray


def acquire(patient: Patient, image: Array, points: Array, skin: Array, size: int, rng: np.random.Generator) -> Array:
    """Simulate the scan of a slice.

    Args:
        patient: whose scanner settings are used.
        image: float32 [N, N], signal relative to white matter, N ≥ ``size``.
        points: [3, N, N], MNI mm.
        skin: [N, N], signed distance to the skin, mm.
        size: pixels per side of the result.
        rng: draws the noise.

    Returns:
        uint8 [size, size].
    """
    scanner = patient.scanner
    magnitude = _measure(scanner, _receive(scanner, image, points, skin), size, rng)
    # scanners scale to the brightest tissue, which is fat
    white = scanner.fat_level / patient.tissue.fat / (1 + scanner.coil_gain)
    return np.rint(255 * np.clip(white * magnitude, 0, 1) ** scanner.gamma).astype(np.uint8)


def _receive(scanner: Scanner, image: Array, points: Array, skin: Array) -> Array:
    """The signal with the bias field, brighter near the coils, and fading below the head."""
    x, y, z = points / np.float32(90)
    terms = (x, y, z, x * y, y * z, x * z, x * x, y * y, z * z)
    bias = sum(np.float32(coefficient) * term for coefficient, term in zip(scanner.bias, terms, strict=True))
    signal = image * np.exp(bias) * (1 + scanner.coil_gain * np.exp(np.minimum(skin, 0) / 22))
    height, width = scanner.coil_end
    signal /= 1 + np.exp(np.clip((height - points[2]) / width, -30, 30))
    return signal


def _measure(scanner: Scanner, signal: Array, size: int, rng: np.random.Generator) -> Array:
    """Magnitude image [size, size]: only frequencies up to 1 / (2 voxel) are measured, each with complex noise."""
    kspace = fft.fftshift(fft.fft2(signal.astype(np.complex64), norm="forward"))
    start = (len(kspace) - size) // 2
    kspace = kspace[start : start + size, start : start + size]
    measured = min(1.0, scanner.fov / size / scanner.voxel)  # fraction of the frequencies of ``size`` pixels
    noise = rng.standard_normal((2, size, size), dtype=np.float32) * np.float32(scanner.noise / size / measured)
    frequency = np.abs(fft.fftshift(fft.fftfreq(size))) * 2 / measured
    taper = np.cos(np.clip((frequency - 0.7) / 0.3, 0, 1) * np.pi / 2).astype(np.float32)
    kspace = (kspace + noise[0] + 1j * noise[1]) * taper * taper[:, None]
    return np.abs(fft.ifft2(fft.ifftshift(kspace), norm="forward"))
