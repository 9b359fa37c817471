"""Few labels: the head is what folds say it is, confidences are true, what to label next covers all."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from moco.cli import main
from moco.embeddings import Embeddings
from moco.evaluate import labelling
from moco.evaluate.labelling import fit_head, label_next
from moco.evaluate.logistic import logistic_regression, scores, standardise, stratified_folds
from moco.fit import Fit, classes_of, fit, read_labels, write
from test_run import finished  # noqa: F401


def blobs(count, classes=3, dim=8, noise=1.0, seed=0):
    """Classes around random centres, and the centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, dim, generator=generator)
    labels = torch.arange(count) % classes
    return centres[labels] + noise * torch.randn(count, dim, generator=generator), labels, centres


def test_the_head_is_chosen_by_images_that_its_classifier_had_not_seen():
    features, labels, _ = blobs(25, noise=3.0)
    penalties = (1.0, 0.01)
    head = fit_head(features, labels, 3, penalties=penalties)
    (standard,) = standardise(features)
    folds = stratified_folds(labels[None], 3)[0]
    losses = []
    for penalty in penalties:
        logits = torch.zeros(25, 3)
        for fold in folds.unique():
            kept = folds != fold
            weights = logistic_regression(
                standard[kept][None], labels[kept][None], 3, torch.tensor([[penalty]])
            )
            logits[~kept] = scores(weights, standard[~kept][None])[0, :, 0]
        spread = torch.logspace(-1.5, 1.5, 301)
        at = torch.stack([torch.nn.functional.cross_entropy(logits / t, labels) for t in spread])
        losses.append((at.min().item(), spread[at.argmin()].item(), penalty, logits.argmax(1) == labels))
    _, temperature, penalty, right = min(losses, key=lambda row: row[0])
    assert head.penalty == penalty
    assert head.temperature == pytest.approx(temperature, rel=0.03)
    assert torch.equal(head.right, right)


def test_no_group_is_in_two_folds_and_every_class_is_in_all_others():
    labels = torch.arange(60) % 3
    groups = torch.arange(60) // 6  # ten patients, two images of each class
    folds = stratified_folds(labels[None], 3, groups[None])[0]
    assert sorted(folds.unique().tolist()) == [0, 1, 2, 3, 4]
    for group in groups.unique():
        assert len(folds[groups == group].unique()) == 1
    assert torch.equal(torch.bincount(folds), torch.full((5,), 12))
    assert torch.equal(
        stratified_folds(labels[None], 3, torch.arange(60)[None]), stratified_folds(labels[None], 3)
    )
    one_patient = torch.where(labels == 2, 99, groups)
    assert not stratified_folds(labels[None], 3, one_patient[None]).any()


def test_groups_are_dealt_to_folds_wherever_that_can_be_done():
    generator = torch.Generator().manual_seed(0)
    dealt = 0
    for _ in range(300):
        groups = torch.randint(4, (1, 20), generator=generator)
        labels = torch.randint(3, (1, 20), generator=generator)
        if min(len(groups[labels == c].unique()) for c in labels.unique()) < 2:
            continue
        folds = stratified_folds(labels, 3, groups)
        dealt += 1
        assert all(len(folds[labels == c].unique()) > 1 for c in labels.unique())
    assert dealt > 100
    labels, groups = torch.tensor([2, 1, 0, 0, 0, 2, 1]), torch.tensor([1, 1, 3, 3, 0, 3, 0])
    assert sorted(stratified_folds(labels[None], 3, groups[None]).unique()) == [0, 1, 2]  # two cannot do
    alone = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]])  # a class of one group; two of three
    folds = stratified_folds(torch.tensor([0, 0, 0, 1, 1, 1]).expand(2, -1), 2, alone)
    assert not folds[0].any()
    assert folds[1].any()
    many = torch.arange(4000) // 2  # dealt in turn
    folds = stratified_folds(torch.arange(4000)[None] % 7, 7, many[None])[0]
    assert (torch.bincount(folds) == 800).all()
    assert (folds[::2] == folds[1::2]).all()


def test_the_accuracy_of_a_fit_is_that_of_groups_it_had_not_seen():
    """Frames of one video are all but equal: knowing one tells the others, and nothing of other videos."""
    generator = torch.Generator().manual_seed(0)
    videos = torch.randn(12, 20, generator=generator).repeat_interleave(5, 0)
    features = videos + 0.01 * torch.randn(60, 20, generator=generator)
    groups = torch.arange(12).repeat_interleave(5)
    labels = groups % 2  # no feature says which
    known = {f"{i}.png": str(int(label)) for i, label in enumerate(labels)}
    names = [f"{i}.png" for i in range(60)]
    leaking = fit(Embeddings(names, [""] * 60, features), known).accuracy
    honest = fit(Embeddings(names, [""] * 60, features, groups), known).accuracy
    assert leaking.mean == 100
    assert honest.mean < 75
    assert fit_head(features, labels, 2, groups=labels).right is None


def test_confidences_are_true():
    """Of the images that are classified with about 80 % confidence, about 80 % are right."""
    features, labels, centres = blobs(60, dim=30, noise=7.0)
    head = fit_head(features, labels, 3, penalties=(1e-4,))  # overfits: separable in 30 dimensions
    generator = torch.Generator().manual_seed(1)
    answers = torch.arange(6000) % 3
    fresh = centres[answers] + 7 * torch.randn(6000, 30, generator=generator)
    sure, best = head.probabilities(fresh).max(1)
    right = (best == answers).double()
    assert abs(sure.mean() - right.mean()) < 0.06
    blind = labelling.Head(head.weights, head.centre, head.scale, head.penalty, 1.0, None)
    assert blind.probabilities(fresh).max(1).values.mean() - right.mean() > 0.1
    assert head.temperature > 1.5


def test_one_image_of_a_class_leaves_nothing_to_check_with():
    features, labels, _ = blobs(3)
    head = fit_head(features, labels, 3)
    assert (head.right, head.temperature) == (None, 1.0)
    assert torch.equal(head.probabilities(features).argmax(1), labels)


def test_what_to_label_next_is_the_greedy_best():
    features, *_ = blobs(40, classes=4)
    labelled = torch.tensor([3, 8])
    unit = torch.nn.functional.normalize(features - features.mean(0), dim=1)
    similarity = unit @ unit.T
    taken = labelled.tolist()

    def covered(rows):
        return similarity[:, rows].amax(1).clamp(min=0).sum()

    expected = []
    for _ in range(6):
        best = max((i for i in range(40) if i not in taken), key=lambda i: covered([*taken, i]))
        expected.append(best)
        taken.append(best)
    assert label_next(features, labelled, 6).tolist() == expected


def test_what_to_label_next_is_one_of_each_kind():
    features, kinds, _ = blobs(100, classes=5, noise=0.1, dim=16)
    assert sorted(kinds[label_next(features, torch.tensor([], dtype=torch.long), 5)].tolist()) == list(
        range(5)
    )
    rest = label_next(features, torch.tensor([0, 1]), 3)
    assert sorted(kinds[rest].tolist()) == [2, 3, 4]


def test_of_very_many_images_a_keyed_sample_is_looked_at(monkeypatch):
    monkeypatch.setattr(labelling, "_CANDIDATES", 8)
    monkeypatch.setattr(labelling, "_REPRESENTED", 30)
    features, *_ = blobs(200)
    none = torch.tensor([], dtype=torch.long)
    one = label_next(features, none, 5)
    assert torch.equal(one, label_next(features, none, 5))
    assert not torch.equal(one, label_next(features, none, 5, seed=1))
    assert len(set(label_next(features, torch.arange(0, 200, 2), 50).tolist())) == 50


def test_labels_are_read_from_tables_that_may_be_half_done(tmp_path):
    (tmp_path / "a.csv").write_text("name,label\na.png,cat\nb.png,dog\n")
    (tmp_path / "b.csv").write_text("label,path,guess\n,c.png,dog\ncat,d.png,dog\ncat,a.png,cat\n")
    read = read_labels([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert read == {"a.png": "cat", "b.png": "dog", "d.png": "cat"}
    (tmp_path / "c.csv").write_text("name,label\na.png,dog\n")
    with pytest.raises(ValueError, match=r"c.csv calls a.png dog, but it was cat before"):
        read_labels([tmp_path / "a.csv", tmp_path / "c.csv"])
    (tmp_path / "d.csv").write_text("file,class\n")
    with pytest.raises(ValueError, match="must have the columns name and label, got file, class"):
        read_labels([tmp_path / "d.csv"])
    with pytest.raises(FileNotFoundError, match=r"there is no file .*e.csv"):
        read_labels([tmp_path / "e.csv"])


@pytest.mark.parametrize(
    "table",
    ["Name,Label\na b.png,cat\n c.png, dog \n", "name;LABEL;guess\na b.png;cat;dog\n c.png;dog\n"],
    ids=["capitals", "semicolons"],
)
def test_labels_are_read_as_spreadsheets_save_them(tmp_path, table):
    (tmp_path / "a.csv").write_text(table, encoding="utf-8-sig")
    assert read_labels([tmp_path / "a.csv"]) == {"a b.png": "cat", " c.png": "dog"}


def test_labels_may_be_digits_that_are_no_numbers_and_stand_beside_long_captions(tmp_path):
    (tmp_path / "a.csv").write_text('name,label,caption\na,²,"' + 200_000 * "x" + '"\nb,10\nc,9\n')
    given = read_labels([tmp_path / "a.csv"])
    assert classes_of(given, ["a", "b", "c"]) == ["9", "10", "²"]


def test_a_quotation_mark_that_is_not_closed_hides_no_labels(tmp_path):
    (tmp_path / "a.csv").write_text('name,label\na.png,cat\n"b.png,dog\nc.png,cat\n')
    with pytest.raises(ValueError, match=r"a\.csv is no table .* a quotation mark there that is not closed"):
        read_labels([tmp_path / "a.csv"])


def test_every_image_gets_a_class_and_the_next_round_takes_up_the_last(tmp_path):
    features, kinds, _ = blobs(60, noise=0.3)
    words = ["cat", "dog", "eel"]
    bank = Embeddings([f"{i}.png" for i in range(60)], [""] * 60, features)
    first = fit(bank, {f"{i}.png": words[kinds[i]] for i in range(6)}, count=4)
    assert [words[i] for i in kinds] == [first.classes[i] for i in first.probabilities.argmax(1)]
    assert first.accuracy.mean == 100
    assert repr(first) == "Fit(3 classes from 6 of 60 images, about 100.0 (61.0 to 100.0) % right)"
    predictions, to_label = write(first, tmp_path)
    rows = list(csv.DictReader(predictions.read_text().splitlines()))
    assert (rows[0]["given"], rows[6]["given"], rows[7]["predicted"]) == ("cat", "", words[kinds[7]])
    rows = list(csv.DictReader(to_label.read_text().splitlines()))
    assert len(rows) == 4
    assert all(row["label"] == "" and row["guess"] == words[kinds[int(row["name"][:-4])]] for row in rows)
    everything = {f"{i}.png": words[kinds[i]] for i in range(60)}
    assert fit(bank, everything).next.tolist() == []
    with pytest.raises(ValueError, match=r"1 of the 2 .* such as 99.png; they are called like 0.png"):
        fit(bank, {"0.png": "cat", "99.png": "dog"})
    with pytest.raises(ValueError, match="labels of at least 2 classes are needed, got cat"):
        fit(bank, {"0.png": "cat"})


def test_a_full_disk_leaves_the_last_predictions(tmp_path, monkeypatch):
    features, kinds, _ = blobs(30)
    bank = Embeddings([f"{i}.png" for i in range(30)], [""] * 30, features)
    given = {f"{i}.png": "abc"[kinds[i]] for i in range(6)}
    before = [path.read_bytes() for path in write(fit(bank, given), tmp_path)]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(fit(bank, given, count=3), tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("predictions.csv", "next.csv")] == before
    assert len(list(tmp_path.iterdir())) == 2


def test_the_command(finished, tmp_path, capsys, monkeypatch):  # noqa: F811
    out, data = finished
    few = tmp_path / "few.csv"
    few.write_text("name,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(10)))
    with pytest.raises(SystemExit) as left:
        main(["fit", str(out), str(few), "--data", data, "--out", str(tmp_path / "fit"), "--count", "3"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "100 images, 2 classes from 10 labels" in said
    assert "3 images to label next" in said
    few.write_text("name,label\n0,a\n1,b\n")
    with pytest.raises(SystemExit):
        main(["fit", str(out), str(few), "--data", data, "--out", str(tmp_path / "fit"), "--json"])
    row = json.loads(capsys.readouterr().out)
    assert (row["labelled"], row["accuracy"]) == (2, None)
    monkeypatch.setattr("moco.embeddings.embed", lambda *_, **__: pytest.fail("images were encoded"))
    for wrong in "0,a\n", "0,a\n999,b\n":
        few.write_text(f"name,label\n{wrong}")
        with pytest.raises(SystemExit) as left:
            main(["fit", str(out), str(few), "--data", data, "--out", str(tmp_path / "none")])
        assert left.value.code == 2
        assert not (tmp_path / "none").exists()


def test_a_labelled_image_that_cannot_be_read_is_left_out_and_named(finished, tmp_path, capsys):  # noqa: F811
    out, _ = finished
    for i in range(12):
        shade = np.full((16, 16, 3), 20 * i, np.uint8)
        Image.fromarray(shade).save(tmp_path / f"{i:02}.png")
    (tmp_path / "03.png").write_bytes((tmp_path / "03.png").read_bytes()[:60])
    few = tmp_path / "few.csv"
    few.write_text("name,label\n" + "".join(f"{i:02}.png,{'ab'[i % 2]}\n" for i in range(6)))
    with pytest.raises(SystemExit) as left:
        main(
            [
                "fit",
                str(out),
                str(few),
                "--data",
                str(tmp_path),
                "--out",
                str(tmp_path / "fit"),
                "--count",
                "2",
            ]
        )
    assert left.value.code == 0
    said = capsys.readouterr()
    assert "11 images, 2 classes from 5 labels" in said.out
    assert "1 labelled image could not be read, left out: 03.png" in said.err


@pytest.mark.parametrize(
    ("written", "saved"),
    [
        ("y.png,,", "y.png,b,"),
        ("name,label", "Name,Label"),
        (",", ";"),
        ("y.png,,", '"y.png,b,'),
        ("name,label,guess,confidence", "name,label"),
        ("y.png,b,", "y.png,,b,"),
    ],
    ids=["as it was", "capitals", "semicolons", "an open quotation mark", "fewer columns", "a field more"],
)
def test_a_list_that_somebody_filled_in_is_not_written_over(tmp_path, written, saved):
    found = Fit(
        ["a", "b"], ["x.png", "y.png"], torch.tensor([0, -1]), torch.tensor([[0.9, 0.1], [0.4, 0.6]]),
        torch.tensor([1]), SimpleNamespace(right=None),
    )  # fmt: skip
    first, second = write(found, tmp_path)[1], write(found, tmp_path)[1]
    assert first == second == tmp_path / "next.csv"  # nobody wrote in it
    filled = first.read_text().replace("y.png,,", "y.png,b,").replace(written, saved)
    first.write_text(filled)
    assert write(found, tmp_path)[1] == tmp_path / "next-2.csv"
    assert first.read_text() == filled
    with open(tmp_path / "next-2.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["y.png"]
