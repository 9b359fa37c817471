"""Encoders whose passes in training go through torch.compile; all else, measurements too, stays as it is."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator

import torch

from moco.batch import Batch
from moco.encoder import Encoder

_COMPILERS = "g++", "clang++", "gcc", "clang", "cl"


def compile_passes(encoders: Iterable[Encoder], mode: str) -> None:
    """Compile images to vectors, which training alone asks for; trunk, head and state dict stay the same.

    Args:
        encoders: each is compiled when it is first called, for every shape of a batch anew.
        mode: of `torch.compile`, such as "default" or "reduce-overhead".

    Raises:
        ValueError: if this machine has no C++ compiler, which torch.compile works with.
    """
    if not any(map(shutil.which, (os.environ.get("CXX", ""), *_COMPILERS))):
        raise ValueError(
            f"compile {mode} cannot be used without a C++ compiler; install g++ or use --compile off"
        )
    for net in encoders:
        net.compile(mode=mode, dynamic=False)


def one_step_each(
    batches: Callable[[int, int], Iterator[Batch]],
) -> Callable[[int, int], Iterator[Batch]]:
    """The same batches, telling CUDA graphs that what they wrote for the batch before may be written over.

    Left to themselves they take each call without a backward pass outstanding for a new step, and so
    would write queries over keys that a step in parts has encoded before.
    """

    def stream(start: int, stop: int) -> Iterator[Batch]:
        for batch in batches(start, stop):
            torch.compiler.cudagraph_mark_step_begin()
            yield batch

    return stream
