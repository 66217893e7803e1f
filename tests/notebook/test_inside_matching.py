"""Why each prediction of an image is right or false, at each IoU threshold."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.data.masks import encode_mask
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError
from workbench.evaluation.coco import coco_scores
from workbench.notebook.inside import Step
from workbench.notebook.inside_matching import OpenedMatching, open_matching

WORDS = Vocabulary((7, 9), ("disc", "ring"))
SIDE = 40


def _rle(x: int, y: int, width: int, height: int) -> dict:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[y : y + height, x : x + width] = True
    return encode_mask(mask)


def _opened(objects: list[tuple], predictions: list[tuple]) -> OpenedMatching:
    annotations = [
        {
            "id": i,
            "image_id": 1,
            "category_id": category,
            "segmentation": _rle(*box),
            "area": box[2] * box[3],
            "iscrowd": crowd,
        }
        for i, (category, box, crowd) in enumerate(objects)
    ]
    truth = {
        "images": [{"id": 1, "height": SIDE, "width": SIDE, "file_name": "x.png"}],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "disc"}, {"id": 9, "name": "ring"}],
    }
    results = [
        {"image_id": 1, "category_id": category, "segmentation": _rle(*box), "score": score}
        for category, box, score in predictions
    ]
    return OpenedMatching(np.zeros((SIDE, SIDE, 3), np.uint8), truth, results, WORDS)


@pytest.fixture
def opened() -> OpenedMatching:
    objects = [(7, (0, 0, 10, 10), 0), (9, (20, 0, 10, 10), 0), (7, (0, 25, 15, 15), 1)]
    predictions = [
        (7, (0, 0, 10, 8), 0.9),  # object 0, IoU 0.8
        (7, (0, 0, 10, 10), 0.8),  # object 0 exactly, but later
        (7, (20, 0, 10, 10), 0.7),  # on the ring
        (9, (20, 4, 10, 10), 0.6),  # the ring, IoU 60 / 140
        (7, (2, 27, 5, 5), 0.5),  # on the crowd
        (9, (30, 30, 5, 5), 0.4),  # on nothing
    ]
    return _opened(objects, predictions)


def test_every_verdict_has_its_reason(opened: OpenedMatching) -> None:
    table = opened.table()
    assert table.score.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert table["at IoU 0.5"].tolist() == [
        "right: object 0, IoU 0.80",
        "false: object 0 is taken by row 1",
        "false: object 1 is a ring",
        "false: IoU 0.43 with object 1",
        "not counted: on a crowd",
        "false: on no object",
    ]
    strict = table["at IoU 0.95"].tolist()
    assert strict[:2] == ["false: IoU 0.80 with object 0", "right: object 0, IoU 1.00"]


def test_the_curves_are_the_scorers(opened: OpenedMatching) -> None:
    labels = [line.get_label() for line in opened.curves().axes[0].lines]
    ap50 = coco_scores(opened.truth, opened.results)["AP50"]
    assert labels[0] == f"IoU 0.5: AP {ap50:.0f}" and len(labels) == 3
    assert opened.sheet().ndim == 3


def test_an_image_without_objects_or_predictions() -> None:
    empty = _opened([], [])
    assert empty.table().empty and not empty.curves().axes
    assert empty.sheet().ndim == 3
    missed = _opened([], [(7, (0, 0, 5, 5), 0.5)])
    assert missed.table()["at IoU 0.5"].tolist() == ["false: on no object"]


def test_it_is_the_models_own_prediction(former_step: Step) -> None:
    opened = open_matching(former_step, 1)
    assert len(opened.table()) == len(opened.results) == former_step.cfg.TEST.DETECTIONS_PER_IMAGE
    assert opened.picture.shape == (64, 64, 3)


def test_an_image_that_is_not_there_is_one_sentence(former_step: Step) -> None:
    with pytest.raises(WorkbenchError, match="image 99 is not in shapes_val, whose images are 0 to 5"):
        open_matching(former_step, 99)
