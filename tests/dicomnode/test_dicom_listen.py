"""`brain-dist dicom listen` in a real process, with dcmtk's storescu, echoscu and storescp at its ends."""

from __future__ import annotations

import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicom_series import PATIENT, ROOT, dump, errors_of, write_series
from fork_server import Ranks
from helpers import fork_server, free_ports, in_process
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode

from brain_dist.collection.decoding import BadImage
from brain_dist.dicomnode.header import read_header
from brain_dist.dicomnode.inbox import Inbox
from brain_dist.dicomnode.sender import Peer, Sender

pytestmark = pytest.mark.skipif(not shutil.which("storescu"), reason="needs Debian's dcmtk")


class Node:
    """A node that runs in a process of its own."""

    def __init__(self, run: Path, folder: Path, *options: str, port: int, **variables: str) -> None:
        self.port = port
        self.store, self.log = folder / "store", folder / f"log-{time.monotonic_ns()}"
        arguments = ["listen", str(run), "--store", str(self.store), "--port", str(self.port), "--device", "cpu"]
        self.process = Ranks(fork_server(), 1, "dicom", [*arguments, *options], self.log, env=variables)

    def wait_until_ready(self) -> None:
        wait_for(lambda: "listening on" in self.text or not self.process.running())
        assert "listening on" in self.text, self.text

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.signal(0, number)
        return self.process.wait(120)[0]


@contextmanager
def node(run: Path, folder: Path, *options: str, port: int | None = None, **variables: str) -> Iterator[Node]:
    """A node that is ready, and is killed at the end if it still runs."""
    started = Node(run, folder, *options, port=port or free_ports(1)[0], **variables)
    try:
        started.wait_until_ready()
        yield started
    finally:
        if started.process.running():
            started.stop(signal.SIGKILL)


@contextmanager
def archive(folder: Path, port: int) -> Iterator[Path]:
    """The storescp of dcmtk as a PACS; its folder of what it received."""
    folder.mkdir(exist_ok=True)
    command = ["storescp", "--aetitle", "PACS", "--output-directory", str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: process.poll() is not None or _accepts(port))
        assert process.poll() is None, f"storescp cannot listen on port {port}"
        yield folder
    finally:
        process.kill()
        process.wait()


def _accepts(port: int) -> bool:
    """Whether somebody listens on a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def bound(manager: socket.socket, folder: Path) -> str:
    """The address of a socket that stands for systemd's."""
    manager.bind(str(folder / "notify"))
    manager.settimeout(60)
    return str(folder / "notify")


def wait_for(condition: Callable[[], Any]) -> Any:
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + 120
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen within two minutes"
        time.sleep(0.02)
    return value


def received(pacs: Path, listener: Node) -> list[Path]:
    """The three reports that a PACS has got."""
    with says(lambda: f"{sorted(each.name for each in pacs.iterdir())}\n{listener.text}"):
        wait_for(lambda: len(list(pacs.glob("SR*"))) == 3)
    return sorted(pacs.glob("SR*"))


@contextmanager
def says(what: Callable[[], str]) -> Iterator[None]:
    """Add a text to the message of a failed assertion."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{error}\n{what()}") from None


def send(port: int, paths: list[Path], *options: str) -> subprocess.CompletedProcess[str]:
    """Send files by storescu."""
    command = ["storescu", *options, "-aec", "BRAIN_DIST", "127.0.0.1", str(port), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def images(report: Path) -> int:
    """How many images a report is about."""
    (study,) = pydicom.dcmread(report).CurrentRequestedProcedureEvidenceSequence
    return sum(len(series.ReferencedSOPSequence) for series in study.ReferencedSeriesSequence)


def test_series_come_in_and_reports_go_out(trained_run: Path, tmp_path: Path) -> None:
    first, second = write_series(tmp_path, 1, 3), write_series(tmp_path, 2, 1)
    (refused,) = write_series(tmp_path, 3, 1, BurnedInAnnotation="YES")
    (pacs_port,) = free_ports(1)
    options = ["--to", f"127.0.0.1:{pacs_port}:PACS", "--sender", "STORESCU"]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        archive(tmp_path / "pacs", pacs_port) as pacs,
        node(trained_run, tmp_path, *options, NOTIFY_SOCKET=bound(manager, tmp_path)) as listener,
    ):
        assert manager.recv(64) == b"READY=1"
        echo = ["echoscu", "-aec", "BRAIN_DIST", "127.0.0.1", str(listener.port)]
        assert subprocess.run([*echo, "-aet", "STORESCU"], check=False).returncode == 0
        assert subprocess.run([*echo, "-aet", "STRANGER"], check=False, capture_output=True).returncode != 0
        assert send(listener.port, [*first, *second, refused]).returncode == 0
        reports = received(pacs, listener)
        wait_for(lambda: not list((listener.store / "unsent").iterdir()))
        assert listener.stop() == 0
        assert manager.recv(64) == b"STOPPING=1"
        assert list((listener.store / "incoming").iterdir()) == []
        assert sorted(images(report) for report in reports) == [1, 1, 3]
        for report in reports:
            assert errors_of(report) == []
        texts = [dump(report) for report in reports]
        assert all("Müller^Zoë" in text and f"{ROOT}1." in text for text in texts)
        assert sum("The image has burned-in annotation." in text for text in texts) == 1
        assert sum('"Class with the largest probability"' in text for text in texts) == 2
        log = listener.text
        assert log.splitlines()[-1].startswith("stopped; 0 images and 0 reports wait in ")
        for text in (*PATIENT.values(), "Zo", "19610412", ROOT):
            assert text not in log


@pytest.mark.slow
def test_what_was_accepted_survives_stops_crashes_and_an_absent_peer(trained_run: Path, tmp_path: Path) -> None:
    paths = write_series(tmp_path, 1, 5)
    (pacs_port,) = free_ports(1)
    options = ["--to", f"127.0.0.1:{pacs_port}:PACS", "--queue", "3"]
    client = AE(ae_title="SCANNER")
    client.add_requested_context(MRImageStorage)
    with node(trained_run, tmp_path, *options) as listener:  # killed with two images of an open association
        association = client.associate("127.0.0.1", listener.port, ae_title="BRAIN_DIST")
        datasets = [pydicom.dcmread(path) for path in paths]
        assert [association.send_c_store(each).Status for each in datasets[:2]] == [0, 0]
        listener.stop(signal.SIGKILL)
        association.abort()
    with node(trained_run, tmp_path, *options) as listener:
        wait_for(lambda: len(list((listener.store / "unsent").glob("*.dcm"))) == 1)
        association = client.associate("127.0.0.1", listener.port, ae_title="BRAIN_DIST")
        statuses = [association.send_c_store(each).Status for each in datasets]
        assert statuses == [0, 0, 0, 0xA700, 0xA700]
        association.release()
        wait_for(lambda: len(list((listener.store / "unsent").glob("*.dcm"))) == 2)
        association = client.associate("127.0.0.1", listener.port, ae_title="BRAIN_DIST")
        assert association.send_c_store(datasets[0]).Status == 0
        listener.process.signal(0, signal.SIGTERM)
        wait_for(lambda: "stopping" in listener.text)
        assert association.send_c_store(datasets[1]).Status == 0xA700
        association.release()
        assert listener.process.wait(120) == [0]
        assert "stopped; 0 images and 3 reports wait in " in listener.text
        assert "cannot be reached, or refuses the association" in listener.text
    with archive(tmp_path / "pacs", pacs_port) as pacs, node(trained_run, tmp_path, *options) as listener:
        reports = received(pacs, listener)
        assert sorted(images(report) for report in reports) == [1, 2, 3]
        partial = next(report for report in reports if images(report) == 3)
        assert "Incomplete: 2 images of this series were refused" in dump(partial)
        assert listener.stop() == 0


def test_no_sender_fills_the_memory(trained_run: Path, tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, 1, 1)
    small, large = pydicom.dcmread(path), pydicom.dcmread(path)
    large.PixelData = bytes(64 * 2**20)
    client = AE(ae_title="SCANNER")
    client.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    with node(trained_run, tmp_path, "--max-mb", "1") as listener:
        association = client.associate("127.0.0.1", listener.port, ae_title="BRAIN_DIST")
        assert association.send_c_store(small).Status == 0
        before = peak_memory(listener)
        assert association.send_c_store(large).Status == 0xC000
        assert peak_memory(listener) < before + 16  # MB; pynetdicom alone would collect the 64 MB
        assert association.send_c_store(small).Status == 0
        association.release()
        with socket.create_connection(("127.0.0.1", listener.port), 20) as connection:
            connection.sendall(struct.pack(">BBL", 1, 0, 2**31))  # a request for an association of 2 GB
            assert connection.recv(1) == b""
        hasty = client.associate("127.0.0.1", listener.port, ae_title="BRAIN_DIST")
        with suppress(OSError, AttributeError):  # the connection may end while it sends
            for number in range(300):
                hasty.dimse.send_msg(request(small, number), hasty.accepted_contexts[0].context_id)
        wait_for(lambda: hasty.is_aborted)
        assert listener.stop() == 0


def peak_memory(listener: Node) -> float:
    """The most memory that a node has had so far, in MB."""
    status = Path(f"/proc/{listener.process.pids[0]}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def request(image: pydicom.Dataset, number: int) -> C_STORE:
    """A request to store an image."""
    message = C_STORE()
    message.MessageID, message.Priority = number + 1, 2
    message.AffectedSOPClassUID, message.AffectedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    message.DataSet = BytesIO(encode(image, False, True) or b"")
    return message


def test_a_report_that_the_peer_refuses_does_not_hold_up_the_others(tmp_path: Path) -> None:
    def write(name: str) -> None:
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = ComprehensiveSRStorage, f"1.2.{name}"
        data.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)

    asked: list[str] = []

    def store(event: Any) -> int:
        asked.append(str(event.request.AffectedSOPInstanceUID))
        return 0xA900 if asked[-1] == "1.2.1" else 0

    peer = AE(ae_title="PACS")
    peer.add_supported_context(ComprehensiveSRStorage)
    server = peer.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None
    (tmp_path / "0.dcm").write_bytes(b"damaged")
    write("1")
    write("2")
    sender = Sender(tmp_path, Peer("127.0.0.1", server.socket.getsockname()[1], "PACS"), "BRAIN_DIST")
    try:
        sender.start()
        wait_for(lambda: not (tmp_path / "2.dcm").exists())
        assert asked == ["1.2.1", "1.2.2"]
        wait_for(lambda: asked.count("1.2.1") == 2)  # it is tried again
        write("3")
        sender.wake()
        wait_for(lambda: not (tmp_path / "3.dcm").exists())
        assert asked == ["1.2.1", "1.2.2", "1.2.1", "1.2.3"]  # but not before the new one
        sender.end()
        sender.join(60)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0.dcm", "1.dcm"]
    finally:
        server.shutdown()


def test_inbox_closes_quiet_series_and_gives_up_on_deadly_ones(tmp_path: Path) -> None:
    path, other = (write_series(tmp_path / "images", number, 1)[0] for number in (1, 2))
    headers = [read_header(each.read_bytes()) for each in (path, other)]
    inbox = Inbox(tmp_path, 2)
    assert inbox.add(7, headers[0], path.read_bytes())
    inbox.close_quiet(60)
    assert inbox.jobs.empty()
    inbox.close_quiet(0)
    job = inbox.jobs.get_nowait()
    assert job is not None
    assert (job.images, job.refused, inbox.waiting) == (1, 0, 1)
    assert job.paths[0].read_bytes() == path.read_bytes()
    assert inbox.add(7, headers[1], other.read_bytes())
    assert not inbox.add(7, headers[1], other.read_bytes())  # two wait
    assert inbox.begin(job)  # and the process ends, twice
    again = Inbox(tmp_path, 2)
    job = again.jobs.get_nowait()
    assert job is not None
    assert again.begin(job)
    third = Inbox(tmp_path, 2)
    job = third.jobs.get_nowait()
    assert job is not None
    assert not third.begin(job)
    third.done(job, failed=True)
    assert third.waiting == 1
    assert [each.name for each in (tmp_path / "failed").iterdir()] == [job.folder.name]
    third.stop()
    assert not third.add(8, headers[0], path.read_bytes())
    third.end()
    remaining = third.jobs.get_nowait()
    assert remaining is not None
    assert third.begin(remaining)
    assert third.jobs.get_nowait() is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--to", "pacs:104"], "--to pacs:104: must be HOST:PORT:AET, such as pacs.example:104:PACS"),
        (["--aet", "A_TITLE_THAT_IS_TOO_LONG"], "--aet A_TITLE_THAT_IS_TOO_LONG: a title of 1 to 16 ASCII characters"),
        (["--queue", "0"], "--queue 0: must be ≥ 1"),
        (["--port", "99999"], "--port 99999: must be between 1 and 65535"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, options: list[str], error: str) -> None:
    arguments = ["listen", str(tmp_path), "--store", str(tmp_path / "store"), *options]
    result = in_process("dicom", *arguments, expect=2)
    assert result.err.count("\n") == 1
    assert error in result.err


def test_file_that_is_not_dicom_has_no_header() -> None:
    with pytest.raises(BadImage, match="is not a DICOM file"):
        read_header(b"\0" * 200)
