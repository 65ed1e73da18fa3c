"""`brain-dist dicom listen`: receive MR series, evaluate them, send or keep a report about each.

Whatever the node has answered with success is on disk. At a stop signal it refuses further images, evaluates and sends
what it can within the grace time, and leaves the rest to its next start.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from brain_dist.common.files import check_writable
from brain_dist.common.limits import forbid_core_dumps
from brain_dist.common.locks import Busy, take_lock
from brain_dist.common.notify import notify
from brain_dist.dicomnode.evaluator import Evaluator
from brain_dist.dicomnode.header import silence
from brain_dist.dicomnode.inbox import SETTLE, Inbox
from brain_dist.dicomnode.receiver import Receiver
from brain_dist.dicomnode.sender import Peer, Sender, checked_title
from brain_dist.dicomnode.series import check_extra
from brain_dist.errors import Fault, UserError

LAST_WORDS = 5.0  # seconds that senders have to end their associations after a stop signal
MEGABYTE = 2**20


def listen(
    model: Path,
    store: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 11112,
    aet: str = "BRAIN_DIST",
    to: str | None = None,
    senders: Sequence[str] = (),
    queue: int = 4000,
    max_mb: int = 1000,
    batch: int = 32,
    step: int | str | None = None,
    device: str = "auto",
    grace: float = 30.0,
) -> int:
    """Run the node until a stop signal.

    Args:
        model: the folder of a run or of an export.
        store: folder for received images until they are evaluated, and for reports until they are sent.
        host: address to listen on.
        port: its port.
        aet: the node's application entity title.
        to: the peer that gets the reports, ``HOST:PORT:AET``; None keeps them in ``store``.
        senders: titles of the entities that may send; empty allows all.
        queue: images that may wait; a further one is refused with status 0xA700.
        max_mb: size of an image in MB; a larger one is refused. Each of 16 associations may need twice that in memory.
        batch: images per forward pass.
        step: see :func:`brain_dist.prediction.predictor.load`.
        device: auto, cpu or cuda.
        grace: seconds for the work that is left after a stop signal.

    Returns:
        0 after a stop signal.

    Raises:
        UserError: an option, the model or the folder cannot be used.
        Fault: the disk is full.
    """
    check_extra()
    title = checked_title(aet, "--aet")
    allowed = [checked_title(each, "--sender") for each in senders]
    peer = None if to is None else Peer.parse(to)
    for name, value in (("--queue", queue), ("--max-mb", max_mb), ("--batch", batch)):
        if value < 1:
            raise UserError(f"{name} {value}: must be ≥ 1")
    if not 1 <= port <= 65535:
        raise UserError(f"--port {port}: must be between 1 and 65535")
    silence()
    forbid_core_dumps()
    check_writable(store, "choose another --store")
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        lock = take_lock(store / "lock", required=False)
    except Busy:
        raise UserError(f"another node uses {store}; choose another --store for this one") from None
    from brain_dist.prediction.predictor import load

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with lock:
        predictor = load(model, step=step, device=device)
        inbox = Inbox(store, queue)
        reports = store / ("reports" if peer is None else "unsent")
        reports.mkdir(exist_ok=True)
        sender = None if peer is None else Sender(reports, peer, title)
        evaluator = Evaluator(
            predictor, inbox, reports, batch=batch, written=(lambda: None) if sender is None else sender.wake,
            failed=stop.set,
        )  # fmt: skip
        receiver = Receiver(inbox, host, port, title, allowed, max_mb * MEGABYTE)
        if inbox.waiting:
            print(f"{inbox.waiting:,} images of an earlier start are evaluated now")
        for thread in filter(None, (evaluator, sender)):
            thread.start()
        goal = f"reports go to {peer}" if peer else f"reports stay in {reports}"
        print(f"listening on {host}:{port} as {title}; {goal}; not a medical device", flush=True)
        notify("READY=1")
        while not stop.wait(1.0):
            inbox.close_quiet(SETTLE)
        _stop(receiver, inbox, evaluator, sender, time.monotonic() + grace)
        left = len(list(reports.glob("*.dcm"))) if sender else 0
        print(f"stopped; {inbox.waiting:,} images and {left:,} reports wait in {store} for the next start", flush=True)
    if evaluator.fault is not None:
        raise Fault(f"{store} cannot be written ({evaluator.fault}); free some space and start again")
    return 0


def _stop(
    receiver: Receiver, inbox: Inbox, evaluator: Evaluator, sender: Sender | None, deadline: float
) -> None:  # fmt: skip
    """Refuse what comes, and finish before the deadline what has come."""
    inbox.stop()
    print("stopping: further images are refused", flush=True)
    notify("STOPPING=1")
    receiver.stop()
    patience = min(deadline, time.monotonic() + LAST_WORDS)
    while receiver.associations and time.monotonic() < patience:
        time.sleep(0.05)
    for association in receiver.associations:
        association.abort()
    inbox.end()
    evaluator.join(max(0.0, deadline - time.monotonic()))
    if sender is not None:
        sender.end()
        sender.join(max(0.0, deadline - time.monotonic()))
