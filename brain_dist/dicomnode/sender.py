"""The thread that sends reports to a PACS until it has confirmed them."""

from __future__ import annotations

import threading
import time
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
        """Send reports until the end. One that the peer refuses does not delay the others."""
        pause, again = FIRST_PAUSE, 0.0
        refused: set[Path] = set()
        while True:
            self._wake.clear()
            ending = self._ending.is_set()  # after it, since both are set together
            if ending or time.monotonic() >= again:
                refused.clear()
            pending = [path for path in sorted(self._folder.glob("*.dcm")) if path not in refused]
            held = len(refused)
            reached = self._send(pending, refused) if pending else True
            if ending:
                return
            if len(refused) > held or not reached:
                again = time.monotonic() + pause
                pause = min(2 * pause, LONGEST_PAUSE)
            if not reached:
                self._ending.wait(again - time.monotonic())
            elif refused:
                self._wake.wait(max(0.0, again - time.monotonic()))
            else:
                pause = FIRST_PAUSE
                self._wake.wait()

    def _send(self, paths: list[Path], refused: set[Path]) -> bool:
        """Send files, and add those that the peer refuses to ``refused``; returns whether it could be reached."""
        problem, association, reached = "", None, False
        try:
            association = self._associate()
            reached = association.is_established
            if not reached:
                problem = "cannot be reached, or refuses the association"
            for path in paths if reached else []:
                reason = _send_one(association, path)
                problem = problem or reason
                if reason and not association.is_established:
                    reached = False
                    break
                if reason:
                    refused.add(path)
        except Exception as error:  # whatever pynetdicom raises; the thread must go on
            problem, reached = f"did not take a report ({type(error).__name__})", False
        finally:
            if association is not None and association.is_established:
                association.release()
        is_broken = bool(problem or refused)
        if is_broken and not self._broken:
            left = len(list(self._folder.glob("*.dcm")))
            print(f"{self._peer} {problem}; {left} reports wait and are sent again", flush=True)
        elif self._broken and not is_broken:
            print(f"{self._peer} takes reports again", flush=True)
        self._broken = is_broken
        return reached

    def _associate(self) -> Any:
        from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
        from pynetdicom import AE

        entity = AE(ae_title=self._title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = TIMEOUT
        entity.add_requested_context(ComprehensiveSRStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        return entity.associate(self._peer.host, self._peer.port, ae_title=self._peer.title)


def _send_one(association: Any, path: Path) -> str:
    """Send a file, and remove it if the peer has it; returns what is wrong, or an empty text."""
    from pydicom import dcmread

    try:
        code = association.send_c_store(dcmread(path)).get("Status")
    except Exception as error:  # a damaged file, or a peer that accepts no Comprehensive SR
        return f"did not take a report ({type(error).__name__})"
    if code in ACCEPTED:
        path.unlink(missing_ok=True)
        return ""
    return "did not answer" if code is None else f"refused a report with status 0x{code:04X}"
