"""Other people's trackers hold exactly the journal, offline, over a resume too."""

import pytest

from moco import recipe_file
from moco.loggers import MLflow, WandB, numbers
from tiny import tiny_recipe

ROWS = [
    {"step": 3, "epoch": 0.5, "loss": 3.25, "accuracy": 0.1, "lr": None},
    {"step": 6, "epoch": 1.0, "loss": 2.71875, "accuracy": 0.2, "lr": 0.01},
    {"step": 6, "epoch": 1.0, "knn_trunk": 41.5},
    {"step": 9, "epoch": 1.5, "loss": 2.4375, "accuracy": 0.3, "lr": 0.0},
]


def record_twice(kind, out):
    """A run that is interrupted after two rows and resumed, under the same record."""

    def interrupted():
        with kind(out, tiny_recipe()) as record:
            record.begin(0, 12, 16)
            for row in ROWS[:2]:
                record.row(row)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
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
    record_twice(MLflow, out)
    client = mlflow.MlflowClient(tracking_uri=(out / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("moco")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["keys.momentum"] == "0.9"
    for name in "loss", "knn_trunk":
        expected = {row["step"]: row[name] for row in ROWS if name in row}
        found = {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
        assert found == expected


def test_weights_and_biases_keeps_the_journal_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    out = tmp_path / "run"
    record_twice(WandB, out)
    records = sorted((out / "wandb").glob("offline-run-*/*.wandb"))
    assert len(records) == 2
    assert len({path.parent.name.split("-")[-1] for path in records}) == 1  # one record, gone on with
    content = b"".join(path.read_bytes() for path in records)
    for value in b"3.25", b"2.71875", b"41.5", b"2.4375":
        assert value in content
    assert b"keys.momentum" in content


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
