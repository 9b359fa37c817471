import json
import math

from moco.training.interpreter import Interpreter
from moco.training.journal import Journal, read


def rows(*losses, spread=0.9, start=100):
    return [
        {"step": start + 10 * i, "loss": loss, "accuracy": 0.0, "spread": spread}
        for i, loss in enumerate(losses)
    ]


def answers(interpreter, rows):
    return [note for row in rows for note in interpreter.read(row)]


def test_it_says_what_guessing_costs_and_when_the_queue_is_filled():
    interpreter = Interpreter(4096, 16)
    (introduction,) = interpreter.introduction()
    assert f"{math.log(4097):.2f}" in introduction
    assert "until step 16: that is normal" in introduction
    notes = answers(interpreter, rows(7.0, 7.1, 6.9, start=10))
    assert notes == ["queue filled at step 16: every negative is a real key from here on"]


def test_a_loss_at_rest_at_guessing_raises_one_alarm():
    interpreter = Interpreter(4096, 16)
    notes = answers(interpreter, rows(*[8.3] * 12))
    assert len([note for note in notes if note.startswith("ALARM: the loss rests at ln(1 + K) = 8.32")]) == 1


def test_a_falling_or_filling_loss_raises_none():
    assert not [n for n in answers(Interpreter(4096, 16), rows(8.3, 8.3, 8.2, 8.0, 7.5, 7.0)) if "ALARM" in n]
    assert not [n for n in answers(Interpreter(4096, 9999), rows(*[8.3] * 9)) if "ALARM" in n]


def test_collapse_is_told_by_the_spread():
    notes = answers(Interpreter(None, None), rows(*[1.0] * 6, spread=0.01))
    assert len(notes) == 1
    assert "queries collapse, their spread is 0.010" in notes[0]
    assert not answers(Interpreter(None, None), rows(*[1.0] * 6, spread=0.5))


def test_replaying_gives_the_same_state_as_living():
    history = rows(*[8.3] * 12)
    for cut in range(13):
        whole, resumed = Interpreter(4096, 16), Interpreter(4096, 16)
        expected = [whole.read(row) for row in history][cut:]
        resumed.replay(history[:cut])
        assert [resumed.read(row) for row in history[cut:]] == expected


def test_journal_drops_later_rows_and_a_torn_line(tmp_path):
    (tmp_path / "journal.jsonl").write_text(
        "".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "lo'
    )
    journal = Journal(tmp_path, 2)
    journal.write({"step": 3, "loss": float("nan")})
    assert [row["step"] for row in journal.rows] == [1, 2, 3]
    assert read(tmp_path / "journal.jsonl")[-1] == {"step": 3, "loss": None}
    assert [row["step"] for row in read(tmp_path / "journal.jsonl")] == [1, 2, 3]
