"""Commands called as from a terminal, and the words for a run small enough to wait for."""

import json

import pytest

from moco.cli import main

TINY = [
    *("--encoder.width", "8", "--encoder.bn-group", "8", "--batch", "32", "--epochs", "1"),
    *("--dictionary.size", "64", "--views.size", "16", "--journal-every", "2"),
    *("--monitor.bank", "60", "--monitor.queries", "20", "--monitor.k", "10"),
]


def call(*words, expect=0):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == expect


def json_of(capsys, *words):
    capsys.readouterr()
    call(*words, "--json")
    return json.loads(capsys.readouterr().out)
