"""Write the browser edition around an exported ONNX graph: static files that any web server can hand out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brain_dist import serving
from brain_dist.common.files import write_atomically
from brain_dist.common.records import read_record
from brain_dist.errors import UserError
from brain_dist.web import FILES

# npm's name → version, folder of the edition, and the files of it, in their folders of the package
LIBRARIES = {
    "onnxruntime-web": ("1.30.0", "ort", ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs",
                                          "dist/ort-wasm-simd-threaded.wasm")),
    "dicom-parser": ("1.8.21", "dicom", ("dist/dicomParser.min.js", "LICENSE")),
}  # fmt: skip
INSTALL = " ".join(["npm install --prefix npm", *(f"{name}@{version}" for name, (version, *_) in LIBRARIES.items())])
ABOUT, SUMS = "model.json", "SHA256SUMS"
PAGE = Path(serving.__file__).with_name("page")
WORKER = "offline.js"
AT_THE_TOP = ("index.html", WORKER)  # a service worker reaches what is below its own folder
_EDITION = "// of the edition "  # begins the worker's last line


def check_libraries(folder: Path | None) -> Path:
    """The folder in which npm installed what the browser edition needs besides the project: ``folder``, if it is there.

    Raises:
        UserError: a library is not there, or is another version.
    """
    command = f"run `{INSTALL}` and add `--npm npm`"
    if folder is None:
        raise UserError(f"--to web needs libraries for browsers: {command}")
    for name, (version, _, files) in LIBRARIES.items():
        package = folder / "node_modules" / name
        missing = [file for file in ("package.json", *files) if not (package / file).is_file()]
        if missing:
            raise UserError(f"--npm {folder}: {package / missing[0]} is missing; {command}")
        installed = read_record(package / "package.json", command, {"version": str})["version"]
        if installed != version:
            raise UserError(f"--npm {folder} has version {installed} of {name}, not {version}: {command}")
    return folder


def write_edition(folder: Path, libraries: Path, about: Mapping[str, Any]) -> None:
    """Add the page, its modules and the libraries to a folder that has model.onnx and preprocess.json.

    Args:
        folder: the folder.
        libraries: see :func:`check_libraries`.
        about: what the page says of the model, as :func:`brain_dist.serving.documents.model_document` has it.
    """
    (folder / "page").mkdir()
    for file in (*PAGE.iterdir(), *FILES.iterdir()):  # the edition's server.js takes the place of the service's
        shutil.copyfile(file, (folder if file.name in AT_THE_TOP else folder / "page") / file.name)
    for name, (_, place, files) in LIBRARIES.items():
        (folder / place).mkdir()
        for path in files:
            shutil.copyfile(libraries / "node_modules" / name / path, folder / place / Path(path).name)
    (folder / ABOUT).write_text(json.dumps(about, indent=1, allow_nan=False) + "\n")


def write_sums(folder: Path) -> None:
    """List all files of an edition with their sha256, as ``sha256sum -c`` reads it; the page keeps these offline.

    The service worker gets a line that depends on all others: a browser that has the edition looks at nothing else to
    see whether there is a new one, and would keep the old network for ever. An earlier list and line are replaced.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (SUMS, "lock"))
    files.sort(key=lambda path: path == folder / WORKER)  # last
    lines = ""
    for path in files:
        if path == folder / WORKER:
            code = path.read_text().partition(_EDITION)[0]
            write_atomically(path, f"{code}{_EDITION}{hashlib.sha256(lines.encode()).hexdigest()}\n")
        lines += f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
    write_atomically(folder / SUMS, lines)
