"""One, two and four processes compute the same run: gloo on this machine, double precision."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

import ranks
from moco import cluster, processes
from moco.data.loader import Loader
from moco.data.views import Views
from moco.processes import Processes, joined
from moco.world import Solo
from tiny import tiny_data, tiny_recipe

SIZES = (4, 2)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What every process of every world found, as found[size][rank]."""
    folder = tmp_path_factory.mktemp("together")
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ranks.__file__, str(folder), json.dumps(SIZES), "{}"]
    done = subprocess.run(
        command, env=os.environ | address, timeout=280, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    return {n: [torch.load(folder / f"{n}-{r}.pt") for r in range(n)] for n in SIZES}


@pytest.fixture(scope="module")
def alone():
    return {name: ranks.train(Solo(), **case) for name, case in ranks.CASES.items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", ranks.CASES)
def test_losses_weights_and_dictionary_are_those_of_one_process(together, alone, case, size):
    if size > ranks.CASES[case].get("most", size):
        pytest.skip("the shares hold no whole parts")
    ours, reference = together[size], alone[case]
    found, expected = ours[0][case]["measures"], reference["measures"]
    # a bank's negatives may hold the positive itself: rounding decides which of the two is the larger
    accuracy = 1.5 / ranks.BATCH if case == "memory bank" else 1e-9
    torch.testing.assert_close(found[:, 1], expected[:, 1], rtol=0, atol=accuracy)
    torch.testing.assert_close(found[:, ::2], expected[:, ::2], rtol=1e-9, atol=1e-9)
    for name, value in reference["state"].items():
        torch.testing.assert_close(
            ours[0][case]["state"][name], value, rtol=1e-7, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("size", SIZES)
def test_the_share_of_masked_keys_is_that_of_the_whole_batch(together, alone, size):
    expected = alone["own keys masked"]["masked"]
    assert expected.max() > 0
    for found in together[size]:
        assert torch.equal(found["own keys masked"]["masked"], expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", [*ranks.CASES, "float32"])
def test_processes_hold_the_same_bits(together, case, size):
    if size > ranks.CASES.get(case, {}).get("most", size):
        pytest.skip("the shares hold no whole parts")
    first, *others = (found[case] for found in together[size])
    for other in others:
        assert torch.equal(other["measures"], first["measures"])
        for name, value in other["state"].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, first["state"][name]), name


def test_single_precision_agrees_at_first_and_drifts_like_reordered_sums(together):
    def losses(**options):
        return ranks.train(Solo(), **ranks.SINGLE, **options)["measures"][:, 0].double()

    exact = losses()
    torch.testing.assert_close(losses(regroup=4), exact, rtol=1e-9, atol=1e-9)  # the same run
    alone = losses(dtype=torch.float32)
    reordered = [losses(dtype=torch.float32, regroup=turn) for turn in (4, 8, 12)]
    bound = 5 * max((one - alone).abs().max() for one in reordered)
    for size in SIZES:
        ours = together[size][0]["float32"]["measures"][:, 0].double()
        assert abs(ours[0] - alone[0]) <= 1e-6
        assert (ours - alone).abs().max() <= bound
    assert bound < 1


@pytest.mark.parametrize("size", SIZES)
def test_gradients_errors_and_means_reach_everyone(together, size):
    for rank, found in enumerate(together[size]):
        moves = found["moves"]
        factor = sum(r + 1 for r in range(size))  # each process weighs what it gathered by its rank + 1
        expected = torch.arange(6.0 * size).view(-1, 3)[2 * rank : 2 * rank + 2] * factor
        assert torch.equal(moves["gathered gradient"], expected)
        assert "out of range" in moves["error of the first"]
        assert torch.equal(moves["mean"], torch.tensor([(size - 1) / 2, 2.0]))


class Share(Solo):
    """A process of several, for what needs no communication."""

    def __init__(self, rank, size):
        self._at = rank, size

    rank = property(lambda self: self._at[0])
    size = property(lambda self: self._at[1])


@pytest.mark.parametrize("size", [2, 4])
def test_loaders_make_their_share_of_the_same_batches(size):
    data, values = tiny_data(), tiny_recipe()
    mean = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    views = Views(type(values.views)(**{**vars(values.views), **mean}))

    def batches(world):
        return list(Loader(data.train, views, 16, seed=3, world=world).stream(0, 8))

    for whole, *parts in zip(batches(Solo()), *(batches(Share(r, size)) for r in range(size)), strict=True):
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        for view in (0, 1):
            together = torch.cat([part.views[view] for part in parts])
            torch.testing.assert_close(together, whole.views[view], rtol=1e-5, atol=1e-5)
            assert all(torch.equal(part.orders[view], whole.orders[view]) for part in parts)


@pytest.mark.parametrize(
    ("batch", "group", "parts", "size", "message"),
    [
        (16, 4, 1, 3, "the batch must divide among the processes, got 16 images for 3 processes"),
        (
            16,
            8,
            1,
            4,
            r"must hold whole batch-normalisation groups, got a share of 4 images .* start at most 2",
        ),
        (16, 4, 2, 4, "4 images per group in 2 parts; start at most 2 processes"),
    ],
)
def test_shares_without_whole_groups_are_refused(batch, group, parts, size, message):
    with pytest.raises(ValueError, match=message):
        Share(0, size).share(batch, group, parts)
    assert Solo().share(batch, group, parts) == batch


@pytest.mark.parametrize(
    ("environment", "own"),
    [
        ({}, False),
        ({"SLURM_GPUS_PER_TASK": "1"}, True),
        ({"SLURM_GPUS_PER_TASK": "h200:1"}, True),
        ({"SLURM_GPUS_PER_TASK": "2"}, False),
        ({"SLURM_GPU_BIND": "single:1"}, True),
        ({"SLURM_GPUS_PER_TASK": "1", "LOCAL_RANK": "1"}, False),  # torchrun's processes share the task's
    ],
)
def test_slurm_may_show_each_process_its_own_gpu(environment, own, monkeypatch):
    for name in "SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND", "LOCAL_RANK":
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cluster.bound_to_a_gpu() == own


def test_one_process_is_alone_and_communicates_nothing(monkeypatch):
    for name in "RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS":
        monkeypatch.delenv(name, raising=False)
    with joined() as world:
        assert isinstance(world, Solo)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined() as world:
        assert isinstance(world, Solo)
    with pytest.raises(ValueError, match="time_limit must be above 0 seconds, got 0"), joined(time_limit=0):
        pass


def test_what_libraries_say_while_processes_meet_is_no_result(monkeypatch, capfd):
    """Gloo of torch 2.9 counts its peers on standard output, before what --json prints."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(processes, "rendezvous", lambda *_, **__: iter([(None, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: os.write(1, b"1 peer\n"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with joined():
        os.write(1, b"{}\n")
    assert tuple(capfd.readouterr()) == ("{}\n", "1 peer\n")


def test_a_failed_wait_keeps_what_the_error_said(monkeypatch):
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    world = Processes(None, 60)

    def fail(error):
        def gather(*_):
            raise error

        monkeypatch.setattr(dist, "all_gather_into_tensor", gather)
        world.gather(torch.zeros(2))

    with pytest.raises(ConnectionError, match=r"and lost another process \(no space in a buffer\); its own"):
        fail(RuntimeError("no space in a buffer\nException raised from somewhere"))
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))


@pytest.mark.parametrize(
    ("nodes", "host"), [("gpu[03-05,9],x1", "gpu03"), ("a,b", "a"), ("n7", "n7"), ("x-[1,4]", "x-1")]
)
def test_the_first_host_of_a_slurm_list(nodes, host):
    assert cluster.first_host(nodes) == host


@pytest.mark.parametrize(
    ("said", "here"),
    [
        ({"LOCAL_WORLD_SIZE": "2", "SLURM_STEP_TASKS_PER_NODE": "8"}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_NODEID": "1"}, 8),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_NODEID": "2"}, 4),
        ({}, 16),
    ],
)
def test_how_many_processes_share_a_machine(monkeypatch, said, here):
    for name in "LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID":
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert cluster.processes_here(16) == here
