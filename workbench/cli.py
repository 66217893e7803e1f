"""The ``workbench`` command: one function a command, its arguments beside it.

Heavy imports stay inside the functions, so that ``workbench --help`` answers at once. An error that a user can mend is
one sentence on stderr and exit code 2, without a traceback. Any other error is a defect: one sentence, exit code 70,
and a file that holds the traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from workbench import __version__
from workbench.console import flush_streams, open_streams, report_defect
from workbench.errors import WorkbenchError, counted, nearest
from workbench.registry import import_parts

OVERRIDES = "KEY VALUE"
TOUR = """a first tour:
  workbench env                                    what this machine can run
  workbench shapes                                 make a small dataset to try things on
  workbench train --config configs/shapes/demo.yaml --output outputs/demo
  workbench eval --ckpt outputs/demo/checkpoints/best
  workbench predict --ckpt outputs/demo/checkpoints/best --output outputs/pictures data/shapes/test

Each command has its own help: workbench train --help"""


class Command(NamedTuple):
    """A command: its function, whose docstring is its help, and the arguments of ``add_argument`` of its options."""

    run: Callable[[argparse.Namespace], None]
    examples: str
    options: tuple[tuple[tuple[str, ...], dict[str, Any]], ...]
    overrides: bool


COMMANDS: dict[str, Command] = {}


def option(*names: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the arguments of ``ArgumentParser.add_argument`` for :func:`command`."""
    return names, settings


def command(name: str, examples: str, *options: Any, overrides: bool = False) -> Callable:
    """Return a decorator that makes a function of the parsed arguments a command; its docstring is the help.

    Args:
        name: what the user types.
        examples: whole command lines, one a line.
        options: the results of :func:`option`.
        overrides: whether config keys and values may follow, as ``args.overrides``.
    """

    def add(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
        COMMANDS[name] = Command(run, examples, options, overrides)
        return run

    return add


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Returns:
        0; 1 for a broken pipe; 2 for an error that the user can mend or a stop, 70 for a defect of the workbench, each
        one sentence on stderr.
    """
    os.environ.setdefault("MPLBACKEND", "agg")  # no command opens a window
    open_streams()
    _relax_warnings()
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = _parse(argv)
        args.run(args)
        sys.stdout.flush()
        return 0
    except WorkbenchError as error:
        return 2 if error.printed_elsewhere else _fail(str(error))
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C.")
    except BrokenPipeError:
        return 1
    except SystemExit:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return _fail_unexpectedly(error, argv)
    finally:
        flush_streams()


def _fail_unexpectedly(error: BaseException, argv: list[str]) -> int:
    """Print the sentence about an error that is no WorkbenchError, and return the exit code."""
    if isinstance(error, OSError) and error.errno is not None:  # otherwise a library raised it, not the system
        return _fail(f"{error.strerror}: {error.filename or 'while reading or writing'}")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):  # an import that was interrupted fails with an error of its own
            return _fail("stopped by Ctrl-C.")
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MemoryError) or any(word in f"{type(error).__name__}: {error}" for word in _OUT_OF_MEMORY):
        reason = "the GPU's" if type(error).__name__ == "OutOfMemoryError" else "this machine's"
        return _fail(
            f"{reason} memory is used up: lower SOLVER.IMS_PER_BATCH, raise SOLVER.ACCUMULATION_STEPS or take smaller "
            "images (INPUT.MIN_SIZE_TRAIN, INPUT.MAX_SIZE_TRAIN, INPUT.IMAGE_SIZE)."
        )
    if "--debug" in argv:
        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    return _fail(report_defect(error, ["workbench", *argv]), code=70)


# What torch's allocators, oneDNN, C++, the system, and Python and Rust without memory for a thread say.
_OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate", "could not create a ", "bad_alloc", "Cannot allocate memory")
_OUT_OF_MEMORY += ("can't start new thread", "Resource temporarily unavailable")


def _relax_warnings() -> None:
    """Show warnings that PYTHONWARNINGS or -W turns into errors: those of the libraries would end every command."""
    if any(action.partition(":")[0].strip().startswith("e") for action in sys.warnoptions):
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)  # as Python does
        os.environ.pop("PYTHONWARNINGS", None)  # for loader workers and kernels


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number


IMPORT = option(
    "--import",
    dest="imports",
    action="append",
    default=[],
    metavar="FILE|MODULE",
    help="Python with parts of your own, which the config may name (docs/extending.md); repeatable",
)


@command(
    "shapes",
    """
  workbench shapes                       into data/shapes, where configs/shapes/demo.yaml looks
  workbench shapes --crowded             up to 100 objects an image, into data/shapes_crowded
  workbench shapes --train 50 --val 10 --test 10 --output data/tiny""",
    option("--output", metavar="DIR", help="where to write it (data/shapes[_crowded])"),
    option("--crowded", action="store_true", help="up to 100 small objects an image"),
    option("--seed", type=int, metavar="N", help="the same seed gives the same bytes (0)"),
    *(option(f"--{s}", type=int, metavar="N", help=f"number of {s} images") for s in ("train", "val", "test")),
    option("--image-size", type=int, metavar="N", help="side of an image in pixels"),
)
def shapes(args: argparse.Namespace) -> None:
    """Make the shapes dataset: generated pictures with shapes, colours and textures, in COCO's format."""
    from workbench.data.shapes.generate import generate_shapes

    output = args.output or os.path.join("data", "shapes_crowded" if args.crowded else "shapes")
    settings = {name: getattr(args, name) for name in ("seed", "train", "val", "test", "image_size")}
    settings = {name: value for name, value in settings.items() if value is not None}
    written = generate_shapes(output, crowded=args.crowded, **settings)
    print(f"The shapes dataset is in {output}" + ("" if written else ", complete since an earlier call"))


@command(
    "validate",
    """
  workbench validate my/annotations.json           images are looked for near the file
  workbench validate my/annotations.json@pictures  or where the @ says
  workbench validate my/train.json my/val.json     the first is trained on, the others evaluate it
  workbench validate --config my.yaml              the datasets of a config, and its sizes
  workbench validate my/annotations.json --fix my/mended.json""",
    option("dataset", nargs="*", metavar="A.json|NAME", help="COCO JSONs, or datasets' names (those of the config)"),
    option("--config", "--config-file", metavar="YAML", help="compare objects with its input size and queries"),
    option("--root", metavar="DIR", help="where named datasets lie (the config's DATASETS.ROOT)"),
    option("--no-images", action="store_true", help="do not open the image files (faster)"),
    option("--crowds-are-objects", action="store_true", help="read iscrowd 1 as 0: CVAT marks brush masks so"),
    option("--fix", metavar="OUT.json", help="write the dataset as it was mended"),
    option("--all", action="store_true", help="give every fault a line of its own"),
)
def validate(args: argparse.Namespace) -> None:
    """List what is wrong with datasets and sum up what they hold. Exit code 2 when something has to be mended."""
    from workbench.config import load_config
    from workbench.data.reading import collector_paused
    from workbench.data.validate import validate as validate_datasets
    from workbench.data.validate import write_mended

    cfg = load_config(args.config, [])
    keys = cfg.DATASETS
    train, held_out = (args.dataset[:1], args.dataset[1:]) if args.dataset else (keys.TRAIN, (*keys.VAL, *keys.TEST))
    if not train:
        raise WorkbenchError("validate takes a dataset, or a --config that names one in DATASETS.TRAIN.")
    if args.fix is not None and len(args.dataset) != 1:
        raise WorkbenchError("--fix takes exactly one dataset.")
    with collector_paused():
        validations = validate_datasets(
            train,
            held_out=list(dict.fromkeys(held_out)),
            root=args.root or keys.ROOT,
            cfg=None if args.config is None else cfg,
            check_images=not args.no_images,
            crowds_are_objects=args.crowds_are_objects or keys.CROWDS_ARE_OBJECTS,
        )
        for item in validations:
            print(item.text(every_place=args.all))
    if args.fix is not None:
        print(write_mended(validations[0].reading, Path(args.fix)))
    wrong = [item for item in validations if item.stops]
    if wrong:
        raise WorkbenchError(" ".join(f"faults were found in {item.reading.entry.annotations}." for item in wrong))


@command(
    "import",
    """
  workbench import labelme_folder data/apples            the format is recognised
  workbench import task/annotations.xml data/apples      CVAT, its images beside it in images/
  workbench import project.json data/apples --images photos --category species
  workbench import VOCdevkit/VOC2012 data/voc --format voc --copy""",
    option("source", metavar="SOURCE", help="the file or folder that the annotation tool exported, unpacked"),
    option("output", metavar="OUT", help="a new folder for the COCO JSON and images/"),
    option("--format", metavar="NAME", help="cvat, labelme, via, labelstudio, yolo, voc or supervisely (recognised)"),
    option("--images", metavar="DIR", help="where the images are, if not with the annotations"),
    option("--category", metavar="NAME", help="the attribute that is the main category (VIA)"),
    option("--copy", action="store_true", help="copy the images; they are otherwise linked"),
)
def import_annotations(args: argparse.Namespace) -> None:
    """Turn annotations of CVAT, LabelMe, VIA, Label Studio, YOLO, Pascal VOC or Supervisely into COCO's format."""
    from workbench.data.formats.importing import describe_import, import_dataset

    settings = {name: getattr(args, name) for name in ("format", "images", "category", "copy")}
    print(describe_import(*import_dataset(args.source, args.output, **settings)))


@command(
    "split",
    """
  workbench split data/apples/annotations.json --val 0.2
  workbench split data/apples/annotations.json --val 0.15 --test 0.15 --group prefix
  workbench split my/labels.json@photos --group video_id --seed 1 --out my/parts""",
    option(
        "dataset", metavar="A.json", help="a COCO JSON, with @ and the folder of its images where that is elsewhere"
    ),
    option("--val", type=float, default=0.2, metavar="S", help="share of the images for validation (0.2)"),
    option("--test", type=float, default=0.0, metavar="S", help="share of the images for testing (0)"),
    option(
        "--group",
        metavar="KEY",
        help="images of one group stay together: folder, prefix (the file name up to its last _ - or .), prefix:N (its "
        "first N characters), or a key of the image records or of their attributes",
    ),
    option("--seed", type=int, default=0, metavar="N", help="the same seed gives the same parts (0)"),
    option("--out", metavar="DIR", help="where A_train.json, A_val.json and A_test.json go (beside A.json)"),
    option("--no-images", action="store_true", help="do not look for copies among the image files (faster)"),
)
def split(args: argparse.Namespace) -> None:
    """Divide a dataset into train, val and test, stratified by category and subcategory, and print the counts."""
    from workbench.data.split import describe_split, split_dataset

    settings = {name: getattr(args, name) for name in ("val", "test", "group", "seed", "out")}
    print(describe_split(split_dataset(args.dataset, **settings, check_images=not args.no_images)))


@command(
    "init",
    """
  workbench init data/apples/annotations_train.json     with annotations_val.json beside it
  workbench init my/train.json --val my/val.json --minutes 60
  workbench init shapes_train --val shapes_val --out configs/mine.yaml""",
    option("dataset", metavar="A.json|NAME", help="what to train on: a COCO JSON, or a dataset's name"),
    option("--val", metavar="V.json|NAME", help="what to choose on (that of `workbench split` beside A_train.json)"),
    option("--out", metavar="YAML", help="the config to write (configs/NAME.yaml)"),
    option("--minutes", type=_positive, metavar="N", help="time at hand for the training (15; with a GPU 240)"),
)
def init(args: argparse.Namespace) -> None:
    """Write a config for a dataset and this machine, each line with its reason."""
    from workbench.workflows import init as workflow

    path, text = workflow.init(args.dataset, val=args.val, out=args.out, minutes=args.minutes)
    print(f"{text}\nWrote {path}; train with: workbench train --config {path}")


@command(
    "train",
    """
  workbench train --config configs/shapes/demo.yaml --output outputs/demo
  workbench train --config configs/shapes/demo.yaml --output outputs/gpu MODEL.DEVICE cuda
  workbench train --config my.yaml --import my_backbone.py MODEL.BACKBONE.NAME my_backbone
  accelerate launch --num_processes 4 -m workbench train --config ... --output ...""",
    option("--config", "--config-file", required=True, metavar="YAML", help="the config, in detectron2's keys"),
    option("--output", metavar="DIR", help="the run directory (the config's OUTPUT_DIR)"),
    option(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue the run found in the run directory (the default); --no-resume refuses to",
    ),
    option("--restart", action="store_true", help="train again from step 0; earlier checkpoints are kept aside"),
    option("--accept-data", action="store_true", help="continue on data that has changed since the run began"),
    IMPORT,
    overrides=True,
)
def train(args: argparse.Namespace) -> None:
    """Train a model into a run directory, or continue the run that is there."""
    from workbench.config import load_config
    from workbench.workflows import train as workflow

    import_parts(args.imports)
    output = [] if args.output is None else ["OUTPUT_DIR", args.output]
    choices = {"resume": args.resume, "restart": args.restart, "accept_data": args.accept_data}
    workflow.train(load_config(args.config, [*output, *args.overrides]), **choices)


@command(
    "trace",
    """
  workbench trace --config configs/shapes/demo.yaml
  workbench trace --config configs/shapes/demo.yaml --ckpt outputs/demo --depth 3
  workbench trace --config my.yaml MODEL.DEVICE cpu SOLVER.IMS_PER_BATCH 2""",
    option("--config", "--config-file", required=True, metavar="YAML", help="the config, in detectron2's keys"),
    option("--ckpt", metavar="CKPT", help="a checkpoint directory, or a run, whose weights are taken"),
    option("--depth", type=_positive, default=2, metavar="N", help="how deep modules within modules are looked at (2)"),
    IMPORT,
    overrides=True,
)
def trace(args: argparse.Namespace) -> None:
    """Run one training step and print what every stage put out, the losses, the gradients and the updates.

    Nothing is trained or written. The numbers are those of the first step that `train` would take.
    """
    from workbench.config import load_config
    from workbench.notebook.inside import open_step

    import_parts(args.imports)
    print(open_step(load_config(args.config, args.overrides), args.ckpt, depth=args.depth).trace.text())


@command(
    "eval",
    """
  workbench eval --ckpt outputs/demo/checkpoints/best
  workbench eval --ckpt outputs/demo --dataset my/val.json --output outputs/on_mine
  workbench eval --ckpt outputs/demo TEST.MAX_DETS '[1, 10, 300]' TEST.RANK_BY geometric_mean
  workbench eval --predictions predictions.json --annotations my/val.json""",
    option(
        "--ckpt", metavar="CKPT", help="a checkpoint directory, a run (its best), an evaluation, or what convert reads"
    ),
    option("--predictions", metavar="R.json", help="a COCO results file to score instead"),
    option("--annotations", metavar="A.json", help="the ground truth for --predictions"),
    option("--dataset", metavar="NAME|A.json", help="the data for --ckpt (DATASETS.TEST)"),
    option("--output", metavar="DIR", help="where metrics.json and predictions.json go"),
    option("--json", action="store_true", help="print metrics.json instead of tables"),
    IMPORT,
    overrides=True,
)
def evaluate(args: argparse.Namespace) -> None:
    """Score a checkpoint on a dataset, or an existing COCO results file against annotations."""
    from workbench.evaluation.evaluate import metrics_table

    if (args.ckpt is None) == (args.predictions is None):
        raise WorkbenchError("eval takes either --ckpt or --predictions.")
    if args.ckpt is not None and args.annotations is not None:
        raise WorkbenchError("--annotations goes with --predictions; with --ckpt it is --dataset.")
    if args.ckpt is None and args.annotations is None:
        raise WorkbenchError("--predictions needs --annotations, the COCO JSON it is scored against.")
    if args.ckpt is None and args.dataset is not None:
        raise WorkbenchError("--dataset goes with --ckpt; with --predictions it is --annotations.")
    import_parts(args.imports)
    options = {"output": args.output, "overrides": args.overrides}
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):  # stdout holds nothing but the JSON
        if args.ckpt is not None:
            from workbench.workflows import evaluate as workflow

            metrics = workflow.evaluate(args.ckpt, dataset=args.dataset, **options)
        else:
            from workbench.workflows.score import evaluate_file  # needs no torch, which takes seconds to import

            metrics = evaluate_file(args.predictions, args.annotations, **options)
    if args.json:
        metrics = json.loads(json.dumps(metrics), parse_constant=lambda _: None)  # JSON knows no NaN
        print(json.dumps(metrics, indent=2))
    else:
        print(metrics_table(metrics))


@command(
    "convert",
    """
  workbench convert model_final_3c8ec9.pkl outputs/coco_r50 --dataset data/coco/annotations/instances_val2017.json
  workbench convert hf://facebook/mask2former-swin-tiny-coco-instance outputs/coco_swin_t
  workbench convert outputs/demo/checkpoints/best outputs/demo_hf --to huggingface
  workbench convert outputs/demo demo.pkl --to mask2former
  workbench convert detectron2://ImageNetPretrained/torchvision/R-50.pkl r50.safetensors""",
    option("source", metavar="SOURCE", help="a checkpoint, a run, another program's file or folder, or an address"),
    option("output", metavar="OUT", help="a new folder; a .pkl or .pth for Mask2Former, .safetensors for a backbone"),
    option(
        "--to", choices=("workbench", "huggingface", "mask2former"), default="workbench", help="the format (workbench)"
    ),
    option("--config", "--config-file", metavar="YAML", help="the model's config, where its files do not tell it"),
    option("--dataset", metavar="NAME|A.json", help="the data whose categories the model was trained on"),
    IMPORT,
    overrides=True,
)
def convert(args: argparse.Namespace) -> None:
    """Turn a model of Mask2Former, detectron2 or Hugging Face into a checkpoint, or a checkpoint into theirs."""
    from workbench.workflows.convert import convert as workflow

    import_parts(args.imports)
    settings = {name: getattr(args, name) for name in ("to", "config", "dataset", "overrides")}
    print(workflow(args.source, args.output, **settings))


@command(
    "predict",
    """
  workbench predict --ckpt outputs/demo/checkpoints/best --output outputs/pictures photo.jpg
  workbench predict --ckpt outputs/demo --output outputs/pictures photos/ 'more/*.png'
  workbench predict --ckpt outputs/demo --filters settings.json --output outputs/pictures photos/""",
    option("--ckpt", required=True, metavar="CKPT", help="a checkpoint directory, a run, or what convert reads"),
    option("--output", required=True, metavar="DIR", help="where the files go"),
    option("--score-threshold", type=float, metavar="S", help="leave out what scores less (0.5, or the filters')"),
    option("--filters", metavar="JSON", help="what is kept, as saved in notebook 06 (scores, overlaps, ...)"),
    option("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; the best there is"),
    IMPORT,
    option("input", nargs="+", metavar="INPUT", help="images, folders or globs"),
)
def predict(args: argparse.Namespace) -> None:
    """Find objects in images: an overlay PNG for each and one predictions.json for all."""
    from workbench.workflows import predict as workflow

    import_parts(args.imports)
    files = workflow.predict(
        args.ckpt,
        args.input,
        args.output,
        score_threshold=args.score_threshold,
        filters=args.filters,
        device=args.device,
    )
    print(f"Wrote {len(files) - 1} pictures and {files[-1]}")


@command(
    "export",
    """
  workbench export --ckpt outputs/demo --output outputs/onnx
  workbench export --ckpt outputs/demo --output outputs/onnx --size 256 384 --batch 4
  workbench export --ckpt outputs/demo --output outputs/onnx --dynamic
  workbench export --ckpt outputs/demo --output outputs/program --format torch-export""",
    option("--ckpt", required=True, metavar="CKPT", help="a checkpoint directory, or a run"),
    option("--output", required=True, metavar="DIR", help="where the file goes"),
    option("--format", choices=("onnx", "torch-export"), default="onnx", help="onnx, or a program of torch.export"),
    option("--size", type=_positive, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the images, in pixels"),
    option("--batch", type=_positive, default=1, metavar="N", help="images at once (1)"),
    option("--dynamic", action="store_true", help="take images of any size, any number at once"),
    IMPORT,
    overrides=True,
)
def export(args: argparse.Namespace) -> None:
    """Write a checkpoint's model as one file that runs elsewhere, once it agrees with the model.

    Images (B, 3, H, W), float32 RGB in 0-255, go in; scores, labels, masks, boxes and the probabilities of each
    subcategory come out. Beside an ONNX file is run_onnx.py, which needs onnxruntime, numpy and pillow alone.
    """
    from workbench.workflows.export import export as workflow

    import_parts(args.imports)
    path = workflow(
        args.ckpt,
        args.output,
        kind=args.format,
        size=tuple(args.size) if args.size else None,
        batch=args.batch,
        dynamic=args.dynamic,
        overrides=args.overrides,
    )
    print(f"Wrote {path}")


@command(
    "show",
    "\n  workbench show outputs/demo",
    option("run_directory", metavar="RUN", help="a run directory, or an evaluation in it"),
)
def show(args: argparse.Namespace) -> None:
    """Print the scores of a run and where its checkpoint, figures and notebooks are."""
    from workbench.runs.table import describe_run

    print(describe_run(args.run_directory))


@command(
    "report",
    "\n  workbench report outputs/demo",
    option("run_directory", metavar="RUN", help="a run directory"),
)
def report(args: argparse.Namespace) -> None:
    """Join the executed notebooks of a run into one HTML file that stands alone."""
    from workbench.runs.report import write_report

    print(f"report     {write_report(args.run_directory)}")


@command(
    "runs",
    """
  workbench runs                       all runs below outputs
  workbench runs outputs/sweeps --csv > runs.csv
  workbench runs outputs/a outputs/b   the scores of two runs, with the intervals of their differences""",
    option("directory", nargs="*", default=["outputs"], metavar="DIR", help="where (outputs); or two runs to compare"),
    option("--evaluations", action="store_true", help="list evaluations of other checkpoints, data and keys as well"),
    option("--csv", action="store_true", help="print CSV, for scripts"),
)
def runs(args: argparse.Namespace) -> None:
    """List runs with their settings and key numbers, or compare two runs."""
    from workbench.runs.table import find_runs, is_run, runs_frame, runs_text

    if len(args.directory) == 2 and all(map(is_run, args.directory)):
        from workbench.workflows.compare import compare_runs

        table = compare_runs(*args.directory)
        if args.csv:
            table.to_csv(sys.stdout)
        else:
            print(f"first   {args.directory[0]}\nsecond  {args.directory[1]}\n")
            print(table.rename_axis(None).to_string(float_format=lambda number: f"{number:.1f}"))
            print("\nlow to high: the 95 % interval of the difference, from bootstrap samples of the images")
        return
    frame = runs_frame(find_runs(args.directory), args.evaluations)
    if frame.empty:
        raise WorkbenchError(f"there is no run in {', '.join(args.directory)}.")
    if args.csv:
        frame.to_csv(sys.stdout, index=False)
    else:
        print(runs_text(frame))


@command(
    "sweep",
    """
  workbench sweep configs/sweeps/queries_lr.yaml
  workbench sweep configs/sweeps/queries_lr.yaml --jobs 2""",
    option("sweep", metavar="YAML", help="notebook, output, parameters and grid; see configs/sweeps"),
    option("--jobs", type=_positive, default=1, metavar="N", help="runs at a time (1)"),
)
def sweep(args: argparse.Namespace) -> None:
    """Run a notebook over a grid of settings; finished runs are not repeated."""
    from workbench.runs.table import runs_text
    from workbench.workflows.sweep import TABLE, load_sweep, run_sweep

    plan = load_sweep(args.sweep)
    table = run_sweep(plan, jobs=args.jobs)
    print(runs_text(table))
    print(f"\ntable      {plan.output / TABLE}\nfigures    {plan.output / 'figures'}")
    failed = [run for run, status in zip(table["run"], table["status"], strict=True) if status == "failed"]
    if failed:
        count = f"{len(failed)} of {counted(len(table), 'run')} failed"
        raise WorkbenchError(f"{count} (papermill.log says why): {', '.join(failed)}.")


@command(
    "env",
    "\n  workbench env\n  workbench env --json > machine.json",
    option("--json", action="store_true", help="print JSON, for scripts"),
)
def env(args: argparse.Namespace) -> None:
    """Say what this machine can run, and what to do about whatever does not fit together."""
    from workbench.environment.facts import inspect_machine
    from workbench.environment.problems import format_report

    machine = inspect_machine()
    operators = ""
    if not machine["torch"]["error"]:
        from workbench.ops.selftest import format_selftest, run_selftest

        machine["operators"] = run_selftest()
        operators = f"\n\n{format_selftest(machine['operators'])}"
    print(json.dumps(machine, indent=2) if args.json else format_report(machine) + operators)


@command(
    "build-ops",
    "\n  workbench build-ops\n  workbench build-ops --force          compile again what the cache has",
    option("--force", action="store_true", help="compile again what the cache has"),
)
def build_ops(args: argparse.Namespace) -> None:
    """Compile the operators now rather than on first use, and check each against float64."""
    from workbench.ops.selftest import build_ops as build

    print(build(force=args.force))


class _Parser(argparse.ArgumentParser):
    """One sentence for an error instead of the whole usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise WorkbenchError(f"{message} (see {self.prog} --help)")


def _build_parser() -> tuple[_Parser, dict[str, _Parser]]:
    """Return the parser of all COMMANDS, and each command's own."""
    parser = _Parser(
        prog="workbench",
        description="Multi-task instance segmentation with Mask2Former: every object gets a mask, a main\n"
        "category and a value for each subcategory (colour, texture, ...).",
        epilog=TOUR,
    )
    parser.add_argument("--version", action="version", version=f"workbench {__version__}")
    added = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, entry in COMMANDS.items():
        about = entry.run.__doc__
        sub = added.add_parser(name, help=about, description=about, epilog=f"examples:{entry.examples}")
        sub.set_defaults(run=entry.run, takes_overrides=entry.overrides)
        for names, settings in entry.options:
            sub.add_argument(*names, **settings)
        sub.add_argument("--debug", action="store_true", help="show the traceback of a defect of the workbench")
        if entry.overrides:
            sub.usage = f"workbench {name} [options] [{OVERRIDES} ...]"
            sub.epilog += (
                f"\n\n{OVERRIDES} pairs change the config, as in detectron2:\n"
                "  SOLVER.BASE_LR 0.0005 TEST.MAX_DETS '[1, 10, 100]'"
            )
    return parser, added.choices


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse options before, between and after the KEY VALUE pairs, which argparse alone cannot do."""
    parser, commands = _build_parser()
    sub = commands.get(argv[0]) if argv else None
    if sub is not None:
        # Before argparse, which would name a missing required option and not the mistyped one.
        known = [name for action in sub._actions for name in action.option_strings]
        for word in argv[1:]:
            name = word.partition("=")[0]
            if name.startswith("-") and name not in known and not re.match(r"--?$|-[\d.]|-(inf|nan)$", name):
                sub.error(f"there is no option {name}{nearest(name, known)}")
    args, rest = parser.parse_known_args(argv)
    if rest and not args.takes_overrides:
        sub.error(f"{' '.join(rest)} is not understood")
    args.overrides = rest
    return args


def _fail(message: str, code: int = 2) -> int:
    with contextlib.suppress(OSError):  # stderr was closed or its disk is full
        print(f"workbench: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    from workbench.__main__ import main as run_process

    sys.exit(run_process())
