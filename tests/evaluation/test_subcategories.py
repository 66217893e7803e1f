"""Subcategory accuracy, AP and joint AP against hand-computed cases."""

from __future__ import annotations

import io
from collections import Counter
from contextlib import redirect_stdout

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.evaluation.scenes import VOCABULARY, add, one_hot, random_case, row, scene, square
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError
from workbench.evaluation.analysis import confusion_matrices, confusions
from workbench.evaluation.coco import coco_scores
from workbench.evaluation.evaluate import evaluate_results
from workbench.evaluation.scorers import SCORERS

COLOUR = Vocabulary((3, 7), ("disc", "box"), {"colour": ("red", "green", "blue")})
both_scorers = pytest.mark.parametrize("scorer", SCORERS)


def red(**more) -> dict:
    return {"attributes": {"colour": "red", **more}}


@both_scorers
def test_all_right_is_100_everywhere(scorer):
    gt = scene()
    add(gt, square(0, 0), **red(texture="plain"))
    results = [row(square(0, 0), 0.9, **red(texture="plain"))]
    metrics = evaluate_results(gt, results, VOCABULARY, scorer=scorer)
    assert metrics["joint"] == {"AP": pytest.approx(100), "AP50": pytest.approx(100)}
    for name in ("colour", "texture"):
        expected = {"accuracy": 100, "macro_f1": 100, "labelled": 1, "unmatched": 0, "AP": pytest.approx(100)}
        assert metrics["subcategories"][name] == expected


@both_scorers
def test_one_wrong_colour_of_two_halves_joint_and_leaves_segm_alone(scorer):
    gt = scene()
    add(gt, square(0, 0), **red())
    add(gt, square(30, 30), **red())
    results = [
        row(square(0, 0), 0.9, **red()),
        row(square(30, 30), 0.8, attributes={"colour": "blue"}),
    ]
    metrics = evaluate_results(gt, results, COLOUR, scorer=scorer)
    assert metrics["segm"]["AP"] == pytest.approx(100)
    assert metrics["joint"]["AP"] == pytest.approx(100 * 51 / 101)  # recall 0.5 at precision 1
    colour = metrics["subcategories"]["colour"]
    assert (colour["accuracy"], colour["labelled"]) == (50, 2)
    # red: 1 right of 2 true and 1 predicted, F1 2/3; blue: predicted once, never true, F1 0
    assert colour["macro_f1"] == pytest.approx(100 / 3)
    assert colour["AP"] == pytest.approx(100 * 51 / 101)  # of red; blue has no ground truth


@both_scorers
def test_joint_gives_the_object_to_the_lower_scored_prediction_that_is_all_right(scorer):
    gt = scene()
    add(gt, square(0, 0), **red())
    wrong = row(square(0, 0), 0.9, attributes={"colour": "green"})
    right = row(square(0, 0), 0.5, **red())
    metrics = evaluate_results(gt, [wrong, right], COLOUR, scorer=scorer)
    assert metrics["joint"]["AP"] == pytest.approx(50)


@both_scorers
def test_joint_asks_for_the_main_category_too(scorer):
    gt = scene()
    add(gt, square(0, 0), 3, **red())
    metrics = evaluate_results(gt, [row(square(0, 0), 0.9, 7, **red())], COLOUR, scorer=scorer)
    assert metrics["joint"]["AP"] == 0
    # ... the subcategory alone does not: the object was found and its colour is right.
    assert metrics["subcategories"]["colour"]["accuracy"] == 100
    assert metrics["subcategories"]["colour"]["AP"] == pytest.approx(100)


@both_scorers
@pytest.mark.parametrize("attributes", [{}, {"colour": None}, {"colour": ""}, {"occluded": False}, None])
def test_an_unlabelled_object_is_neither_right_nor_wrong(scorer, attributes):
    gt = scene()
    add(gt, square(0, 0), **red())
    add(gt, square(30, 30), attributes=attributes)
    results = [row(square(0, 0), 0.8, **red()), row(square(30, 30), 0.9, **red())]
    metrics = evaluate_results(gt, results, COLOUR, scorer=scorer)
    colour = metrics["subcategories"]["colour"]
    assert (colour["labelled"], colour["unmatched"], colour["accuracy"]) == (1, 0, 100)
    assert colour["AP"] == pytest.approx(100)  # the better scored red on the unlabelled object is no mistake
    assert metrics["joint"]["AP"] == pytest.approx(100)


@both_scorers
def test_an_unlabelled_object_is_found_once_only_unlike_a_crowd_region(scorer):
    gt = scene()
    add(gt, square(0, 0), **red())
    add(gt, square(30, 30), attributes={})
    results = [row(square(0, 0), 0.5, **red())]
    results += [row(square(30, 30), score, **red()) for score in (0.9, 0.8)]
    assert evaluate_results(gt, results, COLOUR, scorer=scorer)["subcategories"]["colour"]["AP"] == pytest.approx(50)
    gt["annotations"][1]["iscrowd"] = 1
    colour = evaluate_results(gt, results, COLOUR, scorer=scorer)["subcategories"]["colour"]
    assert colour["AP"] == pytest.approx(100)


def test_nothing_labelled_is_none_and_nothing_found_is_counted():
    gt = scene()
    add(gt, square(0, 0))
    metrics = evaluate_results(gt, [row(square(0, 0), 0.9, **red())], COLOUR)
    colour = metrics["subcategories"]["colour"]
    assert colour == {"accuracy": None, "macro_f1": None, "labelled": 0, "unmatched": 0, "AP": None}
    gt["annotations"][0]["attributes"] = {"colour": "red"}
    colour = evaluate_results(gt, [], COLOUR)["subcategories"]["colour"]
    assert colour == {"accuracy": None, "macro_f1": None, "labelled": 0, "unmatched": 1, "AP": 0}


def test_no_object_for_a_found_object_is_wrong_but_no_detection():
    gt = scene()
    add(gt, square(0, 0), **red())
    results = [row(square(0, 0), 0.9, attributes={"colour": None})]
    metrics = evaluate_results(gt, results, COLOUR)
    assert metrics["subcategories"]["colour"]["accuracy"] == 0
    assert metrics["subcategories"]["colour"]["AP"] == metrics["joint"]["AP"] == 0
    matrix = confusion_matrices(gt, results, COLOUR)["colour"]
    assert matrix.loc["red", "no-object"] == matrix.to_numpy().sum() == 1


def test_accuracy_reads_the_best_prediction_whatever_its_category():
    gt = scene()
    add(gt, square(0, 0), 3, **red())
    results = [
        row(square(0, 0), 0.4, 3, **red()),
        row(square(0, 0), 0.6, 7, attributes={"colour": "green"}),
        row(square(0, 2), 0.9, 7, attributes={"colour": "blue"}),  # IoU 2/3
    ]
    matrix = confusion_matrices(gt, results, COLOUR)["colour"]
    assert matrix.loc["red"].to_dict() == {"red": 0, "green": 0, "blue": 1, "no-object": 0, "missed": 0}
    main = confusion_matrices(gt, results, COLOUR)["main category"]
    true, predicted = main.index[0], main.columns[1]  # category 3 taken for category 7
    assert main.loc[true, predicted] == main.to_numpy().sum() == 1 and "no-object" not in main.columns
    assert list(confusions(gt, results, COLOUR)) == [
        (gt["images"][0]["id"], "main category", true, predicted),
        (gt["images"][0]["id"], "colour", "red", "blue"),
    ]


def test_confusion_rows_sum_to_the_labelled_objects():
    gt, results = random_case(5)
    matrix = confusion_matrices(gt, results, VOCABULARY)["texture"]
    assert list(matrix.columns) == ["plain", "striped", "no-object", "missed"]
    for name in matrix.index:
        there = [a for a in gt["annotations"] if a["attributes"].get("texture") == name and not a["iscrowd"]]
        assert matrix.loc[name].sum() == len(there) > 0
    listed = Counter(tuple(names) for _, kind, *names in confusions(gt, results, VOCABULARY) if kind == "texture")
    cells = {(true, name): n for true, row in matrix.iterrows() for name, n in row.items() if n and true != name}
    assert listed == cells and any(name == "missed" for _, name in cells)
    scores = evaluate_results(gt, results, VOCABULARY)["subcategories"]["texture"]
    found = matrix.drop(columns="missed")
    assert scores["labelled"] == found.to_numpy().sum()
    assert scores["unmatched"] == matrix["missed"].sum()
    assert scores["accuracy"] == pytest.approx(100 * np.trace(found.to_numpy()) / scores["labelled"])


@both_scorers
def test_ap_scores_are_main_times_mask_times_probability_whatever_the_ranking(scorer):
    """One red object and a false positive; only the probability of the class puts the right one first."""
    gt = scene()
    add(gt, square(0, 0), **red())

    def candidate(mask, score, probability):
        return row(
            mask,
            score,
            main_score=0.5,
            mask_score=0.5,
            attribute_scores={"colour": one_hot(4, 0, probability)},
            **red(),
        )

    results = [candidate(square(30, 30), 0.9, 0.6), candidate(square(0, 0), 0.1, 0.9)]
    for rank_by in ("main", "sum", "geometric_mean"):
        metrics = evaluate_results(gt, results, COLOUR, scorer=scorer, rank_by=rank_by)
        assert metrics["subcategories"]["colour"]["AP"] == pytest.approx(100)


@both_scorers
def test_a_query_under_several_categories_counts_once_in_ap(scorer):
    gt = scene()
    add(gt, square(0, 0), **red())
    add(gt, square(30, 30), **red())
    results = [
        row(square(0, 0), 0.9, 3, query=4, **red()),
        row(square(0, 0), 0.8, 7, query=4, **red()),
        row(square(30, 30), 0.7, 3, query=5, **red()),
    ]
    assert evaluate_results(gt, results, COLOUR, scorer=scorer)["subcategories"]["colour"]["AP"] == pytest.approx(100)
    for each in results:
        del each["query"]
    colour = evaluate_results(gt, results, COLOUR, scorer=scorer)["subcategories"]["colour"]
    assert colour["AP"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_joint_without_labels_is_the_plain_ap():
    gt, results = random_case(8)
    for annotation in gt["annotations"]:
        annotation.pop("attributes")
    joint = evaluate_results(gt, results, VOCABULARY)["joint"]
    scores = coco_scores(gt, results)
    assert (joint["AP"], joint["AP50"]) == (scores["AP"], scores["AP50"])


def test_values_outside_the_class_list_are_named():
    gt = scene()
    add(gt, square(0, 0), **red())
    with pytest.raises(WorkbenchError, match=r"Row 0 .*colour 'mauve'.*red, green, blue"):
        evaluate_results(gt, [row(square(0, 0), 0.5, attributes={"colour": "mauve"})], COLOUR)
    short = row(square(0, 0), 0.5, attribute_scores={"colour": [0.5, 0.5]}, **red())
    with pytest.raises(WorkbenchError, match="Row 0 .*4 numbers"):
        evaluate_results(gt, [short], COLOUR)
    gt["annotations"][0]["attributes"]["colour"] = ["red"]
    with pytest.raises(WorkbenchError, match=r"Annotation 1 \(image 10\)"):
        evaluate_results(gt, [], COLOUR)


class JointEvaluation(COCOeval):
    """pycocotools with an IoU of 0 between a prediction and an object that is labelled otherwise."""

    def computeIoU(self, imgId, catId):  # pycocotools' own name
        ious = super().computeIoU(imgId, catId)
        objects, predictions = self._gts[imgId, catId], self._dts[imgId, catId]
        order = np.argsort([-row["score"] for row in predictions], kind="mergesort")[: self.params.maxDets[-1]]
        for d, g in np.ndindex(*np.shape(ious)):
            given = predictions[order[d]]["attributes"]
            if any(given.get(name) != value for name, value in objects[g]["attributes"].items()):
                ious[d, g] = 0
        return ious


def joint_by_pycocotools(gt: dict, results: list[dict]) -> dict:
    rows = [{**each, "id": i, "area": 1, "iscrowd": 0} for i, each in enumerate(results, start=1)]
    sides = []
    with redirect_stdout(io.StringIO()):
        for annotations in (gt["annotations"], rows):
            coco = COCO()
            coco.dataset = {**gt, "annotations": annotations}
            coco.createIndex()
            sides.append(coco)
        evaluation = JointEvaluation(*sides, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]
    parts = {"AP": precision[precision > -1], "AP50": precision[0][precision[0] > -1]}
    return {name: 100 * float(part.mean()) if part.size else None for name, part in parts.items()}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_scorers_agree_to_the_last_digit_on_random_scenes(seed, crowded):
    """Crowds, equal scores, unlabelled objects, and more predictions than the limit of 100 in an image."""
    gt, results = random_case(seed, images=3)
    if crowded:
        results = [
            {**each, "score": round(each["score"] * (1 - 0.1 * (k % 5)), 2)} for k in range(30) for each in results
        ]
    first, second = (evaluate_results(gt, results, VOCABULARY, scorer=scorer) for scorer in SCORERS)
    assert first["joint"] == second["joint"] == joint_by_pycocotools(gt, results)
    assert first["subcategories"] == second["subcategories"]
    assert (first["joint"]["AP"] or 0) <= (first["segm"]["AP"] or 0) + 1e-9
