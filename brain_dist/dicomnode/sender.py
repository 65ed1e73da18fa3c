"""The thread that sends reports to a PACS until it has confirmed them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_dist.errors import UserError

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds before a report is sent again
TIMEOUT = 20  # seconds in which the peer must answer
ACCEPTED = (0x0000, 0xB000, 0xB006, 0xB007)  # success, and warnings with which the instance is stored (PS3.4, B.2.3)


@dataclass(frozen=True)
class Peer:
    """The application entity that gets the reports."""

    host: str
    port: int
    title: str

    @classmethod
    def parse(cls, text: str) -> Peer:
        """The peer that ``HOST:PORT:AET`` names.

        Raises:
            UserError: the text has another form.
        """
        host, _, rest = text.partition(":") if not text.startswith("[") else text[1:].partition("]:")
        port, _, title = rest.partition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16 or not title:
            raise UserError(f"--to {text}: must be HOST:PORT:AET, such as pacs.example:104:PACS")
        return cls(host, int(port), checked_title(title, "--to"))

    def __str__(self) -> str:
        return f"{self.title} at {self.host}:{self.port}"


def checked_title(title: str, option: str) -> str:
    """An application entity title, if it is one.

    Raises:
        UserError: it is not 1 to 16 printable ASCII characters without a backslash.
    """
    if not 1 <= len(title.strip()) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
        raise UserError(f"{option} {title}: a title of 1 to 16 ASCII characters is needed")
    return title.strip()


class Sender(threading.Thread):
    """Sends every file of a folder to a peer and removes it when the peer has confirmed it."""

    def __init__(self, folder: Path, peer: Peer, title: str) -> None:
        """Prepare the thread.

        Args:
            folder: where the reports are.
            peer: who gets them.
            title: the node's own title.
        """
        super().__init__(name="sender", daemon=True)
        self._folder, self._peer, self._title = folder, peer, title
        self._wake, self._ending, self._broken = threading.Event(), threading.Event(), False

    def wake(self) -> None:
        """Tell the thread that there is a report."""
        self._wake.set()

    def end(self) -> None:
        """Let the thread try each report once more, and then end."""
        self._ending.set()
        self._wake.set()

    def run(self) -> None:
        """Send reports until the end."""
        pause = FIRST_PAUSE
        while True:
            ending = self._ending.is_set()
            pending = sorted(self._folder.glob("*.dcm"))
            left = self._send(pending) if pending else 0
            if ending:
                return
            if left:
                self._ending.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._wake.wait()
                self._wake.clear()
                pause = FIRST_PAUSE

    def _send(self, paths: list[Path]) -> int:
        """Send files; returns how many were not confirmed."""
        from pydicom import dcmread

        left, problem, association = len(paths), "", None
        try:
            association = self._associate()
            if not association.is_established:
                problem = "cannot be reached, or refuses the association"
            for path in paths if association.is_established else []:
                status = association.send_c_store(dcmread(path))
                code = status.get("Status")
                if code in ACCEPTED:
                    path.unlink()
                    left -= 1
                else:
                    problem = "did not answer" if code is None else f"refused a report with status 0x{code:04X}"
        except Exception as error:  # whatever pynetdicom raises; the thread must go on
            problem = f"did not take a report ({type(error).__name__})"
        finally:
            if association is not None and association.is_established:
                association.release()
        if problem and not self._broken:
            print(f"{self._peer} {problem}; {left} reports wait and are sent again", flush=True)
        elif self._broken and not problem:
            print(f"{self._peer} takes reports again", flush=True)
        self._broken = bool(problem)
        return left

    def _associate(self) -> Any:
        from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
        from pynetdicom import AE

        entity = AE(ae_title=self._title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = TIMEOUT
        entity.add_requested_context(ComprehensiveSRStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        return entity.associate(self._peer.host, self._peer.port, ae_title=self._peer.title)
