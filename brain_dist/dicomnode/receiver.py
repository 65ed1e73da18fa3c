"""The storage service: takes MR images from other application entities, and answers C-ECHO."""

from __future__ import annotations

from collections.abc import Sequence
from io import SEEK_END, BytesIO
from typing import Any

from brain_dist.collection.decoding import BadImage
from brain_dist.dicomnode.header import read_header
from brain_dist.dicomnode.inbox import Inbox
from brain_dist.errors import UserError

# statuses of C-STORE (PS3.4, B.2.3)
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
VERIFICATION = "1.2.840.10008.1.1"  # C-ECHO
IDLE = 60  # seconds after which an association without messages is ended
MAX_ASSOCIATIONS = 16
MAX_PDU = 2**17  # bytes of a protocol data unit, as announced to senders
LONGEST_PDU = 2**20  # bytes of one that is read, such as a request that offers many kinds of images
MAX_COMMAND = 2**16  # bytes of what precedes an image, a few hundred as a rule


class _Discarded(BytesIO):
    """Takes the rest of an image that is too large, and keeps none of it."""

    def write(self, data: Any, /) -> int:
        return len(data)


class Receiver:
    """A server for associations; every image is on disk before its sender gets the status success.

    An association has two copies of one image in memory at most, each of ``max_bytes``: pynetdicom collects images
    without a limit, so this one is applied while they come. The rest of a larger image is read and dropped, and the
    association goes on.
    """

    def __init__(self, inbox: Inbox, host: str, port: int, title: str, senders: Sequence[str], max_bytes: int) -> None:
        """Start the server.

        Args:
            inbox: where images go.
            host: address to listen on.
            port: its port.
            title: the node's title; associations must call it.
            senders: titles that may call; empty allows all.
            max_bytes: a larger image is refused.

        Raises:
            UserError: the address cannot be used.
        """
        from pynetdicom import AE, evt

        self._inbox, self._max_bytes = inbox, max_bytes
        entity = AE(ae_title=title)
        entity.require_called_aet = True
        entity.require_calling_aet = list(senders)
        entity.maximum_associations, entity.maximum_pdu_size, entity.network_timeout = MAX_ASSOCIATIONS, MAX_PDU, IDLE
        entity.add_supported_context(VERIFICATION)
        for storage in _storage_classes():
            entity.add_supported_context(storage, _transfer_syntaxes())
        ended = [(event, self._end) for event in (evt.EVT_RELEASED, evt.EVT_ABORTED, evt.EVT_CONN_CLOSE)]
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, _limit_units), (evt.EVT_PDU_RECV, self._limit), (evt.EVT_C_STORE, self._store), *ended
        ]  # fmt: skip
        try:
            self._server: Any = entity.start_server((host, port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise UserError(
                f"{host}:{port} cannot be listened on ({error.strerror or error}); choose another --port"
            ) from None

    def stop(self) -> None:
        """Take no further association; those that are open go on."""
        self._server.shutdown()

    @property
    def associations(self) -> list[Any]:
        """The open associations."""
        return list(self._server.active_associations)

    def _limit(self, event: Any) -> None:
        """Before a part of a message is added to those that came before: stop collecting an image that is too large.

        A sender that does not wait for its answers, or whose command does not end, is not one of DICOM: its association
        is aborted.
        """
        dimse = event.assoc.dimse
        message = dimse.message
        if dimse.msg_queue.qsize() > 1 or (message is not None and message.encoded_command_set.tell() > MAX_COMMAND):
            event.assoc.abort()
        elif message is not None and message.data_set.tell() > self._max_bytes:
            message.data_set = _Discarded()

    def _store(self, event: Any) -> int:
        """Answer a C-STORE request with its status."""
        image = event.request.DataSet
        if isinstance(image, _Discarded) or image.seek(0, SEEK_END) > self._max_bytes:
            return CANNOT_UNDERSTAND
        try:
            data = event.encoded_dataset()
            accepted = self._inbox.add(id(event.assoc), read_header(data), data)
        except BadImage:
            return CANNOT_UNDERSTAND
        except OSError:
            return OUT_OF_RESOURCES
        return SUCCESS if accepted else OUT_OF_RESOURCES

    def _end(self, event: Any) -> None:
        self._inbox.close(id(event.assoc))


def _limit_units(event: Any) -> None:
    """Close a new connection at a protocol data unit that is too long; pynetdicom would read up to 4 GB of it."""
    connection = event.assoc.dul.socket
    read = connection.recv

    def read_at_most(count: int) -> Any:
        if count > LONGEST_PDU:
            raise ConnectionAbortedError("the protocol data unit is too long")
        return read(count)

    connection.recv = read_at_most


def _storage_classes() -> list[Any]:
    """Images of MR; an association about others is accepted without them, as PACS expect."""
    from pydicom.uid import (
        EnhancedMRColorImageStorage,
        EnhancedMRImageStorage,
        LegacyConvertedEnhancedMRImageStorage,
        MRImageStorage,
    )

    return [
        MRImageStorage, EnhancedMRImageStorage, EnhancedMRColorImageStorage, LegacyConvertedEnhancedMRImageStorage
    ]  # fmt: skip


def _transfer_syntaxes() -> list[Any]:
    """Those that this installation can decode; a sender has to decompress others."""
    from pydicom import uid
    from pydicom.pixels import get_decoder

    compressed = (
        uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless,
        uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000, uid.RLELossless,
    )  # fmt: skip
    return [*uid.UncompressedTransferSyntaxes, *(each for each in compressed if get_decoder(each).is_available)]
