"""Write a config for a dataset and this machine, each line with its reason."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode

from workbench.config import load_config
from workbench.data import needs
from workbench.data.coco import CocoDataset, Reading, common_vocabulary, open_dataset
from workbench.data.crowds import crowds_to_objects
from workbench.data.faults import Fault, broken, can_be_left_out, heading
from workbench.data.mapper import build_mapper
from workbench.data.summary import objects_and_edges, relative_sizes
from workbench.data.vocabulary import Vocabulary
from workbench.environment.device import choose_device
from workbench.environment.system import busy_cores, usable_cores
from workbench.errors import WorkbenchError, counted, errors_as
from workbench.files import write_text
from workbench.models import build_model
from workbench.models.weights import weights_at_hand
from workbench.training.estimate import (
    crowding,
    data_objects,
    device_memory,
    dry_run,
    duration,
    estimate,
    fixed_memory,
)
from workbench.workflows import choices

Lines = dict[str, tuple[Any, str]]  # {config key: (value, its reason)}
_GENERIC = ("annotations", "instances", "labels", "train", "result", "coco", "_annotations.coco")
_READ = 4  # images whose reading is timed
_WAITING = 0.2  # share of a step's time, from which on reading its images is worth making faster
_FASTER = 0.5  # share of the time of reading that reduced copies may take to be worth their room on disk
_LONGEST = 20.0  # seconds that a timed step may take; a slower one is extrapolated from smaller images


class _Machine(NamedTuple):
    """What a base config and the limits of the choices depend on."""

    base: str
    network: str  # whose published weights the base config starts from, by torchvision's name
    largest: int  # image size, pixels
    batch: int
    minutes: float


_MACHINES = {
    "cpu": _Machine("laptop.yaml", "mobilenet_v3_large", 384, 4, 15.0),
    "gpu": _Machine("gpu.yaml", "resnet50", 1024, 16, 240.0),
}


def init(
    dataset: str, *, val: str | None = None, out: str | Path | None = None, minutes: float | None = None
) -> tuple[Path, str]:
    """Write a config that trains on ``dataset``, with sizes, steps and batch that fit it and this machine.

    Args:
        dataset: a catalog name or the path of a COCO JSON.
        val: the validation set; by default that of `workbench split` or `import` beside a ``..._train.json``.
        out: the YAML file, which must not exist; ``configs/NAME.yaml`` by default.
        minutes: the time at hand; 15 on a CPU and 240 on a GPU by default.

    Returns:
        the file and its text.

    Raises:
        WorkbenchError: the data cannot be read or holds no object, or the file exists or cannot be written.
    """
    name = config_name(dataset)
    path = Path("configs") / f"{name}.yaml" if out is None else Path(out)
    if path.exists():
        raise WorkbenchError(f"The config {path} exists already; name another with --out.")
    lines, data = _datasets(dataset, val)
    device = choose_device("auto")
    machine = _MACHINES["cpu" if device.type == "cpu" else "gpu"]
    lines |= _start(machine)
    lines |= _sizes(data, machine)
    base = _base_file(machine.base)
    lines |= _schedule(base, lines, data, device, machine, minutes or machine.minutes)
    lines["OUTPUT_DIR"] = (f"outputs/{name}", "the run directory")
    lines["SEED"] = (0, "the same config gives the same run")
    _config(base, lines)  # refuses what cannot be right
    with errors_as(f"the config {path} cannot be written", OSError):
        start = os.path.relpath(base, path.absolute().parent)
        text = commented_yaml(lines, start, f"{dataset} on this machine, by `workbench init`.")
        write_text(path, text)
    return path, text


def config_name(dataset: str) -> str:
    """Return a name for a dataset's config and run: of its file, or of its folder where the file's says nothing."""
    path = Path(dataset.partition(".json@")[0]).absolute()
    stem = path.stem.removesuffix("_train")
    if stem.startswith(_GENERIC):
        folders = [part for part in path.parent.parts[1:] if not part.startswith(_GENERIC)]
        stem = folders[-1] if folders else stem
    return stem.replace(" ", "_")


def sibling(dataset: str, part: str) -> str | None:
    """Return the part "val" or "test" beside a training set named ``..._train.json`` or ``train.json``, if any."""
    file, at, images = dataset.partition("@")
    path = Path(file)
    if path.suffix != ".json" or not path.stem.endswith("train"):
        return None
    other = path.with_name(f"{path.stem.removesuffix('train')}{part}.json")
    return f"{other}{at}{images}" if other.is_file() else None


def _datasets(dataset: str, val: str | None) -> tuple[Lines, CocoDataset]:
    reading = open_dataset(dataset)
    marked = [isinstance(a, dict) and a.get("iscrowd") == 1 for a in reading.content["annotations"]]
    crowds = sum(marked) if sum(marked) > len(marked) / 2 else 0
    if crowds:
        crowds_to_objects(reading.content["annotations"])
    data, faults = _without_faults(reading, common_vocabulary([reading]))
    if not data.objects:
        raise WorkbenchError(f"There is no object in {dataset}: {data.counted()}.")
    lines: Lines = {"DATASETS.TRAIN": ([dataset], data.counted())}
    for part, given in (("val", val), ("test", None)):
        name = given or sibling(dataset, part)
        if name is None:
            continue
        reason = "chooses the best checkpoint" if part == "val" else "reported, and nothing is chosen on it"
        known = data.vocabulary.categories
        reading = open_dataset(name, known=known, crowds_are_objects=bool(crowds))
        other, more = _without_faults(reading, data.vocabulary)
        faults += more
        lines[f"DATASETS.{part.upper()}"] = ([name], f"{reason}; {other.counted()}")
    if "DATASETS.VAL" not in lines:
        lines["DATASETS.VAL"] = (
            [],
            "none is there, so nothing tells how good the model is: `workbench split` makes one",
        )
    if crowds:
        reason = f"{counted(crowds, 'mask is a crowd', 'masks are crowds')}, as CVAT marks those of its brush"
        lines["DATASETS.CROWDS_ARE_OBJECTS"] = (True, reason)
    if faults:
        reason = f"what is broken is left out: {heading(faults)}; `workbench validate` says where"
        lines["DATASETS.SKIP_FAULTS"] = (True, reason)
    classes = {name: len(values) for name, values in data.vocabulary.subcategories.items()}
    classes_of = ", ".join(f"{name} has {counted(count, 'class', 'classes')}" for name, count in classes.items())
    lines["MODEL.SUBCATEGORIES"] = ([*classes], f"{classes_of}; leave out what needs no head" if classes else "none")
    return lines, data


def _without_faults(reading: Reading, vocabulary: Vocabulary) -> tuple[CocoDataset, list[Fault]]:
    """Return what is not broken in a dataset, and what is. DatasetError where nothing of it could be used."""
    reading.check(vocabulary)
    faults = broken(reading.faults)
    if not can_be_left_out(faults):
        reading.settle(skip_faults=True)
    return reading.dataset(), faults


def _start(machine: _Machine) -> Lines:
    """Choose backbone, weights and what belongs to them."""
    laptop = machine.base == "laptop.yaml"
    keys = "MOBILENET" if laptop else "RESNETS"
    if weights_at_hand(machine.network, "imagenet"):
        reason = f"published weights of {machine.network}, which a few photographs cannot replace"
        return {f"MODEL.{keys}.WEIGHTS": ("imagenet", reason)}
    absent = "published weights are neither in torchvision's cache nor to be had from here; with them set imagenet"
    lines: Lines = {f"MODEL.{keys}.WEIGHTS": ("none", f"{absent} and delete the lines that speak of random weights")}
    if laptop:
        lines["MODEL.BACKBONE.NAME"] = ("build_small_resnet_backbone", "for random weights: small, and learns fast")
    else:
        lines["MODEL.RESNETS.NORM"] = ("BN", "for random weights, which have no statistics to freeze")
    reason = "for random weights: it learns about twice as fast as ADAMW"
    lines["SOLVER.OPTIMIZER"] = ("MUON", reason)
    lines["SOLVER.BASE_LR"] = (0.001, "for random weights and MUON")
    lines["SOLVER.BACKBONE_MULTIPLIER"] = (1.0, "for random weights: the backbone learns as fast as the rest")
    lines["SOLVER.CLIP_GRADIENTS.CLIP_VALUE"] = (1.0, "for random weights and MUON")
    return lines


def _sizes(data: CocoDataset, machine: _Machine) -> Lines:
    objects, edges = objects_and_edges(data)
    queries = needs.queries(objects)
    lines: Lines = {
        "INPUT.IMAGE_SIZE": tuple(needs.image_size(relative_sizes(data), edges, machine.largest)),
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": tuple(queries),
        "DATALOADER.NUM_WORKERS": tuple(choices.workers(usable_cores())),
    }
    if objects.max() > 100:
        lines["TEST.DETECTIONS_PER_IMAGE"] = (queries.value, f"an image holds {objects.max()} objects")
        lines["TEST.MAX_DETS"] = ([1, 100, queries.value], f"an image holds {objects.max()} objects")
    return lines


def _schedule(
    base: Path, lines: Lines, data: CocoDataset, device: torch.device, machine: _Machine, minutes: float
) -> Lines:
    """Choose batch, steps and, where time is short, smaller images, from dry runs of the model on this machine."""
    cfg = _config(base, lines | {"SOLVER.IMS_PER_BATCH": (1, "")})
    model = build_model(cfg, data.vocabulary, pretrained=False).to(device)
    objects = max(1, round(data_objects(data)))
    one = estimate(model, cfg, data.vocabulary, objects)
    fixed = fixed_memory(model, cfg)
    batch = choices.batch(machine.batch, one.memory - fixed, fixed, device_memory(device).free)
    size, step = cfg.INPUT.IMAGE_SIZE, one.seconds * batch.value
    if step < _LONGEST:
        step = dry_run(model, data.vocabulary, size, max(2, batch.value), objects).seconds
    workers = cfg.DATALOADER.NUM_WORKERS
    cache, reading = _reading(cfg, data, step / batch.value * max(1, workers))
    reading *= batch.value / max(1, workers)
    image_reason = lines["INPUT.IMAGE_SIZE"][1]
    smaller = choices.smaller_for_time(size, step, minutes, 0 if workers else reading)
    if smaller < size:
        image_reason = needs.across(relative_sizes(data), smaller)
        image_reason += f"; at {size} the time would allow fewer than a thousand steps, at {duration(step)} each"
        step *= (smaller / size) ** 2
        size = smaller
    seconds = max(step, reading) if workers else step + reading
    steps = choices.steps(len(data), batch.value, seconds, minutes)
    if device.type == "cpu" and (crowded := crowding(torch.get_num_threads(), usable_cores(), busy_cores())):
        steps = steps._replace(reason=f"{steps.reason}, while {crowded}")
    return cache | {
        "INPUT.IMAGE_SIZE": (size, image_reason),
        "INPUT.MIN_SIZE_TEST": (size, "the longest edge in evaluation is that in training"),
        "INPUT.MAX_SIZE_TEST": (size, "as MIN_SIZE_TEST"),
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": tuple(choices.points(size)),
        "SOLVER.IMS_PER_BATCH": tuple(batch),
        "SOLVER.MAX_ITER": tuple(steps),
        "SOLVER.WARMUP_ITERS": (max(10, min(500, steps.value // 20)), "a twentieth of the steps"),
        "SOLVER.CHECKPOINT_PERIOD": (max(20, steps.value // 10), "a run that is stopped loses a tenth at most"),
        "TEST.EVAL_PERIOD": (-(-steps.value // 4), "four evaluations, of which the best is kept"),
    }


def _reading(cfg: CfgNode, data: CocoDataset, step: float) -> tuple[Lines, float]:
    """Choose whether reduced copies of the images are kept, and return the seconds that reading an image takes then.

    ``step`` are the seconds that a step takes for each image, times the processes that read.
    """
    seconds = _reading_seconds(cfg, data)
    if seconds < _WAITING * step:
        return {}, seconds
    cached = cfg.clone()
    with tempfile.TemporaryDirectory() as folder:
        cached.merge_from_list(["DATALOADER.CACHE", True, "OUTPUT_DIR", folder])
        _reading_seconds(cached, data)  # makes the copies
        fast = _reading_seconds(cached, data)
    if fast > _FASTER * seconds:
        return {}, seconds
    reason = (
        f"reading an image takes {duration(seconds)}, and {duration(fast)} from a reduced copy in the run directory"
    )
    return {"DATALOADER.CACHE": (True, reason)}, fast


def _reading_seconds(cfg: CfgNode, data: CocoDataset) -> float:
    """Return how long it takes to read and augment an image; 0 where the images cannot be read."""
    mapper = build_mapper(cfg, is_train=True)
    some = data.dicts[:: max(1, len(data) // _READ)][:_READ]
    began = time.perf_counter()
    try:
        for seed, item in enumerate(some):
            mapper(item, seed)
    except (OSError, WorkbenchError):  # `workbench validate` speaks of them
        return 0.0
    return (time.perf_counter() - began) / len(some)


def _base_file(name: str) -> Path:
    for root in (Path.cwd(), Path(__file__).parents[2]):
        if (path := root / "configs" / "own" / name).is_file():
            return path
    raise WorkbenchError(f"There is no configs/own/{name}; run this command in the repository.")


def _config(base: Path, lines: Lines) -> CfgNode:
    return load_config(base, [each for key, (value, _) in lines.items() for each in (key, value)])


def commented_yaml(lines: Mapping[str, tuple[Any, str]], base: str, title: str) -> str:
    """Return a YAML config of dotted keys, each with its reason in a comment above it, on top of ``base``."""
    text = [f"# {title}", f"_BASE_: {json.dumps(base)}"]
    opened: Sequence[str] = ()
    for key in sorted(lines, key=_order):
        value, reason = lines[key]
        *groups, leaf = key.split(".")
        for depth, group in enumerate(groups):
            if list(opened[: depth + 1]) != groups[: depth + 1]:
                text.append(f"{'  ' * depth}{group}:")
                opened = groups[: depth + 1]
        opened = groups
        indent = "  " * len(groups)
        text += [f"{indent}# {reason}", f"{indent}{leaf}: {json.dumps(value, ensure_ascii=False)}"]
    return "\n".join(text) + "\n"


def _order(key: str) -> tuple:
    """Sort groups as detectron2's configs do, and a group's own keys before its subgroups'."""
    sections = ("MODEL", "INPUT", "DATASETS", "DATALOADER", "SOLVER", "TEST")
    *groups, _ = key.split(".")
    first = sections.index(groups[0]) if groups else len(sections)
    return first, groups
