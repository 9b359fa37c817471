"""Detectors and the segmenter: their parts as defined, and each of them learning."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moco.encoder import trunk
from moco.transfer import detector
from moco.transfer.batch import DetectionBatch, ImageList, SegmentationBatch, Targets
from moco.transfer.densepose import SurfaceBranch, resample
from moco.transfer.keypoints import KeypointBranch, heat_cells, peaks
from moco.transfer.masks import MaskBranch, mask_targets, paste
from moco.transfer.norm import parameter_groups, set_norm
from moco.transfer.proposals import Counts, ProposalNetwork
from moco.transfer.regions import Pooler, RegionHeads, Regions
from moco.transfer.segmentation import Segmenter
from moco.transfer.surface import Points
from moco.transfer.trunks import Stages, dilate
from moco.world import Solo

SMALL = {"counts": Counts(60, 20, 60, 20), "regions": 16}
ANCHORS = (8.0, 16.0, 32.0, 64.0, 128.0)


def net(name="resnet10", width=8, stem="imagenet", seed=0):
    torch.manual_seed(seed)
    return set_norm(trunk(name, width=width, stem=stem)[0], "synced", Solo())


def build(kind, *, classes=3, joints=17):
    body, world = net(), Solo()
    if kind == "c4":
        return detector.c4(body, classes, world, sizes=[ANCHORS[:3]], **SMALL)
    if kind == "c4 masks":
        branches = {"mask": MaskBranch(Stages(body).channels[-1], classes, width=16)}
        return detector.c4(body, classes, world, sizes=[ANCHORS[:3]], branches=branches, **SMALL)
    if kind == "dilated c5":
        return detector.dilated_c5(body, classes, world, sizes=[ANCHORS[:3]], width=16, hidden=32, **SMALL)
    model = detector.fpn(
        body, classes, world, sizes=[[a] for a in ANCHORS], channels=16, hidden=32, canonical=56, **SMALL
    )
    strides = model.backbone.strides[:4]
    branches = {
        "fpn": {},
        "fpn masks": {"mask": MaskBranch(16, classes, Pooler(14, strides, 56), width=16)},
        "keypoints": {"keypoint": KeypointBranch(16, joints, Pooler(14, strides, 56), width=16)},
        "dense pose": {"surface": SurfaceBranch(16, strides, width=16, convolutions=2)},
    }[kind]
    model.regions.branches.update(branches)
    return model


KINDS = ("c4", "c4 masks", "dilated c5", "fpn", "fpn masks", "keypoints", "dense pose")


def batch(objects=2, size=64, divisor=32):
    """Two images with bright squares, and everything that can be known about them."""
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for number in range(2):
        image = 0.1 * torch.randn(3, size, size, generator=generator)
        boxes = torch.tensor([[4.0, 6, 28, 34], [30.0, 20, 60, 56]])[:objects] + number
        masks = torch.zeros(objects, size, size, dtype=torch.uint8)
        keypoints = torch.zeros(objects, 17, 3)
        points = []
        for place, (left, top, right, bottom) in enumerate(boxes.long().tolist()):
            image[place, top:bottom, left:right] += 2
            masks[place, top:bottom, left:right] = 1
            keypoints[place, :, 0] = torch.linspace(left + 1, right - 1, 17)
            keypoints[place, :, 1] = torch.linspace(top + 1, bottom - 1, 17)
            keypoints[place, :12, 2] = 2
            places = torch.tensor([[0.2, 0.2], [0.5, 0.5], [0.8, 0.3]])
            inside = torch.ones(16, 16, dtype=torch.uint8)
            points.append(Points(places, torch.tensor([1, 5, 5 + place]), places.flip(1), inside))
        images.append(image)
        targets.append(Targets(boxes, torch.arange(objects), masks, keypoints, tuple(points)))
    return DetectionBatch(ImageList.stack(images, divisor), tuple(targets), (1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_every_detector_learns_and_every_weight_gets_a_gradient(kind):
    model, data = build(kind), batch()
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), 0.02, 0.9)
    history = []
    for _ in range(8):
        losses = model.losses(data)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    first, last = (sum(v for name, v in row.items() if name != "box") for row in (history[0], history[-1]))
    assert last < 0.9 * first  # the box loss rises at first, when more regions are objects
    extra = {"c4 masks": {"mask"}, "fpn masks": {"mask"}, "keypoints": {"keypoint"},
             "dense pose": {"surface_inside", "surface_part", "surface_u", "surface_v"}}  # fmt: skip
    assert set(history[0]) == {"rpn_class", "rpn_box", "box_class", "box"} | extra.get(kind, set())
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert [name for name in silent if "surface" not in name and "4.0" not in name] == []


@pytest.mark.parametrize("kind", KINDS)
def test_detections_lie_in_the_file_and_are_ranked(kind):
    model = build(kind).eval()
    model.regions.threshold = 0.0
    found = model.detect(ImageList.stack([torch.randn(3, 64, 64)], 32), [(100, 130)])[0]
    assert 0 < len(found) <= 100
    assert float(found.boxes[:, [0, 2]].max()) <= 130
    assert float(found.boxes[:, [1, 3]].max()) <= 100
    assert float(found.boxes.min()) >= 0
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    if "masks" in kind:
        assert found.masks.shape == (len(found), 100, 130)
    if kind == "keypoints":
        assert found.keypoints.shape == (len(found), 17, 3)
    if kind == "dense pose":
        assert len(found.surfaces) == len(found)
    model.regions.threshold = 1.0
    none = model.detect(ImageList.stack([torch.randn(3, 64, 64)], 32), [(100, 130)])[0]
    assert len(none) == 0


def test_losses_are_a_function_of_the_batch():
    model, data = build("fpn masks"), batch()
    model.eval()  # so that normalisation keeps nothing
    model.proposals.train()
    first, second = model.losses(data), model.losses(data)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = DetectionBatch(data.images, data.targets, (3, 4))
    assert model.losses(other)["rpn_class"] != first["rpn_class"]


def test_an_image_without_objects_gives_background_only():
    model, data = build("c4"), batch(objects=0)
    losses = model.losses(data)
    assert losses["rpn_box"].item() == losses["box"].item() == 0
    assert losses["rpn_class"].item() > 0


def slow_rpn_losses(network, anchors, logits, moves, target, seed):
    """One image, every anchor in words; sampling is that of the network."""
    from torchvision.ops import box_iou

    from moco.transfer import boxes as B

    overlap = box_iou(target.boxes, anchors)
    kinds = []
    for a in range(len(anchors)):
        best = overlap[:, a].max()
        kinds.append(1 if best >= 0.7 else 0 if best < 0.3 else -1)
        if any(overlap[m, a] == overlap[m].max() for m in range(len(target.boxes))):
            kinds[a] = 1
    kinds = torch.tensor(kinds)
    draws = torch.Generator().manual_seed(seed)
    objects, background = B.sample(kinds == 1, kinds == 0, network.per_image, 0.5, draws)
    classification = distance = 0.0
    for a in objects.tolist() + background.tolist():
        is_object = a in objects.tolist()
        p = torch.sigmoid(logits[a])
        classification -= torch.log(p if is_object else 1 - p).item()
        if is_object:
            truth = target.boxes[int(overlap[:, a].argmax())]
            w, h = anchors[a][2] - anchors[a][0], anchors[a][3] - anchors[a][1]
            tw, th = truth[2] - truth[0], truth[3] - truth[1]
            goal = torch.stack(
                [
                    ((truth[0] + truth[2]) / 2 - (anchors[a][0] + anchors[a][2]) / 2) / w,
                    ((truth[1] + truth[3]) / 2 - (anchors[a][1] + anchors[a][3]) / 2) / h,
                    torch.log(tw / w),
                    torch.log(th / h),
                ]
            )
            distance += (moves[a] - goal).abs().sum().item()
    return classification / network.per_image, distance / network.per_image


def test_proposal_losses_are_as_defined():
    torch.manual_seed(0)
    network = ProposalNetwork(8, [16], [[8.0, 16, 32]], Counts(), per_image=40)
    anchors, logits, moves = network([torch.randn(1, 8, 4, 4)])
    target = batch().targets[0]
    losses = network.losses(anchors, logits, moves, [target], [torch.Generator().manual_seed(7)])
    expected = slow_rpn_losses(network, anchors[0], logits[0][0], moves[0][0], target, 7)
    assert losses["rpn_class"].item() == pytest.approx(expected[0], rel=1e-5)
    assert losses["rpn_box"].item() == pytest.approx(expected[1], rel=1e-5)


def test_proposals_are_ranked_by_logit_even_where_the_sigmoid_is_one():
    network = ProposalNetwork(8, [16], [[8.0]], Counts(10, 3, 10, 3), ratios=[1.0])
    anchors = [torch.tensor([[0.0, 0, 8, 8], [20, 0, 28, 8], [40, 0, 48, 8], [60, 0, 68, 8]])]
    logits = [torch.tensor([[30.0, 40.0, 50.0, 35.0]])]
    found = network.propose(anchors, logits, [torch.zeros(1, 4, 4)], [(64, 80)])[0]
    assert found[:, 0].tolist() == [40, 20, 60]


def test_region_losses_are_as_defined():
    torch.manual_seed(0)
    heads = RegionHeads(Pooler(2, [16]), nn.Flatten(), 32, 3, per_image=12)
    features = [torch.randn(1, 8, 4, 4)]
    target = batch().targets[0]
    proposals = torch.cat([target.boxes + 1.5, torch.rand(10, 4) * 20 + torch.tensor([0, 0, 30, 30])])
    nn.init.normal_(heads.move.weight, std=0.1)
    losses = heads.losses(features, [proposals], [target], [torch.Generator().manual_seed(1)])
    regions = heads._sample(proposals, target, torch.Generator().manual_seed(1))
    assert int((regions.labels < 3).sum()) == 3  # at most a quarter of 12; two moved boxes, two annotated
    shared = heads.head(heads.pooler(features, [regions.boxes]))
    logits, moves = heads.score(shared), heads.move(shared).reshape(-1, 3, 4)
    expected = distance = 0.0
    for row, label in enumerate(regions.labels.tolist()):
        expected -= logits[row].log_softmax(0)[label].item()
        if label < 3:
            box, truth = regions.boxes[row], target.boxes[label]
            size, goal_size = box[2:] - box[:2], truth[2:] - truth[:2]
            shift = ((truth[:2] + truth[2:]) / 2 - (box[:2] + box[2:]) / 2) / size
            goal = torch.cat([10 * shift, 5 * torch.log(goal_size / size)])
            distance += (moves[row, label] - goal).abs().sum().item()
    count = len(regions.labels)
    assert losses["box_class"].item() == pytest.approx(expected / count, rel=1e-5)
    assert losses["box"].item() == pytest.approx(distance / count, rel=1e-5)


def test_masks_of_regions_and_back():
    target = batch().targets[0]
    boxes = torch.tensor([[4.0, 6, 28, 34], [4.0, 6, 52, 34], [30.0, 20, 60, 56]])
    regions = Regions(boxes, torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]), target)
    cut = mask_targets(regions, 28)
    assert bool((cut[0] == 1).all())
    assert bool((cut[1][:, :14] == 1).all())
    assert bool((cut[1][:, 14:] == 0).all())
    pasted = paste(cut, boxes, 64, 64)
    assert torch.equal(pasted[0], target.masks[0].bool())
    assert torch.equal(pasted[1], target.masks[0].bool())
    assert torch.equal(pasted[2], target.masks[1].bool())


def test_pasting_interpolates_at_the_centres_of_pixels():
    mask = torch.tensor([[[0.0, 1.0]]]).expand(1, 2, 2)
    pasted = paste(mask, torch.tensor([[2.0, 0.0, 10.0, 4.0]]), 4, 12)
    # cells are 4 pixels wide; the value is a half where the two cells meet, at x = 6
    assert pasted[0, 1].long().tolist() == [0] * 6 + [1] * 3 + pasted[0, 1, 9:].long().tolist()


def test_joints_are_found_where_their_heat_is():
    target = batch().targets[0]
    boxes = target.boxes
    regions = Regions(boxes, torch.zeros(2, dtype=torch.long), torch.arange(2), target)
    cells, valid = heat_cells(regions, 56)
    assert valid.sum(1).tolist() == [12, 12]
    maps = torch.zeros(2, 17, 56 * 56)
    maps.scatter_(2, cells[:, :, None], 10.0)
    found = peaks(maps.reshape(2, 17, 56, 56), boxes)
    error = (found[:, :12, :2] - target.keypoints[:, :12, :2]).abs()
    assert float(error.max()) < 1.0


def test_surfaces_are_resampled_to_their_box():
    part = torch.zeros(25, 8, 8)
    part[3, :, :4], part[7, :, 4:] = 5, 5
    coarse = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
    coarse[0, :4] = 2  # the upper half is no body
    u = torch.arange(25)[:, None, None].expand(25, 8, 8) / 25
    surface = resample(coarse, part, u, 1 - u, torch.tensor([10.0, 20.0, 26.0, 36.0]), 100, 100)
    assert (surface.left, surface.top, tuple(surface.parts.shape)) == (10, 20, (16, 16))
    assert surface.parts[12].tolist() == [3] * 8 + [7] * 8
    assert int(surface.parts[3].sum()) == 0
    torch.testing.assert_close(surface.uv[:, 12, 2], torch.tensor([3 / 25, 22 / 25]))


@pytest.mark.parametrize("name", ["resnet10", "resnet50"])
def test_dilation_keeps_the_resolution_and_the_weights(name):
    body = net(name, width=4)
    before = {key: value.clone() for key, value in body.state_dict().items()}
    x = torch.randn(1, 3, 64, 64)
    assert Stages(body).eval()(x)[-1].shape[-1] == 2
    dilate(body.layer4)
    stages = Stages(body).eval()
    assert stages(x)[-1].shape[-1] == 4
    assert stages.strides == [4, 8, 16, 16]
    kernels = [m for m in body.layer4.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert all(m.dilation == (2, 2) and m.stride == (1, 1) for m in kernels)
    assert all(torch.equal(value, before[key]) for key, value in body.state_dict().items())


@pytest.mark.parametrize(
    ("name", "width", "stem", "strides", "channels"),
    [
        ("resnet18", 8, "imagenet", [4, 8, 16, 32], [8, 16, 32, 64]),
        ("resnet18", 8, "small2", [2, 4, 8, 16], [8, 16, 32, 64]),
        ("resnet50", 8, "small", [1, 2, 4, 8], [32, 64, 128, 256]),
        ("resnext50_32x8d", None, "imagenet", [4, 8, 16, 32], [256, 512, 1024, 2048]),
        ("torchvision/wide_resnet50_2", None, "imagenet", [4, 8, 16, 32], [256, 512, 1024, 2048]),
    ],
)
def test_strides_and_channels_are_read_from_the_trunk(name, width, stem, strides, channels):
    stages = Stages(net(name, width, stem)).eval()
    x = torch.randn(1, 3, 64, 64)
    assert stages.strides == strides
    assert stages.channels == channels
    assert [64 // y.shape[-1] for y in stages(x)] == strides
    assert [y.shape[1] for y in stages(x)] == channels


def test_the_paper_sized_networks_have_the_paper_sized_heads():
    with torch.device("meta"):
        body = trunk("resnet50")[0]
        set_norm_on_meta = body  # normalisation needs no state to be counted
        c4 = detector.c4(set_norm_on_meta, 20, Solo())
    assert c4.backbone.strides == [16]
    assert c4.backbone.channels == 1024
    assert c4.proposals.head.cls_logits.out_channels == 15
    assert c4.regions.score.in_features == 2048
    assert (c4.regions.score.out_features, c4.regions.move.out_features) == (21, 80)
    with torch.device("meta"):
        dc5 = detector.dilated_c5(trunk("resnet50")[0], 20, Solo())
        pyramid = detector.fpn(trunk("resnet50")[0], 80, Solo())
    assert dc5.backbone.channels == 512
    assert dc5.regions.head[1].in_features == 512 * 49
    assert pyramid.backbone.strides == [4, 8, 16, 32, 64]
    norms = [m for m in pyramid.backbone.pyramid.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 8
    assert not any(isinstance(m, nn.BatchNorm2d) for m in pyramid.regions.modules())


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"has no conv1: detection and segmentation take residual networks"):
        Stages(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(ValueError, match=r"every one of the 2 feature maps needs equally many anchor sizes"):
        ProposalNetwork(8, [16, 32], [[8.0]], Counts())


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (Stages, ()),
        (Segmenter, (3, Solo())),
        (detector.c4, (3, Solo())),
        (detector.dilated_c5, (3, Solo())),
        (detector.fpn, (3, Solo())),
    ],
)
def test_other_stages_and_blocks_are_refused_in_words(build, options):
    body = trunk("resnet10", width=4)[0]
    body.layer4[0] = nn.Sequential(body.layer4[0])
    stride = body.layer4[0][0].conv1.stride
    with pytest.raises(ValueError, match=r"layer4 has blocks of .*Sequential: .* take residual networks"):
        build(body, *options)
    assert body.layer4[0][0].conv1.stride == stride
    with pytest.raises(ValueError, match=r"MobileNetV3 has no conv1: detection and segmentation take"):
        build(trunk("torchvision/mobilenet_v3_small")[0], *options)


def test_the_segmenter_learns_and_answers_at_the_size_of_the_file():
    model = Segmenter(net(), 3, Solo(), width=16)
    assert model.backbone.strides[-1] == 16
    truth = torch.zeros(2, 65, 65, dtype=torch.long)
    truth[:, 20:40, 10:50] = 1
    truth[:, 50:, :] = 255
    pixels = F.one_hot(truth.clamp(max=2), 3).permute(0, 3, 1, 2).float()
    data = SegmentationBatch(ImageList.stack(list(pixels)), truth)
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), 0.1, 0.9)
    history = []
    for _ in range(25):
        loss = model.losses(data)["pixel_class"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]
    found = model.eval().classes_of(ImageList.stack([pixels[0]]), [(130, 70)])[0]
    assert found.shape == (130, 70)
    nothing = SegmentationBatch(data.images, torch.full_like(truth, 255))
    assert model.losses(nothing)["pixel_class"].item() == 0


def test_weight_decay_spares_normalisation_only():
    model = build("fpn")
    decayed, free = parameter_groups(model, 1e-4)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {id(p) for p in free["params"]} == {id(p) for m in norms for p in m.parameters()}
    assert (decayed["weight_decay"], free["weight_decay"]) == (1e-4, 0.0)
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))
