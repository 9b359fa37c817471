"""Quarantine lists: the images that a run leaves out, one JSON object a line with file and reason."""

import json
from collections.abc import Iterable
from pathlib import Path


def read_quarantine(path: str | Path) -> frozenset[str]:
    """The files on a quarantine list, of `moco doctor` or of an earlier run.

    Raises:
        FileNotFoundError: if there is no such list.
        ValueError: if a line is not an object with a "file".
    """
    files = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), start=1):
        try:
            files.append(str(json.loads(line)["file"]))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{path}, line {number}, must be an object with a "file", got {line[:60]!r}'
            ) from None
    return frozenset(files)


def quarantine_text(rows: Iterable[dict]) -> str:
    """The content of a list of these rows."""
    return "".join(json.dumps(row) + "\n" for row in rows)
