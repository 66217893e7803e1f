"""Pictures: what is drawn where, captions inside the picture and off each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.data.masks import encode_mask
from workbench.data.vocabulary import Vocabulary
from workbench.visualization.captions import place_plates, plate, readable_on
from workbench.visualization.drawing import (
    GREY,
    PALETTE,
    SHOWN_WIDTH,
    as_image,
    contact_sheet,
    draw_instances,
    draw_masks,
    drawables_of_annotations,
    drawables_of_predictions,
    drawables_of_targets,
    sheet_font,
    titled,
)

VOCABULARY = Vocabulary((3, 7), ("disc", "box"), {"colour": ("red", "green"), "texture": ("plain", "dots")})
IMAGE = np.full((64, 64, 3), 120, dtype=np.uint8)


def square(x: int, y: int, side: int = 20, size: int = 64) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def row(mask: np.ndarray, score: float, **more) -> dict:
    return {"image_id": 1, "category_id": 7, "segmentation": encode_mask(mask), "score": score, **more}


def test_the_fill_is_inside_the_mask_and_the_contour_around_it():
    drawn = draw_masks(IMAGE, [square(20, 20)], colours=[(255, 0, 0)], scale=1, opacity=0.5)
    assert drawn.shape == (64, 64, 3)
    assert drawn[30, 30].tolist() == [187, 60, 60]
    assert drawn[20, 30].tolist() == [255, 0, 0]
    assert drawn[19, 30].tolist() == [42, 42, 42]
    changed = (drawn != IMAGE).any(axis=2)
    assert changed.sum() == 20 * 20 + 4 * 20
    assert (IMAGE == 120).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_only_pixels_of_masks_and_next_to_them_change(seed, scale):
    rng = np.random.default_rng(seed)
    masks = [square(*rng.integers(-8, 60, 2).clip(0), int(rng.integers(1, 40))) for _ in range(rng.integers(0, 5))]
    drawn = draw_masks(IMAGE, masks, scale=scale)
    assert drawn.shape == (64 * scale, 64 * scale, 3)
    union = np.zeros((66, 66), dtype=bool)
    for mask in masks:
        for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2), (1, 1)):
            union[dy : dy + 64, dx : dx + 64] |= mask
    near = union[1:-1, 1:-1].repeat(scale, 0).repeat(scale, 1)
    changed = (drawn != 120).any(axis=2)
    assert not changed[~near].any()
    for mask in masks:
        assert changed[mask.repeat(scale, 0).repeat(scale, 1)].mean() > 0.9


def test_a_mask_cut_off_by_the_border_has_no_contour_there():
    drawn = draw_masks(IMAGE, [square(0, 0)], colours=[(255, 0, 0)], scale=1, opacity=0)
    assert (drawn[0, :10] == 120).all()
    assert drawn[10, 19].tolist() == [255, 0, 0]


def test_small_masks_lie_over_large_ones():
    colours = [(0, 0, 255), (255, 0, 0)]
    drawn = draw_masks(IMAGE, [square(25, 25, 8), square(10, 10, 40)], colours=colours, scale=1, opacity=1)
    assert drawn[29, 29].tolist() == [0, 0, 255]


def test_small_images_are_enlarged_and_large_ones_are_not():
    assert draw_masks(IMAGE, []).shape == (512, 512, 3)
    assert draw_masks(np.zeros((480, 640, 3), np.uint8), []).shape == (480, 640, 3)


def test_images_of_every_form_are_understood():
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for image in (array, tensor, tensor.float(), array.astype(float)):
        assert (as_image(image) == array).all()
    assert as_image(array[..., 0]).shape == (5, 7, 3)


def test_nothing_to_draw_and_empty_masks_do_no_harm():
    blank = draw_masks(IMAGE, [], captions=[])
    assert (draw_masks(IMAGE, [np.zeros((64, 64), bool)], captions=["gone"]) == blank).all()
    assert (draw_instances(IMAGE, [], VOCABULARY) == blank).all()


@given(st.integers(0, 2**32 - 1))
def test_captions_stay_inside_and_off_each_other(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(60, 300, 2))
    count = int(rng.integers(0, 30))
    sizes = [(int(rng.integers(8, 40)), int(rng.integers(8, width))) for _ in range(count)]
    first = rng.integers(0, (width, height), (count, 2))
    boxes = np.concatenate([first, np.minimum(first + rng.integers(1, 80, (count, 2)), (width, height))], axis=1)
    spots = place_plates(sizes, boxes, rng.random((height, width)) < 0.3)
    covered = np.zeros((height, width), dtype=int)
    for spot, (h, w) in zip(spots, sizes, strict=True):
        if spot is not None:
            x, y = spot
            assert x >= 0
            assert y >= 0
            assert x + w <= width
            assert y + h <= height
            covered[y : y + h, x : x + w] += 1
    assert covered.max() <= 1
    assert covered.mean() <= 1 / 3


def test_a_caption_without_a_place_is_counted():
    masks = [square(0, 0, 60)] * 40
    few = draw_masks(IMAGE, masks[:1], captions=["a long caption"])
    many = draw_masks(IMAGE, masks, captions=["a long caption"] * 40)
    assert (few[-10, -10] != 0).any()
    assert (many[-3, -3] == 0).all()  # the note's black plate


def test_a_caption_hides_no_object_where_there_is_room():
    masks = [square(22, 40), square(22, 15)]
    bare = draw_masks(IMAGE, masks)
    drawn = draw_masks(IMAGE, masks, captions=["lower", "upper"])
    hidden = (bare != drawn).any(axis=2)
    assert hidden.any()
    for mask in masks:
        assert hidden[mask.repeat(8, 0).repeat(8, 1)].mean() < 0.02


def test_a_plate_is_cut_to_the_picture_and_readable():
    wide = plate("a very long caption that fits nowhere", 14, PALETTE[0], 80)
    assert wide.shape[1] <= 80
    two = plate("disc 0.93\nred", 14, PALETTE[0], 500)
    assert two.shape[0] > 1.7 * plate("disc", 14, PALETTE[0], 500).shape[0]
    for colour in (*PALETTE, GREY, (255, 255, 255), (0, 0, 0)):
        text = plate("disc", 14, colour, 500)
        assert text[0, 0].tolist() == list(colour)
        luminance = text.astype(float) @ (0.2126, 0.7152, 0.0722)
        assert np.ptp(luminance) > 75
    assert readable_on((240, 228, 66)) == (0, 0, 0)
    assert readable_on((0, 0, 139)) == (255, 255, 255)


def test_the_palette_differs_in_more_than_hue():
    """Seen without red, without green and without colour at all, no two colours may be alike in hue and
    lightness.
    """
    # Viénot, Brettel and Mollon (1999): a dichromat sees red and green mixed.
    protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    linear = (np.array(PALETTE) / 255) ** 2.2
    for matrix in (np.eye(3), protan, deutan):
        seen = 255 * (linear @ matrix.T).clip(0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=2) + 1000 * np.eye(len(PALETTE))
        assert apart.min() > 35


def test_captions_name_what_is_known_and_nothing_else():
    rows = [
        row(square(0, 0), 0.4, attributes={"colour": "red", "texture": "dots"}),
        row(square(9, 9), 0.934, attributes={"colour": None, "texture": "dots"}),
        row(square(9, 9), 0.7),
    ]
    drawables = drawables_of_predictions(rows, VOCABULARY, 0.5)
    assert [d.caption(VOCABULARY) for d in drawables] == ["box 0.93\ndots", "box 0.70"]
    annotations = [
        {"category_id": 3, "segmentation": encode_mask(square(0, 0)), "attributes": {"colour": "red"}},
        {"category_id": 3, "segmentation": encode_mask(square(0, 0)), "iscrowd": 1},
        {
            "category_id": 1,
            "segmentation": encode_mask(square(0, 0)),
            "subcategories": {"colour": 1, "texture": -1},
        },
    ]
    drawables = drawables_of_annotations(annotations, VOCABULARY, 64, 64)
    assert [d.caption(VOCABULARY) for d in drawables] == ["disc\nred", "crowd", "box\ngreen"]
    targets = {
        "labels": torch.tensor([1]),
        "masks": torch.from_numpy(square(0, 0))[None],
        "subcategories": {"colour": torch.tensor([-1]), "texture": torch.tensor([0])},
    }
    assert [d.caption(VOCABULARY) for d in drawables_of_targets(targets, VOCABULARY)] == ["box\nplain"]


def test_model_predictions_and_their_rows_draw_the_same():
    predictions = {
        "scores": torch.tensor([0.6, 0.9, 0.2]),
        "main_scores": torch.tensor([0.6, 0.9, 0.2]),
        "mask_scores": torch.ones(3),
        "query": torch.tensor([2, 0, 1]),
        "labels": torch.tensor([0, 1, 0]),
        "masks": torch.from_numpy(np.stack([square(0, 0), square(30, 30), square(5, 40)])),
        "subcategories": {
            "colour": torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0]]),
            "texture": torch.tensor([[0.1, 0.8, 0.1]] * 3),
        },
    }
    rows = [
        {**row(square(0, 0), 0.6, attributes={"colour": "red", "texture": "dots"}), "category_id": 3},
        row(square(30, 30), 0.9, attributes={"colour": None, "texture": "dots"}),
        {**row(square(5, 40), 0.2, attributes={"colour": "red", "texture": "dots"}), "category_id": 3},
    ]
    assert (draw_instances(IMAGE, predictions, VOCABULARY) == draw_instances(IMAGE, rows, VOCABULARY)).all()
    of_model, of_rows = (drawables_of_predictions(each, VOCABULARY, 0.5) for each in (predictions, rows))
    assert [d.caption(VOCABULARY) for d in of_model] == [d.caption(VOCABULARY) for d in of_rows]
    assert len(of_model) == 2


def test_panels_of_different_sizes_stand_beside_each_other():
    panels = [np.full((h, w, 3), 7, dtype=np.uint8) for h, w in ((10, 20), (30, 40), (5, 6))]
    sheet = contact_sheet(panels, columns=2, gap=4)
    assert sheet.shape == (30 + 4 + 5, 20 + 4 + 40, 3)
    assert (sheet == 7).all(axis=2).sum() == 10 * 20 + 30 * 40 + 5 * 6
    assert contact_sheet(panels, columns=3).shape == (30, 20 + 40 + 6 + 16, 3)
    assert contact_sheet([]).shape[2] == 3
    big = titled(np.full((50, 200, 3), 7, dtype=np.uint8), "ground truth")
    assert big.shape[1] == 200
    assert (big[-50:] == 7).all()
    assert (big[:-50] < 100).any()
    with pytest.raises(ValueError, match="zip"):
        contact_sheet(panels, titles=["one"])


@pytest.mark.parametrize(("size", "across"), [((128, 128), 4), ((1000, 1600), 4), ((480, 640), 2), ((2000, 3000), 1)])
def test_captions_of_a_sheet_can_be_read_at_the_width_it_is_shown(size: tuple[int, int], across: int) -> None:
    picture = draw_masks(np.zeros((*size, 3), np.uint8), [])
    shown = SHOWN_WIDTH / max(SHOWN_WIDTH, across * picture.shape[1])
    assert sheet_font([size, (64, 32)], across) * shown >= 10.5


def test_an_object_of_thin_parts_far_apart_gets_its_caption() -> None:
    mask = np.zeros((600, 600), dtype=bool)
    mask[1, 3:9] = mask[597, 590:597] = True  # no pixel of it is on a coarse grid
    picture = np.zeros((600, 600, 3), dtype=np.uint8)
    drawn = draw_masks(picture, [mask], captions=["split"])
    assert drawn.any()
