"""The fused kernels: do they compile for a GPU that is not here; are they right and fast on one that is.

    python benchmarks/kernels.py compile [CAPABILITY] [--every]   90 is an H100 or H200, 80 an A100
    python benchmarks/kernels.py measure [--out FILE.json]        on a CUDA device; values first

`compile` needs no GPU: it runs Triton's compiler and the assembler down to machine code, for the types
and sizes of CIFAR-10's and ImageNet's runs. `measure` compares each kernel with its torch form in both
value and time; a kernel whose values are off has no speed.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

FLOAT, WHOLE = "fp32", "i32"


def compile_all(capability: int, every: bool) -> None:
    """Each kernel down to machine code, of the loss those of other sizes too if every; one line for each."""
    os.environ["TRITON_INTERPRET"] = "0"  # read when Triton is imported
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from moco.kernels import OPTIONS, groups, info_nce, update, views

    def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], **options: int) -> None:
        kinds = {n: "constexpr" if n in constants else types.get(n, WHOLE) for n in kernel.arg_names}
        start = time.perf_counter()
        made = triton.compile(
            ASTSource(kernel, kinds, constants),
            target=GPUTarget("cuda", capability, 32),
            options=OPTIONS | options,
        )
        assert len(made.asm["cubin"]) > 0
        shown = ", ".join(f"{n} {v}" for n, v in constants.items())
        print(
            f"{kernel.__name__}: {shown}: {made.metadata.shared / 1024:.1f} KiB shared memory, "
            f"{time.perf_counter() - start:.1f} s"
        )

    def floats(*names: str) -> dict[str, str]:
        return dict.fromkeys(names, "*fp32")

    for dim in (128, 256) if every else (128,):
        parts = floats("q", "peaks", "masses", "mixtures") | {"scale": FLOAT}
        keys = floats("keys") | {"query_identity": "*i64", "key_identity": "*i64"}
        columns = 64 if dim == 128 else 32
        tile = {"MASKED": dim == 256, "ROWS": 64, "COLUMNS": columns, "WIDE": dim}
        compiled(info_nce._stream, parts | keys, tile, num_warps=8, num_stages=2)
        merged = floats("positives", "losses", "right", "grad_q") | {"per_nat": FLOAT}
        compiled(info_nce._merge, parts | merged, {"ROWS": 16, "WIDE": dim})
    tile = {"PIXELS": 32, "CHANNELS": 64}
    fused = {"RESIDUAL": True, "RELU": True}
    half = dict.fromkeys(["x", "y", "residual", "gate", "grad_y", "grad_x", "grad_residual"], "*bf16")
    single = floats("partial", "moments", "sums", "weight", "bias") | {"eps": FLOAT}
    compiled(groups._moments, half | single, tile)
    compiled(groups._merge_moments, half | single, {"CHANNELS": 64})
    compiled(groups._apply, half | single, fused | tile)
    compiled(groups._sums, half | single, {"RELU": True} | tile)
    compiled(groups._merge_sums, half | single, {"CHANNELS": 64})
    compiled(groups._gradient, half | single, fused | tile)
    four = floats("parameters", "gradients", "velocity", "key_parameters")
    rates = dict.fromkeys(["lr", "momentum", "weight_decay", "follow"], FLOAT)
    compiled(update._update, four | rates, {"NESTEROV": False, "BLOCK": 1024})
    image = {"pixels": "*u8", "index": "*i64", "all_numbers": "*i32", "out": "*bf16"}
    image |= floats("all_fractions", "scratch", "sums") | {"low": FLOAT, "unit": FLOAT}
    image |= {f"{name}_{i}": FLOAT for name in ("mean", "per_std") for i in range(3)}
    small = {"STAGE": 0, "CROP": True, "GRAY_FIRST": False, "BLUR": False}
    compiled(views._colour, image, small | {"SIZE": 32, "TILES": 1, "WIDE": 1, "BLOCK": 1024})
    large = {"CROP": False, "GRAY_FIRST": False, "BLUR": True}
    tiles = {"SIZE": 224, "TILES": 98, "WIDE": 128, "BLOCK": 512}
    for stage in 1, 2:
        compiled(views._colour, image, {"STAGE": stage} | large | tiles)
    for down in False, True:
        compiled(views._blur, image, {"DOWN": down, "SIZE": 224, "BLOCK": 512})


def timed(call: Callable[[], object], repeats: int = 50) -> float:
    """Milliseconds of one call on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()  # the events are read next
    return start.elapsed_time(end) / repeats


def compared(plain: Callable[[], object], fused: Callable[[], object], rounds: int = 9) -> dict[str, float]:
    """Milliseconds of both, in alternation, and plain / fused."""
    for call in (plain, fused) * 3:  # compile, warm up
        timed(call, 5)
    pairs = [(timed(plain), timed(fused)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "torch_ms": round(statistics.median(a for a, _ in pairs), 4),
        "triton_ms": round(statistics.median(b for _, b in pairs), 4),
        "ratio": round(statistics.median(ratios), 2),
        "p10": round(ratios[rounds // 10], 2),
        "p90": round(ratios[-1 - rounds // 10], 2),
    }


def of_loss(queries: int, keys: int) -> dict[str, float]:
    from moco.kernels.info_nce import info_nce
    from moco.loss import Entries
    from moco.loss import info_nce as plain

    q, k, queue = (F.normalize(torch.randn(n, 128, device="cuda"), dim=1) for n in (queries, queries, keys))
    entries = Entries(k, queue)
    gradients: dict[Callable, torch.Tensor | None] = {}
    q.requires_grad_()

    def run(form: Callable) -> Callable[[], object]:
        def call() -> None:
            q.grad = None
            form(q, entries, 0.1).loss.backward()
            gradients[form] = q.grad

        return call

    run(plain)(), run(info_nce)()
    torch.testing.assert_close(gradients[info_nce], gradients[plain], atol=1e-6, rtol=1e-4)
    return compared(run(plain), run(info_nce))


def of_views(size: int, images: int, dtype: torch.dtype) -> dict[str, float]:
    from moco.data.augmentation import SMALL, V2
    from moco.data.fused import FusedViews
    from moco.data.views import Views

    settings = replace(SMALL if size == 32 else V2, size=size)
    views = Views(settings)
    pixels = torch.randint(0, 256, (2 * images, 3, size, size), dtype=torch.uint8, device="cuda")
    index = torch.arange(images, device="cuda")
    p = views.draw(0, 0, index.cpu().numpy(), 0)
    fused = FusedViews(views, dtype)

    def plain() -> torch.Tensor:
        return views.photometry(views.geometry(views.unit(pixels[index]), p), p)

    torch.testing.assert_close(FusedViews(views).of_pixels(pixels, index, p), plain(), atol=1e-4, rtol=0)
    return compared(plain, lambda: fused.of_pixels(pixels, index, p))


def of_norm(images: int, channels: int, side: int, group: int) -> dict[str, float]:
    import copy

    from moco.kernels.norm import FusedBatchNorm2d
    from moco.norm import GroupedBatchNorm2d

    plain = GroupedBatchNorm2d(channels, group).cuda()
    fused = FusedBatchNorm2d(copy.deepcopy(plain), relu=True)
    x, other, gradient = (
        torch.randn(images, channels, side, side, device="cuda", dtype=torch.bfloat16).contiguous(
            memory_format=torch.channels_last
        )
        for _ in range(3)
    )
    x.requires_grad_()

    def usual() -> torch.Tensor:
        y = F.relu(plain(x) + other)
        y.backward(gradient)
        return y

    def ours() -> torch.Tensor:
        y = fused(x, other)
        y.backward(gradient)
        return y

    torch.testing.assert_close(ours().float(), usual().float(), atol=5e-2, rtol=2e-2)
    return compared(usual, ours)


def measure() -> dict[str, Any]:
    """Values and times of every kernel on this machine's GPU."""
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "loss, 512 x 4,096": of_loss(512, 4096),
        "loss, 256 x 65,536": of_loss(256, 65536),
        "loss, 256 x 1,000,000": of_loss(256, 10**6),
        "views, 512 of 32 pixels": of_views(32, 512, torch.bfloat16),
        "views, 256 of 224 pixels": of_views(224, 256, torch.bfloat16),
        "normalisation, 512 x 64 x 32 x 32, groups of 64": of_norm(512, 64, 32, 64),
        "normalisation, 256 x 256 x 56 x 56, groups of 32": of_norm(256, 256, 56, 32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    compiler = commands.add_parser("compile")
    compiler.add_argument("capability", type=int, nargs="?", default=90)
    compiler.add_argument("--every", action="store_true")
    commands.add_parser("measure").add_argument("--out", type=Path, default=None)
    call = parser.parse_args()
    if call.command == "compile":
        compile_all(call.capability, call.every)
        return
    if not torch.cuda.is_available():
        sys.exit("measure needs a CUDA device; the tests compare the values without one")
    found = json.dumps(measure(), indent=1)
    print(found)
    if call.out is not None:
        call.out.write_text(found + "\n")


if __name__ == "__main__":
    main()
