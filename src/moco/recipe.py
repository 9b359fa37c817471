"""A recipe holds every independent value of a run, and nothing else: no tensor, no code, no torch.

Kinds (which keys, which dictionary, which loss, which schedule) are chosen in Python by naming
another class; numbers are fields, and the command line turns each into a flag. A class here has the
name of the part it describes: `recipe.MomentumQueue` holds the numbers of a `moco.MomentumQueue`.
"""

from dataclasses import dataclass, field
from typing import Literal

from moco.data.augmentation import Augmentation
from moco.data.reading import Reading


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True)
class Encoder:
    """f_q and, by copy, f_k."""

    arch: str = "resnet50"
    """resnet10/18/34/50/101/152, resnext50_32x8d, resnet50w2x, resnet50w4x, torchvision/NAME or timm/NAME,
    these two with arguments of the library: timm/vit_small_patch16_224,img_size=32,patch_size=4."""
    width: int | None = None
    """Channels of the first stage, the others scale with it; None is the architecture's own."""
    stem: Literal["imagenet", "small", "small2"] = "imagenet"
    """imagenet: 7x7 stride 2 and a pool; small: 3x3 stride 1; small2: 3x3 stride 2."""
    head: Literal["linear", "mlp"] = "linear"
    """linear: v1's fully connected layer; mlp: v2's, with one hidden layer."""
    head_layers: int = 2
    """Fully connected layers of the mlp head: 2 in v2, 3 for v3's vision transformers."""
    head_norm: Literal["off", "hidden", "all"] = "off"
    """Batch normalisation in the mlp head: after hidden layers, or after all (v3, the last without scale)."""
    hidden: int | None = None
    """Channels of hidden layers in head and predictor (v3: 4096); None is as many as features."""
    dim: int = 128
    """Length C of queries and keys."""
    predictor: bool = False
    """v3's prediction head: two layers more, on queries only."""
    predictor_norm: Literal["off", "hidden", "all"] = "hidden"
    """Batch normalisation in the predictor, as in the head."""
    zero_residual: bool = False
    """The last normalisation of each residual block starts at zero (v3)."""
    random_patches: bool = False
    """Of a timm vision transformer: patch projection random and frozen, positions fixed (v3)."""
    bn_group: int | None = 32
    """Images per batch-normalisation group (32 per GPU in the paper); None: the whole batch."""

    def __post_init__(self):
        one_of("encoder.stem", self.stem, ("imagenet", "small", "small2"))
        one_of("encoder.head", self.head, ("linear", "mlp"))
        one_of("encoder.head_norm", self.head_norm, ("off", "hidden", "all"))
        one_of("encoder.predictor_norm", self.predictor_norm, ("off", "hidden", "all"))
        require(self.head_layers >= 2, f"encoder.head_layers must be at least 2, got {self.head_layers}")
        require(
            self.head == "mlp" or (self.head_layers == 2 and self.head_norm == "off"),
            "encoder.head_layers and encoder.head_norm belong to the mlp head, "
            f"got {self.head_layers} and {self.head_norm} with the linear one",
        )
        require(
            self.hidden is None or self.hidden >= 1, f"encoder.hidden must be at least 1, got {self.hidden}"
        )
        require(self.dim >= 1, f"encoder.dim must be at least 1, got {self.dim}")
        require(self.width is None or self.width >= 1, f"encoder.width must be at least 1, got {self.width}")
        require(
            self.bn_group is None or self.bn_group >= 2,
            f"encoder.bn_group must be at least 2 images (one image has no variance), got {self.bn_group}",
        )


@dataclass(frozen=True)
class MomentumKeys:
    """Keys of a momentum encoder."""

    momentum: float = 0.999
    """m in θ_k ← m θ_k + (1 − m) θ_q, in [0, 1)."""
    rising: bool = False
    """m rises to 1 over the run, by half a cosine (v3)."""
    shuffle: bool = True
    """Shuffling BN: permute the keys between batch-normalisation groups."""

    def __post_init__(self):
        require(
            0 <= self.momentum < 1,
            f"keys.momentum must be in [0, 1), got {self.momentum} "
            "(it is m in θ_k ← m θ_k + (1 − m) θ_q; the paper uses 0.999)",
        )


@dataclass(frozen=True)
class TiedKeys:
    """Keys of the query encoder, with gradient (end-to-end)."""

    shuffle: bool = True
    """Shuffling BN: permute the keys between batch-normalisation groups."""


@dataclass(frozen=True)
class QueryKeys:
    """Queries kept as later keys (memory bank)."""


@dataclass(frozen=True)
class MomentumQueue:
    """The last K keys."""

    size: int = 65536
    """K, the number of negative keys."""
    mask_own: bool = False
    """Leave out keys of the query's own image; required when K is not below the number of images."""

    def __post_init__(self):
        require(
            self.size >= 1, f"dictionary.size must be at least 1 key, got {self.size} (the paper uses 65536)"
        )


@dataclass(frozen=True)
class InBatch:
    """The other images of the batch."""


@dataclass(frozen=True)
class MemoryBank:
    """One slot per image, K drawn at each step."""

    size: int = 65536
    """K, the number of negative keys drawn."""
    momentum: float = 0.5
    """Share of its old value that a slot keeps, in [0, 1)."""
    per_query: bool = False
    """Draw negatives for each query (InstDisc) instead of once for the batch."""
    mask_own: bool = False
    """Leave out draws of the query's own slot."""

    def __post_init__(self):
        require(self.size >= 1, f"dictionary.size must be at least 1 key, got {self.size}")
        require(0 <= self.momentum < 1, f"dictionary.momentum must be in [0, 1), got {self.momentum}")


@dataclass(frozen=True)
class InfoNCE:
    """(K+1)-way softmax, Eqn. (1)."""

    temperature: float = 0.07
    """T; 0.07 in v1, 0.2 in v2, 1.0 for v3's ResNets."""
    weight: float = 1.0
    """Factor of the loss where it is differentiated; v3's sum of two terms 2 T L is 4 T times their mean."""

    def __post_init__(self):
        require(self.temperature > 0, f"loss.temperature must be above 0, got {self.temperature}")
        require(self.weight > 0, f"loss.weight must be above 0, got {self.weight}")


@dataclass(frozen=True)
class NCE:
    """Noise-contrastive estimation as InstDisc has it."""

    temperature: float = 0.07
    """T of exp(similarity / T) / Z."""

    def __post_init__(self):
        require(self.temperature > 0, f"loss.temperature must be above 0, got {self.temperature}")


@dataclass(frozen=True)
class Margin:
    """Triplet-style loss."""

    margin: float = 0.5
    """Least difference in cosine similarity between positive and negative."""

    def __post_init__(self):
        require(0 < self.margin <= 2, f"loss.margin must be in (0, 2], got {self.margin}")


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent."""

    lr: float = 0.03
    """Learning rate of a batch of 256; another batch scales it linearly."""
    momentum: float = 0.9
    """Of the gradients; not m of the momentum encoder."""
    weight_decay: float = 1e-4
    """Of every parameter, as in the released code."""
    nesterov: bool = False
    """Nesterov's form of momentum."""

    def __post_init__(self):
        _check_descent(self.lr, self.weight_decay)
        require(0 <= self.momentum < 1, f"optimizer.momentum must be in [0, 1), got {self.momentum}")


@dataclass(frozen=True)
class LARS:
    """SGD whose step in each weight is a share of that weight's length, for large batches (v3's ResNets)."""

    lr: float = 0.3
    """Learning rate of a batch of 256; another batch scales it linearly."""
    momentum: float = 0.9
    """Of the gradients; not m of the momentum encoder."""
    weight_decay: float = 1.5e-6
    """Of weights; not of biases and batch normalisation."""
    trust: float = 0.001
    """Length of a step over that of the weights, at learning rate 1."""

    def __post_init__(self):
        _check_descent(self.lr, self.weight_decay)
        require(0 <= self.momentum < 1, f"optimizer.momentum must be in [0, 1), got {self.momentum}")
        require(self.trust > 0, f"optimizer.trust must be above 0, got {self.trust}")


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (v3's vision transformers)."""

    lr: float = 1.5e-4
    """Learning rate of a batch of 256; another batch scales it linearly."""
    weight_decay: float = 0.1
    """Of every parameter, as in the released code."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of the running means of gradients and of their squares."""

    def __post_init__(self):
        _check_descent(self.lr, self.weight_decay)
        require(
            all(0 <= beta < 1 for beta in self.betas), f"optimizer.betas must be in [0, 1), got {self.betas}"
        )


def _check_descent(lr: float, weight_decay: float) -> None:
    require(lr > 0, f"optimizer.lr must be above 0, got {lr}")
    require(weight_decay >= 0, f"optimizer.weight_decay must not be negative, got {weight_decay}")


@dataclass(frozen=True)
class Step:
    """Multiply the learning rate at milestones."""

    milestones: tuple[int, ...] = (120, 160)
    """Epochs at whose start it is multiplied."""
    factor: float = 0.1
    warmup: float = 0.0
    """Epochs over which the learning rate rises linearly from zero."""

    def __post_init__(self):
        require(self.factor > 0, f"schedule.factor must be above 0, got {self.factor}")


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from the learning rate to zero."""

    by_epoch: bool = False
    """Constant within an epoch (the released code) instead of falling with every step."""
    first_epoch: int = 0
    """Number of the first epoch, with `by_epoch`: 0 for v2, 1 in the CIFAR-10 demo."""
    warmup: float = 0.0
    """Epochs over which the learning rate rises linearly from zero."""
    after_warmup: bool = False
    """The cosine begins where the warm-up ends (v3) instead of at the first step."""


@dataclass(frozen=True)
class Exponential:
    """Multiply the learning rate every so many steps."""

    every: int = 62_500
    """Steps between multiplications."""
    factor: float = 0.9
    warmup: float = 0.0
    """Epochs over which the learning rate rises linearly from zero."""

    def __post_init__(self):
        require(self.factor > 0, f"schedule.factor must be above 0, got {self.factor}")
        require(self.every >= 1, f"schedule.every must be at least 1 step, got {self.every}")


@dataclass(frozen=True)
class Constant:
    """One learning rate throughout."""

    warmup: float = 0.0
    """Epochs over which the learning rate rises linearly from zero."""


@dataclass(frozen=True)
class Monitor:
    """kNN accuracy while training, where the images have labels. Training never sees the labels."""

    every: int = 1
    """Epochs between measurements; 0 measures at the end only."""
    bank: int = 5000
    """Labelled training images to vote, while training; the last measurement takes at most 50,000."""
    queries: int = 1000
    """Test images to classify, while training; the last measurement takes at most 50,000."""
    k: int = 200
    """Neighbours that vote."""
    temperature: float = 0.1
    """Votes weigh exp(similarity / temperature)."""

    def __post_init__(self):
        for name in "bank", "queries":
            require(
                getattr(self, name) >= 1,
                f"monitor.{name} must be at least 1 image, got {getattr(self, name)}",
            )
        require(self.k >= 1, f"monitor.k must be at least 1 neighbour, got {self.k}")
        require(self.temperature > 0, f"monitor.temperature must be above 0, got {self.temperature}")
        require(self.every >= 0, f"monitor.every must not be negative, got {self.every}")


@dataclass(frozen=True)
class Recipe:
    """Every independent value of a pre-training run; the defaults are MoCo v1 on ImageNet-1M."""

    name: str = "v1"
    """What the run calls itself."""
    encoder: Encoder = field(default_factory=Encoder)
    reading: Reading = field(default_factory=Reading)
    views: Augmentation = field(default_factory=Augmentation)
    keys: MomentumKeys | TiedKeys | QueryKeys = field(default_factory=MomentumKeys)
    dictionary: MomentumQueue | InBatch | MemoryBank = field(default_factory=MomentumQueue)
    loss: InfoNCE | NCE | Margin = field(default_factory=InfoNCE)
    symmetric: bool = False
    """Each view is once the query and once the key; the two losses are averaged."""
    optimizer: SGD | LARS | AdamW = field(default_factory=SGD)
    schedule: Step | Cosine | Exponential | Constant = field(default_factory=Step)
    batch: int = 256
    """Images per step, over all processes."""
    window: int | None = None
    """Shards read at a time (slow disks, images in shards); None draws from all images."""
    epochs: int | None = 200
    """Passes over the images; give this or iterations."""
    iterations: int | None = None
    """Steps in all, with epochs None."""
    accumulate: int = 1
    """Parts in which the query batch passes the encoder, to save memory; results stay the same."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoders; auto takes bfloat16 where the processor has it in hardware."""
    kernels: Literal["torch", "triton"] = "torch"
    """Parts of a step on a GPU: torch's operations, or fused ones of this package (see docs/speed.md)."""
    compile: Literal["off", "default", "reduce-overhead"] = "off"
    """Passes of the encoders through torch.compile, in this mode of it; reduce-overhead adds CUDA graphs."""
    seed: int = 0
    """Of every random choice."""
    monitor: Monitor = field(default_factory=Monitor)
    journal_every: int = 50
    """Steps between rows of the journal, each the mean over those steps."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep."""

    def __post_init__(self):
        one_of("precision", self.precision, ("auto", "float32", "bfloat16"))
        one_of("kernels", self.kernels, ("torch", "triton"))
        one_of("compile", self.compile, ("off", "default", "reduce-overhead"))
        require(self.batch >= 2, f"batch must be at least 2 images, got {self.batch}")
        require(
            (self.epochs is None) != (self.iterations is None),
            f"give epochs or iterations, not both: got epochs {self.epochs} and iterations "
            f"{self.iterations}; for a number of steps write --epochs None --iterations STEPS",
        )
        for name in (
            "epochs",
            "iterations",
            "accumulate",
            "window",
            "journal_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        group = self.encoder.bn_group
        require(
            group is None or self.batch % group == 0,
            f"encoder.bn_group must divide the batch, got groups of {group} in a batch of {self.batch}",
        )
        shuffled = getattr(self.keys, "shuffle", False)
        require(
            not shuffled or (group is not None and group < self.batch),
            f"keys.shuffle needs at least two batch-normalisation groups, got {group or self.batch} images "
            f"per group in a batch of {self.batch}: one group has nothing to shuffle between, and the "
            "pretext task leaks; make encoder.bn_group half of the batch or less, or turn keys.shuffle off",
        )
        require(
            not self.encoder.predictor or isinstance(self.keys, MomentumKeys),
            "encoder.predictor needs momentum keys: other keys would pass it as queries do",
        )
        part, rest = divmod(self.batch, self.accumulate)
        require(
            rest == 0 and (self.accumulate == 1 or (group is not None and part % group == 0)),
            f"accumulate must split the batch of {self.batch} into parts of whole batch-normalisation groups "
            f"({group} images), got {self.accumulate} parts; set encoder.bn_group to a divisor of the part",
        )
        require(
            self.accumulate == 1 or isinstance(self.keys, MomentumKeys),
            "accumulate needs keys that carry no gradient and do not come from the queries: momentum keys",
        )
        require(
            self.accumulate == 1 or isinstance(self.loss, InfoNCE),
            "accumulate needs a loss that is a mean over the queries: InfoNCE",
        )
        require(
            isinstance(self.keys, QueryKeys) == isinstance(self.dictionary, MemoryBank),
            "query keys and a memory bank go together: a bank stores queries, and stored queries need a bank",
        )
        require(
            not (self.symmetric and isinstance(self.dictionary, MemoryBank)),
            "symmetric must be off with a memory bank, whose slots take one view of an image per step",
        )
        require(
            not (isinstance(self.keys, TiedKeys) and isinstance(self.dictionary, MomentumQueue)),
            "tied keys change at every step and are consistent within a batch only: use dictionary InBatch()",
        )


MECHANISMS = {
    (MomentumKeys, MomentumQueue): "MoCo",
    (MomentumKeys, InBatch): "MoCo without a queue",
    (TiedKeys, InBatch): "end-to-end",
    (QueryKeys, MemoryBank): "memory bank",
}
"""Rows of the paper's Table 3, and what v3 made of them."""


def mechanism(values: Recipe) -> str:
    """What a recipe trains by: which keys and dictionary, as the paper's tables call it."""
    return MECHANISMS.get((type(values.keys), type(values.dictionary)), f"{values.name} (own mechanism)")


def trained_by(values: Recipe) -> str:
    """The mechanism in the words of a run's own tables: "momentum contrast", or as `mechanism` has it."""
    name = mechanism(values)
    return "momentum contrast" if name == "MoCo" else name
