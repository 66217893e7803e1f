"""One training step, opened: what passed each stage, the losses, the gradients, and how far each weight would move."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from workbench.config import get_cfg, load_config
from workbench.data.coco import load_data
from workbench.data.loaders import build_train_loader, step_seed
from workbench.data.mapper import PAD_VALUE, build_mapper
from workbench.data.vocabulary import Vocabulary
from workbench.environment.device import choose_device
from workbench.environment.memory import check_memory
from workbench.errors import WorkbenchError
from workbench.models.mask2former import Mask2Former
from workbench.models.mask_rcnn import MaskRCNN
from workbench.models.solov2 import SOLOv2
from workbench.notebook.display import Page
from workbench.runs.checkpoint import (
    check_vocabulary,
    checkpoint_config,
    load_model,
    load_vocabulary,
    resolve_checkpoint,
)
from workbench.runs.directory import run_of
from workbench.training.estimate import unchanged
from workbench.training.loop import check_batch_size
from workbench.training.optimizer import build_optimizer, clip_gradients
from workbench.visualization.drawing import as_image
from workbench.workflows.train import initial_model

DEPTH = 2  # modules within modules; those of a ModuleList or ModuleDict are as deep as the list
_CONFIGS = (".yaml", ".yml")
MODELS = {  # the modules whose inputs and outputs pictures are made of
    Mask2Former: r"backbone|(pixel_decoder|transformer_decoder)(\.layers\.\d+(\.self_attn)?)?|criterion(\.matcher)?",
    MaskRCNN: r"backbone|rpn(\.head|\.anchor_generator)?|roi_heads\.(box_roi_pool|mask_roi_pool|mask_predictor)",
    SOLOv2: r"backbone|ins_head|mask_head|criterion",
}


class Call(NamedTuple):
    """What one call of a module took and gave, as copies."""

    inputs: tuple
    outputs: Any


@dataclass(frozen=True)
class Trace:
    """What :func:`trace` saw of one step.

    Attributes:
        stages: one row a floating-point tensor that a module put out, in the order of the calls: "stage" (the module),
            "call" (1, 2, ... where it ran several times), "tensor", "shape", "dtype", "least", "mean" and "largest" of
            the values that are numbers, "zeros" in percent, "NaN" (how many are not a number).
        losses: {name: value}, weighted, as the step adds them up.
        gradients: one row a module: "weights" (how many), "weight" and "gradient" (their 2-norms), "largest" (absolute
            gradient), "zeros" in percent, "NaN", "without" (how many weights no gradient reached). Gradients are those
            before clipping.
        norm: of all gradients, by SOLVER.CLIP_GRADIENTS.NORM_TYPE, before clipping.
        updates: one row a parameter group of the optimiser: "weights", "lr" (its peak), "weight decay", "weight" and
            "update" (2-norms), and "update / weight": a thousandth is usual, a tenth destroys what was learned.
        calls: {stage: its calls}, of the stages that were to be kept.
    """

    stages: pd.DataFrame
    losses: dict[str, float]
    gradients: pd.DataFrame
    norm: float
    updates: pd.DataFrame
    calls: dict[str, list[Call]]

    def loss_table(self) -> pd.DataFrame:
        """Return the losses, their share of the sum in percent, and the sum."""
        values = pd.Series({**self.losses, "total": sum(self.losses.values())}, dtype=float)
        return pd.DataFrame({"value": values, "percent": 100 * values / values["total"]}).rename_axis("loss")

    def text(self) -> str:
        """Return the four tables as text."""
        parts = {
            "What each stage put out": self.stages.set_index("stage"),
            "Losses": self.loss_table(),
            f"Gradients by module; norm of all {self.norm:.6g}": self.gradients,
            "Update of each parameter group by a first step at its peak rate": self.updates,
        }
        return "\n\n".join(f"{title}\n{_printed(table)}" for title, table in parts.items())


def _printed(table: pd.DataFrame) -> str:
    return table.reset_index().to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.4g}")


def trace(
    model: nn.Module,
    batch: Sequence[Mapping[str, Any]],
    cfg: CfgNode | None = None,
    *,
    depth: int = DEPTH,
    keep: str = "",
) -> Trace:
    """Run one training step, in float32, and note what passed each stage.

    Weights, buffers, training mode and random states are afterwards as they were; gradients are cleared. The step draws
    from the global random state as an untraced one would.

    Args:
        model: ``model(batch)`` returns a dict of weighted losses in training mode.
        batch: batched inputs with targets.
        cfg: its SOLVER gives the optimiser and the clipping; by default the defaults of all keys.
        depth: how deep modules within modules are looked at.
        keep: a regular expression of the names of modules whose inputs and outputs are copied into ``calls``.

    Raises:
        WorkbenchError: the model gives no losses, or none that a gradient can be taken of.
    """
    cfg = cfg or get_cfg()
    recorder = _Recorder(model, depth, keep)
    model.zero_grad(set_to_none=True)
    with unchanged(model):
        with ExitStack() as hooks:
            recorder.watch(hooks)
            losses = model(batch)
        if not isinstance(losses, Mapping) or not any(
            isinstance(v, Tensor) and v.requires_grad for v in losses.values()
        ):
            raise WorkbenchError(
                f"{type(model).__name__} gives no losses in training mode: it must return a dict of weighted losses, "
                "and at least one weight must be trained"
            )
        sum(losses.values()).backward()
        gradients = _gradients(model, recorder.stage_of)
        updates, norm = _updates(model, cfg)
    values = {name: float(value.detach()) for name, value in losses.items()}
    return Trace(pd.DataFrame(recorder.rows, columns=_COLUMNS), values, gradients, norm, updates, recorder.calls)


_COLUMNS = ("stage", "call", "tensor", "shape", "dtype", "least", "mean", "largest", "zeros", "NaN")


class _Recorder:
    """Forward hooks that note what modules put out; values are read at once, as later layers may work in place."""

    def __init__(self, model: nn.Module, depth: int, keep: str) -> None:
        self.depth, self.keep = depth, re.compile(keep)
        self._modules = dict(model.named_modules())
        self._depths = {"": 0}
        self.rows: list[tuple] = []
        self.calls: dict[str, list[Call]] = {}
        self._counts: dict[str, int] = {}
        for name in self._modules:
            if name:
                above = name.rpartition(".")[0]
                is_list = isinstance(self._modules[above], (nn.ModuleList, nn.ModuleDict))
                self._depths[name] = self._depths[above] + (not is_list)

    def stage_of(self, name: str) -> str:
        """Return the name of the deepest module, at ``depth`` at most, that a module is or belongs to."""
        while self._depths[name] > self.depth:
            name = name.rpartition(".")[0]
        return name

    def watch(self, hooks: ExitStack) -> None:
        """Put hooks on the model's modules, which ``hooks`` removes at its end."""
        for name, module in self._modules.items():
            if name and (name == self.stage_of(name) or self.keep.fullmatch(name)):
                hooks.callback(module.register_forward_hook(self._hook(name), with_kwargs=True).remove)

    def _hook(self, stage: str) -> Any:
        def note(module: nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Any) -> None:
            if not self._counts and args:
                self._add("input", 1, args[0])
            call = self._counts[stage] = self._counts.get(stage, 0) + 1
            if stage == self.stage_of(stage):
                self._add(stage, call, output)
            if self.keep.fullmatch(stage):
                self.calls.setdefault(stage, []).append(
                    Call((*_copied(args), *_copied(tuple(kwargs.values()))), _copied(output))
                )

        return note

    def _add(self, stage: str, call: int, value: Any) -> None:
        for name, tensor in _tensors(value):
            if tensor.is_floating_point() and tensor.dim() and tensor.numel():
                kind = str(tensor.dtype).removeprefix("torch.")
                shape = " x ".join(map(str, tensor.shape))
                self.rows.append((stage, call, name, shape, kind, *_statistics(tensor)))


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, each in items:
            yield from _tensors(each, f"{name}.{key}" if name else str(key))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(each) for each in value) if type(value) in (list, tuple) else value
    return value


@torch.no_grad()
def _statistics(tensor: Tensor) -> tuple[float, float, float, float, int]:
    missing = tensor.isnan()
    count = int(missing.sum())
    known = tensor[~missing] if count else tensor
    zeros = 100 * float((tensor == 0).double().mean())
    if not known.numel():
        return (*[float("nan")] * 3, zeros, count)
    return float(known.min()), float(known.double().mean()), float(known.max()), zeros, count


@torch.no_grad()
def _gradients(model: nn.Module, stage_of: Callable[[str], str]) -> pd.DataFrame:
    modules: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        modules.setdefault(stage_of(name.rpartition(".")[0]) or name, []).append(parameter)
    rows = {}
    for name, parameters in modules.items():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        row = {"weights": sum(map(Tensor.numel, parameters)), "weight": _norm(parameters)}
        row |= {"gradient": float("nan"), "largest": float("nan"), "zeros": float("nan"), "NaN": 0}
        if gradients:
            least, _, largest, zeros, missing = _statistics(torch.cat([each.flatten() for each in gradients]))
            row |= {"gradient": _norm(gradients), "largest": max(-least, largest), "zeros": zeros, "NaN": missing}
        row["without"] = row["weights"] - sum(map(Tensor.numel, gradients))
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("module")


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(nn.utils.get_total_norm([tensor.detach() for tensor in tensors]))


def _updates(model: nn.Module, cfg: CfgNode) -> tuple[pd.DataFrame, float]:
    """Step once from a new optimiser's state, measure, and put the weights back; also the norm of the gradients."""
    optimizer = build_optimizer(model, cfg)
    groups = optimizer.param_groups
    before = [[parameter.detach().clone() for parameter in group["params"]] for group in groups]
    norm = float(clip_gradients([parameter for group in groups for parameter in group["params"]], cfg))
    rows = {}
    try:
        optimizer.step()
        for group, weights in zip(groups, before, strict=True):
            weight = _norm(weights)
            update = _norm([new.detach() - old for new, old in zip(group["params"], weights, strict=True)])
            rows[_group_name(group["names"])] = {
                "weights": sum(map(Tensor.numel, weights)),
                "lr": group["lr"],
                "weight decay": group["weight_decay"],
                "weight": weight,
                "update": update,
                "update / weight": update / weight if weight else float("nan"),
            }
    finally:
        with torch.no_grad():
            for group, weights in zip(groups, before, strict=True):
                for parameter, old in zip(group["params"], weights, strict=True):
                    parameter.copy_(old)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group"), norm


def _group_name(names: Sequence[str]) -> str:
    """Name a group by its first parameter, which no other group has."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


# a model, its first batch and the step


@dataclass(frozen=True)
class Step:
    """A model and its first training step.

    Attributes:
        source: the config or checkpoint it was made of.
        model: as it was before the step, in eval mode. batch: the batched inputs.
    """

    source: str
    cfg: CfgNode
    model: nn.Module
    vocabulary: Vocabulary
    batch: list[dict[str, Any]]
    trace: Trace

    def call(self, stage: str) -> Call:
        """Return what the last call of a stage took and gave."""
        return self.trace.calls[stage][-1]

    def picture(self, image: int) -> np.ndarray:
        """Return an image of the batch as the model saw it, padded: (H, W, 3) uint8."""
        if not 0 <= image < len(self.batch):
            raise WorkbenchError(f"image {image} is not in the batch, whose images are 0 to {len(self.batch) - 1}")
        pixels = as_image(self.batch[image]["image"])
        height, width = self.call("backbone").inputs[0].shape[-2:]
        below, right = height - pixels.shape[0], width - pixels.shape[1]
        return np.pad(pixels, ((0, below), (0, right), (0, 0)), constant_values=PAD_VALUE)

    def objects(self, image: int) -> list[str]:
        """Return a name for each object of an image: its number and its main category."""
        labels = self.batch[image]["targets"]["labels"].tolist()
        return [f"{number} {self.vocabulary.categories[label]}" for number, label in enumerate(labels)]

    def masks(self, image: int) -> Tensor:
        """Return the masks of an image's objects, padded as the image is: (N, H, W) bool."""
        masks = self.batch[image]["targets"]["masks"]
        height, width = self.call("backbone").inputs[0].shape[-2:]
        return F.pad(masks, (0, width - masks.shape[-1], 0, height - masks.shape[-2]))

    def predict(self, image: int, keep: str) -> tuple[dict[str, Any], dict[str, list[Call]]]:
        """Return what the model predicts for an image at the size of its input, and the calls of the stages that the
        regular expression ``keep`` names."""
        recorder = _Recorder(self.model, 0, keep)
        self.model.eval()
        with torch.no_grad(), ExitStack() as hooks:
            recorder.watch(hooks)
            (prediction,) = self.model([{key: self.batch[image][key] for key in ("image", "image_id")}])
        return prediction, recorder.calls


def opens(kind: type[nn.Module]) -> Callable[[Callable], Callable]:
    """Return a decorator for functions of a step of one kind of model: where there is no step they return None.

    Raises, when the decorated function is called:
        WorkbenchError: the step is of another kind of model.
    """

    def decorate(function: Callable) -> Callable:
        @wraps(function)
        def opened(step: Step | None, *arguments: Any, **settings: Any) -> Any:
            if step is not None and not isinstance(step.model, kind):
                name = type(step.model).__name__
                raise WorkbenchError(
                    f"{step.source or name} is a {name}, and this shows the inside of a {kind.__name__}"
                )
            return None if step is None else function(step, *arguments, **settings)

        return opened

    return decorate


def open_step(
    cfg: CfgNode,
    ckpt: str | Path | None = None,
    *,
    images: int | None = None,
    depth: int = DEPTH,
    keep: bool = False,
    source: str = "",
) -> Step:
    """Trace the first step of the training that a config describes, with its batch and its random numbers.

    Args:
        cfg: the config; SEED -1 stands for 0.
        ckpt: a checkpoint or run whose weights the model gets instead of those that a training starts from.
        images: how many; by default as many as a step, or the first of its ACCUMULATION_STEPS, takes.
        depth: of :func:`trace`.
        keep: whether the trace keeps what the pictures of :data:`MODELS` are made of.
        source: what the step is called.

    Raises:
        WorkbenchError: as a training with this config, or the checkpoint does not fit config and data.
    """
    check_memory(cfg, processes=1)
    check_batch_size(cfg)
    seed, device = max(cfg.SEED, 0), choose_device(cfg.MODEL.DEVICE)
    vocabulary = None if ckpt is None else load_vocabulary(ckpt)
    data = load_data(cfg, cfg.DATASETS.TRAIN, vocabulary, for_training=True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        if ckpt is None:
            model = initial_model(cfg, data.vocabulary).to(device)
        else:
            check_vocabulary(resolve_checkpoint(ckpt), vocabulary, data.vocabulary)
            model = load_model(ckpt, device, config=cfg)[0]
        model.eval()
        size = images or cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATION_STEPS
        mapper = build_mapper(cfg, is_train=True)
        batch = next(build_train_loader(data, mapper, batch_size=size, seed=seed, num_workers=0))
        torch.manual_seed(step_seed(seed, 0, -1))
        kept = next((names for kind, names in MODELS.items() if isinstance(model, kind)), "") if keep else ""
        traced = trace(model, batch, cfg, depth=depth, keep=kept)
    return Step(source or type(model).__name__, cfg, model, data.vocabulary, batch, traced)


def open_steps(
    sources: Sequence[str | Path], *, overrides: Sequence[str] = (), images: int = 2, depth: int = DEPTH
) -> list[Step]:
    """Open a step of each source, see :func:`open_step`: a config (.yaml), or a checkpoint or run with its own config.

    Models that are trained on the same data with the same SEED get the same images.
    """
    steps = []
    for source in map(str, sources):
        is_config = source.endswith(_CONFIGS)
        ckpt = None if is_config else resolve_checkpoint(source)
        cfg = load_config(source, overrides) if is_config else checkpoint_config(ckpt, overrides)
        steps.append(open_step(cfg, ckpt, images=images, depth=depth, keep=True, source=source))
    return steps


def by_model(steps: Sequence[Step]) -> tuple[Step | None, Step | None, Step | None]:
    """Return the first step of a Mask2Former, of a Mask R-CNN and of a SOLOv2, None for each that is not there."""
    return tuple(next((step for step in steps if isinstance(step.model, kind)), None) for kind in MODELS)


def step_page(step: Step, output: str | Path | None = None) -> Page:
    """Return the page that shows results and writes them into ``figures/`` of ``output``, by default of the run whose
    checkpoint the step was made of; those of a config are only shown."""
    own = None if step.source.endswith(_CONFIGS) else run_of(resolve_checkpoint(step.source))
    return Page(own if output is None else Path(output))
