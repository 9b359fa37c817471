"""A device that is not the CPU, made of CPU tensors: what mixes devices fails, what waits is noted.

Torch calls it "simulated". Its tensors hold CPU tensors and compute what those do, so that results equal
the CPU's to the bit; operations on tensors of both devices raise, as they do on a GPU.
"""

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
NAME = "simulated"
_READS = {  # their results' shapes or values are numbers that the host needs
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten._unique2.default, aten.bincount.default, aten.is_nonzero.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
waits: list[str] = []
"""Operations, since a test cleared the list, at which a GPU would have been waited for."""


class _Module:
    """What torch asks a device's module for."""

    def is_initialized(self) -> bool:
        return True

    is_available = is_initialized

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def available() -> bool:
    """Whether this torch knows devices written in Python; a real GPU is left alone with its tests."""
    known = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
    return known and not torch.cuda.is_available()


if available():  # before the first backward pass of a process, which makes a queue for every device
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    _LIBRARY = torch.library.Library("_", "IMPL")
    _LIBRARY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


class _There(torch.Tensor):
    """A tensor of the device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        there = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device=torch.device(NAME, 0),
        )  # fmt: skip
        there.inner = inner
        return there

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})

    def tolist(self):
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol):
        return self.inner.__reduce_ex__(protocol)


def _dispatch(func, args, kwargs):
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, _There)]
    here = [tensor for tensor in tensors if not isinstance(tensor, _There)]
    target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    _check(func, args, kwargs, there, here, target)
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, _There) else x, (args, kwargs))
    result = func(*args, **kwargs)
    known = {id(tensor.inner): tensor for tensor in there}  # what was changed in place stays the same tensor
    on_device = target == NAME if target is not None else bool(there)

    def wrap(value):
        if not isinstance(value, torch.Tensor) or id(value) in known:
            return known.get(id(value), value)
        return _There(value) if on_device else value

    return tree_map(wrap, result)


def _check(func, args, kwargs, there, here, target):
    """Raise where devices are mixed, and note what waits."""
    if func is aten.copy_.default:
        crosses = isinstance(args[0], _There) != isinstance(args[1], _There)
        if crosses and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
            waits.append(f"{func} of {tuple(args[0].shape)}")
    elif func is aten._to_copy.default:
        crosses = target is not None and target != args[0].device.type
        if crosses and not (kwargs.get("non_blocking") and target == NAME):
            waits.append(f"to {target} of {tuple(args[0].shape)}")
    elif there and func in _READS:
        waits.append(str(func))
    elif there and func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            waits.append(f"{func} by a mask")
        if any(not isinstance(index, _There) for index in indices):
            waits.append(f"{func} by numbers on the CPU")
        here = [tensor for tensor in here if all(tensor is not index for index in indices)]
        _refuse(func, there, here)
    else:
        _refuse(func, there, here)


def _refuse(func, there, here):
    if there and any(tensor.dim() for tensor in here):
        raise RuntimeError(f"{func} of tensors on two devices: {[tuple(tensor.shape) for tensor in here]}")


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


@contextlib.contextmanager
def simulated(monkeypatch) -> Iterator[torch.device]:
    """The device, for this thread and those it starts; what it takes from torch is put back."""
    device = torch.device(NAME, 0)
    run, load = threading.Thread.run, torch.load

    def run_there(thread):
        with _Mode():
            run(thread)

    def load_there(file, map_location=None, **rest):
        if not isinstance(map_location, torch.device) or map_location.type != NAME:
            return load(file, map_location=map_location, **rest)
        found = load(file, map_location="cpu", **rest)
        return tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, found)

    monkeypatch.setattr(threading.Thread, "run", run_there)
    monkeypatch.setattr(torch, "load", load_there)
    waits.clear()
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes it on the CPU first
    try:
        with _Mode():
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
