"""Small trunks with what a backbone file says of them: shared by the tests of export."""

import torch

from moco.encoder import trunk


def about(arch="resnet18", width=None, stem="imagenet", channels=3, size=40):
    mean, std = (0.5, 0.4, 0.3, 0.2)[:channels], (0.2, 0.25, 0.3, 0.1)[:channels]
    facts = {"arch": arch, "width": width, "stem": stem, "channels": channels, "size": size}
    return facts | {"mean": mean, "std": std, "licence": "CC0-1.0"}


def network(facts, seed=0):
    """A trunk whose every parameter and statistic is its own."""
    torch.manual_seed(seed)
    net, _ = trunk(facts["arch"], width=facts["width"], stem=facts["stem"], channels=facts["channels"])
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and "conv" not in name and "downsample.0" not in name:
            tensor.add_(0.2 * torch.rand_like(tensor))
    return net.eval()


NARROW = about("resnet10", width=8)
