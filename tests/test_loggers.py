"""Other people's trackers hold exactly the journal, offline, over a resume too."""

import time

import pytest

from moco import recipe_file
from moco.loggers import MLflow, WandB, numbers
from moco.training.interruption import EXIT_CODE
from tiny import tiny_recipe

ROWS = [
    {"step": 3, "epoch": 0.5, "loss": 3.25, "accuracy": 0.1, "lr": None},
    {"step": 6, "epoch": 1.0, "loss": 2.71875, "accuracy": 0.2, "lr": 0.01},
    {"step": 6, "epoch": 1.0, "knn_trunk": 41.5},
    {"step": 9, "epoch": 1.5, "loss": 2.4375, "accuracy": 0.3, "lr": 0.0},
]


def record_twice(kind, out, between=None):
    """A run that is interrupted after two rows and resumed, under the same record."""

    def interrupted():
        with kind(out, tiny_recipe()) as record:
            record.begin(0, 12, 16)
            for row in ROWS[:2]:
                record.row(row)
            raise SystemExit(EXIT_CODE)

    with pytest.raises(SystemExit):
        interrupted()
    if between is not None:
        between()
    with kind(out, tiny_recipe()) as record:
        record.begin(6, 12, 16)
        for row in ROWS[2:]:
            record.progress(row["step"], row)
            record.row(row)


def test_mlflows_file_store_holds_the_journal(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out = tmp_path / "run"

    def found():
        client = mlflow.MlflowClient(tracking_uri=(out / "mlflow").as_uri())
        (run,) = client.search_runs([client.get_experiment_by_name("moco").experiment_id])
        return client, run

    stopped = []
    record_twice(MLflow, out, lambda: stopped.append(found()[1].info.status))
    client, run = found()
    assert [*stopped, run.info.status] == ["KILLED", "FINISHED"]
    assert run.data.params["keys.momentum"] == "0.9"
    for name in "loss", "knn_trunk":
        expected = {row["step"]: row[name] for row in ROWS if name in row}
        found = {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
        assert found == expected


def test_weights_and_biases_keeps_the_journal_offline(tmp_path, monkeypatch):
    kind = pytest.importorskip("wandb.sdk.wandb_run").Run
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    marked, out = [], tmp_path / "run"
    original = kind.mark_preempting
    monkeypatch.setattr(kind, "mark_preempting", lambda run: marked.append(original(run)))
    record_twice(WandB, out, lambda: time.sleep(1))  # older ones write over a folder of the same second
    assert len(marked) == 1
    records = list((out / "wandb").glob("offline-run-*/*.wandb"))
    assert len(records) == 2
    assert len({path.name for path in records}) == 1  # one record, gone on with
    values = b"3.25", b"2.71875", b"41.5", b"2.4375", b"keys.momentum"
    for _ in range(300):  # its service writes the last of a record after it was finished
        content = b"".join(path.read_bytes() for path in records)
        if all(value in content for value in values):
            return
        time.sleep(0.1)
    raise AssertionError(f"{[value for value in values if value not in content]} were not kept")


def test_rows_and_recipes_are_flat():
    assert numbers({"step": 3, "loss": 1.5, "accuracy": None}) == {"loss": 1.5}
    table = recipe_file.flat(tiny_recipe())
    assert table["dictionary.size"] == 40
    assert table["dictionary.kind"] == "MomentumQueue"


@pytest.mark.parametrize(("kind", "name"), [(WandB, "wandb"), (MLflow, "mlflow")])
def test_without_the_package_one_sentence_says_so(kind, name, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=f"--{name} needs .*pip install {name}"):
        kind(tmp_path, tiny_recipe())
