"""Work that one rank does for all: its failure reaches every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from brain_dist.errors import Fault, UserError
from brain_dist.ranks.group import gather_objects
from brain_dist.ranks.world import World

if TYPE_CHECKING:
    pass


def run_on_main(world: World, work: Callable[[], None]) -> None:
    """Run ``work`` on the main rank once all ranks are here; its failure ends all ranks, none is left waiting."""
    gather_objects(None, world)
    problem = gather_objects(capture_error(work) if world.is_main else None, world)[0]
    if problem:
        raise problem


def capture_error(work: Callable[[], None]) -> UserError | Fault | None:
    """Run ``work``; None, or why it could not be done (a full disk, a lost right, a bad file) in one line."""
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
