from itertools import permutations

import pytest
import torch
from torch.nn import functional as F

from workbench.losses.matcher import HungarianMatcher, label_cost, mask_costs


def outputs(queries, classes, subcategories=None, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(1, queries, *shape, generator=generator)

    return {
        "pred_logits": draw(classes + 1),
        "pred_masks": draw(size, size) * 3,
        "pred_subcategories": {name: draw(k + 1) for name, k in (subcategories or {}).items()},
    }


def target(objects, classes, subcategories=None, size=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "labels": torch.randint(classes, (objects,), generator=generator),
        "masks": torch.rand(objects, size, size, generator=generator) > 0.5,
        "subcategories": {
            name: torch.randint(k, (objects,), generator=generator) for name, k in (subcategories or {}).items()
        },
    }


@pytest.mark.parametrize(("queries", "objects"), [(4, 3), (3, 4), (4, 4), (2, 1)])
def test_the_assignment_is_the_cheapest_of_all(queries, objects):
    subcategories = {"colour": 3, "texture": 2}
    matcher = HungarianMatcher(num_points=64)
    for seed in range(5):
        layer = outputs(queries, 3, subcategories, seed=seed)
        truth = target(objects, 3, subcategories, seed=seed + 100)
        cost = sum(matcher.cost_terms([layer], 0, truth, torch.Generator().manual_seed(seed)).values())[0]
        ((chosen,),) = matcher([layer], [truth], [torch.Generator().manual_seed(seed)])
        found = cost[chosen].sum()
        fewest = min(queries, objects)
        brute = min(
            sum(cost[q, t] for q, t in zip(qs, ts, strict=True))
            for qs in permutations(range(queries), fewest)
            for ts in permutations(range(objects), fewest)
        )
        torch.testing.assert_close(found, brute)
        assert len(set(chosen[0].tolist())) == fewest
        assert chosen[1].tolist() == sorted(chosen[1].tolist())


def test_mask_costs_are_the_pairwise_losses():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 50, generator=generator)
    truth = (torch.rand(2, 50, generator=generator) > 0.5).float()
    cross_entropy, dice = mask_costs(logits, truth)
    for q in range(3):
        for t in range(2):
            expected = F.binary_cross_entropy_with_logits(logits[q], truth[t])
            torch.testing.assert_close(cross_entropy[q, t], expected)
            p = logits[q].sigmoid()
            expected = 1 - (2 * (p * truth[t]).sum() + 1) / (p.sum() + truth[t].sum() + 1)
            torch.testing.assert_close(dice[q, t], expected)


def test_the_subcategory_decides_between_otherwise_equal_queries():
    """Invariant 7: two identical masks and categories, of different colours."""
    mask = torch.zeros(1, 2, 8, 8) + 5.0
    layer = {
        "pred_logits": torch.zeros(1, 2, 3),
        "pred_masks": mask,
        "pred_subcategories": {"colour": torch.tensor([[[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]]])},
    }
    truth = {
        "labels": torch.tensor([0, 0]),
        "masks": torch.ones(2, 32, 32, dtype=torch.bool),
        "subcategories": {"colour": torch.tensor([1, 0])},
    }
    ((chosen,),) = HungarianMatcher(num_points=32)([layer], [truth])
    assert dict(zip(chosen[1].tolist(), chosen[0].tolist(), strict=True)) == {0: 1, 1: 0}


def test_unlabelled_adds_nothing_to_any_query():
    """Invariant 7: a subcategory of -1 leaves the cost as if the subcategory were not there."""
    layer, truth = outputs(4, 3, {"colour": 3}), target(3, 3, {"colour": 3})
    truth["subcategories"]["colour"] = torch.tensor([-1, 2, -1])
    generator = torch.Generator()
    with_cost, without = (
        sum(HungarianMatcher(num_points=64, **cost).cost_terms([layer], 0, truth, generator.manual_seed(0)).values())[0]
        for cost in ({}, {"subcategory_cost": 0})
    )
    assert torch.equal(with_cost[:, [0, 2]], without[:, [0, 2]])
    assert not torch.equal(with_cost[:, 1], without[:, 1])
    assert torch.equal(label_cost(torch.randn(4, 3), torch.tensor([-1, -1])), torch.zeros(4, 2))


def test_no_objects_match_nothing():
    ((chosen,),) = HungarianMatcher(num_points=16)([outputs(4, 3)], [target(0, 3)])
    assert [len(index) for index in chosen] == [0, 0]


def test_a_nan_prediction_is_left_for_the_loss_to_name():
    layer = outputs(3, 2)
    layer["pred_logits"][0, 1] = float("nan")
    ((chosen,),) = HungarianMatcher(num_points=16)([layer], [target(2, 2)])
    assert 1 not in chosen[0]
