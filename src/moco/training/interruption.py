"""Being asked to leave: SIGTERM and SIGUSR1 (preemption, a scheduler's time limit) end a run after a step."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command again goes on
SIGNALS = ("SIGTERM", "SIGUSR1")
PATIENCE = 30.0
"""Seconds in which a signal that comes again is the same request: a scheduler signals all processes of a
job, and a launcher among them passes on what it got."""


class Interruption:
    """Which signal has asked this process to leave, if any."""

    def __init__(self) -> None:
        self.signal = 0
        self._at: dict[int, float] = {}

    @contextlib.contextmanager
    def heeded(self) -> Iterator["Interruption"]:
        """Remember the signals inside instead of dying of them; one that comes again after `PATIENCE` is
        obeyed at once."""
        with _handled(self._remember):
            yield self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._at.setdefault(number, now) > PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number


@contextlib.contextmanager
def obeyed() -> Iterator[None]:
    """Leave at once, with `EXIT_CODE`: for work that the same command simply does again.

    Raises:
        SystemExit: with `EXIT_CODE`, if one of the signals comes.
    """
    leaving = False

    def leave(*_: object) -> None:
        nonlocal leaving
        if not leaving:
            leaving = True
            raise SystemExit(EXIT_CODE)

    with _handled(leave):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    kinds = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {kind: signal.signal(kind, handler) for kind in kinds}
    try:
        yield
    finally:
        for kind, earlier in before.items():
            signal.signal(kind, earlier)


def name(number: int) -> str:
    """What a signal is called."""
    return signal.Signals(number).name
