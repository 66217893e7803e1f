"""The ``workbench`` command: thin, one function a command. Heavy imports stay inside those functions, so that
``workbench --help`` answers at once.

What a user can mend is one sentence on stderr and exit code 2, never a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from workbench import __version__
from workbench.errors import WorkbenchError

OVERRIDES = "KEY VALUE"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code: 0, 1 (the reader of our output went away) or 2 (an
    error, told on stderr)."""
    os.environ.setdefault("MPLBACKEND", "agg")  # no command opens a window
    try:
        args = _parse(sys.argv[1:] if argv is None else list(argv))
        args.run(args)
        sys.stdout.flush()
        return 0
    except WorkbenchError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C.")
    except BrokenPipeError:
        # The interpreter flushes stdout once more on exit and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno is None:  # not the operating system's, so not a matter of files and rights
            raise
        return _fail(f"{error.strerror}: {error.filename or 'while reading or writing'}")


def shapes(args: argparse.Namespace) -> None:
    """Generate the shapes dataset."""
    from workbench.data.shapes.generate import generate_shapes

    output = args.output or os.path.join("data", "shapes_crowded" if args.crowded else "shapes")
    settings = {name: getattr(args, name) for name in ("seed", "train", "val", "test", "image_size")}
    settings = {name: value for name, value in settings.items() if value is not None}
    written = generate_shapes(output, crowded=args.crowded, **settings)
    print(f"The shapes dataset is in {output}" + ("" if written else ", complete since an earlier call"))


def validate(args: argparse.Namespace) -> None:
    """List every fault of a dataset."""
    from workbench.data.catalog import get_entry
    from workbench.data.validate import report as list_faults
    from workbench.data.validate import validate as find_faults

    faulty = []
    for name in args.dataset:
        hint = ""
        try:
            entry = get_entry(name, root=args.root)
        except WorkbenchError as error:
            if not name.endswith(".json"):
                raise
            entry = get_entry(f"{name}@{os.path.dirname(name) or '.'}")  # its other faults can be told all the same
            hint = "" if args.no_images else f" {error}"
        faults = find_faults(entry, check_images=not args.no_images)
        print(f"{entry.annotations}: {list_faults(faults)}")
        if faults:
            faulty.append(f"faults were found in {entry.annotations}.{hint}")
    if faulty:
        raise WorkbenchError(" ".join(faulty))


def train(args: argparse.Namespace) -> None:
    """Train, or continue, one run."""
    from workbench.config import load_config
    from workbench.workflows import train as workflow

    output = [] if args.output is None else ["OUTPUT_DIR", args.output]
    workflow.train(load_config(args.config, [*output, *args.overrides]), resume=args.resume)


def evaluate(args: argparse.Namespace) -> None:
    """Score a checkpoint on a dataset, or a results file against annotations."""
    from workbench.evaluation.evaluate import metrics_table
    from workbench.workflows import evaluate as workflow

    if args.ckpt is not None and args.annotations is not None:
        raise WorkbenchError("--annotations goes with --predictions; with --ckpt it is --dataset.")
    if args.ckpt is None and args.annotations is None:
        raise WorkbenchError("--predictions needs --annotations, the COCO JSON it is scored against.")
    if args.ckpt is None and args.dataset is not None:
        raise WorkbenchError("--dataset goes with --ckpt; with --predictions it is --annotations.")
    options = {"output": args.output, "overrides": args.overrides}
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):  # the log is no JSON
        if args.ckpt is not None:
            metrics = workflow.evaluate(args.ckpt, dataset=args.dataset, **options)
        else:
            metrics = workflow.evaluate_file(args.predictions, args.annotations, **options)
    if args.json:
        metrics = json.loads(json.dumps(metrics), parse_constant=lambda _: None)  # JSON knows no NaN
        print(json.dumps(metrics, indent=2))
    else:
        print(metrics_table(metrics))


def predict(args: argparse.Namespace) -> None:
    """Draw and write what a checkpoint sees in images."""
    from workbench.workflows import predict as workflow

    files = workflow.predict(
        args.ckpt,
        args.input,
        args.output,
        score_threshold=args.score_threshold,
        filters=args.filters,
        device=args.device,
    )
    print(f"Wrote {len(files) - 1} pictures and {files[-1]}")


def show(args: argparse.Namespace) -> None:
    """Print the scores of a run and where its files are."""
    from workbench.runs.table import describe_run

    print(describe_run(args.run_directory))


def report(args: argparse.Namespace) -> None:
    """Make an HTML report out of a run's executed notebooks."""
    from workbench.runs.report import write_report

    print(f"report     {write_report(args.run_directory)}")


def runs(args: argparse.Namespace) -> None:
    """List runs with their key numbers."""
    from workbench.runs.table import find_runs, runs_frame

    frame = runs_frame(find_runs(args.directory))
    if frame.empty:
        raise WorkbenchError(f"there is no run in {', '.join(args.directory)}.")
    if args.csv:
        frame.to_csv(sys.stdout, index=False)
    else:
        print(frame.to_string(index=False, na_rep="-", float_format=lambda number: f"{number:.4g}"))


def sweep(args: argparse.Namespace) -> None:
    """Run a notebook over a grid of settings."""
    from workbench.workflows.sweep import TABLE, load_sweep, run_sweep

    plan = load_sweep(args.sweep)
    table = run_sweep(plan, jobs=args.jobs)
    print(table.to_string(index=False, na_rep="-", float_format=lambda number: f"{number:.4g}"))
    print(f"\ntable      {plan.output / TABLE}\nfigures    {plan.output / 'figures'}")
    failed = [run for run, status in zip(table["run"], table["status"], strict=True) if status == "failed"]
    if failed:
        count = f"{len(failed)} of {len(table)} runs failed"
        raise WorkbenchError(f"{count} (papermill.log says why): {', '.join(failed)}.")


def env(args: argparse.Namespace) -> None:
    """Say what this machine can run."""
    from workbench.environment.facts import inspect_machine
    from workbench.environment.problems import format_report

    machine = inspect_machine()
    operators = ""
    if not machine["torch"]["error"]:
        from workbench.ops import selftest as ops_report

        machine["operators"] = ops_report.report()
        operators = f"\n\n{ops_report.format_report(machine['operators'])}"
    print(json.dumps(machine, indent=2) if args.json else format_report(machine) + operators)


def build_ops(args: argparse.Namespace) -> None:
    """Compile the operators for this machine and check them."""
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
    parser = _Parser(
        prog="workbench",
        description="Multi-task instance segmentation with Mask2Former: every object gets a mask, a main\n"
        "category and a value for each subcategory (colour, texture, ...).",
        epilog="a first tour:\n"
        "  workbench env                                    what this machine can run\n"
        "  workbench shapes                                 make a small dataset to try things on\n"
        "  workbench train --config configs/shapes/demo.yaml --output outputs/demo\n"
        "  workbench eval --ckpt outputs/demo/checkpoints/best\n"
        "  workbench predict --ckpt outputs/demo/checkpoints/best --output outputs/pictures "
        "data/shapes/test\n\nEach command has its own help: workbench train --help",
    )
    parser.add_argument("--version", action="version", version=f"workbench {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, function: Callable, about: str, examples: str, *, overrides: bool = False) -> _Parser:
        command = commands.add_parser(name, help=about, description=about, epilog=f"examples:\n{examples}")
        if overrides:
            command.usage = f"workbench {name} [options] [{OVERRIDES} ...]"
            command.epilog += (
                f"\n\n{OVERRIDES} pairs change the config, as in detectron2:\n"
                "  SOLVER.BASE_LR 0.0005 TEST.MAX_DETS '[1, 10, 100]'"
            )
        command.set_defaults(run=function, takes_overrides=overrides)
        return command

    command = add(
        "shapes",
        shapes,
        "Make the shapes dataset: generated pictures with shapes, colours and textures, in COCO's format.",
        "  workbench shapes                       into data/shapes, where configs/shapes/demo.yaml looks\n"
        "  workbench shapes --crowded             up to 100 objects an image, into data/shapes_crowded\n"
        "  workbench shapes --train 50 --val 10 --test 10 --output data/tiny",
    )
    command.add_argument("--output", metavar="DIR", help="where to write it (data/shapes[_crowded])")
    command.add_argument("--crowded", action="store_true", help="up to 100 small objects an image")
    command.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same bytes (0)")
    for split in ("train", "val", "test"):
        command.add_argument(f"--{split}", type=int, metavar="N", help=f"number of {split} images")
    command.add_argument("--image-size", type=int, metavar="N", help="side of an image in pixels")

    command = add(
        "validate",
        validate,
        "List every fault of a dataset, with image and annotation ids. Exit code 2 when there is one.",
        "  workbench validate my/annotations.json           images are looked for near the file\n"
        "  workbench validate my/annotations.json@pictures  or where the @ says\n"
        "  workbench validate shapes_train",
    )
    command.add_argument("dataset", nargs="+", metavar="A.json|NAME", help="a COCO JSON, or a dataset's name")
    command.add_argument("--root", default="data", metavar="DIR", help="where named datasets lie (data)")
    command.add_argument("--no-images", action="store_true", help="do not open the image files (faster)")

    command = add(
        "train",
        train,
        "Train a model into a run directory, or continue the run that is there.",
        "  workbench train --config configs/shapes/demo.yaml --output outputs/demo\n"
        "  workbench train --config configs/shapes/demo.yaml --output outputs/gpu MODEL.DEVICE cuda\n"
        "  accelerate launch --num_processes 4 -m workbench.cli train --config ... --output ...",
        overrides=True,
    )
    command.add_argument(
        "--config", "--config-file", required=True, metavar="YAML", help="the config, in detectron2's keys"
    )
    command.add_argument("--output", metavar="DIR", help="the run directory (the config's OUTPUT_DIR)")
    command.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue the run found in the run directory (the default); --no-resume refuses to",
    )

    command = add(
        "eval",
        evaluate,
        "Score a checkpoint on a dataset, or an existing COCO results file against annotations.",
        "  workbench eval --ckpt outputs/demo/checkpoints/best\n"
        "  workbench eval --ckpt outputs/demo --dataset my/val.json --output outputs/on_mine\n"
        "  workbench eval --ckpt outputs/demo TEST.MAX_DETS '[1, 10, 300]' TEST.RANK_BY geometric_mean\n"
        "  workbench eval --predictions predictions.json --annotations my/val.json",
        overrides=True,
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--ckpt", metavar="CKPT", help="a checkpoint directory, or a run (its best is taken)")
    what.add_argument("--predictions", metavar="R.json", help="a COCO results file to score instead")
    command.add_argument("--annotations", metavar="A.json", help="the ground truth for --predictions")
    command.add_argument("--dataset", metavar="NAME|A.json", help="the data for --ckpt (DATASETS.TEST)")
    command.add_argument("--output", metavar="DIR", help="where metrics.json and predictions.json go")
    command.add_argument("--json", action="store_true", help="print metrics.json instead of tables")

    command = add(
        "predict",
        predict,
        "Find objects in images: an overlay PNG for each and one predictions.json for all.",
        "  workbench predict --ckpt outputs/demo/checkpoints/best --output outputs/pictures photo.jpg\n"
        "  workbench predict --ckpt outputs/demo --output outputs/pictures photos/ 'more/*.png'\n"
        "  workbench predict --ckpt outputs/demo --filters settings.json --output outputs/pictures photos/",
    )
    command.add_argument("--ckpt", required=True, metavar="CKPT", help="a checkpoint directory, or a run")
    command.add_argument("--output", required=True, metavar="DIR", help="where the files go")
    command.add_argument(
        "--score-threshold", type=float, metavar="S", help="leave out what scores less (0.5, or the filters')"
    )
    command.add_argument(
        "--filters", metavar="JSON", help="what is kept, as saved in notebook 06 (scores, overlaps, ...)"
    )
    command.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; the best there is")
    command.add_argument("input", nargs="+", metavar="INPUT", help="images, folders or globs")

    command = add(
        "show",
        show,
        "Print the scores of a run and where its checkpoint, figures and notebooks are.",
        "  workbench show outputs/demo",
    )
    command.add_argument("run_directory", metavar="RUN", help="a run directory")

    command = add(
        "report",
        report,
        "Join the executed notebooks of a run into one HTML file that stands alone.",
        "  workbench report outputs/demo",
    )
    command.add_argument("run_directory", metavar="RUN", help="a run directory")

    command = add(
        "runs",
        runs,
        "List runs with their settings and key numbers.",
        "  workbench runs                       all runs below outputs\n"
        "  workbench runs outputs/sweeps --csv > runs.csv",
    )
    command.add_argument("directory", nargs="*", default=["outputs"], metavar="DIR", help="where (outputs)")
    command.add_argument("--csv", action="store_true", help="print CSV, for scripts")

    command = add(
        "sweep",
        sweep,
        "Run a notebook over a grid of settings; what is done is not repeated.",
        "  workbench sweep configs/sweeps/queries_lr.yaml\n  workbench sweep configs/sweeps/queries_lr.yaml --jobs 2",
    )
    command.add_argument("sweep", metavar="YAML", help="notebook, output and grid; see configs/sweeps")
    command.add_argument("--jobs", type=_positive, default=1, metavar="N", help="runs at a time (1)")

    command = add(
        "env",
        env,
        "Say what this machine can run, and what to do about whatever does not fit together.",
        "  workbench env\n  workbench env --json > machine.json",
    )
    command.add_argument("--json", action="store_true", help="print JSON, for scripts")

    command = add(
        "build-ops",
        build_ops,
        "Compile the operators now rather than on first use, and check each against float64.",
        "  workbench build-ops\n  workbench build-ops --force          compile again what the cache has",
    )
    command.add_argument("--force", action="store_true", help="compile again what the cache has")
    return parser, commands.choices


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options may stand before, between and after the KEY VALUE pairs, which argparse alone cannot do."""
    parser, commands = _build_parser()
    command = commands.get(argv[0]) if argv else None
    if command is not None:
        # Before argparse, which would name the required option that is missing, not the mistyped word.
        known = [option for action in command._actions for option in action.option_strings]
        for word in argv[1:]:
            option = word.partition("=")[0]
            if option.startswith("-") and option not in known and not re.match(r"--?$|-[\d.]", option):
                nearest = difflib.get_close_matches(option, known, n=1)
                hint = f"; did you mean {nearest[0]}?" if nearest else ""
                command.error(f"there is no option {option}{hint}")
    args, rest = parser.parse_known_args(argv)
    if rest and not args.takes_overrides:
        command.error(f"{' '.join(rest)} is not understood")
    args.overrides = rest
    return args


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number


def _fail(message: str) -> int:
    print(f"workbench: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
