"""Models of other programs as sources of weights: their tensors, and what their files say of config and classes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor

from workbench.config import config_from_dict
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError, errors_as, is_number, shown
from workbench.runs.checkpoint import DESCRIPTION, ModelRecipe, has_checkpoint, load_checkpoint
from workbench.typed_files import check_type
from workbench.weights.download import local_weights
from workbench.weights.naming import IMAGENET_MEAN, OWN_KIND, recognise
from workbench.weights.reading import INDEX, SINGLE, read_json, read_weights

# What a file that this package wrote for another program carries, so that it comes back whole.
OWN_KEY = "workbench"
# Files that the published configs name and leave to the user to make.
_PUBLISHED_AS = re.compile(r"R-101\.pkl|(swin_(?:tiny|small|base|large)_patch4_window\w+)\.pkl")
_SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
_RESNETS = {((2, 2, 2, 2), 2): 18, ((3, 4, 6, 3), 2): 34, ((3, 4, 6, 3), 3): 50, ((3, 4, 23, 3), 3): 101}


@dataclass
class Source:
    """Weights under this package's names.

    Attributes:
        name: as the user wrote it.
        path: the file or folder.
        kind: whose format it has.
        state: name to tensor; those of a backbone begin with ``backbone.``.
        tensors: the same as the file names them.
        pixel_mean, pixel_std: of red, green and blue, 0-255, that the weights were trained with; None where unknown.
        fused: whether the norms of the backbone were folded into a scale and a shift.
        settings: config keys that the file determines, the widths of layers among them.
        config, vocabulary: the whole config and the classes, where the file holds them.
    """

    name: str
    path: Path
    kind: str
    state: dict[str, Tensor]
    tensors: Mapping[str, Tensor]
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    fused: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    config: CfgNode | None = None
    vocabulary: Vocabulary | None = None

    @property
    def num_classes(self) -> int | None:
        """Categories of the class head, None where there is no head."""
        head = self.state.get("transformer_decoder.class_embed.weight")
        return None if head is None else len(head) - 1


def open_source(name: str | Path) -> Source:
    """Return the weights that a path or an address names: a checkpoint or run of this package, or another program's.

    Raises:
        WorkbenchError: it does not exist, cannot be downloaded or read, or is no Mask2Former and no backbone.
    """
    path = model_folder(local_weights(name))
    if not path.exists() and (known := _PUBLISHED_AS.fullmatch(path.name)):
        same = "torchvision://resnet101" if path.name.startswith("R") else f"{_SWIN}{known[1]}.pth"
        raise WorkbenchError(
            f"weights file {path} does not exist; {same} are the same weights, and can be named instead"
        )
    if path.is_dir() and has_checkpoint(path):
        checkpoint = load_checkpoint(path)
        keys = checkpoint.config.MODEL
        return Source(
            str(name),
            checkpoint.path,
            OWN_KIND,
            checkpoint.state_dict,
            checkpoint.state_dict,
            tuple(keys.PIXEL_MEAN),
            tuple(keys.PIXEL_STD),
            config=checkpoint.config,
            vocabulary=checkpoint.vocabulary,
        )
    if path.is_dir():
        return _open_folder(str(name), path)
    file = read_weights(path)
    source = _recognised(str(name), path, file.tensors)
    source.settings = settings_of_shapes(source.state)
    _take_own(source, file.extra.get(OWN_KEY))
    return source


def model_folder(path: Path) -> Path:
    """Return the folder of a model whose file of weights ``path`` is, where config.json or model.json is beside it;
    any other path as it is."""
    described = any((path.parent / name).is_file() for name in (DESCRIPTION, "config.json"))
    return path.parent if path.name in (*SINGLE, *INDEX) and path.is_file() and described else path


def _recognised(name: str, path: Path, tensors: Mapping[str, Tensor]) -> Source:
    recognised = recognise(tensors)
    mean = None if recognised.pixel_std is None else IMAGENET_MEAN
    return Source(name, path, recognised.kind, recognised.state, tensors, mean, recognised.pixel_std, recognised.fused)


def _open_folder(name: str, path: Path) -> Source:
    """Return a model in a folder as transformers writes it."""
    if not (path / "config.json").is_file():
        raise WorkbenchError(
            f"the folder {path} is neither a checkpoint (model.json) nor a run, nor a model of Hugging Face's: it has "
            "no config.json"
        )
    content = read_json(path / "config.json")
    if content.get("model_type") != "mask2former":
        raise WorkbenchError(
            f"{path / 'config.json'} describes a model of type {shown(content.get('model_type'))}; of Hugging Face's "
            "models only mask2former is read"
        )
    source = _recognised(name, path, read_weights(path).tensors)
    with errors_as(f"{path / 'config.json'} lacks or garbles a key", KeyError, TypeError, ValueError, AttributeError):
        source.settings = {**settings_of_shapes(source.state), **_settings_of_transformers(content)}
        source.vocabulary = _vocabulary_of_transformers(content)
    if (path / "preprocessor_config.json").is_file():
        pixels = read_json(path / "preprocessor_config.json")
        source.pixel_mean = _scaled(pixels.get("image_mean")) or source.pixel_mean
        source.pixel_std = _scaled(pixels.get("image_std")) or source.pixel_std
    _take_own(source, content.get(OWN_KEY))
    return source


def _take_own(source: Source, content: Any) -> None:
    """Take config and classes from what this package wrote into a file for another program."""
    if content is None:
        return
    where = f"the part {OWN_KEY!r} of {source.path}"
    recipe = check_type(ModelRecipe, content, where)
    source.config = config_from_dict(recipe.config, source=where)
    source.vocabulary = recipe.vocabulary
    source.pixel_mean = tuple(source.config.MODEL.PIXEL_MEAN)
    source.pixel_std = tuple(source.config.MODEL.PIXEL_STD)


def _scaled(values: Any) -> tuple[float, ...] | None:
    """Return a preprocessor's mean or deviation, 0-1 there, as PIXEL_MEAN and PIXEL_STD have it, 0-255."""
    if not isinstance(values, list) or len(values) != 3 or not all(map(is_number, values)):
        return None
    return tuple(round(255 * value, 3) for value in values)


def _settings_of_transformers(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config keys that a config.json of transformers' Mask2Former determines and shapes do not."""
    heads = content["num_attention_heads"]
    former, head = "MODEL.MASK_FORMER.", "MODEL.SEM_SEG_HEAD."
    settings = {
        f"{former}NHEADS": heads,
        f"{head}DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": heads,
        f"{head}DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
        f"{former}PRE_NORM": content.get("pre_norm", False),
        f"{former}NO_OBJECT_WEIGHT": content.get("no_object_weight", 0.1),
        f"{former}CLASS_WEIGHT": content.get("class_weight", 2.0),
        f"{former}MASK_WEIGHT": content.get("mask_weight", 5.0),
        f"{former}DICE_WEIGHT": content.get("dice_weight", 5.0),
    }
    backbone = content.get("backbone_config")
    kind = backbone.get("model_type") if isinstance(backbone, Mapping) else None
    if kind not in ("swin", "resnet"):
        raise WorkbenchError(f"a backbone of Hugging Face's of type {shown(kind)} is not read, only swin and resnet")
    if kind == "resnet" and backbone.get("downsample_in_bottleneck"):
        settings["MODEL.RESNETS.STRIDE_IN_1X1"] = True
    return settings


def _vocabulary_of_transformers(content: Mapping[str, Any]) -> Vocabulary | None:
    """Return the categories of ``id2label``, None where transformers invented the names."""
    labels = content.get("id2label")
    if not labels or all(re.fullmatch(r"LABEL_\d+", str(label)) for label in labels.values()):
        return None
    ids = sorted(map(int, labels))
    names = [str(labels[str(number)]) for number in ids]
    repeated = {name for name in names if names.count(name) > 1}
    names = [f"{name} ({number})" if name in repeated else name for number, name in zip(ids, names, strict=True)]
    return Vocabulary(tuple(ids), tuple(names))


def settings_of_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the config keys that the shapes of a model's tensors determine; heads of attention leave no trace."""
    settings = _backbone_settings(state)
    if "pixel_decoder.mask_features.weight" not in state or "transformer_decoder.query_feat.weight" not in state:
        return settings
    head, former = "MODEL.SEM_SEG_HEAD.", "MODEL.MASK_FORMER."
    mask_dim, convs_dim = state["pixel_decoder.mask_features.weight"].shape[:2]
    queries, hidden = state["transformer_decoder.query_feat.weight"].shape
    return {
        **settings,
        f"{head}CONVS_DIM": convs_dim,
        f"{head}MASK_DIM": mask_dim,
        f"{head}NORM": "GN" if "pixel_decoder.lateral_convs.0.1.weight" in state else "",
        f"{head}TRANSFORMER_ENC_LAYERS": _count(state, "pixel_decoder.layers."),
        f"{head}TRANSFORMER_DIM_FEEDFORWARD": _rows(state, "pixel_decoder.layers.0.linear1.weight"),
        f"{former}HIDDEN_DIM": hidden,
        f"{former}NUM_OBJECT_QUERIES": queries,
        f"{former}DIM_FEEDFORWARD": _rows(state, "transformer_decoder.layers.0.linear1.weight"),
        f"{former}DEC_LAYERS": _count(state, "transformer_decoder.layers.") + 1,
        f"{former}ENFORCE_INPUT_PROJ": "transformer_decoder.input_proj.0.weight" in state and hidden == convs_dim,
    }


def _backbone_settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    if "backbone.layer1.0.conv1.weight" in state:
        blocks = tuple(_count(state, f"backbone.layer{stage}.") for stage in range(1, 5))
        convolutions = 3 if "backbone.layer1.0.conv3.weight" in state else 2
        depth = _RESNETS.get((blocks, convolutions))
        if depth is None:
            raise WorkbenchError(f"the weights are those of a ResNet with {blocks} blocks, and none such is built here")
        norm = {} if "backbone.bn1.running_mean" in state else {"MODEL.RESNETS.NORM": "GN"}
        return {"MODEL.BACKBONE.NAME": "build_resnet_backbone", "MODEL.RESNETS.DEPTH": depth, **norm}
    if "backbone.layers.0.blocks.0.attn.relative_position_bias_table" in state:
        stages = range(_count(state, "backbone.layers."))
        tables = [state[f"backbone.layers.{s}.blocks.0.attn.relative_position_bias_table"].shape for s in stages]
        embed_dim = _rows(state, "backbone.patch_embed.proj.weight")
        swin = {
            "EMBED_DIM": embed_dim,
            "DEPTHS": [_count(state, f"backbone.layers.{stage}.blocks.") for stage in stages],
            "NUM_HEADS": [heads for _, heads in tables],
            "WINDOW_SIZE": (math.isqrt(tables[0][0]) + 1) // 2,
            "MLP_RATIO": _rows(state, "backbone.layers.0.blocks.0.mlp.fc1.weight") / embed_dim,
            "QKV_BIAS": "backbone.layers.0.blocks.0.attn.qkv.bias" in state,
            "PATCH_NORM": "backbone.patch_embed.norm.weight" in state,
        }
        keys = {f"MODEL.SWIN.{key}": value for key, value in swin.items()}
        return {"MODEL.BACKBONE.NAME": "D2SwinTransformer", **keys}
    if "backbone.features.0.0.weight" in state:
        return {"MODEL.BACKBONE.NAME": "build_mobilenet_v3_large_backbone"}
    return {}


def _rows(state: Mapping[str, Tensor], name: str) -> int:
    if name not in state:
        raise WorkbenchError(f"the weights are not whole: they lack {name}")
    return len(state[name])


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many numbers follow a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
