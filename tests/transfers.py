"""A transfer small enough to wait for, and its data: shared by the tests of transfer."""

from moco.training.observer import Observer
from moco.transfer_recipe import Heads, Images, Schedule, TransferRecipe
from scenes import write_voc

COMMON = (
    "--iterations 3 --batch 2 --schedule.warmup 1 --precise 2 --journal-every 2 --checkpoint-every 2 "
    "--trunk.arch resnet10 --trunk.width 4 --device cpu"
)
HEADS = (
    "--images.factor 0.1 --heads.train-before 40 --heads.train-after 20 --heads.test-before 40 "
    "--heads.test-after 10 --heads.regions 8"
)


def voc_data(root):
    return write_voc(root, {"trainval": 6, "test": 3})


TINY = TransferRecipe(
    name="tiny",
    train=("VOC2007:trainval",),
    images=Images(factor=0.1),
    heads=Heads(train_before=40, train_after=20, test_before=40, test_after=10, regions=8),
    schedule=Schedule(milestones=(0.5,), warmup=2),
    iterations=8,
    batch=2,
    precise=2,
    journal_every=3,
    checkpoint_every=2,
    keep_checkpoints=9,
)


class Stop(Observer):
    """Ends a run after a number of steps, as a kill would."""

    def __init__(self, after):
        self.after, self.said = after, []

    def begin(self, done, steps, batch_size):
        pass

    def progress(self, done, row):
        if done == self.after:
            raise KeyboardInterrupt

    def row(self, row):
        pass

    def say(self, sentence):
        self.said.append(sentence)
