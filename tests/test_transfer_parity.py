"""With the same weights and images, losses and detections are those of detectron2, where it is installed.

An opt-in check for developers: it is skipped where `import detectron2` fails. Every anchor and region is
sampled, so that no random draw is involved.
"""

import pytest
import torch
from torch import nn

from moco.encoder import trunk
from moco.transfer import detector
from moco.transfer.batch import DetectionBatch, ImageList, Targets
from moco.transfer.keypoints import KeypointBranch
from moco.transfer.masks import MaskBranch
from moco.transfer.norm import set_norm
from moco.transfer.proposals import Counts
from moco.transfer.regions import Pooler
from moco.transfer.trunks import Stages
from moco.world import Solo

pytestmark = pytest.mark.filterwarnings("ignore")
detectron2 = pytest.importorskip("detectron2", reason="compares with detectron2")
ALL, WIDTH, CLASSES, SIZE = 10**6, 8, 5, (96, 128)
COUNTS = {"train_before": 400, "train_after": 60, "test_before": 400, "test_after": 60}
ANCHORS = [16.0, 32.0, 64.0, 96.0, 128.0]


def ours(kind):
    torch.manual_seed(0)
    body = set_norm(trunk("resnet50", width=WIDTH)[0], "synced", Solo())
    options = {"counts": Counts(**COUNTS), "regions": ALL}
    if kind == "c4":
        branches = {"mask": MaskBranch(Stages(body).channels[-1], CLASSES, width=256)}
        model = detector.c4(body, CLASSES, Solo(), sizes=[ANCHORS], branches=branches, **options)
    else:
        model = detector.fpn(
            body, CLASSES, Solo(), sizes=[[a] for a in ANCHORS], channels=32, hidden=64,
            beta=0.5 if kind == "keypoints" else 0.0, **options,
        )  # fmt: skip
        strides = model.backbone.strides[:4]
        model.regions.branches.update(
            {"keypoint": KeypointBranch(32, 17, Pooler(14, strides), width=16)}
            if kind == "keypoints"
            else {"mask": MaskBranch(32, CLASSES, Pooler(14, strides), width=16)}
        )
    model.proposals.per_image = ALL
    model.regions.share = 0.9
    for module in model.modules():  # so that detections are many and various
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    for part, std in (
        (model.proposals.head.bbox_pred, 0.02),
        (model.regions.score, 0.3),
        (model.regions.move, 0.05),
    ):
        nn.init.normal_(part.weight, std=std)
    return model


def theirs(kind):
    from detectron2.config import get_cfg
    from detectron2.layers import get_norm
    from detectron2.modeling import ROI_HEADS_REGISTRY as HEADS
    from detectron2.modeling import build_model
    from detectron2.modeling.roi_heads import Res5ROIHeads

    if "ExtraNormHeads" not in HEADS:

        class ExtraNormHeads(Res5ROIHeads):
            @classmethod
            def from_config(cls, cfg, input_shape):
                values = super().from_config(cfg, input_shape)
                channels = values["box_predictor"].cls_score.in_features
                values["res5"] = nn.Sequential(*values["res5"], get_norm("BN", channels))
                return values

        HEADS.register(ExtraNormHeads)
    cfg = get_cfg()
    m = cfg.MODEL
    m.DEVICE, m.META_ARCHITECTURE, m.WEIGHTS = "cpu", "GeneralizedRCNN", ""
    m.PIXEL_MEAN, m.PIXEL_STD = [0.0] * 3, [1.0] * 3
    m.BACKBONE.FREEZE_AT = 0
    m.RESNETS.DEPTH, m.RESNETS.NORM, m.RESNETS.STRIDE_IN_1X1 = 50, "BN", False
    m.RESNETS.WIDTH_PER_GROUP, m.RESNETS.STEM_OUT_CHANNELS, m.RESNETS.RES2_OUT_CHANNELS = (
        WIDTH,
        WIDTH,
        4 * WIDTH,
    )
    m.ANCHOR_GENERATOR.SIZES = [ANCHORS]
    m.RPN.PRE_NMS_TOPK_TRAIN, m.RPN.POST_NMS_TOPK_TRAIN = COUNTS["train_before"], COUNTS["train_after"]
    m.RPN.PRE_NMS_TOPK_TEST, m.RPN.POST_NMS_TOPK_TEST = COUNTS["test_before"], COUNTS["test_after"]
    m.RPN.BATCH_SIZE_PER_IMAGE = m.ROI_HEADS.BATCH_SIZE_PER_IMAGE = ALL
    m.ROI_HEADS.POSITIVE_FRACTION, m.ROI_HEADS.NUM_CLASSES = 0.9, CLASSES
    m.MASK_ON, m.KEYPOINT_ON = kind != "keypoints", kind == "keypoints"
    cfg.INPUT.MASK_FORMAT = "bitmask"
    if kind == "c4":
        m.ROI_HEADS.NAME = "ExtraNormHeads"
        m.ROI_MASK_HEAD.NAME, m.ROI_MASK_HEAD.NUM_CONV = "MaskRCNNConvUpsampleHead", 0
        m.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
        m.RPN.HEAD_NAME = "StandardRPNHead"
    else:
        m.ANCHOR_GENERATOR.SIZES = [[a] for a in ANCHORS]
        m.BACKBONE.NAME = "build_resnet_fpn_backbone"
        m.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        m.FPN.IN_FEATURES, m.FPN.NORM, m.FPN.OUT_CHANNELS = ["res2", "res3", "res4", "res5"], "BN", 32
        m.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        m.ROI_HEADS.NAME, m.ROI_HEADS.IN_FEATURES = "StandardROIHeads", ["p2", "p3", "p4", "p5"]
        m.ROI_BOX_HEAD.NAME, m.ROI_BOX_HEAD.NUM_FC, m.ROI_BOX_HEAD.FC_DIM = "FastRCNNConvFCHead", 2, 64
        m.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
        m.ROI_MASK_HEAD.NAME, m.ROI_MASK_HEAD.NUM_CONV = "MaskRCNNConvUpsampleHead", 4
        m.ROI_MASK_HEAD.CONV_DIM = 16
        m.ROI_KEYPOINT_HEAD.CONV_DIMS = [16] * 8
        m.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION = 14
        if kind == "keypoints":
            m.ROI_BOX_HEAD.SMOOTH_L1_BETA = 0.5
    return build_model(cfg)


def renamed(kind, name):
    """Our name of a weight in detectron2's words."""
    bottom = "backbone." if kind == "c4" else "backbone.bottom_up."
    pairs = [
        ("backbone.body.stem.0.", bottom + "stem.conv1."),
        ("backbone.body.stem.1.", bottom + "stem.conv1.norm."),
        *((f"backbone.body.stages.{i}.", f"{bottom}res{i + 2}.") for i in range(4)),
        *((f"backbone.pyramid.inner_blocks.{i}.0.", f"backbone.fpn_lateral{i + 2}.") for i in range(4)),
        *((f"backbone.pyramid.inner_blocks.{i}.1.", f"backbone.fpn_lateral{i + 2}.norm.") for i in range(4)),
        *((f"backbone.pyramid.layer_blocks.{i}.0.", f"backbone.fpn_output{i + 2}.") for i in range(4)),
        *((f"backbone.pyramid.layer_blocks.{i}.1.", f"backbone.fpn_output{i + 2}.norm.") for i in range(4)),
        ("proposals.head.conv.0.0.", "proposal_generator.rpn_head.conv."),
        ("proposals.head.cls_logits.", "proposal_generator.rpn_head.objectness_logits."),
        ("proposals.head.bbox_pred.", "proposal_generator.rpn_head.anchor_deltas."),
        ("regions.head.stage.", "roi_heads.res5."),
        ("regions.head.norm.", "roi_heads.res5.3."),
        ("regions.head.1.", "roi_heads.box_head.fc1."),
        ("regions.head.3.", "roi_heads.box_head.fc2."),
        ("regions.score.", "roi_heads.box_predictor.cls_score."),
        ("regions.move.", "roi_heads.box_predictor.bbox_pred."),
    ]
    mask = "regions.branches.mask.layers."
    if kind == "c4":
        pairs += [
            (mask + "0.", "roi_heads.mask_head.deconv."),
            (mask + "2.", "roi_heads.mask_head.predictor."),
        ]
    else:
        pairs += [(f"{mask}{2 * i}.", f"roi_heads.mask_head.mask_fcn{i + 1}.") for i in range(4)]
        pairs += [
            (mask + "8.", "roi_heads.mask_head.deconv."),
            (mask + "10.", "roi_heads.mask_head.predictor."),
        ]
    joint = "regions.branches.keypoint.layers."
    pairs += [(f"{joint}{2 * i}.", f"roi_heads.keypoint_head.conv_fcn{i + 1}.") for i in range(8)]
    pairs.append((joint + "16.", "roi_heads.keypoint_head.score_lowres."))
    for here, there in pairs:
        if name.startswith(here):
            rest = name.removeprefix(here)
            for k in (1, 2, 3):
                rest = rest.replace(f"bn{k}.", f"conv{k}.norm.")
            rest = rest.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
            return there + rest
    raise AssertionError(name)


def copy(kind, model, other):
    """Give detectron2's model our weights; nothing is left over on either side."""
    state = {renamed(kind, name): value for name, value in model.state_dict().items()}
    wanted = {name for name in other.state_dict() if "anchor_generator" not in name and "pixel_" not in name}
    assert set(state) == wanted
    other.load_state_dict(state, strict=False)


def images_and_targets():
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(2, 3, *SIZE, generator=generator)
    targets = []
    for number in range(2):
        boxes = torch.tensor([[8.0, 10, 60, 70], [40.0, 20, 120, 90], [70.0, 5, 100, 40]])[: 3 - number]
        masks = torch.zeros(len(boxes), *SIZE, dtype=torch.uint8)
        keypoints = torch.zeros(len(boxes), 17, 3)
        for place, (left, top, right, bottom) in enumerate(boxes.long().tolist()):
            masks[place, top:bottom, left:right] = 1
            keypoints[place, :, 0] = left + (right - left) * torch.rand(17, generator=generator)
            keypoints[place, :, 1] = top + (bottom - top) * torch.rand(17, generator=generator)
            keypoints[place, :11, 2] = 2
        targets.append(Targets(boxes, torch.arange(len(boxes)), masks, keypoints))
    return pixels, tuple(targets)


def their_input(kind, pixels, targets):
    from detectron2.structures import BitMasks, Boxes, Instances, Keypoints

    rows = []
    for image, target in zip(pixels, targets, strict=True):
        instances = Instances(SIZE)
        instances.gt_boxes, instances.gt_classes = Boxes(target.boxes), target.labels
        if kind == "keypoints":
            instances.gt_keypoints = Keypoints(target.keypoints)
        else:
            instances.gt_masks = BitMasks(target.masks.bool())
        rows.append({"image": image, "instances": instances, "height": SIZE[0], "width": SIZE[1]})
    return rows


NAMES = {
    "rpn_class": "loss_rpn_cls",
    "rpn_box": "loss_rpn_loc",
    "box_class": "loss_cls",
    "box": "loss_box_reg",
    "mask": "loss_mask",
    "keypoint": "loss_keypoint",
}


@pytest.mark.parametrize("kind", ["c4", "fpn", "keypoints"])
def test_losses_and_detections_are_those_of_detectron2(kind):
    from detectron2.utils.events import EventStorage

    model, other = ours(kind), theirs(kind)
    copy(kind, model, other)
    pixels, targets = images_and_targets()
    batch = DetectionBatch(ImageList(pixels, (SIZE, SIZE)), targets, (1, 2))
    mine = model.train().losses(batch)
    with EventStorage():
        reference = other.train()(their_input(kind, pixels, targets))
    assert {NAMES[name] for name in mine} == set(reference)
    for name, value in mine.items():
        assert value.item() == pytest.approx(reference[NAMES[name]].item(), rel=2e-5), name
    copy(kind, model, other)  # running statistics have moved on both sides
    found = model.eval().detect(batch.images, [SIZE, SIZE])
    with torch.no_grad():
        answers = other.eval()(their_input(kind, pixels, targets))
    for one, answer in zip(found, answers, strict=True):
        instances = answer["instances"]
        assert len(one) == len(instances) > 5
        torch.testing.assert_close(one.scores, instances.scores, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.boxes, instances.pred_boxes.tensor, atol=1e-2, rtol=1e-4)
        assert torch.equal(one.labels, instances.pred_classes)
        if one.masks is not None:
            assert float((one.masks != instances.pred_masks).float().mean()) < 1e-4
        if one.keypoints is not None:
            apart = (one.keypoints[:, :, :2] - instances.pred_keypoints[:, :, :2]).abs().amax(2)
            assert float((apart < 0.5).float().mean()) > 0.98
