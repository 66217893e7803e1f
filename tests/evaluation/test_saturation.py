"""The saturation experiment, with models that find a set share of the objects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.evaluation.scenes import add, row, scene, square
from workbench.errors import WorkbenchError
from workbench.evaluation.saturation import SMALL_GRID, choose_objects, cut_tile, draw_grid, fit_tiles, saturation


def _tile():
    picture = np.full((64, 64, 3), 90, dtype=np.uint8)
    mask = square(20, 24, 12)
    picture[mask] = (250, 10, 10)
    truth = scene()
    return cut_tile(picture, add(truth, mask), label=1)


class Counter(nn.Module):
    """Finds the red squares, at most ``queries`` of them, and reports each twice."""

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.queries = queries

    def forward(self, batch: list[dict]) -> list[dict]:
        side = 15  # 12 and a quarter around it
        image = batch[0]["image"]
        assert image.shape[1:] == (150, 150) and batch[0]["height"] == 150
        masks = []
        for cell in range(100):
            y, x = cell // 10 * side, cell % 10 * side
            part = torch.zeros(150, 150, dtype=torch.bool)
            part[y : y + side, x : x + side] = image[0, y : y + side, x : x + side] > 200
            if part.any():
                masks.append(part)
        masks = masks[: self.queries]
        found = torch.stack([*masks, *masks])
        return [{"masks": found, "labels": torch.ones(len(found)), "scores": torch.full((len(found),), 0.6)}]


def test_the_grid_shows_the_object_in_the_cells_asked_for() -> None:
    canvas, masks = draw_grid([_tile()], [0, 99])
    assert canvas.shape == (150, 150, 3) and masks.sum(axis=(1, 2)).tolist() == [144, 144]
    assert (canvas[masks.any(0)] == (250, 10, 10)).all() and (canvas[~masks.any(0)] == 90).all()
    assert masks[0][:15, :15].sum() == 144 and masks[1][-15:, -15:].sum() == 144


def test_a_model_of_20_queries_misses_the_rest_and_duplicates_find_nothing() -> None:
    table = saturation(Counter(20), [_tile()], counts=[5, 20, 40, 100], repeats=2, progress=False)
    assert table.groupby("visible").share.mean().tolist() == [0, 0, 50, 80]
    assert table.missed.tolist() == [0, 0, 0, 0, 20, 20, 80]  # all cells are one picture


def test_what_scores_too_little_or_has_another_category_finds_nothing() -> None:
    missed = saturation(Counter(100), [_tile()], counts=[3], repeats=1, score_threshold=0.7, progress=False)
    assert missed.share.tolist() == [100]
    assert missed.predictions.tolist() == [0] and missed.merged.isna().all()  # not 0: nothing could merge


def test_a_grid_has_100_cells() -> None:
    with pytest.raises(WorkbenchError, match="101"):
        saturation(Counter(1), [_tile()], counts=[1, 101], progress=False)


def test_the_object_found_best_is_chosen_and_no_cut_off_one() -> None:
    truth = scene()
    cut_off, small, large = (
        add(truth, square(0, 20)),
        add(truth, square(30, 30)),
        add(truth, square(5, 40, 16)),
    )
    sizes = {10: (64, 64)}
    rows = [row(square(0, 20), 0.9), row(square(30, 30), 0.8), row(square(5, 40, 16), 0.7)]
    assert choose_objects(truth, rows, sizes) == [small]
    assert choose_objects(truth, rows, sizes, most=9) == [small, large]
    assert choose_objects(truth, [], sizes) == [large]
    truth["annotations"] = [cut_off]
    assert choose_objects(truth, rows, sizes) == []
    assert choose_objects({**truth, "annotations": []}, [], sizes) == []


def test_the_grid_of_a_photos_objects_is_drawn_at_the_models_input_size() -> None:
    y, x = np.mgrid[:900, :600]
    disc = ((y - 450) / 450) ** 2 + ((x - 300) / 300) ** 2 < 1
    picture = np.where(disc[..., None], np.uint8(250), np.uint8(10)).repeat(3, axis=2)
    large = replace(_tile(), picture=picture, mask=disc)
    small = replace(large, picture=picture[400:490, 250:340], mask=disc[400:490, 250:340])
    for scale, largest, expected in ((0.25, 4000, 0.25), (0.25, 1200, 1200 / 11250), (1.0, SMALL_GRID, 1024 / 11250)):
        fitted = fit_tiles([large, small], scale, largest)
        canvas, masks = draw_grid(fitted, [0, 1])
        assert canvas.shape[0] == pytest.approx(11250 * expected, rel=0.03) and canvas.shape[0] <= 1.03 * largest
        assert masks[0].sum() == pytest.approx(disc.sum() * expected**2, rel=0.03)
        assert fitted[1].mask.shape == (round(90 * expected),) * 2
        inside = canvas[masks[0]]
        assert inside.mean() > 230 and inside.min() >= 110  # its edge pixels are at least half object
    same = fit_tiles([_tile()])
    assert np.array_equal(same[0].picture, _tile().picture) and same[0].mask.shape == (12, 12)


def test_a_thin_object_keeps_a_pixel_when_it_is_resized() -> None:
    thin = replace(_tile(), picture=np.zeros((200, 200, 3), np.uint8), mask=np.eye(200, dtype=bool))
    assert fit_tiles([thin], 0.1)[0].mask.any()


class Merger(nn.Module):
    """Takes all that is red for one object."""

    def forward(self, batch: list[dict]) -> list[dict]:
        red = batch[0]["image"][0] > 200
        return [{"masks": red[None], "labels": torch.ones(1), "scores": torch.ones(1)}]


def test_what_is_taken_for_one_object_is_missed_and_merged() -> None:
    table = saturation(Merger(), [_tile()], counts=[1, 4], repeats=1, progress=False)
    assert table.share.tolist() == [0, 100] and table.predictions.tolist() == [1, 1]
    assert np.isnan(table.merged[0]) and table.merged[1] == 100


def test_several_objects_take_turns_in_cells_of_the_largest_ones_size() -> None:
    small, wide = (
        _tile(),
        replace(_tile(), picture=np.zeros((8, 20, 3), np.uint8), mask=np.ones((8, 20), bool), label=0),
    )
    canvas, masks = draw_grid([small, wide], [0, 1, 2])
    assert canvas.shape == (250, 250, 3)
    assert masks.sum(axis=(1, 2)).tolist() == [144, 160, 144]
    only_small = saturation(Merger(), [small, wide], counts=[100], repeats=1, progress=False)
    assert only_small.merged.tolist() == [50]  # of the 100 that are missed
