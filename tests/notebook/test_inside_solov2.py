"""What is shown of a SOLOv2's step is what the step computed."""

from __future__ import annotations

from dataclasses import replace

import torch

from workbench.losses.solov2 import dice_losses, reduce_masks
from workbench.models.solov2 import soft_masks
from workbench.notebook import inside_solov2 as inside
from workbench.notebook.inside import Step


def test_the_cells_and_their_kernels_give_the_steps_loss(solo_step: Step) -> None:
    outputs, targets, sizes = solo_step.call("criterion").inputs
    losses = []
    for image, (target, size) in enumerate(zip(targets, sizes, strict=True)):
        cells, objects = inside.assigned_cells(solo_step, image)
        assert len(cells) == len(objects) > 0
        features = outputs["mask_features"][image]
        truth = reduce_masks(target["masks"], size, features.shape[-2:])[objects]
        masks = soft_masks(outputs["pred_kernels"][image, cells], features)
        losses.append(dice_losses(masks.logit(), truth))
    dice = solo_step.model.criterion.dice_weight * torch.cat(losses).mean()
    assert torch.isclose(dice, torch.tensor(solo_step.trace.losses["loss_ins"]), rtol=1e-4)


def test_rows_after_matrix_nms_are_the_models(solo_step: Step) -> None:
    rows, reached = inside.suppression(solo_step, 0)
    assert reached and (rows.decay <= 1).all() and (rows.decay < 1).any()
    after = (rows.rank * rows.quality * rows.decay).sort(descending=True).values
    prediction, _ = solo_step.predict(0, "")
    assert after[: len(prediction["scores"])].tolist() == prediction["scores"].tolist()


def test_where_no_category_reaches_the_threshold_the_best_rows_are_shown(solo_step: Step, monkeypatch) -> None:
    monkeypatch.setitem(solo_step.model.inference, "score_threshold", 1.0)
    rows, reached = inside.suppression(solo_step, 0)
    assert not reached and len(rows.cells)
    axes = inside.suppression_chart(solo_step, 0).axes[0]
    assert "no category reaches SCORE_THR" in axes.get_title() + axes.get_title(loc="left")  # as the style has it


def test_a_cell_of_several_objects_shows_the_last(solo_step: Step, monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(inside, "cell_grids", lambda picture, levels, masks: shown.extend(levels))
    monkeypatch.setattr(inside, "assigned_cells", lambda *_: (torch.tensor([3, 3, 64]), torch.tensor([1, 0, 2])))
    inside.cell_chart(replace(solo_step), 0)
    assert [level.taken for level in shown] == [{3: 1}, {0: 2}, {}]
