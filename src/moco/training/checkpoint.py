"""Checkpoints that survive a kill at any instant: written aside, synced, renamed, checked on load.

`step-00001000.pt` holds tensors and plain values only and is loaded without executing any pickled
code; `step-00001000.json` beside it holds its SHA-256. torch's own loader would read a file with a
flipped bit without complaint.
"""

import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moco.files import ASIDE, write_atomically


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; made when the first one is written.
        keep: how many of the newest to keep, at least 1.
        say: told, in a sentence, what is out of the ordinary; None writes to standard error.
        processes: how many train together.
        opencv: the version that makes the views, if one does.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 3,
        say: Callable[[str], None] | None = None,
        processes: int = 1,
        opencv: str | None = None,
    ):
        self.folder, self.keep, self.say = folder, keep, say or _warn
        self.processes, self.opencv = processes, opencv

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps, then drop those that are too old.

        What there is of later steps goes first: the run was resumed before them, so nothing will
        take them up, and they must not count among the newest.

        Raises:
            OSError: if it cannot be written; the earlier checkpoints stay.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path, content = self._path(step), buffer.getvalue()
        manifest = {
            "step": step,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            **self._circumstances(),
        }
        write_atomically(path, content)
        try:
            write_atomically(path.with_suffix(".json"), json.dumps(manifest).encode())
        except OSError:
            path.unlink()  # without its manifest it could not be told from a damaged one
            raise
        steps = self._steps()
        later = [other for other in steps if other > step]
        until_now = [other for other in steps if other <= step]
        for other in later + until_now[: -self.keep]:
            self._path(other).with_suffix(".json").unlink(missing_ok=True)
            self._path(other).unlink(missing_ok=True)
        for left in self.folder.glob(f"step-*{ASIDE}"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)

    def attempt(self, step: int, state: dict[str, Any], before: Callable[[], None] | None = None) -> str:
        """Write what comes before a checkpoint, then it; what went wrong, a full disk say, or nothing."""
        try:
            if before is not None:
                before()
            self.save(step, state)
        except OSError as error:
            earlier = [other for other in self._steps() if other < step]
            left = f"that of step {earlier[-1]:,} stays" if earlier else "there is no earlier one"
            return f"the checkpoint of step {step:,} could not be written ({error}); {left}"
        return ""

    def load(
        self, device: torch.device | str = "cpu", *, resuming: bool = True
    ) -> tuple[int, dict[str, Any]] | None:
        """The newest whole checkpoint's step and state, or None if none was written yet.

        Args:
            device: where the tensors go.
            resuming: say what will keep a resumed run from an undisturbed one's bits.

        Raises:
            OSError: if there are checkpoints and none is whole; beginning anew would delete them.
        """
        steps = self._steps()
        for step in reversed(steps):
            path = self._path(step)
            if (damage := self._damage(path)) is None:
                if resuming:
                    self._compare(path)
                return step, torch.load(path, map_location=device, weights_only=True)
            before = "; trying the one before" * (step != steps[0])
            self.say(f"checkpoint {path.name} is passed over: {damage}{before}")
        if not steps or (len(steps) == 1 and not self._path(steps[0]).with_suffix(".json").exists()):
            return None  # a kill while the first was written leaves it without its manifest
        raise OSError(
            f"none of the {len(steps)} checkpoints in {self.folder} is whole; nothing was changed: bring "
            "them back, or delete that folder to begin anew"
        )

    def _compare(self, path: Path) -> None:
        """Say so if going on from here cannot give the bits of an undisturbed run."""
        written = json.loads(path.with_suffix(".json").read_text())
        for name, value in self._circumstances().items():
            if written.get(name, 1 if name == "processes" else None) != value:
                self.say(
                    f"{path.name} was written with {name} {written.get(name)}, now {value}: "
                    "results will agree up to rounding, not to the bit"
                )

    def _circumstances(self) -> dict[str, Any]:
        """What has to be the same for the same bits."""
        threads = torch.get_num_threads()
        return {
            "torch": torch.__version__,
            "opencv": self.opencv,
            "threads": threads,
            "processes": self.processes,
        }

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.pt"

    def _steps(self) -> list[int]:
        files = [path for path in self.folder.glob("step-*") if path.suffix in (".pt", ".json")]
        numbers = {path.stem.removeprefix("step-") for path in files}
        return sorted(int(number) for number in numbers if number.isdecimal())  # not a tool's "(1)" copies

    def _damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, None if nothing is."""
        try:
            manifest = json.loads(path.with_suffix(".json").read_text())
            content = path.read_bytes()
            expected = manifest["bytes"], manifest["sha256"]
        except (OSError, ValueError, KeyError) as error:
            return f"it or its manifest is missing or unreadable ({error})"
        if len(content) != expected[0]:
            return f"it has {len(content):,} bytes of {expected[0]:,}"
        if hashlib.sha256(content).hexdigest() != expected[1]:
            return "its checksum does not match its content"
        return None


def _warn(sentence: str) -> None:
    print(sentence, file=sys.stderr)
