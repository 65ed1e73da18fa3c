"""Record what in a training step waits for the device."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
WAITING_OPERATORS = {
    aten._local_scalar_dense.default,  # item(), float(), bool(), …
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
}
WAITING_METHODS = ("tolist", "numpy", "cpu", "__array__")


@contextmanager
def record_calls() -> Iterator[list[str]]:
    """For the length of a block: the file and function of each call that reads a number of a tensor.

    On a GPU each of them waits for the device. Copies from the host to a device cannot be seen on the CPU.
    """
    calls: list[str] = []

    def record() -> None:
        frame = sys._getframe(2)
        while not re.search(r"/(brain_dist|deepspeed)/", frame.f_code.co_filename):
            assert frame.f_back
            frame = frame.f_back
        package, name = re.findall(r".*/(brain_dist|deepspeed)/(.*)", frame.f_code.co_filename)[0]
        calls.append(f"{package}/{name}:{frame.f_code.co_name}")

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            by_mask = function is aten.index.Tensor and any(
                i is not None and i.dtype == torch.bool for i in arguments[1]
            )
            if function in WAITING_OPERATORS or by_mask:
                record()
            return function(*arguments, **(keywords or {}))

    class Methods(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            if getattr(function, "__name__", "") in WAITING_METHODS:
                record()
            return function(*arguments, **(keywords or {}))

    with Operators(), Methods():
        yield calls
