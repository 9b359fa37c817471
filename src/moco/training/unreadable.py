"""What a run does about images that cannot be read: it names them, and stops when they are too many."""

from collections.abc import Iterator

from moco.batch import Batch, TooManyUnreadable
from moco.training.journal import Journal
from moco.world import World


class Unreadables:
    """Images that a process could not read: each is named once in the journal, and too many end the run.

    What is known already are the journal's rows, so a resumed run writes the rows of one undisturbed.
    Every process knows what the others found.

    Args:
        journal: takes the rows.
        world: the processes that share the images.
        images: number of images in the set.
        budget: share of them that may be unreadable.
    """

    def __init__(self, journal: Journal, world: World, images: int, budget: float):
        self.journal, self.world, self.images, self.budget = journal, world, images, budget
        self.known = world.first(lambda: {row["unreadable"] for row in journal.rows if "unreadable" in row})

    def new(self, batch: Batch) -> list[tuple[str, str]]:
        """Name and reason of the images of this process's share that are not known."""
        return [found for found in batch.unreadable if found[0] not in self.known]

    def take(self, batch: Batch) -> Iterator[str]:
        """Take in what all processes found; yield a sentence for each image that is new.

        Every process calls it where one has something new, and raises the same TooManyUnreadable once
        there are too many.
        """
        shares = self.world.assemble(self.new(batch))
        for name, reason in self.world.first(lambda: sorted(found for share in shares for found in share)):
            if name in self.known:
                continue
            self.known.add(name)
            self.journal.write({"step": batch.step + 1, "unreadable": name, "reason": reason})
            yield f"another image takes the place of {name}, which cannot be read: {reason}"
        if len(self.known) > self.budget * self.images:
            where = self.journal.quarantine_path or "the journal"
            raise TooManyUnreadable(
                f"{len(self.known):,} of {self.images:,} images cannot be read, more than reading.budget = "
                f"{self.budget:g}; they are named in {where}: leave them out with --quarantine, or raise "
                "--reading.budget"
            )
