"""COCO and LVIS average precision through faster-coco-eval, which equals pycocotools and is faster."""

import copy
import json
from collections.abc import Mapping
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
        found: detections in it, on the CPU.
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
            joints = found.keypoints[place].double()
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
    images, classes = _numbers(examples)
    truth = evaluation.COCO(_content(examples, kind, images, classes))
    chosen = [
        copy.deepcopy(row) | {"image_id": images[row["image_id"]], "category_id": classes[row["category_id"]]}
        for row in results
    ]
    evaluator = evaluation.COCOeval_faster(
        truth, truth.loadRes(chosen), kind, print_function=_silent, lvis_style=lvis, separate_eval=True
    )
    if kind != "keypoints":
        evaluator.params.maxDets = [most] if lvis else [1, 10, most]
    evaluator.evaluate()
    evaluator.accumulate()
    return _summary(evaluator, examples, lvis)


def _numbers(examples: Examples) -> tuple[dict[Any, int], dict[Any, int]]:
    """Images and classes counted from 1, as evaluators want them: files name them by texts and huge numbers
    too. In the order of their ids, in which detections of equal score are taken."""
    ids = sorted((one.image_id for one in examples.examples), key=lambda i: (isinstance(i, str), i))
    return (
        {image: number for number, image in enumerate(ids, 1)},
        {category: number for number, category in enumerate(examples.category_ids, 1)},
    )


def _content(
    examples: Examples, kind: Kind, images: Mapping[Any, int], classes: Mapping[Any, int]
) -> dict[str, Any]:
    """The annotation file, with what evaluators look for and some files leave out, in these numbers."""
    content = json.loads(examples.source.read_text(encoding="utf-8"))
    content["images"] = [
        image | {"id": images[image["id"]]} for image in content["images"] if image["id"] in images
    ]
    for image in content["images"]:
        for name in "neg_category_ids", "not_exhaustive_category_ids":  # of LVIS
            if name in image:
                image[name] = [classes[category] for category in image[name] if category in classes]
    content["categories"] = [  # of a keypoint file only the class with joints
        category | {"id": classes[category["id"]]}
        for category in content["categories"]
        if category["id"] in classes
    ]
    content["annotations"] = [
        a | {"image_id": images[a["image_id"]], "category_id": classes[a["category_id"]]}
        for a in content.get("annotations") or ()
        if a["image_id"] in images and a["category_id"] in classes
    ]
    for number, annotation in enumerate(content["annotations"], 1):
        if kind == "segm" and not has_outline(annotation.get("segmentation")):
            raise ValueError(
                f"{examples.source}: annotation {annotation.get('id')} has no segmentation to compare masks "
                "with; without masks measure the kind bbox"
            )
        annotation["id"] = number  # the evaluator takes 0 for "not found"
        annotation["iscrowd"] = int(annotation.get("iscrowd") or 0)
        if annotation.get("area") is None:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
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
    assert list(params.catIds) == list(range(1, len(examples.classes) + 1))  # those of `_numbers`
    if lvis:
        for letter in "rcf":
            own = [label for label, frequency in enumerate(examples.frequency) if frequency == letter]
            table[f"AP{letter}"] = mean(whole[:, :, own]) if own else None
    for label, name in enumerate(examples.classes):
        if (value := mean(whole[:, :, label])) is not None:  # of two classes of one name the one with objects
            table[f"AP/{name}"] = value
    return {name: value for name, value in table.items() if value is not None}


def _silent(*_: object) -> None:
    """faster-coco-eval prints its progress; ours goes elsewhere."""
