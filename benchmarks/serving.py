"""The service under load, beside its model alone and LitServe: ``python -m benchmarks.serving MODEL IMAGE …``.

For 1, 8 and 32 clients on this machine, each sending its next image when it has the answer: requests/s and latencies
of `brain-dist serve` and of LitServe with the same model, batch size and waiting time, in turns. Beside them the model
alone with its best batch, measured before each turn by the same threads. Then overload: four times as many clients as
the service has places; and the processor time of a refusal.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.support.common import PEERS, ROOT, integers
from benchmarks.support.load import Answer, load
from brain_dist.errors import Fault, UserError, run
from brain_dist.prediction.predictor import Predictor
from brain_dist.serving.command import measure, open_predictor
from brain_dist.serving.settings import Settings

QUEUE = 64
START = 120  # seconds that a service may take to start


@dataclass(frozen=True)
class Contestant:
    """A service under load: its name, process and port, and how a request to it looks."""

    name: str
    process: subprocess.Popen[str]
    port: int
    path: str
    content_type: str
    bodies: list[bytes]

    def load(self, clients: int, seconds: float) -> tuple[list[Answer], float]:
        """The answers within about so many seconds, and the seconds."""
        start = time.perf_counter()
        answers = asyncio.run(
            load(
                self.port, self.path, self.content_type, self.bodies, clients=clients,
                more=lambda number: time.perf_counter() - start < seconds,
            )
        )  # fmt: skip
        return answers, time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
    parser.add_argument("--clients", type=integers, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=12, help="of each turn (default: 12)")
    parser.add_argument("--turns", type=int, default=2, help="of each number of clients (default: 2)")
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--threads", type=int, help="of a forward pass (default: as the service)")
    options = parser.parse_args(arguments)
    images = read_images(options.images)
    flags = [] if options.threads is None else ["--threads", str(options.threads)]
    settings = Settings("", 0, False, None, options.threads, options.max_batch, 0.005, QUEUE, 0, 0, 0, 0.0, 0.0, 0.0)
    alone = open_predictor(options.model, None, "cpu", settings)
    print(f"{options.model}, {len(images)} images of {np.mean([len(each) for each in images]) / 1000:.0f} kB,", end=" ")
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n")
    with own_service(options.model, images, options.max_batch, flags) as service:
        if PEERS.exists():
            with lit_service(options.model, images, options.max_batch) as peer:
                compare([service, peer], alone, options)
        else:
            print("LitServe is left out; run `make bench-setup`\n")
            compare([service], alone, options)
        code = overload(service, options.seconds)
    with own_service(
        options.model, images, options.max_batch, [*flags, "--queue", "1", "--deadline", "600"]
    ) as service:
        print(f"a refusal takes {1e6 * refusal(service):.0f} µs of the service's processor time")
    return code


def read_images(paths: Sequence[Path]) -> list[bytes]:
    """The bytes of image files."""
    files = [
        file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()
    ]
    if not files:
        raise UserError(f"{', '.join(map(str, paths))}: contains no file")
    return [file.read_bytes() for file in files[:: max(1, len(files) // 200)]]


@contextmanager
def own_service(model: Path, images: list[bytes], max_batch: int, flags: list[str]) -> Iterator[Contestant]:
    """`brain-dist serve`."""
    command = [sys.executable, "-m", "brain_dist.serve", str(model), "--port", "0", "--queue", str(QUEUE)]
    command += ["--device", "cpu", "--max-batch", str(max_batch), *flags]
    with process_of(command) as (process, log):
        wait_until(process, log, lambda: "Not a medical device" in log.read_text())
        match = re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text())
        assert match
        port = int(match[1])
        wait_until(process, log, lambda: listens(port))
        yield Contestant("serve", process, port, "/v1/predict", "application/octet-stream", images)


def listens(port: int) -> bool:
    """Whether a service listens at a port of this machine."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@contextmanager
def lit_service(model: Path, images: list[bytes], max_batch: int) -> Iterator[Contestant]:
    """LitServe with the same model; an image is base64 in JSON, as its clients send it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = ROOT / "benchmarks" / "support" / "litserve_contestant.py"
    command = [str(PEERS), str(script), str(model.resolve()), str(port), str(max_batch), "0.005"]
    bodies = [json.dumps({"image": base64.b64encode(image).decode()}).encode() for image in images]
    with process_of(command) as (process, log):
        peer = Contestant("LitServe", process, port, "/predict", "application/json", bodies)

        def answers() -> bool:
            try:
                return peer.load(1, 0.1)[0][0].status == 200
            except OSError:
                return False

        wait_until(process, log, answers)
        yield peer


@contextmanager
def process_of(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process in a session of its own, and the file of its output; it ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
        try:
            yield process, log
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(30)


def wait_until(process: subprocess.Popen[str], log: Path, condition: Callable[[], bool]) -> None:
    """Wait for a service's start.

    Raises:
        Fault: it ended, or took too long.
    """
    end = time.monotonic() + START
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            lines = log.read_text().strip().splitlines() or ["no output"]
            raise Fault(f"a service did not start: {lines[-1]}")
        time.sleep(0.2)


def compare(contestants: list[Contestant], alone: Predictor, options: argparse.Namespace) -> None:
    """Print a row for each number of clients and contestant."""
    print("| clients | | requests/s | of the model alone | p50 | p95 | p99 | failed |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|")
    for each in contestants:
        each.load(8, 2)  # warm
    for clients in options.clients:
        seconds: dict[str, list[float]] = collections.defaultdict(list)
        counts: dict[str, list[float]] = collections.defaultdict(list)
        failed: collections.Counter[str] = collections.Counter()
        own = []
        for turn in range(options.turns):
            speed = measure(alone, options.max_batch)
            own.append(speed["images_per_second"])
            for each in contestants if turn % 2 == 0 else contestants[::-1]:
                answers, wall = each.load(clients, options.seconds)
                good = [answer.seconds for answer in answers if answer.status == 200]
                failed[each.name] += len(answers) - len(good)
                seconds[each.name] += good
                counts[each.name].append(len(good) / wall)
        rate = float(np.mean(own))
        one, best = speed["milliseconds"], speed["batch"]
        print(f"| {clients} | model alone, batches of {best:.0f} | {rate:.1f} | 1 | {one:.1f} ms (one image) | | | |")
        for each in contestants:
            p50, p95, p99 = 1000 * np.percentile(seconds[each.name], (50, 95, 99))
            mean = float(np.mean(counts[each.name]))
            print(
                f"| {clients} | {each.name} | {mean:.1f} | {mean / rate:.2f} | {p50:.1f} ms | {p95:.1f} ms"
                f" | {p99:.1f} ms | {failed[each.name]} |", flush=True,
            )  # fmt: skip


def overload(service: Contestant, seconds: float) -> int:
    """Load the service with four times as many clients as it has places; the exit code is 1 if it did not hold."""
    memory = [resident(service.process.pid)]
    answers = []
    for _ in range(2):
        answers += service.load(4 * QUEUE, seconds)[0]
        memory.append(resident(service.process.pid))
    by_status = collections.Counter(answer.status for answer in answers)
    refused = [1000 * answer.seconds for answer in answers if answer.status == 503] or [0.0]
    print(f"\n{4 * QUEUE} clients for {QUEUE} places: {by_status[200]:,} answered, {by_status[503]:,} refused (503) in")
    print(f"{np.percentile(refused, 50):.1f} ms (p50), {np.percentile(refused, 99):.1f} ms (p99),", end=" ")
    print(f"other answers {sum(by_status.values()) - by_status[200] - by_status[503]}; resident memory", end=" ")
    print(" → ".join(f"{each / 1e6:.0f} MB" for each in memory))
    held = set(by_status) <= {200, 503} and service.process.poll() is None
    return 0 if held else 1


def refusal(service: Contestant) -> float:
    """Seconds of processor time that a service with a single place, which is taken, needs for a refusal."""
    with socket.create_connection(("127.0.0.1", service.port)) as holder:
        holder.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        service.load(32, 1)  # warm
        start = processor_seconds(service.process.pid)
        answers, _ = service.load(32, 4)
        used = processor_seconds(service.process.pid) - start
    if {answer.status for answer in answers} != {503}:
        raise Fault("a service without a free place did not refuse all requests")
    return used / len(answers)


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


if __name__ == "__main__":
    sys.exit(run(main))
