"""Image and masks move together, and randomness comes from the seed alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from workbench.config import load_config
from workbench.data.coco import load_dataset
from workbench.data.image_files import ImageRules
from workbench.data.images import read_image
from workbench.data.mapper import (
    PAD_VALUE,
    LargeScaleJitter,
    ShortestEdgeCrop,
    SSDColour,
    TestMapper,
    TrainMapper,
    build_mapper,
)
from workbench.data.masks import encode_mask
from workbench.errors import WorkbenchError

RELAXED = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _record(path: Path, masks: np.ndarray, picture: np.ndarray) -> dict:
    """A dataset dict of those masks; object k has id 100 + k, category k and colour 10 + k."""
    Image.fromarray(picture).save(path)
    height, width = picture.shape[:2]
    things = [
        {
            "id": 100 + k,
            "category_id": k,
            "iscrowd": 0,
            "segmentation": encode_mask(mask),
            "subcategories": {"colour": 10 + k, "texture": -1},
        }
        for k, mask in enumerate(masks)
    ]
    return {
        "file_name": str(path),
        "height": height,
        "width": width,
        "image_id": 5,
        "subcategories": ("colour", "texture"),
        "annotations": things,
    }


def _painted(path: Path, height: int, width: int, seed: int, colours: np.ndarray) -> dict:
    """A picture whose three masks can be told from its pixels: ragged disjoint objects, each painted flat,
    on a flat background (the last colour). The four colours span all three channels, so every mixture of
    them is unique."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 4, (1 + height // 9, 1 + width // 9))
    owner = np.kron(cells, np.ones((9, 9), dtype=int))[:height, :width]
    owner[rng.uniform(size=owner.shape) < 0.02] = 3
    masks = np.stack([owner == k for k in range(3)])
    return _record(path, masks, colours[owner].astype(np.uint8))


def _train_mapper(image_size: int, min_scale: float = 0.1, max_scale: float = 2.0, **settings: object) -> TrainMapper:
    return TrainMapper(LargeScaleJitter(image_size, min_scale, max_scale), **settings)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max(1, (a | b).sum())


PURE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]])

augmentations = st.fixed_dictionaries(
    {
        "image_size": st.integers(8, 100),
        "min_scale": st.sampled_from([0.1, 0.5, 1.0]),
        "max_scale": st.sampled_from([1.0, 2.0, 5.0]),
        "random_flip": st.sampled_from(["horizontal", "vertical", "none"]),
    }
)


@RELAXED
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    seed=st.integers(0, 2**63 - 1),
    augmentation=augmentations,
)
def test_image_and_masks_move_together(tmp_path: Path, height: int, width: int, seed: int, augmentation: dict) -> None:
    record = _painted(tmp_path / "a.png", height, width, seed % 1000, PURE)
    mapped = _train_mapper(**augmentation)(record, seed)
    assert mapped["image"].shape == (3, augmentation["image_size"], augmentation["image_size"])
    _assert_moved_together(mapped)


@RELAXED
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    seed=st.integers(0, 2**63 - 1),
    edges=st.sampled_from([(8,), (32, 64), (20, 40, 120)]),
    longest=st.sampled_from([30, 100, 500]),
    sampling=st.sampled_from(["choice", "range"]),
    crop=st.sampled_from(
        [
            None,
            ("absolute", (40, 40)),
            ("absolute_range", (10, 50)),
            ("relative", (0.5, 1.0)),
            ("relative_range", (0.2, 0.7)),
        ]
    ),
    square=st.sampled_from([-1, 40, 64]),
)
def test_image_and_masks_move_together_with_a_shortest_edge(
    tmp_path: Path, height: int, width: int, seed: int, edges: tuple, longest: int, sampling: str, crop, square: int
) -> None:
    record = _painted(tmp_path / "a.png", height, width, seed % 1000, PURE)
    edges = edges[:2] if sampling == "range" and len(edges) > 1 else edges
    sampling = sampling if len(edges) == 2 else "choice"
    mapper = TrainMapper(ShortestEdgeCrop(edges, longest, sampling=sampling, crop=crop, square=square))
    mapped = mapper(record, seed)
    _assert_moved_together(mapped)
    if square > 0:
        assert mapped["image"].shape[1:] == (square, square)
    elif crop is None:
        assert max(mapped["image"].shape[1:]) <= longest or min(mapped["image"].shape[1:]) == 1


def _assert_moved_together(mapped: dict) -> None:
    image, targets = mapped["image"].numpy(), mapped["targets"]
    assert image.dtype == np.uint8
    assert targets["masks"].shape == (len(targets["labels"]), *image.shape[1:])
    assert targets["masks"].dtype == torch.bool and targets["labels"].dtype == torch.int64
    padding = (image == PAD_VALUE).all(0)  # no mixture of the colours is this grey
    for channel in range(3):
        recovered = (image[channel] >= 128) & ~padding
        row = np.flatnonzero(targets["labels"].numpy() == channel)
        assert len(row) == recovered.any()
        for number in row:
            mask = targets["masks"][number].numpy()
            assert _iou(recovered, mask) >= 0.99
            assert targets["subcategories"]["colour"][number] == 10 + channel
            assert targets["subcategories"]["texture"][number] == -1
            assert targets["annotation_ids"][number] == 100 + channel


@RELAXED
@given(
    seed=st.integers(0, 2**63 - 1),
    augmentation=augmentations,
    colour=st.sampled_from([{"color_jitter": True}, {"color_aug_ssd": True}]),
)
def test_image_and_masks_move_together_under_colour_jitter(
    tmp_path: Path, seed: int, augmentation: dict, colour: dict
) -> None:
    """The same seed without scaling shows what each colour becomes; a pixel is an object's where it is more
    than half of that colour. Pixels at one half to within rounding are either's."""
    colours = np.array([[230, 40, 40], [40, 220, 40], [40, 40, 230], [70, 80, 90]])
    record = _painted(tmp_path / "a.png", 72, 72, seed % 1000, colours)
    still = {"image_size": 72, "min_scale": 1.0, "max_scale": 1.0, "random_flip": augmentation["random_flip"]}
    plain = _train_mapper(**still, **colour)(record, seed)
    image, masks = plain["image"].numpy().astype(float), plain["targets"]["masks"].numpy()
    became = np.array([image[:, mask].mean(1) for mask in (*masks, ~masks.any(0))])
    assert all((c == image[:, mask].T).all() for mask, c in zip(masks, became, strict=False))

    mapped = _train_mapper(**augmentation, **colour)(record, seed)
    image = mapped["image"].numpy().astype(float)
    share = np.linalg.lstsq((became[:3] - became[3]).T, (image - became[3][:, None, None]).reshape(3, -1), rcond=None)
    share = share[0].reshape(image.shape)
    unclear = (image == PAD_VALUE).all(0)
    for label, mask in zip(mapped["targets"]["labels"], mapped["targets"]["masks"].numpy(), strict=True):
        clear = ~unclear & (np.abs(share[label] - 0.5) > 0.08)
        assert _iou((share[label] > 0.5) & clear, mask & clear) >= 0.99 or not (mask & clear).any()


_STORED = {  # how an upright picture is turned to be stored with an EXIF orientation
    1: lambda upright: upright,
    3: lambda upright: upright.transpose(Image.Transpose.ROTATE_180),
    6: lambda upright: upright.transpose(Image.Transpose.ROTATE_90),
    7: lambda upright: upright.transpose(Image.Transpose.TRANSVERSE),
}


def _photo(path: Path, height: int, width: int, orientation: int = 1) -> dict:
    """A large picture of three ellipses as :func:`_painted` paints them, stored turned."""
    y, x = np.mgrid[:height, :width]
    owner = np.full((height, width), 3)
    for k, (down, across) in enumerate([(0.25, 0.3), (0.6, 0.7), (0.75, 0.25)]):
        owner[((y / height - down) / 0.16) ** 2 + ((x / width - across) / 0.21) ** 2 < 1] = k
    record = _record(path.with_suffix(".png"), np.stack([owner == k for k in range(3)]), PURE[owner].astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = _STORED[orientation](Image.open(record["file_name"]))
    stored.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}))
    return record | {"file_name": str(path)}


def _agreement(mapped: dict) -> list[float]:
    """IoU of each mask and what its colour shows."""
    image, targets = mapped["image"].numpy(), mapped["targets"]
    padding = (image == PAD_VALUE).all(0)
    labels = targets["labels"].tolist()
    return [_iou((image[k] >= 128) & ~padding, targets["masks"][i].numpy()) for i, k in enumerate(labels)]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", list(_STORED))
def test_photos_read_at_reduced_size_move_with_their_masks(
    tmp_path: Path, suffix: str, orientation: int, cached: bool
) -> None:
    """Sides that no reduction divides, turned by EXIF."""
    record = _photo(tmp_path / f"a{suffix}", 701, 533, orientation)
    mapper = _train_mapper(
        image_size=100, min_scale=0.7, max_scale=1.5, rules=ImageRules(cache=tmp_path / "cache" if cached else None)
    )
    used = set()
    for seed in range(12):
        mapped = mapper(record, seed)
        used.add(mapper._reductions(701, 533, seed)[0])
        assert min(_agreement(mapped)) >= 0.99
    assert used == {2, 4}
    assert len(list(tmp_path.glob("cache/*"))) == int(cached)
    whole = read_image(record["file_name"])
    output = TestMapper(min_size=60, max_size=200)
    expected = output.resize(whole).float()
    seen = output(record)["image"].float()
    assert seen.shape == expected.shape
    assert (seen - expected).abs().mean() < 3 and ((seen >= 128) == (expected >= 128)).float().mean() > 0.995


def test_the_reduction_is_chosen_for_the_size_that_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Colour jitter and flips draw first; what is read early must be what is drawn later."""
    record = _photo(tmp_path / "a.jpg", 640, 560)
    mapper = _mapper(color_aug_ssd=True, max_scale=4.0)
    draw, drawn = mapper._geometry.draw, []

    def spy(height: int, width: int) -> dict:
        drawn.append(draw(height, width))
        return drawn[-1]

    monkeypatch.setattr(mapper._geometry, "draw", spy)
    for seed in range(20):
        mapper(record, seed)
    for ahead, used in zip(drawn[::2], drawn[1::2], strict=True):
        # The reduced image may have other proportions by a fraction of a pixel.
        assert np.abs(np.subtract(ahead["size"], used["size"])).max() <= 1


def test_a_cached_copy_is_read_again_and_made_anew_when_the_file_changes(tmp_path: Path) -> None:
    record = _photo(tmp_path / "a.jpg", 640, 560)
    mapper = TestMapper(min_size=100, max_size=200, rules=ImageRules(cache=tmp_path / "cache"))
    first = mapper(record)["image"]
    (copy,) = (tmp_path / "cache").iterdir()
    assert Image.open(copy).size == (280, 320)
    Image.new("RGB", (280, 320)).save(copy)  # it is the copy that is read
    assert not mapper(record)["image"].any() and first.any()
    Image.new("RGB", (560, 640), "white").save(tmp_path / "a.jpg")
    assert mapper(record)["image"].min() > 250
    with pytest.raises(WorkbenchError, match="560x640.*640x560"):
        mapper(record | {"height": 560, "width": 640})


def test_a_copy_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(WorkbenchError, match=r"cache.*a\.jpg.*DATALOADER\.CACHE"):
        TestMapper(min_size=100, rules=ImageRules(cache=tmp_path / "cache"))(_photo(tmp_path / "a.jpg", 640, 560))


def test_an_image_that_is_not_shrunk_much_is_read_whole(tmp_path: Path) -> None:
    record = _photo(tmp_path / "a.jpg", 640, 560)
    whole = torch.from_numpy(read_image(record["file_name"])).permute(2, 0, 1)
    still = {"min_scale": 1.0, "max_scale": 1.0, "random_flip": "none"}
    assert torch.equal(_train_mapper(image_size=640, **still)(record, 1)["image"][:, :, :560], whole)
    assert torch.equal(TestMapper(min_size=0)(record)["image"], whole)
    resized = TestMapper(min_size=300)
    assert torch.equal(resized(record)["image"], resized.resize(read_image(record["file_name"])))


def _mapper(**changes: object) -> TrainMapper:
    return _train_mapper(**{"image_size": 48, "min_scale": 0.3, "max_scale": 2.0, "color_jitter": True, **changes})


def _same(one: dict, two: dict) -> bool:
    flat = [[batch["image"], *(v for k, v in batch["targets"].items() if k != "subcategories")] for batch in (one, two)]
    return all(torch.equal(a, b) for a, b in zip(*flat, strict=True))


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    record = _painted(tmp_path / "a.png", 60, 50, 1, PURE)
    mapper = _mapper()
    first = mapper(record, 7)
    assert first["seed"] == 7
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    state = torch.get_rng_state()
    assert _same(mapper(record, 7), first)
    assert torch.equal(torch.get_rng_state(), state)  # and it leaves no trace
    assert _same(_mapper()(record, 7), first)
    assert not any(_same(mapper(record, seed), first) for seed in range(8, 12))


def test_what_is_kept_in_memory_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = _painted(tmp_path / "a.png", 48, 48, 1, PURE)
    mapper = _mapper(min_scale=1.0, max_scale=1.0, color_jitter=False, random_flip="none")
    first = mapper(record, 1)
    expected = first["image"].clone(), first["targets"]["masks"].clone()
    first["image"].zero_()
    first["targets"]["masks"].zero_()
    Path(record["file_name"]).unlink()  # it really comes from memory
    again = mapper(record, 1)
    assert torch.equal(again["image"], expected[0]) and torch.equal(again["targets"]["masks"], expected[1])
    monkeypatch.setattr("workbench.data.mapper._CACHE_BYTES", 0)
    with pytest.raises(WorkbenchError, match="no image"):
        _mapper()(record, 1)


def test_flips(tmp_path: Path) -> None:
    record = _painted(tmp_path / "a.png", 40, 40, 2, PURE)
    still = {"image_size": 40, "min_scale": 1.0, "max_scale": 1.0}
    original = torch.from_numpy(read_image(record["file_name"])).permute(2, 0, 1)
    for flip, dims in (("horizontal", [2]), ("vertical", [1])):
        mapper = _train_mapper(**still, random_flip=flip)
        seen = [mapper(record, seed)["image"] for seed in range(20)]
        turned = [torch.equal(image, original.flip(dims)) for image in seen]
        assert 0 < sum(turned) < 20
        assert all(t or torch.equal(image, original) for t, image in zip(turned, seen, strict=True))
    assert all(
        torch.equal(_train_mapper(**still, random_flip="none")(record, seed)["image"], original) for seed in range(9)
    )
    with pytest.raises(WorkbenchError, match="INPUT.RANDOM_FLIP"):
        _train_mapper(**still, random_flip="diagonal")


def test_large_scale_jitter_is_detectron2s(tmp_path: Path) -> None:
    """Sizes are uniform between the scales, proportions stay, padding is right and below and grey."""
    record = _record(tmp_path / "a.png", np.ones((1, 40, 80), dtype=bool), np.full((40, 80, 3), 10, dtype=np.uint8))
    mapper = _train_mapper(image_size=64, min_scale=0.5, max_scale=1.5)
    widths = []
    for seed in range(200):
        mapped = mapper(record, seed)
        (mask,) = mapped["targets"]["masks"]
        assert torch.equal(mapped["image"] == 10, mask.expand(3, -1, -1))
        assert (mapped["image"][:, ~mask] == PAD_VALUE).all()
        width, height = int(mask.any(0).sum()), int(mask.any(1).sum())
        assert mask[:height, :width].all() and mask.sum() == width * height
        widths.append(width)
        if width < 64:
            assert abs(height - width / 2) <= 1
            assert width >= 32
    assert 0.4 < np.mean(np.array(widths) == 64) < 0.6  # scale above 1
    smaller = np.array([w for w in widths if w < 64])
    assert 45 < smaller.mean() < 51 and smaller.min() < 36


def test_objects_that_leave_the_window_and_crowds_are_dropped(tmp_path: Path) -> None:
    masks = np.zeros((3, 64, 64), dtype=bool)
    masks[0, :4] = masks[1, -4:] = masks[2, 20:40, 20:40] = True
    record = _record(tmp_path / "a.png", masks, np.zeros((64, 64, 3), dtype=np.uint8))
    record["annotations"][2]["iscrowd"] = 1
    mapper = _train_mapper(image_size=64, min_scale=3.0, max_scale=3.0, random_flip="none")
    left = [mapper(record, seed)["targets"] for seed in range(100)]
    kept = {tuple(zip(t["labels"].tolist(), t["annotation_ids"].tolist(), strict=True)) for t in left}
    assert kept == {(), ((0, 100),), ((1, 101),)}
    everything = _train_mapper(image_size=64, min_scale=1.0, max_scale=1.0)(record, 0)
    assert everything["targets"]["labels"].tolist() == [0, 1]


def test_an_image_without_objects(tmp_path: Path) -> None:
    record = _record(tmp_path / "a.png", np.zeros((0, 30, 20), dtype=bool), np.zeros((30, 20, 3), dtype=np.uint8))
    targets = _mapper()(record, 3)["targets"]
    assert targets["labels"].shape == (0,) and targets["labels"].dtype == torch.int64
    assert targets["masks"].shape == (0, 48, 48) and targets["masks"].dtype == torch.bool
    assert targets["annotation_ids"].shape == (0,) and targets["annotation_ids"].dtype == torch.int64
    assert {name: (v.shape, v.dtype) for name, v in targets["subcategories"].items()} == {
        name: (torch.Size([0]), torch.int64) for name in ("colour", "texture")
    }


def test_more_masks_than_are_resized_at_once(tmp_path: Path) -> None:
    masks = np.zeros((100, 30, 30), dtype=bool)
    for k, mask in enumerate(masks):
        mask[3 * (k // 10) : 3 * (k // 10) + 3, 3 * (k % 10) : 3 * (k % 10) + 3] = True
    record = _record(tmp_path / "a.png", masks, np.zeros((30, 30, 3), dtype=np.uint8))
    mapped = _train_mapper(image_size=60, min_scale=1.0, max_scale=1.0, random_flip="none")(record, 0)
    expected = np.kron(masks, np.ones((1, 2, 2), dtype=bool))
    assert np.array_equal(mapped["targets"]["masks"].numpy(), expected)
    assert mapped["targets"]["labels"].tolist() == list(range(100))


def _write_modes(folder: Path) -> dict[str, Path]:
    """One picture, left half dark (40), right half light (200), in every mode."""
    grey = np.full((6, 8), 40, dtype=np.uint8)
    grey[:, 4:] = 200
    image = Image.fromarray(grey)
    files = {
        "L": image,
        "RGB": image.convert("RGB"),
        "P": image.convert("P"),
        "CMYK": image.convert("RGB").convert("CMYK"),
    }
    files["1"] = image.convert("1", dither=Image.Dither.NONE)
    files["LA"] = image.convert("LA")
    rgba = image.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.full((6, 8), 128, dtype=np.uint8)))
    files["RGBA"] = rgba
    files["I;16"] = Image.fromarray(grey.astype(np.uint16) * 257)
    files["I"] = Image.fromarray(grey.astype(np.int32) * 257)
    files["F"] = Image.fromarray(grey.astype(np.float32))
    paths = {}
    for mode, picture in files.items():
        suffix = "tiff" if mode in ("CMYK", "F", "I") else "png"
        paths[mode] = folder / f"{mode.replace(';', '')}.{suffix}"
        picture.save(paths[mode])
    return paths


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "CMYK", "1", "LA", "RGBA", "I;16", "I", "F"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    rules = ImageRules(depth_range={"I": (0, 65535), "F": (0, 255)}.get(mode))
    picture = read_image(str(_write_modes(tmp_path)[mode]), rules)
    assert picture.shape == (6, 8, 3) and picture.dtype == np.uint8
    dark, light = (0, 255) if mode == "1" else (40, 200)
    assert np.abs(picture[:, :4].astype(int) - dark).max() <= 1
    assert np.abs(picture[:, 4:].astype(int) - light).max() <= 1


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = np.zeros((6, 8, 3), dtype=np.uint8)
    picture[:2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    turned = read_image(str(tmp_path / "a.png"))
    assert np.array_equal(turned, np.rot90(picture, -1))


def test_a_size_that_disagrees_is_named(tmp_path: Path) -> None:
    record = _painted(tmp_path / "a.png", 30, 20, 0, PURE)
    record["height"], record["width"] = 20, 30
    for mapper in (lambda r: _mapper()(r, 0), TestMapper()):
        with pytest.raises(WorkbenchError, match=r"a\.png.*id 5.*20x30.*30x20"):
            mapper(record)


@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 255, (30, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("no picture")
    else:
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(WorkbenchError, match=r"a\.png"):
        read_image(str(path))


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),
        ((640, 480), (800, 1333), (1067, 800)),
        ((400, 1600), (800, 1333), (333, 1333)),
        ((333, 500), (800, 1333), (800, 1201)),
        ((480, 640), (0, 1333), (480, 640)),
        ((400, 1600), (800, 0), (800, 3200)),
        ((1, 5000), (800, 1333), (1, 1333)),
    ],
)
def test_shortest_edge(size: tuple, limits: tuple, expected: tuple) -> None:
    assert TestMapper(min_size=limits[0], max_size=limits[1]).output_size(*size) == expected


def test_the_test_mapper(tmp_path: Path) -> None:
    record = _painted(tmp_path / "a.png", 30, 45, 0, PURE)
    mapped = TestMapper(min_size=60, max_size=200)(record)
    assert mapped.keys() == {"image", "height", "width", "file_name", "image_id"}
    assert mapped["image"].shape == (3, 60, 90) and mapped["image"].dtype == torch.uint8
    assert (mapped["height"], mapped["width"], mapped["image_id"]) == (30, 45, 5)
    same = TestMapper(min_size=0)(record)["image"]
    assert np.array_equal(same.permute(1, 2, 0).numpy(), read_image(record["file_name"]))


def test_mappers_from_a_config(shapes_root: Path) -> None:
    overrides = ["INPUT.IMAGE_SIZE", "40", "INPUT.MIN_SCALE", "1.0", "INPUT.MAX_SCALE", "1.0"]
    overrides += ["INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TEST", "0"]
    cfg = load_config(None, overrides)
    record = load_dataset("shapes_val", root=shapes_root).dicts[0]
    train, test = build_mapper(cfg, True), build_mapper(cfg, False)
    assert train(record, 0)["image"].shape == (3, 40, 40)
    assert torch.equal(train(record, 0)["image"], train(record, 1)["image"])
    assert test(record)["image"].shape == (3, 64, 64)
    jittered = build_mapper(load_config(None, [*overrides, "INPUT.COLOR_JITTER", "True"]), True)
    assert not torch.equal(jittered(record, 0)["image"], train(record, 0)["image"])


def test_the_published_ade20k_mapper_draws_edges_and_windows() -> None:
    """Edges are drawn alike often, the longest one is bounded, and windows lie anywhere."""
    geometry = ShortestEdgeCrop((320, 640, 1280), 2560, crop=("absolute", (640, 640)), square=640)
    torch.manual_seed(0)
    drawn = [geometry.draw(500, 1000) for _ in range(600)]
    shares = [np.mean([d["size"] == size for d in drawn]) for size in ((320, 640), (640, 1280), (1280, 2560))]
    assert min(shares) > 0.28
    small, large = ([d for d in drawn if d["size"][0] == edge] for edge in (320, 1280))
    assert all(d["crop"] == (320, 640) and (d["top"], d["left"]) == (0, 0) for d in small)
    assert all(d["crop"] == (640, 640) == d["padded"] for d in large)
    assert min(d["top"] for d in large) < 40 and max(d["top"] for d in large) > 600
    assert geometry.resized(100, 900) == (284, 2560)


def test_range_sampling_takes_every_edge_between() -> None:
    geometry = ShortestEdgeCrop((8, 11), 100, sampling="range")
    torch.manual_seed(0)
    assert {geometry.draw(50, 50)["size"][0] for _ in range(100)} == {8, 9, 10, 11}


def test_ssd_colours_have_the_published_statistics() -> None:
    """Brightness moves by up to 32, contrast and saturation are multiplied by 0.5 to 1.5, hue turns by 36 degrees."""
    colour = SSDColour()
    grey, red = (tv_tensors.Image(torch.tensor(c, dtype=torch.uint8).view(3, 1, 1)) for c in ([60] * 3, [200, 50, 50]))

    def changed(image: tv_tensors.Image, step: int, amount: float) -> list[int]:
        draws = [1.0] * 9
        draws[step], draws[5 + step] = 0.0, amount
        return colour.transform(image, {"draws": draws}).flatten().tolist()

    assert changed(grey, 0, 0.0) == [28] * 3 and changed(grey, 0, 1.0) == [92] * 3
    assert changed(grey, 1, 0.0) == [30] * 3 and changed(grey, 1, 1.0) == [90] * 3
    assert changed(red, 2, 0.0)[1] == pytest.approx(125, abs=1)  # half of the saturation of 0.75
    turned = changed(red, 3, 1.0)  # 36 degrees: green rises by 36/60 of the difference
    assert turned == pytest.approx([200, 140, 50], abs=3)
    torch.manual_seed(0)
    draws = torch.tensor([colour.make_params([])["draws"] for _ in range(500)])
    assert (draws[:, :5] < 0.5).float().mean(0).tolist() == pytest.approx([0.5] * 5, abs=0.1)
    assert colour.transform(tv_tensors.Mask(torch.ones(1, 1, 1)), {"draws": [0.0] * 9}).item() == 1


def test_the_config_chooses_the_mapper() -> None:
    published = ["INPUT.DATASET_MAPPER_NAME", "mask_former_instance", "INPUT.MIN_SIZE_TRAIN", "(320, 640)"]
    published += ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "(640, 640)"]
    geometry = build_mapper(load_config(None, [*published, "INPUT.SIZE_DIVISIBILITY", "640"]), True)._geometry
    assert isinstance(geometry, ShortestEdgeCrop)
    assert (geometry.edges, geometry.longest, geometry.square) == ((320, 640), 1333, 640)
    assert geometry.crop == ("absolute", [640, 640])
    assert isinstance(build_mapper(load_config(None), True)._geometry, LargeScaleJitter)
