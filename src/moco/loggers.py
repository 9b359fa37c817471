"""The journal in other people's trackers: Weights & Biases and MLflow, both without a network by default.

Each is an `Observer` like the progress bar and needs the extra of its name. Nothing is sent
anywhere unless the user's own settings (WANDB_MODE, MLFLOW_TRACKING_URI) say so.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moco import recipe_file
from moco.recipe import Recipe
from moco.training.interruption import EXIT_CODE
from moco.training.observer import Observer


class WandB(Observer):
    """Writes every journal row to Weights & Biases, into the run folder, to be sent by `wandb sync`.

    Args:
        folder: the run folder; a resumed run goes on in the same record.
        values: the recipe.

    Raises:
        ModuleNotFoundError: if wandb is not installed.
    """

    def __init__(self, folder: Path, values: Recipe):
        try:
            import wandb
        except ModuleNotFoundError:
            raise ModuleNotFoundError("--wandb needs wandb: pip install wandb") from None
        self.folder, self.values, self._wandb = folder, values, wandb
        self.record: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.record is None:
            return
        if asked_to_leave(error):
            self.record.mark_preempting()
        self.record.finish(exit_code=0 if kind is None else 1)

    def begin(self, done: int, steps: int, batch_size: int) -> None:
        known = self.folder / "wandb" / "id"
        known.parent.mkdir(parents=True, exist_ok=True)
        if not known.exists():
            known.write_text(os.urandom(4).hex())
        self.record = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "moco"),
            name=self.folder.name,
            id=known.read_text(),
            resume="allow",
            dir=str(self.folder),
            config=recipe_file.flat(self.values),
            mode=None if "WANDB_MODE" in os.environ else "offline",
            settings=self._wandb.Settings(silent=True),
        )

    def progress(self, done: int, row: dict[str, Any]) -> None:
        """Rows hold all there is."""

    def row(self, row: dict[str, Any]) -> None:
        self.record.log(numbers(row), step=row["step"])

    def say(self, sentence: str) -> None:
        """Sentences are for people."""


class MLflow(Observer):
    """Writes every journal row to MLflow: into the run folder, or where MLFLOW_TRACKING_URI says.

    Args:
        folder: the run folder; a resumed run goes on in the same record.
        values: the recipe.

    Raises:
        ModuleNotFoundError: if mlflow is not installed.
    """

    def __init__(self, folder: Path, values: Recipe):
        try:
            import mlflow
        except ModuleNotFoundError:
            raise ModuleNotFoundError("--mlflow needs MLflow: pip install mlflow-skinny") from None
        self.folder, self.values, self._mlflow = folder, values, mlflow
        self.client: Any = None
        self.id = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.client is not None:
            ended = "KILLED" if asked_to_leave(error) else "FAILED"
            self.client.set_terminated(self.id, "FINISHED" if kind is None else ended)

    def begin(self, done: int, steps: int, batch_size: int) -> None:
        store = self.folder / "mlflow"
        store.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        where = os.environ.get("MLFLOW_TRACKING_URI", store.resolve().as_uri())
        self.client = self._mlflow.MlflowClient(tracking_uri=where)
        known = store / "id"
        if known.exists():
            self.id = known.read_text()
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "moco")
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else self.client.create_experiment(name)
        self.id = self.client.create_run(experiment, run_name=self.folder.name).info.run_id
        for key, value in recipe_file.flat(self.values).items():
            self.client.log_param(self.id, key, value)
        known.write_text(self.id)

    def progress(self, done: int, row: dict[str, Any]) -> None:
        """Rows hold all there is."""

    def row(self, row: dict[str, Any]) -> None:
        for name, value in numbers(row).items():
            self.client.log_metric(self.id, name, value, step=row["step"])

    def say(self, sentence: str) -> None:
        """Sentences are for people."""


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What of a journal row can be drawn."""
    return {name: value for name, value in row.items() if name != "step" and value is not None}


def asked_to_leave(error: BaseException | None) -> bool:
    """Whether a run ended because a signal or Ctrl-C asked it to, and the same command goes on."""
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == EXIT_CODE)
