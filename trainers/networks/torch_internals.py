"""Private names of torch: a process that doesn't compile doesn't import torch's compiler.

The compiler takes 1.4 s of CPU, a third of a worker's imports. torchvision imports it to ask later
what can be compiled, optimizers and DistributedDataParallel to have it skip their methods.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

COMPILER, UTILS = "torch._dynamo", "torch._dynamo.utils"


class StandIn(ModuleType):
    """A module with a few names; any other imports the module that it stands for."""

    def __init__(self, name: str, **names: object) -> None:
        super().__init__(name)
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and (self.__name__, name) != (COMPILER, "__path__"):
            raise AttributeError(name)  # `inspect` and the import system ask every module for some
        remove_stand_ins()
        return getattr(import_module(self.__name__), name)


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)


utils = StandIn(
    UTILS,
    is_compile_supported=_is_compile_supported,  # torchvision/ops/roi_align.py
    get_optimize_ddp_mode=lambda: "ddp_optimizer",  # DistributedDataParallel; torch's default
)
STAND_INS = {
    COMPILER: StandIn(
        COMPILER,
        utils=utils,
        disable=lambda method, *_, **__: method,  # torch/_compile.py
        graph_break=lambda: None,  # Optimizer.step
    ),
    UTILS: utils,
}


@contextmanager
def without_compiler() -> Iterator[None]:
    """Let torch find a stand-in for its compiler, unless that was imported before."""
    if COMPILER in sys.modules:
        yield
        return
    sys.modules.update(STAND_INS)
    try:
        yield
    finally:
        remove_stand_ins()


def remove_stand_ins() -> None:
    for name, stand_in in STAND_INS.items():
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def keep_methods_as_they_are() -> None:
    """Don't import the compiler to mark the methods that it must skip: nothing is compiled."""
    for owner in (Optimizer, DistributedDataParallel):
        for method in vars(owner).values():
            while method := getattr(method, "__wrapped__", None):
                vars(method).setdefault("__dynamo_disable", method)


with without_compiler():
    from torchvision import models

__all__ = ["keep_methods_as_they_are", "models", "without_compiler"]
