import pytest
import torch
from torch import nn

from moco.norm import GroupedBatchNorm2d, group_batch_norm


def reference(x, norm, group):
    """One plain batch normalisation per group, and the mean of their running statistics."""
    outputs, means, variances = [], [], []
    for part in x.split(group):
        plain = nn.BatchNorm2d(norm.num_features, dtype=x.dtype)
        plain.load_state_dict(norm.state_dict())
        plain.weight, plain.bias = norm.weight, norm.bias
        outputs.append(plain(part))
        means.append(plain.running_mean)
        variances.append(plain.running_var)
    return torch.cat(outputs), torch.stack(means).mean(0), torch.stack(variances).mean(0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("group", [2, 3, 4, 12])
def test_equals_one_batch_norm_per_group(group, memory_format):
    torch.manual_seed(0)
    norm = GroupedBatchNorm2d(5, group, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(12, 5, 3, 4, dtype=torch.float64).contiguous(memory_format=memory_format)
    x.requires_grad_()
    wanted = torch.randn(12, 5, 3, 4, dtype=torch.float64)
    expected, mean, variance = reference(x, norm, group)
    leaves = x, norm.weight, norm.bias
    expected_gradients = torch.autograd.grad((expected * wanted).sum(), leaves)

    result = norm(x)
    gradients = torch.autograd.grad((result * wanted).sum(), leaves)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert result.is_contiguous(memory_format=memory_format)


def test_gradient_of_either_layout_is_accepted():
    norm = GroupedBatchNorm2d(4, 2)
    x = torch.randn(4, 4, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(4, 4, 3, 3)
    (a,) = torch.autograd.grad(norm(x), x, gradient)
    (b,) = torch.autograd.grad(norm(x), x, gradient.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(a, b)


def test_groups_do_not_see_each_other():
    norm = GroupedBatchNorm2d(3, 4)
    x = torch.randn(8, 3, 5, 5)
    changed = x.clone()
    changed[4:] *= 7
    assert torch.equal(norm(x)[:4], norm(changed)[:4])
    whole = GroupedBatchNorm2d(3, None)
    assert not torch.equal(whole(x)[:4], whole(changed)[:4])


def test_evaluation_uses_running_statistics_for_any_batch():
    norm = GroupedBatchNorm2d(3, 4)
    norm(torch.randn(8, 3, 5, 5) * 3 + 1)
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict(norm.state_dict())
    x = torch.randn(7, 3, 5, 5)
    assert torch.equal(norm.eval()(x), plain.eval()(x))


def test_conversion_keeps_state_and_reaches_everything():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)), nn.BatchNorm2d(4))
    nn.init.normal_(net[2].weight)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    group_batch_norm(net, 2)
    assert all(type(m) is GroupedBatchNorm2d for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in state.items())


def test_impossible_groups_are_refused():
    with pytest.raises(ValueError, match="group_size must be at least 1 image, got 0"):
        GroupedBatchNorm2d(3, 0)
    with pytest.raises(ValueError, match="a batch of 6 images does not divide into groups of 4"):
        GroupedBatchNorm2d(3, 4)(torch.randn(6, 3, 2, 2))
