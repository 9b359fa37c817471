"""Time and memory of the method's own parts against their naive forms, as ratios within one run.

    python benchmarks/method.py [loss | ema | ema-resnet18 | ema-resnet50 | enqueue] [--rounds 9]

Variants alternate within every round; printed are the median of the per-round ratios and its 10th
and 90th percentile, after the values of both have been compared.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.dictionary import MomentumQueue
from moco.encoder import Encoder
from moco.keys import MomentumKeys
from moco.loss import Entries, info_nce
from moco.resnet import resnet


def naive_info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Concatenated logits and cross entropy, with the queue cloned each step, as usually written."""
    positive = torch.einsum("nc,nc->n", q, k).unsqueeze(1)
    negative = torch.einsum("nc,ck->nk", q, queue.clone())
    logits = torch.cat([positive, negative], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def naive_momentum_update(f_k: nn.Module, f_q: nn.Module, m: float) -> None:
    """One new tensor per parameter and term."""
    for k, q in zip(f_k.parameters(), f_q.parameters(), strict=True):
        k.data = k.data * m + q.data * (1 - m)


def ratios(naive: Callable[[], object], ours: Callable[[], object], rounds: int) -> dict[str, float]:
    """Times of both in alternation, seconds, and naive / ours."""
    naive(), ours()
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        spent = []
        for variant in naive, ours:
            start = time.perf_counter()
            variant()
            spent.append(time.perf_counter() - start)
        times.append((spent[0], spent[1]))
    per_round = sorted(a / b for a, b in times)
    return {
        "naive_ms": 1e3 * statistics.median(a for a, _ in times),
        "ours_ms": 1e3 * statistics.median(b for _, b in times),
        "ratio": statistics.median(per_round),
        "p10": per_round[len(per_round) // 10],
        "p90": per_round[-1 - len(per_round) // 10],
    }


def loss_inputs(n: int = 256, k: int = 65536, c: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    """Unit-length queries (with gradient), keys and queue."""
    q, key, queue = (F.normalize(torch.randn(rows, c), dim=1) for rows in (n, n, k))
    return q.requires_grad_(), key, queue


def bench_loss(rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    q, k, queue = loss_inputs()
    columns = queue.T.contiguous()

    def naive() -> tuple[Tensor, Tensor]:
        q.grad = None
        loss = naive_info_nce(q, k, columns, 0.07)
        loss.backward()
        assert q.grad is not None
        return loss.detach(), q.grad

    def ours() -> tuple[Tensor, Tensor]:
        q.grad = None
        loss = info_nce(q, Entries(k, queue), 0.07).loss
        loss.backward()
        assert q.grad is not None
        return loss.detach(), q.grad

    for a, b in zip(naive(), ours(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    memory = {f"{name}_extra_mib": peak_memory(name) for name in ("naive", "ours")}
    return ratios(naive, ours, rounds) | memory


def peak_memory(variant: str) -> float:
    """MiB by which a fresh process's peak grows in one forward and backward pass."""
    command = [sys.executable, __file__, "peak", "--variant", variant]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(variant: str) -> None:
    """Warm up on a small problem, then print how far the large one raises the peak."""

    def run(q: Tensor, k: Tensor, queue: Tensor) -> None:
        if variant == "naive":
            naive_info_nce(q, k, queue.T, 0.07).backward()
        else:
            info_nce(q, Entries(k, queue), 0.07).loss.backward()

    run(*loss_inputs(k=4096))
    inputs = loss_inputs()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
    run(*inputs)
    print(memory("VmHWM") - before)


def memory(field: str) -> float:
    """This process's memory as Linux counts it, MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def bench_ema(rounds: int, arch: str, width: int | None = None) -> dict[str, float]:
    trunk = resnet(arch, width=width)
    f_q = Encoder(trunk, nn.Linear(trunk.features, 128)).to(memory_format=torch.channels_last)
    keys = MomentumKeys(f_q, 0.999)
    naive_f_k = MomentumKeys(f_q, 0.999).f_k
    with torch.no_grad():
        for p in f_q.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    naive_momentum_update(naive_f_k, f_q, 0.999)
    keys.follow(f_q)
    for a, b in zip(naive_f_k.parameters(), keys.f_k.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    return ratios(lambda: naive_momentum_update(naive_f_k, f_q, 0.999), lambda: keys.follow(f_q), 3 * rounds)


def bench_enqueue(rounds: int) -> dict[str, float]:
    """Against the clone that a queue changed before the backward pass needs at every step."""
    from moco.batch import Batch
    from moco.world import Solo

    queue = MomentumQueue(65536, 128)
    k = F.normalize(torch.randn(256, 128), dim=1)
    none = torch.arange(256)
    batch = Batch((k, k), none, (none, none), 0)

    def naive() -> None:
        queue.keys.clone()
        queue.enqueue(k, batch, Solo())

    return ratios(naive, lambda: queue.enqueue(k, batch, Solo()), 5 * rounds)


def main() -> None:
    benches: dict[str, Callable[[int], dict[str, float]]] = {
        "loss": bench_loss,
        "ema": functools.partial(bench_ema, arch="resnet10", width=16),  # that of recipe cpu
        "ema-resnet18": functools.partial(bench_ema, arch="resnet18"),
        "ema-resnet50": functools.partial(bench_ema, arch="resnet50"),
        "enqueue": bench_enqueue,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=[*benches, "peak"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--variant", choices=["naive", "ours"])
    call = parser.parse_args()
    if call.name == "peak":
        print_peak(call.variant)
        return
    results = {
        name: {key: round(value, 2) for key, value in bench(call.rounds).items()}
        for name, bench in benches.items()
        if call.name in (None, name)
    }
    print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, **results}, indent=1))


if __name__ == "__main__":
    main()
