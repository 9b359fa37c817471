import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moco import chance, dictionary
from moco.batch import Batch
from moco.dictionary import InBatch, MemoryBank, MomentumQueue
from moco.world import Solo

WORLD = Solo()


def batch_of(index, step=0):
    nothing = torch.zeros(len(index), 1)
    return Batch((nothing, nothing), torch.as_tensor(index), (torch.arange(len(index)),) * 2, step)


@settings(max_examples=80, deadline=None)
@given(size=st.integers(1, 20), batches=st.lists(st.integers(1, 45), max_size=12))
def test_queue_holds_exactly_the_last_k_keys_in_order(size, batches):
    queue = MomentumQueue(size, 3)
    everything = [queue.keys.clone()]
    count = 0
    for n in batches:
        k = torch.arange(count, count + n).float()[:, None].expand(n, 3)
        queue.enqueue(k, batch_of(range(count, count + n)), WORLD)
        everything.append(k)
        count += n
    assert queue.enqueued == count
    assert torch.equal(queue.keys.roll(-count % size, dims=0), torch.cat(everything)[-size:])
    if count >= size:
        assert torch.equal(queue.identity[queue.keys[:, 0].argsort()], torch.arange(count - size, count))


def test_queue_begins_with_unit_vectors_that_depend_on_the_seed():
    queue = MomentumQueue(50, 8, seed=1)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(50))
    assert torch.equal(queue.keys, MomentumQueue(50, 8, seed=1).keys)
    assert not torch.equal(queue.keys, MomentumQueue(50, 8, seed=2).keys)
    assert (queue.identity == -1).all()


def test_queue_does_not_hold_the_current_keys_until_they_are_enqueued(unit):
    queue = MomentumQueue(10, 4)
    k = unit(3, 4, dtype=torch.float32)
    entries = queue.lookup(k, batch_of([0, 1, 2]), WORLD)
    assert torch.equal(entries.positives, k)
    assert (entries.negatives @ k.T).max() < 1 - 1e-3
    queue.enqueue(k, batch_of([0, 1, 2]), WORLD)
    assert torch.equal(queue.keys[:3], k)


def test_lookup_copies_nothing(unit):
    queue = MomentumQueue(1000, 8)
    entries = queue.lookup(unit(3, 8, dtype=torch.float32), batch_of([0, 1, 2]), WORLD)
    assert entries.negatives.data_ptr() == queue.keys.data_ptr()


def test_queue_survives_its_state_dict_in_the_middle():
    queue = MomentumQueue(7, 2)
    queue.enqueue(torch.ones(10, 2), batch_of(range(10)), WORLD)
    other = MomentumQueue(7, 2, seed=5)
    other.load_state_dict(queue.state_dict())
    for q in queue, other:
        q.enqueue(torch.full((3, 2), 2.0), batch_of(range(3)), WORLD)
    assert torch.equal(queue.keys, other.keys)
    assert torch.equal(queue.identity, other.identity)
    assert queue.enqueued == other.enqueued == 13


def test_own_keys_are_masked_by_sample_index(unit):
    queue = MomentumQueue(6, 4, mask_own=True)
    queue.enqueue(unit(4, 4, dtype=torch.float32), batch_of([3, 1, 4, 1]), WORLD)
    own = queue.lookup(unit(2, 4, dtype=torch.float32), batch_of([1, 9]), WORLD).own()
    assert own is not None
    assert own.tolist() == [[False, True, False, True, False, False], [False] * 6]
    assert MomentumQueue(6, 4).lookup(unit(2, 4, dtype=torch.float32), batch_of([1, 9]), WORLD).own() is None


def test_in_batch_negatives_are_the_other_images(unit):
    k = unit(4, 8)
    entries = InBatch().lookup(k, batch_of([5, 2, 9, 7]), WORLD)
    assert torch.equal(entries.negatives, k)
    own = entries.own()
    assert own is not None
    assert torch.equal(own, torch.eye(4, dtype=torch.bool))


def test_bank_slots_average_their_own_image(unit):
    bank = MemoryBank(10, 5, 4, momentum=0.25)
    before = bank.slots.clone()
    k = unit(2, 4, dtype=torch.float32)
    assert torch.equal(bank.lookup(k, batch_of([7, 3]), WORLD).positives, before[[7, 3]])
    bank.enqueue(k, batch_of([7, 3]), WORLD)
    expected = torch.nn.functional.normalize(0.25 * before[[7, 3]] + 0.75 * k, dim=1)
    torch.testing.assert_close(bank.slots[[7, 3]], expected)
    others = [i for i in range(10) if i not in (7, 3)]
    assert torch.equal(bank.slots[others], before[others])


def test_bank_begins_as_released():
    slots = MemoryBank(4000, 5, 128).slots
    assert slots.abs().max() <= (3 / 128) ** 0.5
    assert slots.std().item() == pytest.approx(128**-0.5, rel=0.01)


@pytest.mark.parametrize("per_query", [False, True])
def test_bank_draws_depend_on_the_step_and_cover_every_image_evenly(unit, per_query):
    k = unit(4, 4, dtype=torch.float32)
    banks = [MemoryBank(20, 500, 4, per_query=per_query, mask_own=True) for _ in range(2)]
    first, second = (batch_of([1, 2, 3, 4], step=step) for step in (0, 1))
    draws = [
        bank.lookup(k, batch, WORLD).negative_identity
        for bank, batch in ((banks[0], first), (banks[1], first), (banks[1], second))
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    counts = torch.bincount(draws[0].flatten(), minlength=20)
    expected = draws[0].numel() / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # 19 degrees of freedom
    if per_query:
        moved = banks[0].lookup(k, batch_of([4, 3, 2, 1]), WORLD).negative_identity
        assert torch.equal(moved, draws[0].flip(0))  # a query's draws are its own


@pytest.mark.parametrize("per_query", [False, True])
def test_bank_draws_once_a_step(unit, monkeypatch, per_query):
    bank = MemoryBank(20, 5, 4, per_query=per_query, mask_own=True)
    asked, draw = [], getattr(chance, name := "uniform" if per_query else "generator")
    monkeypatch.setattr(chance, name, lambda *a, **k: asked.append(a) or draw(*a, **k))
    for step in range(3):
        batch = batch_of([1, 2, 3, 4], step=step)
        for _ in range(2):  # of a symmetric loss
            bank.lookup(unit(4, 4, dtype=torch.float32), batch, WORLD)
        bank.masked(batch, WORLD)
    assert len(asked) == 3


def test_bank_that_does_not_fit_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(dictionary, "_machine_memory", lambda: 64 * 2**30)
    with pytest.raises(MemoryError, match=r"needs 448\.2 GiB on this machine, 48\.0 GiB may be used"):
        MemoryBank(940_000_000, 65536, 128)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MomentumQueue(0), r"dictionary.size must be at least 1 key, got 0 \(the paper uses 65536\)"),
        (lambda: MemoryBank(9, 0), "dictionary.size must be at least 1 key, got 0"),
        (lambda: MemoryBank(9, 1, momentum=1.0), r"dictionary.momentum must be in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_dictionaries_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
