"""Starting from published or earlier weights (MODEL.WEIGHTS), with a report of what was loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from workbench.models.fpn import PyramidBackbone
from workbench.models.weights import LoadReport, backbone_part, load_state, require_backbone, require_finite
from workbench.runs.sources import Source, open_source
from workbench.weights.naming import OWN_KIND, UNDIVIDED

_log = logging.getLogger(__name__)

_STEM = "backbone.conv1.weight"


def load_weights(model: nn.Module, name: str | Path) -> LoadReport:
    """Copy into ``model`` every weight whose name and shape fit.

    A model with a method ``adapt_state(state)`` translates state dicts whose names are none of the known formats'.

    Args:
        model: the model.
        name: a path or an address, as :func:`~workbench.runs.sources.open_source` takes it.

    Returns:
        what was loaded, missing, unexpected and mismatched. A head for other classes is mismatched and stays
        random: this is how a model is fine-tuned to other categories.

    Raises:
        WorkbenchError: it cannot be read, holds NaN or infinity, or holds less than nine tenths of the backbone.
    """
    source = open_source(name)
    require_finite(source.state, f"weights {name}")
    _fit_pixels(source, model)
    prefix = "backbone."
    if source.kind == OWN_KIND or not hasattr(model, "backbone"):
        state = model.adapt_state(source.tensors) if hasattr(model, "adapt_state") else source.state
    else:
        prefix = "backbone.body." if isinstance(model.backbone, PyramidBackbone) else prefix
        state = _renamed_backbone(source, model.get_submodule(prefix[:-1]), prefix)
    report = load_state(model, state)
    require_backbone(report, f"{name} ({source.kind})", prefix=prefix)
    return report


def _renamed_backbone(source: Source, backbone: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return the weights of a source for a model with ``backbone`` at ``prefix``; warns where its layers do not fit."""
    norms = (nn.BatchNorm2d, nn.SyncBatchNorm)
    if source.fused and any(isinstance(module, norms) for module in backbone.modules()):
        _log.warning(
            "the norms of weights %s were folded into a scale and a shift, which norms that are trained do not keep: "
            "MODEL.RESNETS.NORM FrozenBN fits them",
            source.name,
        )
    if source.fused and hasattr(backbone, "layer2") and backbone.layer2[0].conv1.stride == (1, 1):
        _log.warning(
            "weights %s were trained with the strides of stages in the 1x1 convolutions: MODEL.RESNETS.STRIDE_IN_1X1 "
            "True fits them",
            source.name,
        )
    rest = {name: tensor for name, tensor in source.state.items() if not name.startswith("backbone.")}
    return {f"{prefix}{name}": tensor for name, tensor in backbone_part(source.state, backbone).items()} | rest


def _fit_pixels(source: Source, model: nn.Module) -> None:
    """Make weights fit the model's pixel mean and deviation where that is exact, and say where they do not fit.

    MSRA's ResNets were trained on pixels of 0-255 that were not divided. Dividing them is undone by the convolution
    that reads them.
    """
    if source.pixel_std is None or not hasattr(model, "pixel_std"):
        return
    mean, std = (tensor.flatten().cpu() for tensor in (model.pixel_mean, model.pixel_std))
    if source.pixel_std == UNDIVIDED and _STEM in source.state:
        source.state[_STEM] = source.state[_STEM] * std.view(1, 3, 1, 1)
        source.pixel_std = tuple(std.tolist())
        _log.info(
            "weights %s: the first convolution was turned from BGR to RGB and now divides by PIXEL_STD", source.name
        )
    differing = [
        f"{key} {_numbers(trained)}, not {_numbers(configured.tolist())}"
        for key, trained, configured in (("PIXEL_MEAN", source.pixel_mean, mean), ("PIXEL_STD", source.pixel_std, std))
        if trained is not None and (configured - configured.new_tensor(trained)).abs().max() > 0.01
    ]
    if differing:
        _log.warning("weights %s were trained with MODEL.%s", source.name, " and MODEL.".join(differing))


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"


def starting_weights(cfg: CfgNode) -> str:
    """Return in words which weights a training with this config starts from."""
    if cfg.MODEL.WEIGHTS:
        return f"the weights {cfg.MODEL.WEIGHTS}"
    name = cfg.MODEL.BACKBONE.NAME
    keys = {
        "build_resnet_backbone": "RESNETS",
        "build_resnet_fpn_backbone": "RESNETS",
        "build_mobilenet_v3_large_backbone": "MOBILENET",
    }.get(name)
    if keys is not None and cfg.MODEL[keys].WEIGHTS != "none":
        return f"{cfg.MODEL[keys].WEIGHTS} weights in the backbone, everything else new"
    if name.startswith("timm/") and cfg.MODEL.TIMM.PRETRAINED:
        return f"timm's weights of {name.removeprefix('timm/')} in the backbone, everything else new"
    built_here = ("build_small_resnet_backbone", "D2SwinTransformer")
    known = keys is not None or name in built_here or name.startswith("timm/")
    return "random weights" if known else f"the weights that {name} brings, everything else new"
