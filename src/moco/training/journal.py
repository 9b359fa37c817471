"""What a run tells: `journal.jsonl`, a function of the recipe and the data, and `timing.jsonl`.

Wall-clock times are kept apart, so that the journal of a run that was killed and resumed is, byte
for byte, that of one that was not.
"""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from moco.files import write_atomically


class Journal:
    """Rows of one run, each with the step after which it was written.

    Args:
        folder: the run's; None keeps the rows nowhere.
        step: where the run starts or resumes; rows of later steps are dropped, as is a torn last line.
    """

    def __init__(self, folder: Path | None, step: int):
        self.folder, self.rows, self.pending = folder, [], ""
        self.quarantine_path = None if folder is None else folder / "quarantine.jsonl"
        if folder is None:
            return
        self.path, self.timing_path = folder / "journal.jsonl", folder / "timing.jsonl"
        self.rows = [row for row in read(self.path) if row["step"] <= step]
        for path in self.path, self.timing_path:
            kept = [row for row in read(path) if row["step"] <= step]
            write_atomically(path, "".join(_line(row) for row in kept).encode())
        if self.quarantine_path is not None:
            self.quarantine_path.unlink(missing_ok=True)
        self.listed = 0
        self._list()

    def write(self, row: dict[str, Any]) -> None:
        """Append a row of results; it must hold "step" and nothing that a resumed run would not repeat.

        A row that names an unreadable image also puts it on `quarantine.jsonl`.
        """
        if self.folder is None:
            return
        self.rows.append(row)
        self.pending += _line(row)
        with contextlib.suppress(OSError):  # a full disk: it is tried again with the next row
            self.flush()

    def _list(self) -> None:
        """Put the rows of unreadable images that are not yet on `quarantine.jsonl` there."""
        assert self.quarantine_path is not None
        new = [row for row in self.rows[self.listed :] if "unreadable" in row]
        lines = (_line({"file": row["unreadable"], "reason": row["reason"]}) for row in new)
        if new:
            _append(self.quarantine_path, "".join(lines))
        self.listed = len(self.rows)

    def flush(self) -> None:
        """Have every row on the disk; a checkpoint of a later step must not outlive it.

        Raises:
            OSError: if that cannot be; nothing is lost, and the files end with whole rows.
        """
        if not self.pending:
            return
        _append(self.path, self.pending)
        self.pending = ""
        self._list()

    def write_timing(self, row: dict[str, Any]) -> None:
        """Append a row of wall-clock measurements."""
        if self.folder is None:
            return
        with contextlib.suppress(OSError):
            _append(self.timing_path, _line(row))


def read(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a journal; none if there is no file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # torn by a kill while it was written
    return rows


def _append(path: Path, text: str) -> None:
    """Add lines to a file, all of them or none, and have them on the disk."""
    with open(path, "ab", buffering=0) as file:
        end, content = file.tell(), text.encode()
        try:
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, end)
            raise


def _line(row: dict[str, Any]) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return json.dumps(finite) + "\n"
