"""Write the browser edition around an exported ONNX graph: static files that any web server can hand out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brain_dist import serving
from brain_dist.errors import UserError
from brain_dist.web import FILES

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
ABOUT, SUMS = "model.json", "SHA256SUMS"
PAGE = Path(serving.__file__).with_name("page")
AT_THE_TOP = ("index.html", "offline.js")  # a service worker reaches what is below its own folder


def find_runtime(folder: Path | None) -> Path:
    """The folder ``dist`` of ONNX Runtime for browsers.

    Args:
        folder: that folder, or the folder in which npm installed the package.

    Raises:
        UserError: it is not there, or is another version.
    """
    command = f"run `npm install --prefix ort {PACKAGE}@{VERSION}` and add `--ort ort`"
    if folder is None:
        raise UserError(f"--to web needs ONNX Runtime for browsers: {command}")
    for dist in (folder, folder / "node_modules" / PACKAGE / "dist"):
        if all((dist / name).is_file() for name in RUNTIME):
            about = dist.parent / "package.json"
            version = json.loads(about.read_text())["version"] if about.is_file() else "unknown"
            if version != VERSION:
                raise UserError(f"--ort {folder} is version {version} of {PACKAGE}: {command}")
            return dist
    raise UserError(f"--ort {folder} does not have {', '.join(RUNTIME)}: {command}")


def write_edition(folder: Path, runtime: Path, about: Mapping[str, Any]) -> None:
    """Add the page, its modules and ONNX Runtime to a folder that has model.onnx and preprocess.json.

    Args:
        folder: the folder.
        runtime: see :func:`find_runtime`.
        about: what the page says of the model, as :func:`brain_dist.serving.documents.model_document` has it.
    """
    for name in ("page", "ort"):
        (folder / name).mkdir()
    for file in (*PAGE.iterdir(), *FILES.iterdir()):  # the edition's server.js takes the place of the service's
        shutil.copyfile(file, (folder if file.name in AT_THE_TOP else folder / "page") / file.name)
    for name in RUNTIME:
        shutil.copyfile(runtime / name, folder / "ort" / name)
    (folder / ABOUT).write_text(json.dumps(about, indent=1, allow_nan=False) + "\n")


def write_sums(folder: Path) -> None:
    """List all files of an edition with their sha256, as ``sha256sum -c`` reads it; the page keeps these offline."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (SUMS, "lock"))
    digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
