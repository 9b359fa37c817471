"""Two hosts, one killed: two network namespaces joined by a cable, torchrun on each, one run together.

    python benchmarks/two_hosts.py

Each namespace has an address of its own and sees the other through a veth pair only. The two torchruns
meet by c10d rendezvous. In the middle of training the process of the second host is killed with SIGKILL;
both torchruns restart, the run goes on from its checkpoint, and its end is compared with that of two
processes on one host that nothing disturbed. Needs root and `ip`; exits with 0 and the reason where
namespaces are not allowed.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from moco import recipe_file
from moco.data.procedural import procedural
from moco.recipe import Cosine, Encoder, InfoNCE, MomentumQueue, Monitor, Recipe
from moco.training.checkpoint import Checkpoints

HOSTS = {"moco-a": "10.77.0.1", "moco-b": "10.77.0.2"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True)


def connect() -> None:
    """Make both namespaces and the cable."""
    for name in HOSTS:
        ip(f"netns add {name}")
        ip(f"-n {name} link set lo up")
    ip("link add moco-va netns moco-a type veth peer name moco-vb netns moco-b")
    for (name, address), cable in zip(HOSTS.items(), ("moco-va", "moco-vb"), strict=True):
        ip(f"-n {name} addr add {address}/24 dev {cable}")
        ip(f"-n {name} link set {cable} up")


def disconnect() -> None:
    for name in HOSTS:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def prepare(folder: Path) -> list[str]:
    """A small data set and recipe; the words after `moco`."""
    images = procedural(200, size=16).pixels.permute(0, 2, 3, 1).numpy()
    np.save(folder / "images.npy", images)
    views = type(Recipe().views)(size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
    values = Recipe(
        name="two hosts",
        views=views,
        encoder=Encoder("resnet18", width=8, stem="small2", dim=16, bn_group=8),
        dictionary=MomentumQueue(64),
        loss=InfoNCE(0.2),
        schedule=Cosine(),
        batch=32,
        epochs=None,
        iterations=200,
        monitor=Monitor(every=0),
        journal_every=5,
        checkpoint_every=10,
    )
    (folder / "recipe.toml").write_text(recipe_file.text(values))
    return ["pretrain", "--from", str(folder / "recipe.toml"), "--data", str(folder / "images.npy")]


def processes_in(namespace: str) -> list[int]:
    """Training processes of a host: those that have a torchrun for a parent."""
    pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True)
    found = []
    for pid in map(int, pids.stdout.split()):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"moco" in words and not any(b"torch.distributed.run" in word for word in words):
            found.append(pid)
    return found


def main() -> None:
    disconnect()
    try:
        connect()
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        print(f"skipped: network namespaces are not allowed here ({getattr(error, 'stderr', error)})")
        return
    folder = Path(tempfile.mkdtemp(prefix="moco-two-hosts-"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = prepare(folder)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        calm = [*TORCHRUN, "--nproc-per-node", "2", "--standalone", "-m", "moco", *words]
        subprocess.run([*calm, "--out", str(folder / "calm")], env=environment, check=True, **quiet)  # type: ignore[call-overload]
        hosts = []
        for (name, address), cable in zip(HOSTS.items(), ("moco-va", "moco-vb"), strict=True):
            agent = [
                *TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3",
                "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{HOSTS['moco-a']}:29555", "--rdzv-id", "two",
                "--rdzv-conf", f"is_host={name == 'moco-a'}",  # a namespace does not know its address by name
                "--local-addr", address, "-m", "moco", *words, "--out", str(folder / "victim"),
            ]  # fmt: skip
            log = open(folder / f"{name}.log", "wb")  # noqa: SIM115
            hosts.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, *agent],
                    env=environment | {"GLOO_SOCKET_IFNAME": cable},
                    stdout=log,
                    stderr=log,
                )
            )
        checkpoints = Checkpoints(folder / "victim" / "checkpoints", say=lambda _: None)
        deadline = time.monotonic() + 240
        while (found := checkpoints.load()) is None or found[0] < 20:
            over = time.monotonic() > deadline or any(host.poll() is not None for host in hosts)
            assert not over, (folder / "moco-b.log").read_text()
            time.sleep(0.05)
        (victim,) = processes_in("moco-b")
        os.kill(victim, signal.SIGKILL)
        print(f"two hosts trained to step {found[0]}; killed process {victim} of the second", flush=True)
        codes = [host.wait(timeout=240) for host in hosts]
        same = all(
            (folder / "calm" / name).read_bytes() == (folder / "victim" / name).read_bytes()
            for name in ("journal.jsonl", "backbone.safetensors")
        )
        a, b = (Checkpoints(folder / name / "checkpoints").load() for name in ("calm", "victim"))
        assert a is not None
        assert b is not None
        queues = torch.equal(a[1]["dictionary"]["keys"], b[1]["dictionary"]["keys"])
        text = (folder / "moco-a.log").read_text()
        print("\n".join(line for line in text.splitlines() if "lost another" in line or "resuming" in line))
        print(f"torchrun ended with {codes}; {'identical bits' if same and queues else 'THE RUNS DIFFER'}")
        sys.exit(not (same and queues and codes == [0, 0]))
    finally:
        for host in locals().get("hosts", []):
            host.kill()
        disconnect()


if __name__ == "__main__":
    main()
