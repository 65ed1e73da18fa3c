"""The service under load, through restarts, and under requests that nobody would send."""

from __future__ import annotations

import asyncio
import collections
import io
import json
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import schemathesis
from damage import mutate
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from pictures import draw
from scans import write_dicom, write_nifti
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)
from services import Service

import brain_dist
from benchmarks.support.load import load

pytestmark = pytest.mark.slow
BINARY = "application/octet-stream"


def pngs(count: int) -> list[bytes]:
    images = []
    for number in range(count):
        buffer = io.BytesIO()
        draw(number).save(buffer, "PNG")
        images.append(buffer.getvalue())
    return images


def test_no_request_is_lost_through_three_restarts(trained_run: Path, tmp_path: Path) -> None:
    images = pngs(16)
    predictor = brain_dist.load(trained_run, device="cpu")
    labels = [predictor.predict(image)[0].label for image in images]
    services = [Service(trained_run, tmp_path / "0", "--reuse-port")]
    port = services[0].port
    done = threading.Event()
    codes = []

    def restart() -> None:
        for number in range(1, 4):
            services.append(Service(trained_run, tmp_path / str(number), "--reuse-port", port=port))
            codes.append(services[-2].stop())
        done.set()

    restarts = threading.Thread(target=restart)
    restarts.start()
    more = lambda number: number < 2000 or not done.is_set()  # noqa: E731
    answers = asyncio.run(load(port, "/v1/predict", BINARY, images, clients=8, more=more))
    restarts.join()
    codes.append(services[-1].stop())
    assert codes == [0, 0, 0, 0]
    assert sorted(each.number for each in answers) == list(range(len(answers)))
    assert len(answers) >= 2000
    assert {each.status for each in answers} == {200}
    for each in answers:
        assert json.loads(each.body)["predictions"][0]["label"] == labels[each.number % len(images)]
    assert all("Traceback" not in service.log() for service in services)
    print(f"\n{len(answers):,} requests, 3 restarts, {sum(each.tries - 1 for each in answers)} retries by clients")


def test_four_times_the_load_is_refused_and_memory_stays(trained_run: Path, tmp_path: Path) -> None:
    service = Service(trained_run, tmp_path / "own", "--queue", "8")
    images = pngs(16)

    def turn(count: int) -> collections.Counter[int]:
        answers = asyncio.run(
            load(service.port, "/v1/predict", BINARY, images, clients=32, more=lambda number: number < count)
        )
        return collections.Counter(each.status for each in answers)

    turn(2000)  # threads and caches are there from now on
    before = service.memory()
    counts = turn(6000)
    assert set(counts) == {200, 503}
    assert min(counts.values()) > 50
    assert service.memory() < before + 20e6
    assert service.predict(images[0]).status_code == 200
    assert service.stop() == 0


def test_two_thousand_damaged_and_generated_requests(trained_run: Path, tmp_path: Path) -> None:
    service = Service(trained_run, tmp_path / "own", "--max-mb", "1")
    stack = np.stack([np.asarray(draw(number)) for number in range(3)]).astype(np.uint16)
    head = draw(8)
    head.save(tmp_path / "a.jpg")
    head.save(tmp_path / "b.png")
    head.save(tmp_path / "c.tif")
    head.save(tmp_path / "d.webp")
    write_dicom(tmp_path / "e.dcm", stack, Modality="MR")
    write_nifti(tmp_path / "f.nii.gz", np.transpose(stack.astype(np.int16), (2, 1, 0)))
    originals = [path.read_bytes() for path in sorted(tmp_path.glob("?.*"))]
    assert len(originals) == 6
    rng = random.Random(0)
    bodies = [mutate(originals[n % 6], rng) for n in range(1500)]
    answers = asyncio.run(load(service.port, "/v1/predict", BINARY, bodies, clients=4, more=lambda n: n < 1500))
    form = b'--x\r\nContent-Disposition: form-data; name="f"; filename="n"\r\n\r\n%b\r\n--x--\r\n'
    forms = [mutate(form % originals[n % 6][:4000], rng) for n in range(300)]
    kind = "multipart/form-data; boundary=x"
    for path in ("/v1/predict", "/v1/predict/batch"):
        answers += asyncio.run(load(service.port, path, kind, forms, clients=4, more=lambda n: n < 150))
    statuses = collections.Counter(each.status for each in answers)
    assert set(statuses) <= {200, 400, 413, 415, 422, 503, 504}, statuses
    assert statuses[200] > 100
    assert statuses[422] > 100

    schema = schemathesis.openapi.from_url(service.url + "openapi.json")
    generated: collections.Counter[int] = collections.Counter()
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @hypothesis_settings(
            max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )  # fmt: skip
        def ask(case: schemathesis.Case) -> None:
            response = case.call(timeout=120)  # the first map loads libraries
            generated[response.status_code] += 1
            case.validate_response(
                response,
                checks=[
                    not_a_server_error,
                    response_schema_conformance,
                    status_code_conformance,
                    content_type_conformance,
                ],
            )

        ask()
    assert sum(generated.values()) >= 200
    assert set(generated) <= {200, 400, 413, 415, 422, 503, 504}
    assert service.predict(originals[0]).status_code == 200
    assert "brain-dist: error" not in service.log()  # the libraries may say what is damaged
    print(f"\nmutated: {dict(statuses)}; generated: {dict(generated)}")
    assert service.stop() == 0
