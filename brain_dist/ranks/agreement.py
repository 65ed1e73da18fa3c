"""Work that one rank does for all ranks. Its failure is raised on every rank."""

from __future__ import annotations

from collections.abc import Callable

from brain_dist.errors import Fault, UserError
from brain_dist.ranks.group import gather_objects
from brain_dist.ranks.world import World


def run_on_main(world: World, work: Callable[[], None]) -> None:
    """Run ``work`` on the main rank once all ranks have arrived. Every rank must call.

    Raises:
        UserError, Fault: ``work`` failed; raised on every rank, so that no rank is left waiting.
    """
    gather_objects(None, world)
    error = gather_objects(capture_error(work) if world.is_main else None, world)[0]
    if error:
        raise error


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
