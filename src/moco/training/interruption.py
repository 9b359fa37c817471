"""Being asked to leave: SIGTERM and SIGUSR1 (preemption, a scheduler's time limit) end a run after a step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command again goes on
SIGNALS = ("SIGTERM", "SIGUSR1")


class Interruption:
    """Which signal has asked this process to leave, if any."""

    def __init__(self) -> None:
        self.signal = 0

    @contextlib.contextmanager
    def heeded(self) -> Iterator["Interruption"]:
        """Remember the signals inside instead of dying of them; a second one of a kind is obeyed at once."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # only the main thread may set handlers
            return
        kinds = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        before = {kind: signal.signal(kind, self._remember) for kind in kinds}
        try:
            yield self
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


def name(number: int) -> str:
    """What a signal is called."""
    return signal.Signals(number).name
