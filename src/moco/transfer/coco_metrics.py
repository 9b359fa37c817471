"""COCO and LVIS average precision through faster-coco-eval, which equals pycocotools and is faster."""

import copy
import json
from typing import Any, Literal

import numpy as np

from moco.transfer.coco import has_outline
from moco.transfer.example import Detections, Example, Examples
from moco.transfer.shapes import package, run_lengths

Kind = Literal["bbox", "segm", "keypoints"]


def rows(examples: Examples, example: Example, found: Detections, kind: Kind) -> list[dict[str, Any]]:
    """Detections of one image in COCO's result form, ready for JSON and for any evaluator of COCO.

    Args:
        examples: the split, which knows the numbers of the classes.
        example: the image.
        found: detections in it.
        kind: "bbox", "segm" or "keypoints"; a row holds what that kind needs.
    """
    result: list[dict[str, Any]] = []
    for place in range(len(found)):
        row: dict[str, Any] = {
            "image_id": example.image_id,
            "category_id": examples.category_ids[int(found.labels[place])],
            "score": float(found.scores[place]),
        }
        if kind == "segm":
            assert found.masks is not None
            row["segmentation"] = run_lengths(found.masks[place])  # no box: areas are then those of masks
        elif kind == "keypoints":
            assert found.keypoints is not None
            joints = found.keypoints[place].double().cpu().clone()
            joints[:, :2] -= 0.5  # the file numbers pixels
            row["keypoints"] = joints.flatten().tolist()
        else:
            left, top, right, bottom = (float(side) for side in found.boxes[place].double())
            row["bbox"] = [left, top, right - left, bottom - top]
        result.append(row)
    return result


def evaluate(
    examples: Examples,
    results: list[dict[str, Any]],
    kind: Kind,
    *,
    lvis: bool = False,
    most: int = 100,
) -> dict[str, float]:
    """Average precision in percent.

    Args:
        examples: the images; the annotations are read again from their file.
        results: of `rows`.
        kind: what is compared: boxes, masks or joints.
        lvis: only classes that the file says something about in an image count there.
        most: detections per image that count (100; 300 for LVIS).

    Returns:
        "AP", "AP50", "AP75", by size "APs" (not for joints), "APm", "APl", for LVIS by frequency of the
        class "APr", "APc", "APf", and "AP/CLASS". What has no object is left out.

    Raises:
        ModuleNotFoundError: if faster-coco-eval is not there.
        ValueError: if masks are compared and an annotation has no outline.
    """
    evaluation = package()
    truth = evaluation.COCO(_content(examples, kind))
    chosen = copy.deepcopy(results)
    evaluator = evaluation.COCOeval_faster(
        truth, truth.loadRes(chosen), kind, print_function=_silent, lvis_style=lvis, separate_eval=True
    )
    if kind != "keypoints":
        evaluator.params.maxDets = [most] if lvis else [1, 10, most]
    evaluator.evaluate()
    evaluator.accumulate()
    return _summary(evaluator, examples, lvis)


def _content(examples: Examples, kind: Kind) -> dict[str, Any]:
    """The annotation file, with what evaluators look for and some files leave out."""
    content = json.loads(examples.source.read_text(encoding="utf-8"))
    ids = {example.image_id for example in examples.examples}
    content["images"] = [image for image in content["images"] if image["id"] in ids]
    kept = set(examples.category_ids)  # of a keypoint file only the class with joints
    content["categories"] = [category for category in content["categories"] if category["id"] in kept]
    content["annotations"] = [
        a for a in content.get("annotations", []) if a["image_id"] in ids and a["category_id"] in kept
    ]
    for number, annotation in enumerate(content["annotations"], 1):
        if kind == "segm" and not has_outline(annotation.get("segmentation")):
            raise ValueError(
                f"{examples.source}: annotation {annotation.get('id')} has no segmentation to compare masks "
                "with; without masks measure the kind bbox"
            )
        annotation["id"] = number  # the evaluator takes 0 for "not found"
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        if kind == "keypoints" and not annotation.get("keypoints"):
            annotation |= {"keypoints": [0] * (3 * examples.joints), "num_keypoints": 0}
        elif kind == "keypoints":
            annotation.setdefault("num_keypoints", sum(v > 0 for v in annotation["keypoints"][2::3]))
    return content


def _summary(evaluator: Any, examples: Examples, lvis: bool) -> dict[str, float]:
    precision = np.asarray(evaluator.eval["precision"])  # thresholds, recalls, classes, areas, counts
    params = evaluator.params
    thresholds = np.asarray(params.iouThrs)

    def mean(values: np.ndarray) -> float | None:
        values = values[values > -1]
        return 100 * float(values.mean()) if values.size else None

    whole = precision[:, :, :, 0, -1]
    table = {
        "AP": mean(whole),
        "AP50": mean(whole[np.isclose(thresholds, 0.5)]),
        "AP75": mean(whole[np.isclose(thresholds, 0.75)]),
    }
    for number, name in enumerate(params.areaRngLbl):
        if name != "all":
            table[f"AP{name[0]}"] = mean(precision[:, :, :, number, -1])
    ids = list(params.catIds)
    if lvis:
        for letter in "rcf":
            own = [
                ids.index(category)
                for category, frequency in zip(examples.category_ids, examples.frequency, strict=True)
                if frequency == letter and category in ids
            ]
            table[f"AP{letter}"] = mean(whole[:, :, own]) if own else None
    for category, name in zip(examples.category_ids, examples.classes, strict=True):
        if category in ids:
            table[f"AP/{name}"] = mean(whole[:, :, ids.index(category)])
    return {name: value for name, value in table.items() if value is not None}


def _silent(*_: object) -> None:
    """faster-coco-eval prints its progress; ours goes elsewhere."""
