"""Models of other programs made checkpoints, and checkpoints made files of other programs."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fvcore.common.config import CfgNode
from safetensors.torch import save_file
from torch import Tensor

from workbench.config import config_to_dict, get_cfg, load_config, override
from workbench.data.catalog import get_entry
from workbench.data.coco import open_dataset
from workbench.data.fingerprint import digest
from workbench.data.vocabulary import Vocabulary
from workbench.errors import WorkbenchError, counted, errors_as
from workbench.files import cache_folder, file_name, replacing
from workbench.models import build_model
from workbench.models.weights import LoadReport, load_state, require_finite
from workbench.runs.checkpoint import DESCRIPTION, has_checkpoint, save_checkpoint
from workbench.runs.sources import Source, model_folder, open_source
from workbench.runs.targets import write_mask2former, write_transformers
from workbench.training.progress import logging_to
from workbench.weights.download import is_address, local_weights

_log = logging.getLogger(__name__)

FORMATS = ("workbench", "huggingface", "mask2former")


def convert(
    source: str | Path,
    output: str | Path,
    *,
    to: str = "workbench",
    config: str | Path | None = None,
    dataset: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """Write a model of any readable format in another one.

    Args:
        source: a path or an address, as :func:`~workbench.runs.sources.open_source` takes it.
        output: a new folder; for "mask2former" a new ``.pkl`` or ``.pth`` file. A backbone alone goes into a new
            ``.safetensors`` file, for MODEL.WEIGHTS.
        to: one of ``FORMATS``.
        config: the YAML of the model, where its files do not tell it (heads of attention, ...).
        dataset: catalog name or path of the COCO JSON whose categories the model was trained on.
        overrides: config keys and values in turn.

    Returns:
        what was written, and how many tensors of each part arrived, as text.

    Raises:
        WorkbenchError: the source cannot be read, does not fit its config or the dataset, ``output`` is there, or the
            other program cannot build the model.
    """
    output = Path(output)
    if os.path.lexists(output):
        raise WorkbenchError(f"{output} is there already; choose another output")
    with logging_to(None):
        opened = open_source(source)
    require_finite(opened.state, f"weights {source}")
    if opened.num_classes is None:
        return _write_backbone(opened, output, to)
    cfg = _config(opened, config, overrides)
    vocabulary, classes = _vocabulary(opened, cfg, dataset)
    state, report = _fitted(opened, cfg, vocabulary)
    with errors_as(f"{output} cannot be written", OSError):
        if to == "huggingface":
            write_transformers(output, state, cfg, vocabulary)
        elif to == "mask2former":
            write_mask2former(output, state, cfg, vocabulary)
        else:
            origin = {"weights": str(source), "format": opened.kind}
            save_checkpoint(
                output,
                state,
                config=config_to_dict(cfg),
                vocabulary=vocabulary,
                step=0,
                extra={"origin": origin},
            )
    return f"{opened.kind} weights {source}: {report}\n{classes}\nWrote {output} ({to})"


def local_checkpoint(ckpt: str | Path, dataset: str | Path | None = None) -> Path:
    """Return what ``ckpt`` names as a checkpoint, a run or an evaluation of this package.

    Another program's model is converted into the cache, once; ``dataset`` is as for :func:`convert`.
    """
    if not is_address(str(ckpt)):
        path = model_folder(Path(ckpt))
        if not path.exists() or has_checkpoint(path) or not (path.is_file() or (path / "config.json").is_file()):
            return path  # whatever is wrong with it is said where it is opened
    with logging_to(None):
        path = model_folder(local_weights(ckpt))
    place = cache_folder() / "checkpoints" / f"{file_name(path.stem)}_{_identity(path, dataset)}"
    if (place / DESCRIPTION).is_file():
        return place
    draft = place.with_name(f".{place.name}.{os.getpid()}")  # several processes may convert the same model
    try:
        text = convert(path, draft, dataset=dataset)
        with logging_to(None):
            _log.info(text.replace(str(draft), str(place)))
        if not (place / DESCRIPTION).is_file():
            os.replace(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


def _identity(path: Path, dataset: str | Path | None) -> str:
    """Return a digest that changes with the files of a model, and with the dataset that names its classes."""
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    if dataset is not None and Path(str(dataset).partition(".json@")[0]).is_file():
        files.append(Path(dataset))
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return digest([stats, str(dataset)])[:8]


def _write_backbone(source: Source, output: Path, to: str) -> str:
    """Write the tensors of a backbone under this package's names."""
    if not all(name.startswith("backbone.") for name in source.state):
        names = ", ".join(list(source.state)[:3])
        raise WorkbenchError(
            f"{source.name} is no Mask2Former and no backbone that is known here; it holds {names}, ..."
        )
    if to != "workbench" or output.suffix != ".safetensors":
        raise WorkbenchError(
            f"{source.name} ({source.kind}) holds a backbone and no whole model: give the output a name that ends in "
            ".safetensors, or name it in MODEL.WEIGHTS as it is"
        )
    state = {name: tensor.contiguous().clone() for name, tensor in source.state.items()}
    with errors_as(f"{output} cannot be written", OSError), replacing(output) as draft:
        save_file(state, draft)
    return f"{source.kind} weights {source.name}: {len(state)} tensors of a backbone\nWrote {output}"


def _config(source: Source, config: str | Path | None, overrides: Sequence[str]) -> CfgNode:
    """Return the config of a source: its own, else that of a YAML file, else what its files tell."""
    if config is not None:
        return load_config(config, overrides)
    if source.config is not None:
        return override(source.config, overrides)
    settings = dict(source.settings)
    for key, values in (("MODEL.PIXEL_MEAN", source.pixel_mean), ("MODEL.PIXEL_STD", source.pixel_std)):
        if values is not None:
            settings[key] = list(values)
    told = [part for key, value in settings.items() for part in (key, value)]
    with errors_as(f"weights {source.name}", WorkbenchError):
        return override(override(get_cfg(), told), overrides)


def _vocabulary(source: Source, cfg: CfgNode, dataset: str | Path | None) -> tuple[Vocabulary, str]:
    """Return the classes of a source, and where they are from as a sentence.

    They are its own, else those of ``dataset`` or of the config's DATASETS.TRAIN where its file is there, else numbers.
    """
    count = source.num_classes
    if source.vocabulary is not None:
        vocabulary, origin = source.vocabulary, "its own files"
    else:
        entries = [get_entry(name, cfg.DATASETS.ROOT) for name in ([dataset] if dataset else cfg.DATASETS.TRAIN[:1])]
        entry = entries[0] if entries and (dataset or entries[0].annotations.exists()) else None
        if entry is None:
            names = tuple(f"category {number}" for number in range(count))
            return Vocabulary(tuple(range(count)), names), (
                f"categories: the file names none, so the {count} are numbered; --dataset names them"
            )
        found = open_dataset(dataset or cfg.DATASETS.TRAIN[0], cfg.DATASETS.ROOT).vocabulary
        vocabulary, origin = replace(found, subcategories={}), f"{entry.annotations}, ordered by id"
    if vocabulary.num_classes != count:
        raise WorkbenchError(
            f"weights {source.name} ({source.kind}) are for {counted(count, 'category', 'categories')}, and {origin} "
            f"has {vocabulary.num_classes}: they were trained for other classes"
        )
    return vocabulary, f"categories: {count} of {origin}"


def _fitted(source: Source, cfg: CfgNode, vocabulary: Vocabulary) -> tuple[dict[str, Tensor], LoadReport]:
    """Return the weights of the model that a config describes; WorkbenchError unless each of them is in the source."""
    model = build_model(cfg, vocabulary, pretrained=False)
    report = load_state(model, source.state)
    if report.missing or report.mismatched or report.unexpected:
        raise WorkbenchError(
            f"weights {source.name} ({source.kind}) are not those of the model that the config describes: {report}"
        )
    return model.state_dict(), report
