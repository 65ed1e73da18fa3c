"""Write the browser edition around an exported network: static files that any web server can hand out."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from brain_dist.errors import UserError
from brain_dist.web import FILES

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
SUMS = "SHA256SUMS"


def check_runtime(runtime: Path | None) -> Path:
    """The folder ``dist`` of ONNX Runtime for browsers.

    Args:
        runtime: that folder, or the folder in which npm installed the package.

    Raises:
        UserError: it is not there, or is another version.
    """
    command = f"`npm install --prefix ort {PACKAGE}@{VERSION}`, then add `--ort ort`"
    if runtime is None:
        raise UserError(f"the browser edition needs ONNX Runtime for browsers; run {command}")
    for folder in (runtime, runtime / "node_modules" / PACKAGE / "dist"):
        if all((folder / name).is_file() for name in RUNTIME):
            about = folder.parent / "package.json"
            version = json.loads(about.read_text())["version"] if about.is_file() else VERSION
            if version != VERSION:
                raise UserError(f"{folder} is version {version} of {PACKAGE}; run {command}")
            return folder
    raise UserError(f"{runtime} does not hold {', '.join(RUNTIME)}; run {command}")


def write_edition(folder: Path, page: Path, runtime: Path) -> None:
    """Add the page, its modules and ONNX Runtime to a folder with model.onnx and preprocess.json.

    Args:
        folder: the folder.
        page: folder of the page's files.
        runtime: see :func:`check_runtime`.
    """
    for source in (*page.iterdir(), *FILES.iterdir()):
        shutil.copyfile(source, folder / source.name)
    (folder / "ort").mkdir()
    for name in RUNTIME:
        shutil.copyfile(runtime / name, folder / "ort" / name)


def write_sums(folder: Path) -> None:
    """List all files of an edition with their sha256, as ``sha256sum -c`` reads it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}" for path in files]
    (folder / SUMS).write_text("\n".join(lines) + "\n")
