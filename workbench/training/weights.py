"""Starting from published or earlier weights (MODEL.WEIGHTS), with a report of what was loaded."""

from __future__ import annotations

from pathlib import Path

from fvcore.common.config import CfgNode
from torch import nn

from workbench.models.weights import LoadReport, load_state, read_state, require_backbone, require_finite
from workbench.runs.checkpoint import load_checkpoint


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Copy into ``model`` every weight of ``path`` whose name and shape fit.

    A model with a method ``adapt_state(state)`` translates published state dicts to its own names first.

    Args:
        model: the model.
        path: a checkpoint directory, a run directory, or a .safetensors, .pth or .pt file with a state dict,
            bare or under "model" or "state_dict".

    Returns:
        what was loaded, missing, unexpected and mismatched. A head for other classes is mismatched and stays
        random: this is how a model is fine-tuned to other categories.

    Raises:
        WorkbenchError: it cannot be read, holds NaN or infinity, or holds less than nine tenths of the backbone.
    """
    state = load_checkpoint(path).state_dict if Path(path).is_dir() else read_state(path)
    require_finite(state, f"weights {path}")
    if hasattr(model, "adapt_state"):
        state = model.adapt_state(state)
    report = load_state(model, state)
    hint = "; weights of a backbone alone go into MODEL.MOBILENET.WEIGHTS or MODEL.RESNETS.WEIGHTS"
    require_backbone(report, str(path), prefix="backbone.", hint=hint)
    return report


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
