"""Reading weights: state dicts from files and from torchvision, loaded into a module with a report of each tensor."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from workbench.errors import WorkbenchError, errors_as

_log = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """Which tensors of a module a state dict had. ``mismatched`` holds name, shape in the module, shape in the file."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def __str__(self) -> str:
        parts = []
        for kind in ("loaded", "missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            shown = [f"{n[0]} {list(n[2])} for {list(n[1])}" if isinstance(n, tuple) else n for n in names[:3]]
            detail = f" ({', '.join(shown)}{', ...' if len(names) > 3 else ''})" if names and kind != "loaded" else ""
            parts.append(f"{len(names)} {kind}{detail}")
        return "; ".join(parts)


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    """Copy every tensor whose name and shape fit into ``module`` and return what happened to each."""
    own = module.state_dict()
    report = LoadReport(unexpected=[name for name in state if name not in own])
    fitting = {}
    for name, tensor in own.items():
        if name not in state:
            if not name.endswith("num_batches_tracked"):  # an unused counter that older weights lack
                report.missing.append(name)
        elif state[name].shape != tensor.shape:
            report.mismatched.append((name, tuple(tensor.shape), tuple(state[name].shape)))
        else:
            fitting[name] = state[name]
            report.loaded.append(name)
    module.load_state_dict(fitting, strict=False)
    return report


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise WorkbenchError naming the tensors of a state dict that hold NaN or infinity."""
    wrong = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WorkbenchError(f"{source}: {len(wrong)} tensors hold NaN or infinity ({', '.join(wrong[:3])}{more})")


def require_backbone(report: LoadReport, source: str, *, prefix: str = "", hint: str = "") -> None:
    """Raise WorkbenchError unless nine tenths of the backbone's tensors, those named ``prefix...``, were loaded."""
    not_loaded = [*report.missing, *(name for name, _, _ in report.mismatched)]
    loaded, absent = (sum(name.startswith(prefix) for name in names) for names in (report.loaded, not_loaded))
    if loaded < 0.9 * (loaded + absent):
        raise WorkbenchError(
            f"weights {source}: only {loaded} of the backbone's {loaded + absent} tensors were loaded, so they belong "
            f"to another network ({report}){hint}"
        )


def weights_kind(state: Mapping[str, Tensor]) -> str:
    """Return what a torchvision state dict was trained for: "segmentation", "classification" or "backbone"."""
    if any(name.startswith("backbone.") for name in state):
        return "segmentation"
    if any(name.startswith(("classifier.", "fc.")) for name in state):
        return "classification"
    return "backbone"


def backbone_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone's part of a torchvision network's weights, under the names of this package's backbones.

    DeepLabV3's MobileNetV3 is an IntermediateLayerGetter, so its layers are ``backbone.<index>``, where the classifier
    has ``features.<index>``; its ResNet is ``backbone.<name>``. Heads are left out. Dilation changes no weight's shape,
    so the weights of a dilated network fit an undilated one.
    """
    kind = weights_kind(state)
    cut = {}
    for name, tensor in state.items():
        if kind == "segmentation":
            head, _, rest = name.partition(".")
            if head != "backbone":
                continue
            name = f"features.{rest}" if rest.split(".")[0].isdigit() else rest
        if not name.startswith(("classifier.", "aux_classifier.", "fc.")):
            cut[name] = tensor
    return cut


def load_backbone(backbone: nn.Module, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Load a torchvision network's weights into a backbone and log the report.

    Raises:
        WorkbenchError: less than nine tenths of the backbone's tensors were loaded.
    """
    # Layers after the last tap are dropped.
    cut = backbone_state(state)
    if hasattr(backbone, "features"):
        layers = len(backbone.features)
        cut = {n: t for n, t in cut.items() if not n.startswith("features.") or int(n.split(".")[1]) < layers}
    report = load_state(backbone, cut)
    require_backbone(report, source)
    _log.info("backbone weights %s (%s network): %s", source, weights_kind(state), report)
    return report


def torchvision_state(network: str, weights: str) -> dict[str, Tensor]:
    """Return the published weights of one of torchvision's networks, from its cache or downloaded.

    Args:
        network: "mobilenet_v3_large", "resnet50", ...
        weights: "imagenet" (classification, V1 for ResNet as detectron2 has them) or "deeplabv3" (segmentation).
    """
    entry = _published(network, weights)
    try:
        return entry.get_state_dict(progress=False, check_hash=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise WorkbenchError(
            f"the {weights} weights of {network} could not be downloaded ({error}): fetch {entry.url} on a machine "
            f"that can and put it at {_cached(entry.url)}, or name its path in the config"
        ) from None


def weights_at_hand(network: str, weights: str, timeout: float = 5.0) -> bool:
    """Return whether :func:`torchvision_state` can have these weights: from its cache, or from a server that answers
    within ``timeout`` seconds."""
    entry = _published(network, weights)
    if _cached(entry.url).is_file():
        return True
    request = urllib.request.Request(entry.url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status == 200
    except OSError:  # URLError is one
        return False


def _published(network: str, weights: str) -> WeightsEnum:
    builder = {"imagenet": network, "deeplabv3": f"deeplabv3_{network}"}.get(weights)
    try:
        available = get_model_weights(builder)
    except (ValueError, TypeError):
        raise WorkbenchError(f"torchvision has no {weights!r} weights of {network}") from None
    return available.IMAGENET1K_V1 if weights == "imagenet" else available.DEFAULT


def _cached(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict of a .safetensors or .pth file, without running code from it.

    A state dict under "model" or "state_dict", as training scripts write it, is unwrapped.
    """
    path = Path(path)
    if not path.is_file():
        raise WorkbenchError(f"weights file {path} does not exist")
    sentence = f"weights file {path} cannot be read as tensors (a pickle of other objects is never loaded)"
    with errors_as(sentence, Exception):  # a garbled file makes the readers raise all kinds
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise WorkbenchError(f"weights file {path} holds no state dict")
    return state
