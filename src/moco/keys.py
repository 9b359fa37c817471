"""Where keys come from: a momentum encoder, the query encoder itself, or the queries.

Legend: θ_q, θ_k parameters of f_q and f_k, m momentum, k (N, C) keys, q (N, C) queries.
"""

import copy
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moco.encoder import Encoder
from moco.world import World


class KeyEncoder(nn.Module, ABC):
    """Encodes the key views of a batch."""

    @abstractmethod
    def encode(
        self, images: Tensor, q: Float[Tensor, "N C"] | None, order: Int[Tensor, " M"], world: World
    ) -> Float[Tensor, "N C"]:
        """Keys of N key views, in the order of the images.

        Args:
            images: (N, channels, H, W) key views.
            q: the queries of the same images; momentum and tied keys do without.
            order: permutation (M,) of the global batch in which it passes batch normalisation; with
                W processes, M = W N.
            world: the processes that share the batch.
        """

    @abstractmethod
    def follow(self, f_q: Encoder) -> None:
        """Take up what the query encoder has learnt in this step."""


class MomentumKeys(KeyEncoder):
    """Keys of f_k, an encoder that trails the query encoder and gets no gradient.

    f_k starts as a copy of f_q, parameter for parameter, without the predictor that f_q may have. Its
    batch normalisation keeps statistics of its own: momentum applies to parameters only.

    Args:
        f_q: the query encoder.
        momentum: m in [0, 1); 0.999 in the paper. An attribute that may change from step to step (v3).
        shuffle: permute the keys before batch normalisation groups them (shuffling BN).

    Raises:
        ValueError: if m is outside [0, 1).

    Source: MoCo, Sections 3.2 (momentum update) and 3.3 (shuffling BN).
    """

    def __init__(self, f_q: Encoder, momentum: float = 0.999, *, shuffle: bool = True):
        super().__init__()
        _check_momentum(momentum)
        self.f_k = copy.deepcopy(f_q).requires_grad_(False)
        self.f_k.predictor = None
        self.momentum = momentum
        self.shuffle = shuffle
        self._pairs: tuple[Encoder, list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def encode(self, images, q, order, world):
        if not self.shuffle:
            return self.f_k(images)
        return _encode_shuffled(self.f_k, images, order, world)

    def follow(self, f_q: Encoder) -> None:
        """The momentum update, of the parameters that both had when this query encoder was first followed.

        As an optimizer keeps its list of them: to look for them at every step takes a tenth of the update.
        """
        if self._pairs is None or self._pairs[0] is not f_q:
            theta_k, theta_q = dict(self.f_k.named_parameters()), dict(f_q.named_parameters())
            self._pairs = f_q, list(theta_k.values()), [theta_q[name] for name in theta_k]
        _approach(*self._pairs[1:], self.momentum)


class TiedKeys(KeyEncoder):
    """Keys of the query encoder itself, with gradient: the end-to-end mechanism.

    Args:
        f_q: the query encoder, shared.
        shuffle: as for `MomentumKeys`; the gradient passes through the permutation.

    Source: MoCo, Section 3.2 and Figure 2a; Section 3.3 uses shuffling BN here as well.
    """

    def __init__(self, f_q: Encoder, *, shuffle: bool = True):
        super().__init__()
        self._f_q = (f_q,)  # in a tuple: its parameters belong to the query encoder, once
        self.shuffle = shuffle

    def encode(self, images, q, order, world):
        (f_q,) = self._f_q
        if not self.shuffle:
            return f_q(images)
        return _encode_shuffled(f_q, images, order, world)

    def follow(self, f_q: Encoder) -> None:
        """The keys are the query encoder's already."""


class QueryKeys(KeyEncoder):
    """Each image's query is its next key: what a memory bank stores.

    Source: MoCo, Section 3.2 and Figure 2b.
    """

    def encode(self, images, q, order, world):
        return q.detach()

    def follow(self, f_q: Encoder) -> None:
        """There is no key encoder."""


def _encode_shuffled(f: Encoder, images: Tensor, order: Tensor, world: World) -> Tensor:
    """Keys whose images moved to the groups that `order` gives them, and back (shuffling BN).

    Between processes the images travel in the precision in which the encoder takes them anyway.
    """
    if world.size > 1 and f.autocast is not None:
        images = images.to(f.autocast)
    return world.unshuffle(f(world.shuffle(images, order)), order)


def momentum_update(f_k: nn.Module, f_q: nn.Module, momentum: float) -> None:
    """θ_k ← m θ_k + (1 − m) θ_q for every parameter, in place; buffers stay as they are.

    Args:
        f_k, f_q: modules with parameters of the same shapes in the same order.
        momentum: m in [0, 1); 0 copies.

    Raises:
        ValueError: if m is outside [0, 1).

    Source: MoCo, Section 3.2, Eqn. (2).
    """
    _check_momentum(momentum)
    _approach(list(f_k.parameters()), list(f_q.parameters()), momentum)


@torch.no_grad()
def _approach(theta_k: list[Tensor], theta_q: list[Tensor], momentum: float) -> None:
    """Eqn. (2) for all parameters, in one pass over each."""
    torch._foreach_lerp_(theta_k, theta_q, 1 - momentum)


def _check_momentum(momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise ValueError(
            f"keys.momentum must be in [0, 1), got {momentum} "
            "(it is m in θ_k ← m θ_k + (1 − m) θ_q; the paper uses 0.999)"
        )
