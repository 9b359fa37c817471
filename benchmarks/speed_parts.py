"""Tables of `speed.py`: loss, momentum update, optimizer and kNN."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import measured
import official
from measured import Measured, alternate
from method import loss_inputs, naive_info_nce, naive_momentum_update, peak_memory
from moco.encoder import Encoder
from moco.evaluate.knn import knn_predict
from moco.keys import MomentumKeys
from moco.loss import Entries, info_nce
from moco.resnet import resnet
from moco.training.sgd import SGD

_FORMS = ("other", "naive"), ("ours", "ours")  # as rows call them, and as `method.py` does


def loss(rounds: int) -> Measured:
    torch.manual_seed(0)
    q, k, queue = loss_inputs()
    columns = queue.T.contiguous()

    def run(form: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        q.grad = None
        value = form()
        value.backward()
        assert q.grad is not None
        return value.detach(), q.grad

    usual = functools.partial(run, lambda: naive_info_nce(q, k, columns, 0.07))
    ours = functools.partial(run, lambda: info_nce(q, Entries(k, queue), 0.07).loss)
    for a, b in zip(usual(), ours(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    memory = {}
    if measured.side is None:
        memory = {f"{who}_mib": round(peak_memory(form), 1) for who, form in _FORMS}
    return Measured(
        "loss and gradient, N = 256, K = 65,536", alternate(usual, ours, rounds), "gradients to 1e-4", 2.5,
        "memory " + " against ".join(f"{mib:.0f}" for mib in memory.values()) + " MiB", memory,
    )  # fmt: skip


def _trunk() -> torch.nn.Module:
    return resnet("resnet50").to(memory_format=torch.channels_last)


def ema(rounds: int) -> Measured:
    f_q, plain = Encoder(_trunk(), torch.nn.Identity()), _trunk()
    keys = MomentumKeys(f_q, 0.999)
    f_q.trunk.load_state_dict(plain.state_dict())
    plain.load_state_dict(keys.f_k.trunk.state_dict())
    naive_momentum_update(plain, f_q.trunk, 0.999)
    keys.follow(f_q)
    for a, b in zip(plain.parameters(), keys.f_k.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    times = alternate(
        lambda: naive_momentum_update(plain, f_q.trunk, 0.999),
        lambda: keys.follow(f_q),
        rounds,
    )
    return Measured("momentum update of ResNet-50", times, "parameters to 1e-5", 3.5)


def sgd(rounds: int) -> Measured:
    nets = [_trunk() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    values: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
    usual = torch.optim.SGD(nets[0].parameters(), **values, foreach=False, fused=False)
    ours = SGD(nets[1].parameters(), **values)
    for _ in range(2):
        usual.step(), ours.step()
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b)
    return Measured(
        "SGD step of ResNet-50", alternate(usual.step, ours.step, rounds), "parameters to 1e-5", 2
    )


def clusters() -> tuple[Tensor, Tensor]:
    """60,000 unit vectors of 512 numbers around ten centres, and which of them each belongs to."""
    torch.manual_seed(0)
    centres, labels = F.normalize(torch.randn(10, 512), dim=1), torch.arange(60_000) % 10
    return F.normalize(centres[labels] + 0.09 * torch.randn(60_000, 512), dim=1), labels


def knn(rounds: int) -> Measured:
    x, labels = clusters()
    bank, queries = x[:50_000], x[50_000:]
    values: dict[str, Any] = {"k": 200, "temperature": 0.1}
    usual = functools.partial(official.knn_predict, queries, bank, labels[None, :50_000], 10, **values)
    ours = functools.partial(knn_predict, queries, bank, labels[:50_000], **values)
    same = (usual() == ours()).double().mean().item()
    assert same >= 0.999, f"{100 * same:.2f} % equal predictions"
    right = 100 * (ours() == labels[50_000:]).double().mean().item()
    return Measured(
        "kNN, 10,000 queries, 50,000 voters, 512 numbers", alternate(usual, ours, rounds),
        f"{100 * same:.2f} % equal predictions at {right:.0f} % accuracy", 1.4,
    )  # fmt: skip
