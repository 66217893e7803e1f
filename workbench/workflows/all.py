"""What a person does with the workbench, one function each: train, evaluate, predict.

The command line and the notebooks call these and nothing below them.
"""

from __future__ import annotations

import glob
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.config import config_from_dict, config_to_dict, keys_without_effect, load_config
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from fvcore.common.config import CfgNode
    from torch import nn

    from workbench.data.coco import CocoDataset
    from workbench.data.vocabulary import Vocabulary
    from workbench.evaluation.filters import FilterSettings

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"}


def train(cfg: CfgNode, *, resume: bool = True) -> Path:
    """Train what ``cfg`` describes into OUTPUT_DIR, or continue the run that is there.

    The datasets are checked before the first step. The best checkpoint by mask AP on the first of
    DATASETS.TEST is kept in ``checkpoints/best``, with its metrics.json and predictions.json in the run
    directory.

    Args:
        resume: False refuses an OUTPUT_DIR that holds a run.

    Returns:
        the run directory.

    Raises:
        WorkbenchError: as the sentence says; ``Interrupted`` when it was stopped and has saved.
    """
    from workbench.runs.directory import open_run
    from workbench.training.distributed import run_on_main, start_processes
    from workbench.training.progress import logging_to

    processes = start_processes(cfg)
    run, cfg = run_on_main(lambda: open_run(cfg, resume=resume, seed=secrets.randbelow(2**31)))
    with logging_to(run.log):
        _train(cfg, run, processes)
    return run.path


def _train(cfg: CfgNode, run: Any, processes: tuple[Accelerator, torch.device]) -> None:
    import torch

    from workbench.data.loaders import build_train_loader
    from workbench.data.mapper import build_mapper
    from workbench.models import build_model
    from workbench.runs.checkpoint import has_checkpoint, load_checkpoint
    from workbench.training.distributed import rank, run_on_all, world_size
    from workbench.training.loop import Trainer, check_batch_size
    from workbench.training.progress import log
    from workbench.training.weights import load_weights

    check_batch_size(cfg)
    _log_machine(cfg, processes)
    continued = has_checkpoint(run.last)
    vocabulary = run_on_all(lambda: load_checkpoint(run.last).vocabulary) if continued else None
    train_set = run_on_all(lambda: load_data(cfg, cfg.DATASETS.TRAIN, vocabulary, for_training=True))
    evaluation = None
    if cfg.DATASETS.TEST:
        test_set = run_on_all(lambda: load_data(cfg, cfg.DATASETS.TEST[:1], train_set.vocabulary))
        evaluation = _Evaluation(cfg, test_set, processes[0], progress=False)
    _log_data(cfg, train_set, evaluation and evaluation.dataset)

    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    torch.manual_seed(cfg.SEED)
    model = run_on_all(lambda: build_model(cfg, train_set.vocabulary, pretrained=not continued))
    if cfg.MODEL.WEIGHTS and not continued:
        log.info(f"weights {cfg.MODEL.WEIGHTS}: {run_on_all(lambda: load_weights(model, cfg.MODEL.WEIGHTS))}")
    log.info(f"model: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    mapper = build_mapper(cfg, is_train=True)
    trainer = Trainer(
        cfg,
        model,
        train_set.vocabulary,
        run,
        lambda start_step: build_train_loader(
            train_set,
            mapper,
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            seed=cfg.SEED,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            start_step=start_step,
            rank=rank(),
            world_size=world_size(),
        ),
        evaluate=evaluation,
        on_best=evaluation and (lambda: evaluation.save(run.path, run.best)),
        processes=processes,
    )
    trainer.train()
    if evaluation is not None and not run.scores.exists():  # somebody deleted it, or a kill came in between
        evaluate(run.best, output=run.path, overrides=["MODEL.DEVICE", cfg.MODEL.DEVICE])
    log.info(f"run {run.path}, best checkpoint {run.best}, metrics {run.scores if evaluation else run.metrics}")


def evaluate(
    ckpt: str | Path,
    *,
    dataset: str | Path | None = None,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Score a checkpoint on a dataset and write metrics.json and predictions.json.

    Args:
        ckpt: a checkpoint directory, or a run (its best).
        dataset: catalog name or path of a COCO JSON; the first of the checkpoint's DATASETS.TEST by default.
        output: where the two files go; the checkpoint's run by default.
        overrides: config keys and values in turn, over the checkpoint's config.

    Returns:
        what metrics.json holds.
    """
    from workbench.runs.checkpoint import load_model, resolve_checkpoint
    from workbench.training.distributed import run_on_all, run_on_main, start_processes
    from workbench.training.progress import logging_to

    path = resolve_checkpoint(ckpt)
    cfg = checkpoint_config(path, overrides)
    names = [dataset] if dataset is not None else list(cfg.DATASETS.TEST[:1])
    if not names:
        raise WorkbenchError(f"checkpoint {path} names no dataset to evaluate on; name one")
    processes = start_processes(cfg)
    with logging_to(None):
        _log_machine(cfg, processes)
        model, checkpoint = run_on_all(lambda: load_model(path, processes[1], config=cfg))
        test_set = run_on_all(lambda: load_data(cfg, names, checkpoint.vocabulary))
        evaluation = _Evaluation(cfg, test_set, processes[0])
        metrics = evaluation(model)
        place = Path(output) if output is not None else run_of(path)
        run_on_main(lambda: evaluation.save(place, path))
    return metrics


def evaluate_file(
    results: str | Path,
    annotations: str | Path,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Score a COCO results file, anybody's, against annotations; ``output`` is a folder for metrics.json.

    The TEST keys among ``overrides`` (MAX_DETS, RANK_BY, SCORER) say how.
    """
    from workbench.data.reading import read_coco_json
    from workbench.data.vocabulary import read_vocabulary
    from workbench.evaluation.evaluate import evaluate_results, save_metrics
    from workbench.evaluation.results import load_predictions

    cfg = load_config(None, overrides)
    content = read_coco_json(annotations)
    vocabulary = read_vocabulary(content, annotations)
    predictions = load_predictions(results)
    try:
        metrics = evaluate_results(content, predictions, vocabulary, **_how(cfg))
    except WorkbenchError as error:
        raise WorkbenchError(f"{results} against {annotations}: {error}") from None
    if output is not None:
        save_metrics(Path(output) / "metrics.json", metrics)
    return metrics


def predict(
    ckpt: str | Path,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    score_threshold: float | None = None,
    filters: FilterSettings | str | Path | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Find objects in images: an overlay PNG for each, and one predictions.json for all.

    Args:
        ckpt: a checkpoint directory, or a run (its best).
        inputs: image files, folders (searched through) and globs.
        output: folder for the files; made, and none of the inputs may lie directly in it.
        score_threshold: instances that score less are left out; 0.5 by default, or what ``filters`` say.
        filters: which instances are kept, as settings or as the JSON they were saved in.
        device: cpu, cuda, ... instead of the checkpoint's.

    Returns:
        the files written. predictions.json is a COCO instances file (images, annotations with ``score`` and
        ``attributes``, categories, subcategories), so it can be opened, corrected and trained on.

    Raises:
        WorkbenchError: nothing to read; or some images could not be read, after all others were written.
    """
    import torch
    from PIL import Image

    from workbench.data.images import read_image
    from workbench.data.mapper import build_mapper
    from workbench.environment.facts import choose_device
    from workbench.evaluation.filters import FilterSettings, apply_filters
    from workbench.evaluation.results import to_coco_results
    from workbench.runs.checkpoint import load_model, resolve_checkpoint
    from workbench.visualization.drawing import draw_instances

    output = Path(output)
    settings = FilterSettings.load(filters) if isinstance(filters, (str, Path)) else filters or FilterSettings()
    if score_threshold is not None:
        settings = replace(settings, score=score_threshold)
    files = find_images(inputs)
    path = resolve_checkpoint(ckpt)
    cfg = checkpoint_config(path, [*overrides, *(["MODEL.DEVICE", device] if device else [])])
    for file in files:
        if file.parent.resolve() == output.resolve():
            raise WorkbenchError(f"the output folder {output} holds the input {file}; choose another folder")
    model, checkpoint = load_model(path, choose_device(cfg.MODEL.DEVICE), config=cfg)
    vocabulary, mapper = checkpoint.vocabulary, build_mapper(cfg, is_train=False)
    settings.check(vocabulary)
    output.mkdir(parents=True, exist_ok=True)
    images, annotations, written, unreadable = [], [], [], []
    for number, (file, name) in enumerate(zip(files, _free_names(files), strict=True), start=1):
        try:
            picture = read_image(str(file))
        except WorkbenchError as error:
            unreadable.append(str(error))
            continue
        height, width = picture.shape[:2]
        with torch.inference_mode():
            batch = [{"image": mapper.resize(picture), "height": height, "width": width, "image_id": number}]
            rows = to_coco_results(model(batch)[0], number, vocabulary)
        rows = apply_filters(rows, settings, vocabulary).rows
        images.append({"id": number, "file_name": str(file), "height": height, "width": width})
        annotations += rows
        target = output / name
        Image.fromarray(draw_instances(picture, rows, vocabulary)).save(target)
        written.append(target)
    for number, row in enumerate(annotations, start=1):
        row.update(id=number, iscrowd=0, area=float(_area(row["segmentation"])))
    written.append(_save_coco(output / "predictions.json", images, annotations, vocabulary))
    if unreadable:
        rest = f"; the other {len(images)} are in {output}" if images else ""
        raise WorkbenchError(f"{len(unreadable)} of {len(files)} images cannot be used: {' '.join(unreadable)}{rest}")
    return written


def find_images(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    """Image files that files, folders (searched through) and globs name, each once, in their order."""
    found: dict[Path, None] = {}
    for item in [inputs] if isinstance(inputs, (str, Path)) else inputs:
        path = Path(item).expanduser()
        if path.is_dir():
            files = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in _IMAGES and p.is_file()]
        elif path.is_file():
            files = [path]
        else:
            matches = (Path(name) for name in sorted(glob.glob(str(path), recursive=True)))
            files = [p for p in matches if p.is_file() and p.suffix.lower() in _IMAGES]
        if not files:
            kind = "folder" if path.is_dir() else "file, folder or pattern"
            raise WorkbenchError(f"the {kind} {item} names no image")
        found.update(dict.fromkeys(files))
    return list(found)


@dataclass
class _Evaluation:
    """Scores a model on one dataset; called in every process, computed once. Keeps what it found last, to be
    saved."""

    cfg: CfgNode
    dataset: CocoDataset
    accelerator: Accelerator
    progress: bool = True
    metrics: dict[str, Any] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        from workbench.evaluation.ground_truth import ground_truth

        self.truth = ground_truth(self.dataset)

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        from workbench.data.loaders import build_test_loader
        from workbench.data.mapper import build_mapper
        from workbench.evaluation.evaluate import evaluate_results
        from workbench.evaluation.predict import run_inference
        from workbench.training.distributed import rank, run_on_main, world_size

        mapper = build_mapper(self.cfg, is_train=False)
        sizes = {mapper.output_size(d["height"], d["width"]) for d in self.dataset.dicts}
        loader = build_test_loader(
            self.dataset,
            mapper,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            rank=rank(),
            world_size=world_size(),
            batch_size=8 if len(sizes) == 1 else 1,  # images of one size need no padding, so batches change nothing
        )
        vocabulary = self.dataset.vocabulary
        self.results, stats = run_inference(
            model, loader, vocabulary, progress=self.progress, accelerator=self.accelerator
        )
        self.metrics = run_on_main(
            lambda: evaluate_results(self.truth, self.results, vocabulary, stats=stats, **_how(self.cfg))
        )
        return self.metrics

    def save(self, directory: Path, checkpoint: Path) -> None:
        """Write predictions.json and then metrics.json, each whole or not at all."""
        from workbench.evaluation.evaluate import save_metrics
        from workbench.evaluation.results import save_predictions

        self.metrics |= {"dataset": self.dataset.entries[0].name, "checkpoint": str(checkpoint)}
        try:
            save_predictions(directory / "predictions.json", self.results)
            save_metrics(directory / "metrics.json", self.metrics)
        except OSError as error:
            raise WorkbenchError(f"the results cannot be saved in {directory}: {error.strerror}") from None


def _how(cfg: CfgNode) -> dict[str, Any]:
    return {"max_dets": list(cfg.TEST.MAX_DETS), "rank_by": cfg.TEST.RANK_BY, "scorer": cfg.TEST.SCORER}


def load_data(
    cfg: CfgNode, names: Sequence[str | Path], vocabulary: Vocabulary | None, for_training: bool = False
) -> CocoDataset:
    """The datasets ``names`` as a config says; with ``vocabulary`` they must have its classes."""
    from workbench.data.coco import load_dataset

    if not names:
        raise WorkbenchError("config key DATASETS.TRAIN names no dataset")
    return load_dataset(
        list(names),
        root=cfg.DATASETS.ROOT,
        vocabulary=vocabulary,
        subcategories=tuple(cfg.MODEL.SUBCATEGORIES),
        skip_faults=cfg.DATASETS.SKIP_FAULTS,
        filter_empty=for_training and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
    )


def checkpoint_config(path: Path, overrides: Sequence[str]) -> CfgNode:
    """A checkpoint's config with overrides; a GPU it was trained on is not asked for again unless they do."""
    from workbench.runs.checkpoint import DESCRIPTION, read_description

    values = read_description(path).get("config") or {}
    cfg = config_from_dict(values, source=str(path / DESCRIPTION)).clone()
    cfg.defrost()
    if cfg.MODEL.DEVICE != "cpu":
        cfg.MODEL.DEVICE = "auto"
    checked = load_config(None, overrides)  # types and names are checked there
    for key in overrides[::2]:
        *parents, leaf = key.split(".")
        theirs, ours = checked, cfg
        for part in parents:
            theirs, ours = theirs[part], ours[part]
        ours[leaf] = theirs[leaf]
    return config_from_dict(config_to_dict(cfg), source="the overrides")


def run_of(checkpoint: Path) -> Path:
    """The run directory that a checkpoint lies in, or else the checkpoint's own directory."""
    run = checkpoint.resolve().parent.parent
    return run if (run / "config.yaml").is_file() else checkpoint


def _log_machine(cfg: CfgNode, processes: tuple[Accelerator, torch.device]) -> None:
    import torch

    from workbench.runs.checkpoint import versions
    from workbench.training.distributed import gather, precision, rank
    from workbench.training.progress import log

    device = processes[1]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    devices = gather(f"process {rank()} uses {device} ({name})")
    log.info(", ".join(f"{key} {value}" for key, value in versions().items()))
    log.info("; ".join(devices) + f"; mixed precision {precision(cfg, device)}")
    if cfg.SOLVER.AMP.ENABLED and precision(cfg, device) == "no":
        log.warning("SOLVER.AMP asks for float16, which CPUs lack: training in float32 (bfloat16 works everywhere)")


def _log_data(cfg: CfgNode, train_set: CocoDataset, test_set: CocoDataset | None) -> None:
    from workbench.training.distributed import world_size
    from workbench.training.progress import log
    from workbench.training.schedule import lr_arithmetic

    for purpose, dataset in (("train", train_set), ("evaluate", test_set)):
        if dataset is not None:
            objects = sum(len(d["annotations"]) for d in dataset.dicts)
            left_out = f", {dataset.skipped} annotations and images left out for faults" if dataset.skipped else ""
            names = ", ".join(entry.name for entry in dataset.entries)
            log.info(f"{purpose} on {names}: {len(dataset)} images, {objects} objects{left_out}")
    classes = [f"{n} ({len(c)})" for n, c in train_set.vocabulary.subcategories.items()]
    log.info(f"{train_set.vocabulary.num_classes} categories, subcategories {', '.join(classes) or 'none'}")
    split = f", split over {world_size()} processes" if world_size() > 1 else ""
    if cfg.SOLVER.ACCUMULATION_STEPS > 1:
        split += f", accumulated in {cfg.SOLVER.ACCUMULATION_STEPS} parts"
    log.info(f"seed {cfg.SEED}; {cfg.SOLVER.MAX_ITER} steps of {cfg.SOLVER.IMS_PER_BATCH} images{split}")
    log.info(lr_arithmetic(cfg))
    unused = keys_without_effect(cfg)
    if unused:
        log.warning(f"config keys without effect here: {', '.join(unused)}")


def _free_names(files: Sequence[Path]) -> list[str]:
    """A PNG name for each file, none twice: folders may hold files of the same name."""
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        name, number = f"{file.stem}.png", 1
        while name.lower() in taken:
            number += 1
            name = f"{file.stem}_{number}.png"
        taken.add(name.lower())
        names.append(name)
    return names


def _area(rle: dict[str, Any]) -> int:
    from pycocotools import mask as coco_mask

    return int(coco_mask.area({"size": rle["size"], "counts": rle["counts"].encode("ascii")}))


def _save_coco(path: Path, images: list[dict], annotations: list[dict], vocabulary: Vocabulary) -> Path:
    from workbench.runs.directory import write_text

    content = {
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": i, "name": n} for i, n in zip(vocabulary.category_ids, vocabulary.categories, strict=True)
        ],
        "subcategories": [{"name": n, "classes": list(c)} for n, c in vocabulary.subcategories.items()],
    }
    write_text(path, json.dumps(content))
    return path
