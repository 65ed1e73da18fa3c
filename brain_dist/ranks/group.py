"""The process group: rendezvous, collectives on Python objects, and work that one rank does for all.

Ranks exchange tensors and JSON, never pickles, because reading a pickle runs the code in it. The rendezvous store has
no access control. Therefore every rank proves, before its data are used, that it knows a secret that never enters the
store: BRAIN_DIST_SECRET, which the launcher passes on, or the content of a file that only this user can read.
"""

from __future__ import annotations

import contextlib
import datetime
import hmac
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.errors import Fault, UserError
from brain_dist.ranks.device import gpu_identity, is_out_of_memory, refuse_shared_gpus
from brain_dist.ranks.rendezvous import LONGEST_STEP, SHORTEST_WAIT, connect, serve_store
from brain_dist.ranks.threads import choose_threads
from brain_dist.ranks.world import SECRET, World

if TYPE_CHECKING:
    import numpy as np
    import torch

    from brain_dist.ranks.watch import Watch

SLICE = datetime.timedelta(seconds=1)  # of a wait in torch; after each, Python handles Ctrl-C


@contextlib.contextmanager
def process_group(
    world: World, device: torch.device, timeout: float = 600.0, watch: Watch | None = None, *, loading_threads: int = 0
) -> Iterator[None]:
    """Initialise torch.distributed for the length of a block, also for a world of one (DeepSpeed needs a group).

    Args:
        world: this process among all processes.
        device: chooses the backend: gloo, and NCCL for tensors on a GPU.
        timeout: seconds without progress after which :mod:`brain_dist.ranks.watch` ends the run. Collectives time out
            later than that, so that the watch can name the rank first.
        watch: the watch of this rank, which serves the rendezvous. With it, this rank waits for the others to start as
            long as they report what they are doing, otherwise up to 10 minutes.
        loading_threads: threads of this rank that load data, for :func:`~brain_dist.ranks.threads.choose_threads`.

    Raises:
        Fault: other ranks did not start, or a process that joined does not know the secret.
        UserError: the port of the rendezvous is in use, the secret is missing, OMP_NUM_THREADS is not a number, or two
            ranks have the same GPU.
    """
    import torch
    import torch.distributed as dist

    torch.set_num_threads(choose_threads(world, loading_threads).count)
    secret = _read_secret() if world.size > 1 else b""
    start_limit = max(timeout if watch else min(timeout, LONGEST_STEP), SHORTEST_WAIT)
    patience = datetime.timedelta(seconds=1.5 * max(timeout, LONGEST_STEP) + 60)
    with _exported_variables(world, device), _default_timeout(patience):
        server = None if watch else serve_store(world)  # noqa: F841 (keeps it open)
        store = dist.HashStore() if world.size == 1 else connect(world, start_limit)
        _wait_for_ranks(world, store, start_limit, watch)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=patience)
        succeeded = False
        try:
            if world.size > 1:
                _authenticate(world, torch.device("cpu"), secret)
                if device.type == "cuda":
                    # by gloo, as NCCL cannot connect two ranks on one GPU
                    refuse_shared_gpus(gather_objects(list(gpu_identity(device)), world))
                    _authenticate(world, device, secret)
            yield
            succeeded = True
        finally:
            # After an error, unfinished collectives with other ranks would be waited for, and the error not be printed
            if succeeded or world.size == 1:
                _destroy_process_group()


def _destroy_process_group() -> None:
    import torch.distributed as dist

    deepspeed = sys.modules.get("deepspeed")
    if deepspeed is not None and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()  # torch's group and DeepSpeed's references to it
    else:
        dist.destroy_process_group()


@contextlib.contextmanager
def _exported_variables(world: World, device: torch.device) -> Iterator[None]:
    """Set the environment variables that DeepSpeed reads even if a process group exists; restore them at the end."""
    # DeepSpeed uses the GPU with this number, which is 0 if srun shows each task only one GPU
    local_rank = world.local_rank if device.index is None else device.index
    values = {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": world.address,
        "MASTER_PORT": str(world.port),
    }
    previous = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _default_timeout(timeout: datetime.timedelta) -> Iterator[None]:
    """Let collectives of groups that are created without a timeout, as DeepSpeed's are, time out after ``timeout``."""
    from torch.distributed import distributed_c10d

    previous = distributed_c10d.default_pg_timeout
    distributed_c10d.default_pg_timeout = timeout
    try:
        yield
    finally:
        distributed_c10d.default_pg_timeout = previous


def _wait_for_ranks(world: World, store: Any, timeout: float, watch: Watch | None) -> None:
    """Wait until all ranks have started; with a ``watch``, as long as they report what they are doing."""
    import torch.distributed as dist

    if world.size == 1:
        return
    if watch:
        watch.report_progress("waiting for the other ranks to start", SHORTEST_WAIT)
    keys = [f"started/{rank}" for rank in range(world.size)]
    store.set(keys[world.rank], "1")
    deadline = math.inf if watch else time.monotonic() + timeout
    while True:
        try:
            store.wait(keys if world.is_main else ["started"], SLICE)
            store.set("started", "1")
            return
        except dist.DistNetworkError as error:
            raise Fault("rank 0, which serves the rendezvous, ended before all ranks had started") from error
        except dist.DistStoreError as error:  # not yet
            if time.monotonic() > deadline:
                missing = ", ".join(str(rank) for rank, key in enumerate(keys) if not store.check([key]))
                raise Fault(f"of {world.size} ranks, these did not start within {timeout:.0f} s: {missing}") from error


def _authenticate(world: World, device: torch.device, secret: bytes) -> None:
    """Refuse ranks that do not know the secret. Each rank signs its number and a fresh random number of every rank."""
    import torch
    import torch.distributed as dist

    def gather(data: bytes) -> list[bytes]:
        value = torch.tensor(list(data), dtype=torch.uint8, device=device)
        values = [torch.empty_like(value) for _ in range(world.size)]
        dist.all_gather(values, value)
        return [bytes(value.tolist()) for value in values]

    key = hmac.digest(secret, world.start_id.encode(), "sha256")
    try:
        challenge = b"".join(gather(os.urandom(32)))
        expected = [hmac.digest(key, f"rank {rank}".encode() + challenge, "sha256") for rank in range(world.size)]
        proofs = gather(expected[world.rank])
    except RuntimeError as error:
        if device.type == "cpu":
            raise Fault("a process that is not a rank of this run joined the rendezvous, or a rank ended") from error
        raise Fault(
            f"NCCL cannot connect the GPUs of the ranks: {_nccl_reason(error)}; NCCL_DEBUG=INFO shows what it tries,"
            " and NCCL_SOCKET_IFNAME names the network between the nodes"
        ) from error
    pairs = zip(proofs, expected, strict=True)
    strangers = [str(rank) for rank, (proof, right) in enumerate(pairs) if not hmac.compare_digest(proof, right)]
    if strangers:
        raise Fault(
            f"rank {', '.join(strangers)} does not know the secret of this run: a stranger, or started with another"
            f" {SECRET} (export the same one for all ranks)"
        )


def _read_secret() -> bytes:
    """BRAIN_DIST_SECRET, or the content of a file in this user's cache folder, which is created if it is missing."""
    if os.environ.get(SECRET):
        return os.environ[SECRET].encode()
    advice = f"export {SECRET} with the same random text for all ranks"
    path = Path("~/.cache/brain-dist/secret").expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with tempfile.NamedTemporaryFile(dir=path.parent) as file:  # only this user can read it
                file.write(os.urandom(32))
                file.flush()
                with contextlib.suppress(FileExistsError):  # another rank was faster
                    os.link(file.name, path)
        status = path.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o077 or status.st_size != 32:
            raise UserError(f"{path} must have 32 bytes and be accessible to its owner only; remove it, or {advice}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be used ({error.strerror}); {advice}") from error


def is_connection_loss(error: Exception) -> bool:
    """Whether a collective failed because another rank is gone, rather than because of an error on this rank."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and (isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error))


def _nccl_reason(error: Exception) -> str:
    """The informative line of an error of NCCL: the one after ``Last error:``, or else the first one."""
    before, _, last = str(error).partition("Last error:")
    return (last.strip() or before.strip()).partition("\n")[0]


@contextlib.contextmanager
def clear_faults(memory_advice: str, watch: Watch | None = None) -> Iterator[None]:
    """Turn what torch raises if another rank has ended, the memory is full or the GPU fails into a :class:`Fault`.

    Args:
        memory_advice: what to do if the memory of the device is full.
        watch: says what this rank was doing, and which rank is the cause.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        doing = f" while {watch.activity}" if watch else ""
        if is_out_of_memory(error):
            raise Fault(f"the memory of the device is full{doing} ({error}); {memory_advice}") from error
        if str(error).startswith("CUDA error"):
            reason = str(error).partition("\n")[0]
            raise Fault(f"the GPU failed{doing}: {reason}; if it fails again, have this machine checked") from error
        if not is_connection_loss(error):
            raise
        cause = watch.find_cause() if watch else "another rank or the network to it ended"
        reason = f" ({_nccl_reason(error)})" if "NCCL" in str(error) else ""
        raise Fault(f"lost contact{doing}: {cause}{reason}") from error


def gather_objects(item: Any, world: World) -> list[Any]:
    """``item`` of every rank, in rank order, on every rank. Every rank must call.

    The items travel as JSON, so tuples become lists.
    """
    return [json.loads(data) for data in _gather_bytes(json.dumps(item).encode(), world)]


def gather_rows(array: np.ndarray, world: World) -> np.ndarray:
    """The arrays [n, …] of all ranks, concatenated in rank order, [N, …], on every rank. Every rank must call.

    All arrays have the same type and shape, except for n.
    """
    import numpy as np

    parts = _gather_bytes(array.tobytes(), world)
    return np.frombuffer(b"".join(parts), array.dtype).reshape(-1, *array.shape[1:])


def _gather_bytes(data: bytes, world: World) -> list[bytes]:
    if world.size == 1:
        return [data]
    import torch
    import torch.distributed as dist

    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world.size)]
    dist.all_gather(sizes, torch.tensor([len(data)]))
    longest = max(int(size) for size in sizes)
    padded = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
    parts = [torch.empty_like(padded) for _ in range(world.size)]
    dist.all_gather(parts, padded)
    return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]


def run_on_main(world: World, work: Callable[[], None]) -> None:
    """Run ``work`` on the main rank once all ranks have arrived. Every rank must call.

    Raises:
        UserError, Fault: ``work`` failed; raised on every rank, so that no rank is left waiting.
    """
    gather_objects(None, world)
    error = capture_error(work) if world.is_main else None
    kind, text = gather_objects([type(error).__name__, str(error)], world)[0]
    if kind != "NoneType":
        raise {"UserError": UserError, "Fault": Fault}[kind](text)


def capture_error(work: Callable[[], None]) -> UserError | Fault | None:
    """Run ``work``. Return its error as one line (a full disk, a missing permission, a bad file), or None."""
    from safetensors import SafetensorError

    try:
        work()
    except OSError as error:
        return Fault(f"{error.filename or 'a file'} could not be written: {error.strerror or error}")
    except (UserError, Fault) as error:
        return error
    except (RuntimeError, SafetensorError) as error:
        return Fault(str(error))
    return None
