"""A real process of `brain-dist serve`: its answers, its refusals, its limits, its end."""

from __future__ import annotations

import io
import random
import re
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from damage import mutate
from formats import write_formats
from helpers import in_process
from pictures import draw, png_bytes
from scans import write_dicom, write_nifti
from services import Service

import brain_dist
from brain_dist.prediction.table import columns, row

SECRET = "Zebediah Quux"  # the patient's and the files' name
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
LIMITS = ("--max-mb", "0.5", "--max-mp", "0.3", "--max-frames", "20", "--queue", "3", "--deadline", "20")


@pytest.fixture(scope="module")
def service(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(trained_run, tmp_path_factory.mktemp("service") / "own", *LIMITS, "--reuse-port")
    yield service
    service.stop()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in every format, with a patient's name in the DICOM files."""
    folder = tmp_path_factory.mktemp(SECRET.replace(" ", "_"))
    write_formats(folder)
    stack = np.stack([np.asarray(draw(number)) for number in range(5)]).astype(np.uint16)
    patient = {"PatientName": SECRET, "PatientID": SECRET, "Modality": "MR"}
    write_dicom(folder / "patient.dcm", stack[3], **patient)
    write_dicom(folder / "ct.dcm", stack, **{**patient, "Modality": "CT"})
    return folder


def png(size: int = 96) -> bytes:
    buffer = io.BytesIO()
    draw(3, size).save(buffer, "PNG")
    return buffer.getvalue()


def is_problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert set(document) == {"type", "title", "status", "detail"}
    assert (document["status"], document["type"]) == (status, f"urn:brain-dist:{kind}")
    return document


def test_answers_are_those_of_predict(service: Service, files: Path, trained_run: Path) -> None:
    predictor = brain_dist.load(trained_run, device="cpu")
    slices = {"a.jpg": 1, "b.png": 1, "wide.png": 1, "cmyk.jpg": 1, "patient.dcm": 1, "ct.dcm": 5, "frames.dcm": 6,
              "volume.nii": 6, "volume2.nii.gz": 6}  # fmt: skip
    for name, count in slices.items():  # one file at a time, so that batches are of the same images
        data = (files / name).read_bytes()
        answers = [
            service.predict(data).json()["predictions"],
            service.post("v1/predict", files={"file": (name, data)}).json()["predictions"],
            service.post("v1/predict/batch", files={"x": (name, data)}).json()["items"][0]["predictions"],
        ]
        assert answers[0] == answers[1] == answers[2]
        assert len(answers[0]) == count
        for prediction, answer in zip(predictor.predict(files / name, batch=16), answers[0], strict=True):
            values = dict(zip(columns(CLASSES), row(prediction, CLASSES), strict=True))
            chosen = None if answer["set"] is None else "|".join(answer["set"])
            frame = None if answer["frame"] is None else str(answer["frame"])
            probabilities = {f"p_{name}": value for name, value in answer["probabilities"].items()}
            rest = {key: value for key, value in answer.items() if key != "probabilities"}
            assert {**values, "path": ""} == {**rest, **probabilities, "frame": frame, "set": chosen, "path": ""}
    verdicts = {each["verdict"] for each in service.predict((files / "ct.dcm").read_bytes()).json()["predictions"]}
    assert verdicts == {"not_like_training"}


def test_slices_are_chosen_as_by_predict(service: Service, files: Path) -> None:
    data = (files / "volume.nii").read_bytes()
    for query, frames in {"?slices=middle": [2], "?slices=1:3": [1, 2, "mean"]}.items():
        assert [each["frame"] for each in service.predict(data, query).json()["predictions"]] == frames
    is_problem(service.predict(data, "?slices=90:"), 422, "unreadable")
    is_problem(service.predict(data, "?slices=first"), 400, "bad-request")


def test_a_bad_file_never_fails_the_others_of_its_request(service: Service, files: Path) -> None:
    names = ["b.png", "truncated.jpg", "empty.png", "notes.txt", "g.dcm"]
    parts = [("files", (name, (files / name).read_bytes())) for name in names]
    parts.insert(3, ("files", ("large.png", bytes(600_000))))
    items = service.post("v1/predict/batch", files=parts).json()["items"]
    assert [item["name"] for item in items] == [*names[:3], "large.png", *names[3:]]
    assert [item["status"] for item in items] == [200, 422, 422, 413, 415, 200]
    for item in items:
        assert bool(item["predictions"]) == (item["problem"] is None) == (item["status"] == 200)
    too_many = [("files", ("b.png", png()))] * 65
    assert (
        "more than 64 files" in is_problem(service.post("v1/predict/batch", files=too_many), 413, "too-large")["detail"]
    )


def test_limits_hold_before_anything_is_decoded(service: Service, tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:  # without Content-Length
        for _ in range(600):
            yield bytes(1000)

    headers = {"Content-Type": "image/png"}
    is_problem(service.post("v1/predict", content=chunks(), headers=headers), 413, "too-large")
    is_problem(service.post("v1/predict", files={"file": ("a", bytes(600_000))}), 413, "too-large")
    bomb = png_bytes(struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0), zlib.compress(bytes(2**20)))
    is_problem(service.predict(bomb), 413, "too-large")
    is_problem(service.predict(png(600)), 413, "too-large")
    frames = write_dicom(tmp_path / "frames.dcm", np.zeros((21, 16, 16), np.uint16))
    assert "21 slices" in is_problem(service.predict(frames.read_bytes()), 413, "too-large")["detail"]
    large = write_dicom(tmp_path / "large.dcm", np.zeros((20, 16, 16), np.uint16), Rows=600, Columns=600)
    is_problem(service.predict(large.read_bytes()), 413, "too-large")
    volume = write_nifti(tmp_path / "zeros.nii.gz", np.zeros((300, 300, 18), np.int16))
    assert volume.stat().st_size < 50_000
    is_problem(service.predict(volume.read_bytes()), 413, "too-large")


def test_refusals_say_why(service: Service, files: Path) -> None:
    is_problem(service.post("v1/predict", json={"image": "…"}), 415, "unsupported")
    is_problem(service.predict(b"<!doctype html>"), 415, "unsupported")
    is_problem(
        service.post("v1/predict/batch", content=png(), headers={"Content-Type": "image/png"}), 415, "unsupported"
    )
    is_problem(service.predict(b""), 422, "unreadable")
    is_problem(service.predict((files / "truncated.jpg").read_bytes()), 422, "unreadable")
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    is_problem(service.post("v1/predict", content=b"no boundary", headers=form), 400, "bad-request")
    is_problem(
        service.post(
            "v1/predict",
            content=b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\nhalf',
            headers=form,
        ),
        400,
        "bad-request",
    )
    is_problem(service.post("v1/predict", files=[("a", ("a", png())), ("b", ("b", png()))]), 413, "too-large")
    is_problem(service.post("v1/explain?frame=-1", content=png()), 400, "bad-request")
    is_problem(service.get("v1/nothing"), 404, "not-found")
    is_problem(service.get("v1/predict"), 405, "method-not-allowed")


def send_head(service: Service, length: int, **headers: str) -> socket.socket:
    """A request whose body is still to come."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    lines = {"Host": "x", "Content-Type": "image/png", "Content-Length": str(length), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    connection.sendall(f"POST /v1/predict HTTP/1.1\r\n{head}\r\n".encode())
    return connection


def read_status(connection: socket.socket) -> int:
    return int(connection.recv(4096).split(b" ")[1])


def in_service(service: Service) -> int:
    line = next(x for x in service.get("metrics").text.splitlines() if x.startswith("brain_dist_requests_in_service "))
    return int(float(line.split()[1]))


def wait_for(condition: Any) -> None:
    event = threading.Event()
    for _ in range(3000):
        if condition():
            return
        event.wait(0.01)
    pytest.fail("the condition did not become true")


def test_requests_beyond_the_queue_are_refused_at_once(service: Service) -> None:
    data = png()
    connections = [send_head(service, len(data)) for _ in range(3)]
    wait_for(lambda: in_service(service) == 3)
    counted = 'brain_dist_requests_total{route="/v1/predict",status="503"}'
    assert counted not in service.get("metrics").text
    refused = service.predict(data)
    is_problem(refused, 503, "busy")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-content-type-options"] == "nosniff"
    assert f"{counted} 1.0" in service.get("metrics").text
    assert read_status(send_head(service, 400_000)) == 503  # before the body has come
    assert service.get("readyz").status_code == 200
    for connection in connections[:2]:
        connection.sendall(data)
        assert read_status(connection) == 200
    connections[2].close()  # a client that leaves gives its place back
    wait_for(lambda: in_service(service) == 0)
    assert service.predict(data).status_code == 200


def test_a_head_without_an_end_is_refused(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nLong: ")
        with pytest.raises(ConnectionError):
            connection.sendall(b"x" * 10_000_000)


def test_long_bodies_of_one_connection_are_not_heads(service: Service) -> None:
    """The end of each comes together with the next request."""
    data = b"x" * 200_000
    head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        sender = threading.Thread(target=connection.sendall, args=(3 * (head + data),))
        sender.start()
        received = b""
        while received.count(b"HTTP/1.1 415 ") < 3:
            piece = connection.recv(65536)
            assert piece, received
            received += piece
        sender.join()


def test_damaged_files_never_break_the_service(service: Service, files: Path) -> None:
    rng = random.Random(1)
    originals = [(files / name).read_bytes() for name in ("a.jpg", "b.png", "patient.dcm", "volume2.nii.gz")]
    statuses = [service.predict(mutate(originals[n % 4], rng)).status_code for n in range(40)]
    assert set(statuses) <= {200, 413, 415, 422}
    assert len(set(statuses)) > 1


def test_state_headers_and_description(service: Service) -> None:
    assert service.get("healthz").json() == {"status": "ok"}
    model = service.get("v1/model").json()
    assert model["classes"] == ["glioma", "meningioma", "notumor", "pituitary"]
    assert model["calibrated"] is True
    assert model["coverage"] == pytest.approx(0.7)
    assert model["maps"] == "LayerCAM"
    assert model["notice"].startswith("Not a medical device")
    assert model["limits"]["bytes"] == 500_000
    headers = service.get("healthz").headers
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    document = service.get("openapi.json").json()
    assert {"/v1/predict", "/v1/predict/batch", "/v1/explain", "/v1/model", "/healthz", "/readyz", "/metrics"} == set(
        document["paths"]
    )
    operation = document["paths"]["/v1/predict"]["post"]
    assert {"200", "400", "401", "408", "413", "415", "422", "503", "504"} == set(operation["responses"])
    assert "image/jpeg" in operation["requestBody"]["content"]


def test_head_is_get_without_a_body_and_nothing_is_redirected(service: Service) -> None:
    for path in ("", "healthz", "v1/model", "page/main.js"):
        head, get = (httpx.request(method, service.url + path, trust_env=False) for method in ("HEAD", "GET"))
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(get.content))
    head = httpx.head(service.url + "v1/predict", trust_env=False)
    assert (head.status_code, head.headers["allow"]) == (405, "POST")
    is_problem(service.post("v1/predict/", content=png()), 404, "not-found")
    is_problem(service.get("page"), 404, "not-found")


def test_a_crash_leaves_no_memory_on_the_disk(service: Service) -> None:
    limits = Path(f"/proc/{service.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)


def test_nothing_of_a_patient_is_kept(service: Service, files: Path) -> None:
    data = (files / "patient.dcm").read_bytes()
    service.post("v1/predict", files={"file": (f"{SECRET}.dcm", data)})
    service.get(f"v1/{SECRET}")
    service.predict(data[:900])
    text = service.log() + service.get("metrics").text
    for word in (*SECRET.split(), "dcm"):
        assert word not in text
    assert not list((service.folder / "tmp").rglob("*"))


def test_sigterm_finishes_requests_and_ends_with_0(service: Service, trained_run: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct-horse-battery-staple\n")
    flags = ("--reuse-port", "--token-file", str(token), "--linger", "0.5")
    other = Service(trained_run, tmp_path / "other", *flags)
    bearer = {"Authorization": "Bearer correct-horse-battery-staple"}
    for headers in ({}, {"Authorization": "Bearer correct-horse-battery-stapl"}, {"Authorization": "Basic eA=="}):
        refused = httpx.get(other.url + "v1/model", headers=headers, trust_env=False)
        is_problem(refused, 401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert httpx.post(other.url + "v1/predict", headers=headers, content=png(), trust_env=False).status_code == 401
        assert other.get("metrics", headers=headers).status_code == 401
        assert other.get("readyz", headers=headers).status_code == 200
    assert other.get("v1/model", headers=bearer).status_code == 200
    data = png()
    connection = send_head(other, len(data), **bearer)
    wait_for(lambda: "requests_in_service 1.0" in other.get("metrics", headers=bearer).text)
    other.terminate()
    wait_for(lambda: other.get("readyz").status_code == 503)
    assert other.get("readyz").json() == {"status": "draining"}
    wait_for(lambda: refuses(other.port))
    connection.sendall(data)
    assert read_status(connection) == 200
    assert other.wait() == 0
    assert "SIGTERM: finishing 1 requests" in other.log()
    assert "Traceback" not in other.log()


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_mistakes_are_one_line(service: Service, trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("abc")
    cases = {
        ("--host", "0.0.0.0"): "--host 0.0.0.0: other machines reach this address",
        ("--host", "192.0.2.1", "--allow-anonymous"): "--host 192.0.2.1 --port 0: cannot listen there",
        ("--port", str(service.port)): f"port {service.port} of 127.0.0.1 is in use",
        ("--port", "99999"): "--port 99999: must be between 0 and 65535",
        ("--max-batch", "0"): "--max-batch 0: must be between 1 and 1024",
        ("--queue", "many"): "--queue many: must be",
        ("--deadline", "nan"): "--deadline nan: must be between",
        ("--token-file", str(tmp_path / "none")): "cannot be read (No such file or directory)",
        ("--token-file", str(tmp_path / "short")): "must be one word of at least 16",
        ("--step", "77"): "77",
    }
    for flags, text in cases.items():
        port = () if "--port" in flags else ("--port", "0")
        result = in_process("serve", str(trained_run), *port, *flags, expect=2)
        assert text in result.err
        assert result.err.count("\n") == 1
    result = in_process("serve", str(tmp_path), "--port", "0", expect=2)
    assert result.err.count("\n") == 1
