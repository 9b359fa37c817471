"""The released algorithm written out plainly, as the slow side of every comparison.

Batch normalisation splits as the CIFAR-10 demo makes them, logits in one matrix, a clone of the queue
at every step, loops over parameters, PIL images one at a time, everything float32 and channels first.
"""

import copy
import random

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torchvision import transforms as T
from torchvision.models import resnet as torchvision_resnet

from moco.data.augmentation import Augmentation


class SplitNorm(nn.BatchNorm2d):
    """Batch normalisation of `splits` interleaved parts of the batch, as more channels of fewer images."""

    splits = 8

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        n, c, h, w = x.shape
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, variance = self.running_mean.repeat(self.splits), self.running_var.repeat(self.splits)
        y = F.batch_norm(
            x.view(-1, c * self.splits, h, w), mean, variance,
            self.weight.repeat(self.splits), self.bias.repeat(self.splits), True, self.momentum or 0,
            self.eps,
        )  # fmt: skip
        self.running_mean.data.copy_(mean.view(self.splits, c).mean(0))
        self.running_var.data.copy_(variance.view(self.splits, c).mean(0))
        return y.view(n, c, h, w)


def resnet(arch: str, *, small: bool, dim: int = 128) -> nn.Module:
    """One of torchvision's ResNets with split normalisation and the demo's first layer, ending in keys."""
    net = getattr(torchvision_resnet, arch)(num_classes=dim, norm_layer=SplitNorm)
    if small:
        net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()
    return net


class Official:
    """Encoders, queue and optimizer; `step` is the demo's, asymmetric."""

    def __init__(
        self, f_q: nn.Module, queue: Tensor, *, m: float, temperature: float, lr: float, decay: float
    ):
        self.f_q, self.f_k = f_q, copy.deepcopy(f_q)
        for p in self.f_k.parameters():
            p.requires_grad = False
        self.queue, self.place, self.m, self.temperature = queue.T.contiguous(), 0, m, temperature
        self.optimizer = torch.optim.SGD(
            f_q.parameters(), lr, momentum=0.9, weight_decay=decay, foreach=False, fused=False
        )

    def step(self, queries: Tensor, keys: Tensor, order: Tensor) -> Tensor:
        """One step, with the momentum update first and the new keys before the backward pass."""
        with torch.no_grad():
            for q_p, k_p in zip(self.f_q.parameters(), self.f_k.parameters(), strict=True):
                k_p.data = k_p.data * self.m + q_p.detach().data * (1.0 - self.m)
        q = F.normalize(self.f_q(queries), dim=1)
        with torch.no_grad():
            k = F.normalize(self.f_k(keys[order]), dim=1)[torch.argsort(order)]
        positive = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", q, self.queue.clone().detach())
        logits = torch.cat([positive, negative], dim=1) / self.temperature
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
        self.queue[:, self.place : self.place + len(k)] = k.T
        self.place = (self.place + len(k)) % self.queue.shape[1]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def transform(a: Augmentation) -> T.Compose:
    """Views as torchvision makes them of PIL images, one at a time (v2's and the demo's order)."""

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*a.blur_sigma)))

    assert a.mean is not None
    colours = T.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue)
    return T.Compose(
        [
            T.RandomResizedCrop(a.size, scale=a.scale),
            T.RandomApply([colours], p=a.jitter_probability),
            T.RandomGrayscale(p=a.grayscale_probability),
            *([T.RandomApply([blur], p=a.blur_probability)] if a.blur_probability else []),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(a.mean, a.std),
        ]
    )


def knn_predict(
    queries: Tensor, bank: Tensor, labels: Tensor, classes: int, *, k: int, temperature: float
) -> Tensor:
    """The demo's vote for unit-length features, 512 queries at a time, with one-hot classes."""
    predicted, columns = [], bank.T.contiguous()
    for feature in queries.split(512):
        similarity, index = torch.mm(feature, columns).topk(k=k, dim=-1)
        voters = torch.gather(labels.expand(len(feature), -1), dim=-1, index=index)
        weight = (similarity / temperature).exp()
        one_hot = torch.zeros(len(feature) * k, classes).scatter(-1, voters.view(-1, 1), 1.0)
        scores = torch.sum(one_hot.view(len(feature), -1, classes) * weight.unsqueeze(-1), dim=1)
        predicted.append(scores.argsort(dim=-1, descending=True)[:, 0])
    return torch.cat(predicted)
