"""The journal as TensorBoard events; needs the extra "tensorboard"."""

from pathlib import Path
from typing import Any, Self

from moco.training.observer import Observer


class TensorBoard(Observer):
    """Writes every number of every journal row as a scalar.

    Args:
        folder: the run folder; events go into its subfolder tensorboard.

    Raises:
        ModuleNotFoundError: if tensorboard is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            raise ModuleNotFoundError("--tensorboard needs tensorboard: pip install tensorboard") from None
        self.folder = folder / "tensorboard"
        self._open = SummaryWriter
        self.writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def begin(self, done: int, steps: int, batch_size: int) -> None:
        self.writer = self._open(str(self.folder), purge_step=done + 1)

    def progress(self, done: int, row: dict[str, Any]) -> None:
        """Rows hold all there is."""

    def row(self, row: dict[str, Any]) -> None:
        assert self.writer is not None
        for name, value in row.items():
            if name != "step" and value is not None:
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def say(self, sentence: str) -> None:
        """Sentences are for people."""
