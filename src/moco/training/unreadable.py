"""What a run does about images that cannot be read: it names them, and stops when they are too many."""

from collections.abc import Iterator

from moco.batch import Batch
from moco.training.journal import Journal


class Unreadables:
    """Images that could not be read: each is named once in the journal, and too many end the run.

    What is known already are the journal's rows, so a resumed run writes the rows of one undisturbed.
    Each process counts those of its own share; the first writes its own.

    Args:
        journal: takes the rows.
        images: number of images in the set.
        budget: share of them that may be unreadable.
    """

    def __init__(self, journal: Journal, images: int, budget: float):
        self.journal, self.images, self.budget = journal, images, budget
        self.known = {row["unreadable"] for row in journal.rows if "unreadable" in row}

    def take(self, batch: Batch) -> Iterator[str]:
        """Yield a sentence for each image that is new; RuntimeError once there are too many."""
        for name, reason in batch.unreadable:
            if name in self.known:
                continue
            self.known.add(name)
            self.journal.write({"step": batch.step + 1, "unreadable": name, "reason": reason})
            yield f"another image takes the place of {name}, which cannot be read: {reason}"
        if len(self.known) > self.budget * self.images:
            where = self.journal.quarantine_path or "the journal"
            raise RuntimeError(
                f"{len(self.known):,} of {self.images:,} images cannot be read, more than reading.budget = "
                f"{self.budget:g}; they are named in {where}: leave them out with --quarantine, or raise "
                "--reading.budget"
            )
