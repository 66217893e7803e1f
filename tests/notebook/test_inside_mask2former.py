"""What is shown of a Mask2Former's step is what the step computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from workbench.notebook import inside_mask2former as inside
from workbench.notebook.inside import Step, trace
from workbench.ops import deform_attn


@pytest.mark.parametrize("image", [0, 1])
def test_the_costs_are_those_that_the_matching_minimised(former_step: Step, image: int) -> None:
    terms = inside.costs(former_step, image)
    assert [*terms] == ["class", "mask", "dice", "subcategory colour", "subcategory texture", "cost"]
    total = terms["cost"].to_numpy()
    queries, objects = linear_sum_assignment(total)
    taken = inside.assignments(former_step, image).iloc[:, -1].to_numpy()
    assert taken[objects].tolist() == queries.tolist()
    assert total[queries, objects].sum() > 0 and len(objects) == len(former_step.objects(image)) > 0


def test_the_costs_are_bitwise_the_steps(former_step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    matcher, computed = former_step.model.criterion.matcher, []
    cost_terms = matcher.cost_terms
    monkeypatch.setattr(matcher, "cost_terms", lambda *given: computed.append(cost_terms(*given)) or computed[-1])
    trace(former_step.model, former_step.batch, former_step.cfg)
    for image, terms in enumerate(list(computed)):
        shown = inside.costs(former_step, image)
        assert all((shown[name].to_numpy() == term[-1].numpy()).all() for name, term in terms.items())


def test_every_layer_has_its_losses_and_they_are_all(former_step: Step) -> None:
    table = inside.losses_by_layer(former_step)
    assert table.index.tolist() == ["queries", "layer 1", "layer 2"]
    assert [*table] == ["ce", "subcategory_colour", "subcategory_texture", "mask", "dice", "sum"]
    assert table["sum"].sum() == pytest.approx(sum(former_step.trace.losses.values()))
    assert table.loc["layer 2", "ce"] == former_step.trace.losses["loss_ce"]
    assert table.loc["queries", "ce"] == former_step.trace.losses["loss_ce_0"]


def test_the_sampling_points_make_the_layers_output(former_step: Step) -> None:
    call = former_step.call("pixel_decoder.layers.0.self_attn")
    query, reference, value, shapes = call.inputs
    attention = former_step.model.pixel_decoder.layers[0].self_attn
    with torch.no_grad():
        locations, weights = attention.sampling(query, reference, shapes)
        value = attention.value_proj(value).unflatten(2, (attention.heads, -1))
        output = attention.output_proj(deform_attn(value, shapes, locations, weights))
    assert torch.equal(output, call.outputs)
    assert torch.allclose(weights.sum((-1, -2)), torch.ones(weights.shape[:-2]))


def test_rows_are_the_models_and_repeated_ones_are_named(former_step: Step) -> None:
    table = inside.rows(former_step, 0)
    prediction, _ = former_step.predict(0, "")
    assert table.score.tolist() == prediction["scores"].sort(descending=True).values.tolist()
    assert np.allclose(table.main * table["mask"], table.score)
    again = table["query"].duplicated()
    assert again.any()  # of 8 queries and 5 categories, the best 10 pairs
    assert (table.overlaps[again] != "").all()
    assert set(table.object) <= {"none", *former_step.objects(0)}


def test_a_changed_query_is_shaded(former_step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    monkeypatch.setattr(inside, "heat_table", lambda table, **settings: drawn.update(settings))
    inside.assignment_chart(former_step, 0)
    table = inside.assignments(former_step, 0)
    for column in range(1, table.shape[1]):
        changed = table.iloc[:, column] != table.iloc[:, column - 1]
        assert (drawn["shades"].iloc[:, column] > 0).tolist() == changed.tolist()
    assert (drawn["shades"].iloc[:, 0] == 0).all()
