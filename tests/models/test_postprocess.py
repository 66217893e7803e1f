import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.models.postprocess import (
    Kinds,
    batch_inference,
    boxes_of_masks,
    enlarge_in_chunks,
    enlarged_strips,
    instance_inference,
    panoptic_inference,
    rank_scores,
    select_rows,
    semantic_inference,
)


def raw(queries=5, classes=3, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(queries, classes + 1, generator=generator),
        torch.randn(queries, size, size, generator=generator) * 4,
        {
            "colour": torch.randn(queries, 5, generator=generator),
            "damage": torch.randn(queries, 3, generator=generator),
        },
    )


def infer(logits, masks, heads, **options):
    sizes = {"padded_size": (32, 32), "image_size": (30, 28), "output_size": (60, 56), **options}
    return instance_inference(logits, masks, heads, **sizes)


def test_every_field_of_a_row_comes_from_its_query():
    """Invariant 8."""
    logits, masks, heads = raw()
    rows = infer(logits, masks, heads, top_k=9)
    whole = torch.nn.functional.interpolate(masks[None], (32, 32), mode="bilinear")[..., :30, :28]
    whole = torch.nn.functional.interpolate(whole, (60, 56), mode="bilinear")[0] > 0
    for row, query in enumerate(rows["query"].tolist()):
        assert rows["main_scores"][row] == logits[query].softmax(-1)[rows["labels"][row]]
        assert torch.equal(rows["masks"][row], whole[query])
        for name in heads:
            assert torch.equal(rows["subcategories"][name][row], heads[name][query].softmax(-1))
            assert torch.equal(rows["subcategory_logits"][name][row], heads[name][query])


def test_this_images_outputs_are_read():
    """Invariant 8: another image's outputs give other rows, with the same model."""
    first, second = infer(*raw(seed=0)), infer(*raw(seed=1))
    assert not torch.equal(first["subcategory_logits"]["colour"], second["subcategory_logits"]["colour"])


def test_rows_are_the_best_pairs_of_query_and_class():
    logits, _, heads = raw()
    probabilities = {name: head.softmax(-1) for name, head in heads.items()}
    query, labels, rank, main = select_rows(logits, probabilities, top_k=4)
    scores = logits.softmax(-1)[:, :-1]
    best = scores.flatten().sort(descending=True).values[:4]
    assert torch.equal(rank, best) and torch.equal(main, best)
    assert torch.equal(scores[query, labels], best)


def test_one_class_per_query_reports_a_mask_once():
    logits, masks, heads = raw()
    assert len(infer(logits, masks, heads, top_k=100)["query"]) == 15
    rows = infer(logits, masks, heads, top_k=100, one_class_per_query=True)
    assert sorted(rows["query"].tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(rows["labels"], logits[rows["query"], :-1].argmax(-1))


def test_ranking_is_a_choice():
    """Invariant 11, by hand: main .5, best subcategories .8 and .2 (no-object does not count)."""
    main = torch.tensor([0.5])
    subcategories = [torch.tensor([[0.8, 0.1, 0.1]]), torch.tensor([[0.2, 0.1, 0.7]])]
    assert rank_scores(main, subcategories, "main").item() == 0.5
    torch.testing.assert_close(rank_scores(main, subcategories, "sum"), torch.tensor([0.5]))
    torch.testing.assert_close(rank_scores(main, subcategories, "geometric_mean"), torch.tensor([0.08 ** (1 / 3)]))
    assert rank_scores(main, [], "sum") is main


def test_ranking_by_subcategories_changes_the_order():
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    heads = {"colour": torch.tensor([[0.0, 0.0, 5.0], [5.0, 0.0, 0.0]])}
    masks = torch.full((2, 8, 8), 5.0)
    assert infer(logits, masks, heads, rank_by="main")["query"].tolist() == [0, 1]
    for rank_by in ("sum", "geometric_mean"):
        assert infer(logits, masks, heads, rank_by=rank_by)["query"].tolist() == [1, 0]


def test_memory_follows_rows_not_queries(monkeypatch):
    """The masks that are enlarged are those of the chosen rows' queries, each once."""
    logits, masks, heads = raw(queries=50)
    enlarged = []
    interpolate = torch.nn.functional.interpolate

    def spy(x, *arguments, **options):
        enlarged.append(x.shape[0])
        return interpolate(x, *arguments, **options)

    monkeypatch.setattr("workbench.models.postprocess.F.interpolate", spy)
    rows = infer(logits, masks, heads, top_k=6)
    assert enlarged == [len(rows["query"].unique())] and max(enlarged) <= 6


def whole_at_once(mask_logits, row):
    """Masks, their quality and boxes as the published code has them: every map enlarged as a whole."""
    enlarged = torch.nn.functional.interpolate(mask_logits[None], (32, 32), mode="bilinear")[..., :30, :28]
    enlarged = torch.nn.functional.interpolate(enlarged, (60, 56), mode="bilinear")[0]
    masks = enlarged > 0
    quality = (enlarged.sigmoid().flatten(1) * masks.flatten(1)).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
    return masks[row], quality[row], boxes_of_masks(masks)[row]


@pytest.mark.parametrize("queries", [1, 2, 7, 9])
@pytest.mark.parametrize("encoded", [False, True])
def test_chunks_change_no_bit_and_bound_what_is_enlarged_at_once(monkeypatch, queries, encoded):
    logits, masks, heads = raw(queries=queries)
    expected = infer(logits, masks, heads, top_k=20)
    monkeypatch.setattr("workbench.models.postprocess._CHUNK_PIXELS", 3 * 60 * 56)
    sizes = []

    def encode(chunk):
        sizes.append(len(chunk))
        return list(chunk)

    rows = infer(logits, masks, heads, top_k=20, encode_masks=encode if encoded else None)
    whole, quality, boxes = whole_at_once(masks, rows["query"])
    assert all(map(torch.equal, rows["masks"], whole)) and len(rows["masks"]) == len(whole)
    torch.testing.assert_close(rows["mask_scores"], quality, rtol=1e-6, atol=0)
    assert torch.equal(rows["boxes"], boxes) and torch.equal(rows["scores"], expected["scores"])
    if encoded:
        assert sum(sizes) == queries and max(sizes) <= 3
        assert len({id(mask) for mask in rows["masks"]}) == queries  # rows of one query share one encoded mask


@pytest.mark.parametrize("output", [(30, 28), (60, 56), (301, 187), (13, 200), (9, 7)])
@pytest.mark.parametrize("pixels", [1, 1000, 1 << 21])
def test_strips_are_the_whole_enlargement_where_it_is_positive(monkeypatch, output, pixels):
    monkeypatch.setattr("workbench.models.postprocess._STRIP_PIXELS", pixels)
    maps = torch.randn(6, 8, 8, generator=torch.Generator().manual_seed(3))
    maps[1:4] -= 1.5  # scattered
    maps[4] = -1.0  # nowhere
    sizes = (32, 32), (30, 28), output
    (expected,) = enlarge_in_chunks(maps, *sizes)
    actual = torch.zeros_like(expected)
    for index, place, strip in enlarged_strips(maps, *sizes):
        assert index != 4 and (output == (30, 28) or strip.numel() <= max(pixels, output[1]))
        assert not actual[index][place].any()  # strips do not overlap
        actual[index][place] = strip
    assert torch.equal(actual > 0, expected > 0)
    inside = expected > 0
    torch.testing.assert_close(actual[inside], expected[inside], rtol=1e-5, atol=1e-6)


def test_outputs_that_require_gradients_are_predicted_alike():
    logits, masks, heads = raw()
    expected = infer(logits, masks, heads)
    rows = infer(logits, masks.requires_grad_(), heads)
    assert torch.equal(rows["scores"], expected["scores"]) and torch.equal(rows["masks"], expected["masks"])


def test_only_the_surroundings_of_a_small_mask_are_enlarged():
    maps = torch.full((1, 32, 32), -9.0)
    maps[0, 10:14, 20:22] = 9.0
    strips = list(enlarged_strips(maps, (128, 128), (128, 128), (3000, 4000)))
    assert 0 < sum(strip.numel() for *_, strip in strips) < 0.02 * 3000 * 4000


def test_scores_are_rank_times_mask_quality_and_empty_masks_score_zero():
    logits, masks, heads = raw(queries=2)
    masks[0] = -9.0
    masks[1] = 9.0
    rows = infer(logits, masks, heads)
    torch.testing.assert_close(rows["scores"], rows["main_scores"] * rows["mask_scores"])
    empty = rows["query"] == 0
    assert (rows["scores"][empty] == 0).all() and (rows["boxes"][empty] == 0).all()
    assert (rows["mask_scores"][~empty] > 0.99).all()


def test_the_share_of_queries_without_an_object():
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 3.0], [0.0, 2.0]])
    assert infer(logits, torch.zeros(4, 8, 8), {})["no_object_fraction"] == 0.75


@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=3))
def test_boxes_hold_their_masks_tightly(rows):
    masks = torch.tensor(rows).view(-1, 3, 4)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes_of_masks(masks).int().tolist(), strict=True):
        assert mask.sum() == mask[y1:y2, x1:x2].sum()
        if mask.any():
            part = mask[y1:y2, x1:x2]
            assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()


SIZES = {"padded_size": (32, 32), "image_size": (32, 32), "output_size": (32, 32)}


def _tiles() -> tuple[torch.Tensor, torch.Tensor]:
    """Queries whose sure masks cover the image: two tiles of category 0, two of 1, and a weaker copy of the first."""
    masks = torch.full((6, 32, 32), -12.0)
    for query, (top, left) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        masks[query, top : top + 16, left : left + 16] = 12.0
    masks[4] = masks[0]
    logits = torch.full((6, 4), -6.0)
    for query, (label, logit) in enumerate([(0, 6.0), (0, 5.0), (1, 5.5), (1, 4.5), (2, 3.0), (3, 8.0)]):
        logits[query, label] = logit
    return logits, masks


@pytest.mark.parametrize("stuff", [set(), {1}, {0, 1}])
def test_panoptic_segments_are_the_peers(stuff):
    """Masks cover the image, so that the peer's scaled masks and unmasked segments make no difference."""
    processing = pytest.importorskip("transformers").Mask2FormerImageProcessor
    logits, masks = _tiles()
    segments, infos = panoptic_inference(logits, masks, stuff=stuff, **SIZES)
    outputs = types.SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None])
    (expected,) = processing().post_process_panoptic_segmentation(
        outputs, threshold=0.8, label_ids_to_fuse=stuff, target_sizes=[(32, 32)]
    )
    wanted = {}  # the peer lists a fused segment once for each of its queries
    for info in expected["segments_info"]:
        wanted.setdefault(info["id"], info["label_id"])
    assert {info["id"]: info["category"] for info in infos} == wanted
    assert len(infos) == 4 - len(stuff)
    assert torch.equal(segments, expected["segmentation"].int())


def test_panoptic_segments_keep_to_both_thresholds():
    """A query that loses more than a fifth of its mask is left out, and pixels below one half are nobody's."""
    logits, masks = _tiles()
    masks[:, :2] = -1.0  # the first rows win by what is left of their probability, and are no segment
    segments, infos = panoptic_inference(logits, masks, **SIZES)
    assert [info["query"] for info in infos] == [0, 1, 2, 3]
    assert not segments[:2].any() and (segments[2:] > 0).all()
    masks[1] = masks[0]  # the second query's mask is now the first's, and loses everything
    segments, infos = panoptic_inference(logits, masks, overlap_threshold=0.8, **SIZES)
    assert [info["query"] for info in infos] == [0, 2, 3]
    assert panoptic_inference(logits, masks, object_mask_threshold=1.0, **SIZES)[1] == []


def test_semantic_scores_add_up_the_queries():
    generator = torch.Generator().manual_seed(5)
    logits, masks = torch.randn(11, 4, generator=generator), torch.randn(11, 8, 8, generator=generator)
    sizes = {"padded_size": (32, 32), "image_size": (32, 24), "output_size": (40, 30)}
    scores = semantic_inference(logits, masks, **sizes)
    enlarged = torch.nn.functional.interpolate(masks[None], (32, 32), mode="bilinear")[..., :24]
    enlarged = torch.nn.functional.interpolate(enlarged, (40, 30), mode="bilinear")[0].sigmoid()
    expected = (logits.softmax(-1)[:, :3, None, None] * enlarged[:, None]).sum(0)
    torch.testing.assert_close(scores, expected)


def test_semantic_scores_may_be_enlarged_after_they_are_summed_up():
    """As published models do that predict nothing else."""
    generator = torch.Generator().manual_seed(6)
    logits, masks = torch.randn(3, 4, generator=generator), torch.randn(3, 8, 8, generator=generator)
    sizes = {"padded_size": (32, 32), "image_size": (32, 24), "output_size": (40, 30)}
    small = semantic_inference(logits, masks, **(sizes | {"output_size": (32, 24)}))
    expected = torch.nn.functional.interpolate(small[None], (40, 30), mode="bilinear")[0]
    scores = semantic_inference(logits, masks, enlarge_masks=False, **sizes)
    torch.testing.assert_close(scores, expected)
    assert not torch.allclose(scores, semantic_inference(logits, masks, **sizes), atol=1e-3)


def _batch(**kinds):
    logits, masks, heads = raw(queries=6)
    outputs = {
        "pred_logits": logits[None],
        "pred_masks": masks[None],
        "pred_subcategories": {name: head[None] for name, head in heads.items()},
    }
    inputs = [{"height": 60, "width": 56, "image_id": 5}]
    return batch_inference(outputs, inputs, [(30, 28)], padded_size=(32, 32), top_k=20, kinds=Kinds(**kinds))[0]


def test_what_is_inferred_is_a_choice():
    logits, masks, heads = raw(queries=6)
    sizes = {"padded_size": (32, 32), "image_size": (30, 28), "output_size": (60, 56)}
    rows = _batch()
    assert not {"semantic", "panoptic"} & rows.keys() and rows["image_id"] == 5
    assert torch.equal(rows["scores"], infer(logits, masks, heads, top_k=20)["scores"])
    thresholds = {"object_mask_threshold": 0.3, "overlap_threshold": 0.1}
    both = _batch(instances=False, semantic=True, panoptic=True, stuff=frozenset({1}), **thresholds)
    assert len(both["scores"]) == len(both["labels"]) == len(both["subcategories"]["colour"]) == 0
    assert both["masks"].shape == (0, 60, 56) and both["boxes"].shape == (0, 4)
    assert torch.equal(both["semantic"], semantic_inference(logits, masks, **sizes).argmax(0).int())
    expected = panoptic_inference(logits, masks, stuff={1}, **thresholds, **sizes)
    assert torch.equal(both["panoptic"][0], expected[0]) and both["panoptic"][1] == expected[1] != []


def test_stuff_gives_no_rows_of_instances():
    everything, things = _batch(), _batch(stuff=frozenset({0, 2}))
    kept = everything["labels"] == 1
    assert 0 < len(things["labels"]) == int(kept.sum()) < len(kept)
    assert torch.equal(things["query"], everything["query"][kept])
    assert torch.equal(things["scores"], everything["scores"][kept])
