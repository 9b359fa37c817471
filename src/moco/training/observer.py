"""Who is told of a run: what shows it, and trackers it is sent to."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any


class Observer(ABC):
    """Told what happens, to show it or to send it on; it cannot change the run."""

    @abstractmethod
    def begin(self, done: int, steps: int, batch_size: int) -> None:
        """Training starts, or goes on, after `done` of `steps` steps."""

    @abstractmethod
    def progress(self, done: int, row: dict[str, Any]) -> None:
        """A step was done; `row` is the newest of the journal."""

    @abstractmethod
    def row(self, row: dict[str, Any]) -> None:
        """A row was written to the journal."""

    @abstractmethod
    def say(self, sentence: str) -> None:
        """Something the user should know."""


class Audience(Observer):
    """All observers of a run. One that fails after the beginning is told nothing more, and the others
    are told of it: a tracker whose server or disk is away does not end a training of days."""

    def __init__(self, observers: Iterable[Observer]):
        self.observers = list(observers)

    def begin(self, done: int, steps: int, batch_size: int) -> None:
        for observer in self.observers:
            observer.begin(done, steps, batch_size)

    def progress(self, done: int, row: dict[str, Any]) -> None:
        self._tell(lambda observer: observer.progress(done, row))

    def row(self, row: dict[str, Any]) -> None:
        self._tell(lambda observer: observer.row(row))

    def say(self, sentence: str) -> None:
        self._tell(lambda observer: observer.say(sentence))

    def _tell(self, act: Callable[[Observer], None]) -> None:
        for observer in list(self.observers):
            if observer not in self.observers:  # it failed when it was told of another
                continue
            try:
                act(observer)
            except Exception as error:
                self.observers.remove(observer)
                self.say(f"{type(observer).__name__} is told nothing more of the run, for it failed: {error}")
