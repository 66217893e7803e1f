"""Models of other programs in and out: the same numbers, the same bits, and one sentence for what cannot be read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.weights import published
from workbench.cli import main
from workbench.config import config_to_dict, load_config
from workbench.data.vocabulary import Vocabulary
from workbench.models import build_model
from workbench.models.inputs import collate_images
from workbench.models.postprocess import Kinds, batch_inference
from workbench.runs.checkpoint import load_checkpoint, load_model, save_checkpoint
from workbench.workflows.convert import convert, local_checkpoint
from workbench.workflows.predict import predict

transformers = pytest.importorskip("transformers")

WORDS = Vocabulary((3, 7), ("apple", "pear"), {"colour": ("red", "green"), "ripe.ness": ("no", "yes", "over")})
SIZES = """
  SEM_SEG_HEAD: {CONVS_DIM: 64, MASK_DIM: 64, TRANSFORMER_ENC_LAYERS: 1, TRANSFORMER_DIM_FEEDFORWARD: 48,
    DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS: 4}
  MASK_FORMER: {HIDDEN_DIM: 64, NUM_OBJECT_QUERIES: 7, NHEADS: 4, DIM_FEEDFORWARD: 40, DEC_LAYERS: 3}
INPUT: {MIN_SIZE_TEST: 0}
"""
SWIN = "{NAME: D2SwinTransformer}\n  SWIN: {EMBED_DIM: 12, DEPTHS: [1, 1, 2, 1], NUM_HEADS: [1, 2, 3, 4]}"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


# WORKBENCH_WHOLE_MODELS=1 pytest -rP compares whole Swin-T and R50 models instead, with larger images, and prints by
# how much they differ.
WHOLE = bool(os.environ.get("WORKBENCH_WHOLE_MODELS"))
ODD_SIZES = [(205, 331), (427, 640)] if WHOLE else [(97, 131)]
SMALL_HEAD = {
    **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 64),
    "encoder_feedforward_dim": 48,
    "dim_feedforward": 40,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "num_queries": 7,
}
SMALL_SWIN = {"embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 3, 4]}


def _printed(what: str, difference: torch.Tensor | float) -> float:
    difference = difference.item() if isinstance(difference, torch.Tensor) else difference
    print(f"{what}: {difference:.2g}")
    return difference


@pytest.fixture(scope="module", params=["swin", "resnet50"])
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that transformers wrote, with the names of three categories."""
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    if request.param == "swin":
        backbone = transformers.SwinConfig(**({} if WHOLE else SMALL_SWIN), **stages)
    else:
        backbone = transformers.ResNetConfig(depths=[3, 4, 6, 3], **stages)
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, id2label={0: "cat", 1: "dog", 2: "cow"}, **({} if WHOLE else SMALL_HEAD)
    )
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():  # no parameter may stay at a value that hides a mistake, such as zero
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("peers") / request.param
    model.save_pretrained(folder)
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


def test_names_and_statistics_come_with_a_model_of_transformers(peer: Path, tmp_path: Path) -> None:
    convert(peer, tmp_path / "converted")
    checkpoint = load_checkpoint(tmp_path / "converted")
    assert checkpoint.vocabulary.categories == ("cat", "dog", "cow")
    assert checkpoint.config.MODEL.PIXEL_MEAN == [127.5, 102.0, 76.5]
    assert checkpoint.config.MODEL.PIXEL_STD == [51.0, 63.75, 76.5]


@pytest.fixture
def converted(peer: Path, tmp_path: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our model and transformers', with the same weights."""
    convert(peer, tmp_path / "converted")
    reference = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(peer)
    return load_model(tmp_path / "converted")[0], reference.eval()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("size", ODD_SIZES)
def test_logits_are_those_of_transformers(
    converted: tuple[torch.nn.Module, torch.nn.Module], size: tuple[int, int], dtype: torch.dtype, limit: float
) -> None:
    """A decoder layer attends to the pixels where a mask's logit is not negative; near zero, rounding decides.

    A single such pixel changes the logits by some 1e-4. In float64 there is none. In float32 they are counted, and the
    layers here attend where those of transformers do.
    """
    model, reference = (part.to(dtype) for part in converted)
    images = torch.randn(2, 3, *size, dtype=dtype)
    masks: list[torch.Tensor] = []
    differing: list[torch.Tensor] = []

    def share(layer: torch.nn.Module, args: tuple) -> tuple:
        allowed = masks[len(differing)]
        differing.append((args[4] != allowed).flatten())
        return *args[:4], allowed if dtype == torch.float32 else args[4]

    def record(layer: torch.nn.Module, args: tuple, settings: dict) -> None:
        masks.append(~settings["encoder_attention_mask"].unflatten(0, (len(images), -1))[:, 0])  # equal for all heads

    for layer in reference.model.transformer_module.decoder.layers:
        layer.register_forward_pre_hook(record, with_kwargs=True)
    for layer in model.transformer_decoder.layers:
        layer.register_forward_pre_hook(share)
    with torch.no_grad():
        expected, outputs = reference(pixel_values=images), model.raw_outputs(images)
    assert len(masks) == len(differing) == len(model.transformer_decoder.layers)
    pixels = torch.cat(differing)
    print(f"{dtype}, {size[0]}x{size[1]}: {pixels.sum()} of {len(pixels)} pixels of attention differ")
    assert pixels.sum() <= (1e-5 * len(pixels) if dtype == torch.float32 else 0)
    for name, wanted in (("logits", expected.class_queries_logits), ("masks", expected.masks_queries_logits)):
        difference = (outputs[f"pred_{name}"] - wanted).abs().max() / wanted.abs().max()
        assert _printed(f"{name}, relative", difference) < limit


def test_all_losses_are_those_of_transformers_at_the_same_points(
    converted: tuple[torch.nn.Module, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = converted
    candidates, extra, matched = 3 * 12544, 12544 - 9408, 12544
    points = torch.rand(candidates + extra, 2)
    # Both draw the points of all masks by torch.rand; each mask now gets the same ones.
    parts = {candidates + extra: points, candidates: points[:candidates], extra: points[candidates:]}
    parts[matched] = points[:matched]
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: parts[shape[1]].expand(*shape).clone())
    model.train()
    reference.train()
    model.backbone.eval()  # norms of transformers' ResNet are not frozen, and Swin drops paths
    reference.model.pixel_level_module.encoder.eval()
    images = torch.randn(2, 3, 96, 160)
    masks = [torch.zeros(2, 96, 160, dtype=torch.bool), torch.zeros(1, 96, 160, dtype=torch.bool)]
    masks[0][0, 10:40, 20:90] = masks[0][1, 50:90, 5:50] = masks[1][0, :70, 100:] = True
    labels = [torch.tensor([2, 0]), torch.tensor([1])]
    targets = [{"masks": m, "labels": n, "subcategories": {}} for m, n in zip(masks, labels, strict=True)]
    losses = model.criterion(model.raw_outputs(images), targets)
    floats = [mask.float() for mask in masks]
    outputs = reference(pixel_values=images, mask_labels=floats, class_labels=labels, output_auxiliary_logits=True)
    wanted = reference.get_loss_dict(
        outputs.masks_queries_logits, outputs.class_queries_logits, floats, labels, outputs.auxiliary_logits
    )
    assert len(losses) == len(wanted) == (30 if WHOLE else 9)
    others = {name: wanted[name.replace("loss_ce", "loss_cross_entropy")] for name in losses}
    differences = [abs(loss - others[name]) / abs(others[name]) for name, loss in losses.items()]
    assert _printed("losses, relative", max(differences)) < 1e-4
    assert abs(sum(losses.values()) - outputs.loss) < 1e-4 * outputs.loss


def _both_outputs(models: tuple[torch.nn.Module, torch.nn.Module], size: tuple[int, int]) -> tuple[dict[str, Any], Any]:
    """Return the predictions of this project and the outputs of transformers for one image.

    Both run in float64, where no rounding changes what a layer attends to, and are postprocessed in float32. Masks are
    enlarged to 384x384, as transformers enlarges those of every image.
    """
    model, reference = (part.double() for part in models)
    picture = torch.randint(0, 256, (3, *size)).double()
    images, _ = collate_images([{"image": picture}], model.pixel_mean, model.pixel_std, 1)
    with torch.no_grad():
        raw = model.raw_outputs(images)
        outputs = reference(pixel_values=((picture - model.pixel_mean) / model.pixel_std)[None])
    outputs.class_queries_logits = outputs.class_queries_logits.float()
    outputs.masks_queries_logits = outputs.masks_queries_logits.float()
    enlarged = (384, 384)
    return batch_inference(raw, [{}], [enlarged], padded_size=enlarged, kinds=model.kinds, top_k=model.top_k)[
        0
    ], outputs


@pytest.mark.parametrize("size", [(384, 384), *ODD_SIZES])
def test_instances_are_those_of_transformers(
    converted: tuple[torch.nn.Module, torch.nn.Module], size: tuple[int, int]
) -> None:
    model, reference = converted
    model.top_k = reference.config.num_queries
    rows, outputs = _both_outputs(converted, size)
    processor = transformers.Mask2FormerImageProcessor()
    result = processor.post_process_instance_segmentation(outputs, threshold=0.0, return_binary_maps=True)[0]
    kept = rows["masks"].flatten(1).any(1)
    assert len(result["segments_info"]) == kept.sum() > 0
    order = rows["scores"][kept].argsort(descending=True)
    segments = sorted(result["segments_info"], key=lambda segment: -segment["score"])
    for row, segment in zip(order.tolist(), segments, strict=True):
        assert segment["label_id"] == rows["labels"][kept][row]
        assert segment["score"] == pytest.approx(rows["scores"][kept][row].item(), abs=2e-6)
        differing = rows["masks"][kept][row] != result["segmentation"][segment["id"]].bool()
        assert _printed("pixels of an instance", differing.float().mean()) < 1e-4  # their logit is zero up to rounding


@pytest.mark.parametrize("size", [(384, 384), *ODD_SIZES])
@pytest.mark.parametrize("overlap", [0.0, 0.1])
def test_panoptic_segments_are_those_of_transformers(
    converted: tuple[torch.nn.Module, torch.nn.Module], overlap: float, size: tuple[int, int]
) -> None:
    """Class logits are so sharp that scores are one: transformers compares a mask times its score with one half.

    It also gives a segment every pixel that its query won, here only those where the mask is one half or more.
    """
    model, reference = converted
    for head in (model.transformer_decoder.class_embed, reference.class_predictor):
        head.weight.data *= 1e4
        head.bias.data *= 1e4
    model.kinds = Kinds(panoptic=True, overlap_threshold=overlap)
    rows, outputs = _both_outputs(converted, size)
    segments, infos = rows["panoptic"]
    (expected,) = transformers.Mask2FormerImageProcessor().post_process_panoptic_segmentation(
        outputs,
        threshold=0.8,
        overlap_mask_area_threshold=overlap,
        label_ids_to_fuse=set(),
        target_sizes=[(384, 384)],
    )
    assert len(infos) > 1
    masks = outputs.masks_queries_logits[0, [info["query"] for info in infos]]
    sure = torch.nn.functional.interpolate(masks[None], (384, 384), mode="bilinear")[0].amax(0) >= 0
    there = expected["segmentation"].int() * sure
    wanted = [each for each in expected["segments_info"] if (there == each["id"]).any()]
    assert [info["category"] for info in infos] == [each["label_id"] for each in wanted]
    assert [info["score"] for info in infos] == pytest.approx([each["score"] for each in wanted], abs=1e-5)
    differing = torch.zeros_like(segments, dtype=torch.bool)
    for info, each in zip(infos, wanted, strict=True):
        differing |= (segments == info["id"]) != (there == each["id"])
    assert _printed("pixels of segments", differing.float().mean()) < 1e-4  # those whose masks are equal up to rounding


def test_a_model_of_transformers_comes_back_bit_by_bit(peer: Path, tmp_path: Path) -> None:
    convert(peer, tmp_path / "converted")
    convert(tmp_path / "converted", tmp_path / "back", to="huggingface")
    before, after = (load_file(folder / "model.safetensors") for folder in (peer, tmp_path / "back"))
    unused = {name for name in before if ".layernorm." in name and ".swin." in name}
    assert after.keys() == before.keys() - unused
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items() if "num_batches" not in name)


def own_checkpoint(place: Path, backbone: str = SWIN) -> Path:
    (place.parent / "own.yaml").write_text(f"MODEL:\n  DEVICE: cpu\n  BACKBONE: {backbone}{SIZES}")
    cfg = load_config(place.parent / "own.yaml")
    model = build_model(cfg, WORDS)
    return save_checkpoint(place, model, config=config_to_dict(cfg), vocabulary=WORDS, step=5)


@pytest.mark.parametrize(("to", "name"), [("huggingface", "hf"), ("mask2former", "w.pkl"), ("mask2former", "w.pth")])
def test_a_checkpoint_comes_back_with_subcategories_and_config(tmp_path: Path, to: str, name: str) -> None:
    own = load_checkpoint(own_checkpoint(tmp_path / "own"))
    convert(tmp_path / "own", tmp_path / name, to=to)
    convert(tmp_path / name, tmp_path / "again")
    again = load_checkpoint(tmp_path / "again")
    assert again.vocabulary == own.vocabulary and again.config == own.config
    assert again.state_dict.keys() == own.state_dict.keys()
    assert all(torch.equal(tensor, own.state_dict[name]) for name, tensor in again.state_dict.items())


def test_transformers_opens_what_is_written_for_it(tmp_path: Path) -> None:
    model = load_model(own_checkpoint(tmp_path / "own"))[0]
    convert(tmp_path / "own", tmp_path / "hf", to="huggingface")
    loaded, report = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert all("layernorm" in name for name in report["missing_keys"])  # a norm that the model does not use
    assert all("subcategory" in name for name in report["unexpected_keys"])
    assert loaded.config.id2label == {0: "apple", 1: "pear"}
    images = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        expected, outputs = model.raw_outputs(images), loaded.eval()(pixel_values=images)
    torch.testing.assert_close(outputs.class_queries_logits, expected["pred_logits"], rtol=1e-4, atol=1e-5)
    processor = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == pytest.approx([0.485, 0.456, 0.406])


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Swin of the model zoo for three categories, as a .pkl of arrays."""
    backbone = published.swin(12, (1, 1, 2, 1), (1, 2, 3, 4), 7)
    model = published.mask2former(backbone, (12, 24, 48, 96), classes=3, dim=64, heads=8)
    arrays = {name: tensor.numpy() for name, tensor in published.random_state(model).items()}
    path = tmp_path_factory.mktemp("zoo") / "model_final_86143f.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    return path


def test_a_file_of_the_model_zoo_predicts_and_is_converted_once(zoo: Path, shapes_root: Path, tmp_path: Path) -> None:
    image = next((shapes_root / "shapes" / "images").rglob("*.png"), None) or next(shapes_root.rglob("*.png"))
    predict(zoo, image, tmp_path / "out", score_threshold=0.0, overrides=["INPUT.MIN_SIZE_TEST", "64"])
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["category 0", "category 1", "category 2"]
    assert len({row["category_id"] for row in content["annotations"]}) > 0
    place = local_checkpoint(zoo)
    stamp = (place / "model.json").stat().st_mtime_ns
    assert local_checkpoint(zoo) == place and (place / "model.json").stat().st_mtime_ns == stamp
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_the_dataset_names_the_categories_of_a_file_that_has_none(zoo: Path, tmp_path: Path) -> None:
    named = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in ((5, "b"), (2, "a"))]}
    (tmp_path / "two.json").write_text(json.dumps(named))
    named["categories"].append({"id": 9, "name": "c"})
    (tmp_path / "three.json").write_text(json.dumps(named))
    text = convert(zoo, tmp_path / "converted", dataset=tmp_path / "three.json")
    assert "categories: 3 of" in text and "three.json, ordered by id" in text
    assert load_checkpoint(tmp_path / "converted").vocabulary == Vocabulary((2, 5, 9), ("a", "b", "c"))


def test_a_file_of_weights_beside_its_description_stands_for_its_folder(tmp_path: Path) -> None:
    own = own_checkpoint(tmp_path / "own")
    assert local_checkpoint(own / "model.safetensors") == own
    convert(own, tmp_path / "hf", to="huggingface")
    convert(tmp_path / "hf" / "model.safetensors", tmp_path / "again")
    assert load_checkpoint(tmp_path / "again").vocabulary == WORDS


def test_a_backbone_alone_becomes_a_file_for_model_weights(tmp_path: Path) -> None:
    state = published.random_state(published.swin(12, (1, 1, 2, 1), (1, 2, 3, 4), 7))
    torch.save({"model": {**state, "head.weight": torch.ones(4, 96), "norm.bias": torch.ones(96)}}, tmp_path / "s.pth")
    assert "tensors of a backbone" in convert(tmp_path / "s.pth", tmp_path / "s.safetensors")
    written = load_file(tmp_path / "s.safetensors")
    assert torch.equal(written["backbone.layers.1.downsample.norm.bias"], state["layers.0.downsample.norm.bias"])
    assert not any("head" in name or "index" in name for name in written)


def _truncated(tmp_path: Path, zoo: Path) -> Path:
    path = tmp_path / "w.pkl"
    path.write_bytes(zoo.read_bytes()[:5000])
    return path


def _no_config(tmp_path: Path, zoo: Path) -> Path:
    (tmp_path / "hf").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "hf" / "model.safetensors")
    return tmp_path / "hf"


def _other_model(tmp_path: Path, zoo: Path) -> Path:
    folder = _no_config(tmp_path, zoo)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


def _other_network(tmp_path: Path, zoo: Path) -> Path:
    torch.save({"encoder.weight": torch.ones(3, 3)}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def _half_a_model(tmp_path: Path, zoo: Path) -> Path:
    content = pickle.loads(zoo.read_bytes())
    names = [name for name in content["model"] if ".layers.2.blocks.1." in name]
    for name in names:
        del content["model"][name]
    del content["model"]["sem_seg_head.predictor.query_embed.weight"]
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    return tmp_path / "w.pkl"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_truncated, "cannot be read as tensors"),
        (_no_config, "has no config.json"),
        (_other_model, "describes a model of type 'bert'"),
        (_other_network, "no Mask2Former and no backbone"),
        (_half_a_model, "1 missing (transformer_decoder.query_embed.weight)"),
        (lambda *_: "hf://../x", "no address of the Hugging Face Hub"),
        (lambda *_: "http://127.0.0.1:9/w.pkl", "could not be downloaded"),
        (lambda path, _: path / "none.pkl", "does not exist"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(make, said: str, tmp_path: Path, zoo: Path, capsys) -> None:  # noqa: ANN001
    source = str(make(tmp_path, zoo))
    assert main(["convert", source, str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error
    assert not (tmp_path / "out").exists()
    cache = tmp_path / "cache"
    assert not cache.exists() or not [path for path in cache.rglob("*") if path.is_file()]


def test_other_classes_than_the_datasets_are_refused(zoo: Path, shapes_root: Path, tmp_path: Path, capsys) -> None:  # noqa: ANN001
    annotations = next(shapes_root.rglob("*val*.json"))
    content = json.loads(annotations.read_text())
    content["categories"].append({"id": 99, "name": "one more"})
    (tmp_path / "more.json").write_text(json.dumps(content))
    assert main(["eval", "--ckpt", str(zoo), "--dataset", str(tmp_path / "more.json")]) == 2
    assert "are for 3 categories, and" in capsys.readouterr().err


def test_nothing_is_written_over(tmp_path: Path, capsys) -> None:  # noqa: ANN001
    (tmp_path / "out").mkdir()
    assert main(["convert", "x.pkl", str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_backbone_that_transformers_lacks_is_named(tiny_run: Path, tmp_path: Path, capsys) -> None:  # noqa: ANN001
    assert main(["convert", str(tiny_run), str(tmp_path / "hf"), "--to", "huggingface"]) == 2
    assert "transformers builds no Mask2Former with" in capsys.readouterr().err
    convert(tiny_run, tmp_path / "tiny.pkl", to="mask2former")
    convert(tmp_path / "tiny.pkl", tmp_path / "again")
    before, after = load_checkpoint(tiny_run), load_checkpoint(tmp_path / "again")
    assert before.vocabulary == after.vocabulary
    assert all(torch.equal(tensor, after.state_dict[name]) for name, tensor in before.state_dict.items())
    shutil.rmtree(tmp_path / "again")
