"""The command line: `iqa-ray <job>`. The scripts in jobs/ call the same `main`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

import iqa_ray
from iqa_ray.config import Job, build_parser, parse_job, refuse_credentials
from iqa_ray.errors import IncompleteError, UsageError

DONE, INCOMPLETE, UNUSABLE, ALERT = 0, 1, 2, 3


@dataclass(frozen=True)
class Command:
    """A job: where its settings, its function and its description for people are found.

    Settings have modules of their own, which import no library that takes long: `--help` shows
    them before the job's module, and Ray with it, is imported.
    """

    settings: str
    job: str
    module: str
    run: str
    describe: str
    summary: str
    examples: str

    def load_job(self) -> type[Job]:
        """The class of its settings."""
        job: type[Job] = getattr(import_module(self.settings), self.job)
        return job

    def load(self, attribute: str) -> Any:
        """A function of the job's module."""
        return getattr(import_module(self.module), attribute)


COMMANDS = {
    "make-data": Command(
        "iqa_ray.synthetic.settings", "MakeDataJob",
        "iqa_ray.synthetic.jobs", "run_make_data", "describe_data",
        "make synthetic photographs of dot-matrix codes, with a known defocus each",
        "iqa-ray make-data codes\n"
        "iqa-ray make-data codes --num-images 2000 --image-size 320 --seed 7",
    ),
    "score": Command(
        "iqa_ray.scoring.settings", "ScoreJob",
        "iqa_ray.scoring.jobs", "run_score", "describe_scores",
        "score every image with no-reference quality metrics",
        "iqa-ray score photos --workspace ws\n"
        "iqa-ray score photos.csv --workspace ws --metrics lapm,wavs,brisque\n"
        "iqa-ray score photos --workspace ws --metrics lapm,musiq,maniqa --weights /nfs/weights\n"
        "iqa-ray score s3://bucket/photos --workspace s3://bucket/ws --address auto\n"
        "iqa-ray score s3://bucket/photos --workspace s3://bucket/ws --address auto "
        "--metrics lapm,musiq --resources ray.io/accelerator-type=H200",
    ),
    "predict": Command(
        "iqa_ray.predictions.settings", "PredictJob",
        "iqa_ray.predictions.jobs", "run_predict", "describe_predictions",
        "get a prediction for every scored image",
        "iqa-ray predict --workspace ws --predictions mine.csv\n"
        "iqa-ray predict --workspace ws --backbone efficientnet_lite0 --freeze-backbone "
        "--train-images train\n"
        "iqa-ray predict --workspace ws --backbone resnet34 --split 0.4 --epochs 40",
    ),
    "study": Command(
        "iqa_ray.study.settings", "StudyJob",
        "iqa_ray.study.jobs", "run_study", "describe_study",
        "find out which metrics can be trusted: blur moves them, cropping and rotation do not",
        "iqa-ray study photos --workspace ws\n"
        "iqa-ray study photos --workspace ws --metrics lapm,wavs,musiq --num-samples 30 --keep 2\n"
        "iqa-ray study --series defocus.csv --workspace ws",
    ),
    "cutoffs": Command(
        "iqa_ray.selection.settings", "CutoffsJob",
        "iqa_ray.selection.jobs", "run_cutoffs", "describe_cutoffs",
        "learn each metric's cut-off from right and wrong predictions",
        "iqa-ray cutoffs --workspace ws\n"
        "iqa-ray cutoffs --workspace ws --metrics lapm,wavs --weighting prior\n"
        "iqa-ray cutoffs --workspace ws --metrics wavs --cutoff lapm=2.6\n"
        "iqa-ray cutoffs --workspace ws --target-accuracy 0.95 --group object",
    ),
    "select": Command(
        "iqa_ray.selection.settings", "SelectJob",
        "iqa_ray.selection.jobs", "run_select", "describe_selection",
        "let the metrics vote and keep the images that pass",
        "iqa-ray select --workspace ws\n"
        "iqa-ray select --workspace ws --metrics lapm,wavs,niqe --rule any --link kept\n"
        "iqa-ray select --workspace ws --cutoffs-from other-ws",
    ),
    "compare": Command(
        "iqa_ray.experiments.settings", "CompareJob",
        "iqa_ray.experiments.compare", "run_compare", "describe_compare",
        "does training on the selected images beat training on all? five seeds each",
        "iqa-ray compare --workspace ws\n"
        "iqa-ray compare --workspace ws --backbones efficientnet_lite0 --freeze-backbone\n"
        "iqa-ray compare --workspace ws --backbones resnet18 --weights none --epochs 10 "
        "--seeds 0,1,2",
    ),
    "vary": Command(
        "iqa_ray.experiments.settings", "VaryJob",
        "iqa_ray.experiments.vary", "run_vary", "describe_vary",
        "how much of the lowest quality is worth removing?",
        "iqa-ray vary --workspace ws\n"
        "iqa-ray vary --workspace ws --backbone efficientnet_lite0 --freeze-backbone "
        "--removed 0,25,50",
    ),
    "smooth": Command(
        "iqa_ray.smoothing.settings", "SmoothJob",
        "iqa_ray.smoothing.jobs", "run_smooth", "describe_smooth",
        "train on distorted images with labels as sure as the images are good",
        "iqa-ray smooth cifar10:data --workspace ws\n"
        "iqa-ray smooth photos --workspace ws --backbone resnet18 --epochs 40 --num-test 1000\n"
        "iqa-ray smooth photos --workspace ws --score ssim,brisque --strategies 1,2,3",
    ),
    "distortions train": Command(
        "iqa_ray.distortion_types.settings", "TrainTypesJob",
        "iqa_ray.distortion_types.jobs", "run_train", "describe_train",
        "train a network to say what is wrong with an image",
        "iqa-ray distortions train --synthesise-from photos --workspace ws\n"
        "iqa-ray distortions train live --workspace ws --seeds 0,1,2,3,4 --class-weights\n"
        "iqa-ray distortions train --synthesise-from photos --workspace ws "
        "--network efficientnet_lite0",
    ),
    "distortions evaluate": Command(
        "iqa_ray.distortion_types.settings", "EvaluateTypesJob",
        "iqa_ray.distortion_types.jobs", "run_evaluate", "describe_evaluate",
        "how often does it name the distortion rightly?",
        "iqa-ray distortions evaluate labelled.csv --workspace ws\n"
        "iqa-ray distortions evaluate --synthesise-from others --mix balanced --workspace ws "
        "--model ws/distortion_types/model.safetensors",
    ),
    "distortions apply": Command(
        "iqa_ray.distortion_types.settings", "ApplyTypesJob",
        "iqa_ray.distortion_types.jobs", "run_apply", "describe_apply",
        "say of every scored image what is wrong with it, and how badly",
        "iqa-ray distortions apply --workspace ws\n"
        "iqa-ray distortions apply --workspace ws --model ws/distortion_types/model.safetensors",
    ),
    "layers": Command(
        "iqa_ray.layers.settings", "LayersJob",
        "iqa_ray.layers.jobs", "run_layers", "describe_layers",
        "where in a network distortions bite: how far they move each layer's features",
        "iqa-ray layers --workspace ws\n"
        "iqa-ray layers --workspace ws --distortions gaussian_blur,noise --levels 1,3,5\n"
        "iqa-ray layers --workspace ws --network resnet50.pth --architecture resnet50 "
        "--classes classes.txt",
    ),
    "metrify build": Command(
        "iqa_ray.metrifier.settings", "BuildJob",
        "iqa_ray.metrifier.jobs", "run_build", "describe_build",
        "distort labelled images, and note how well your classifier does on each",
        "iqa-ray metrify build photos --workspace ws --task-networks ws/models/KEY.pt\n"
        "iqa-ray metrify build photos --workspace ws --task-networks resnet18:mine.pth,other.pt2 "
        "--distortions gaussian_blur,noise,jpeg --levels 1,3,5",
    ),
    "metrify train": Command(
        "iqa_ray.metrifier.settings", "TrainMetrifierJob",
        "iqa_ray.metrifier.jobs", "run_train", "describe_train",
        "train a metric that predicts how well your classifier does on an image",
        "iqa-ray metrify train --workspace ws\n"
        "iqa-ray metrify train --workspace ws --backbone efficientnet_lite0 --freeze-backbone "
        "--seeds 0,1,2 --leave-out motion_blur",
    ),
    "metrify evaluate": Command(
        "iqa_ray.metrifier.settings", "EvaluateMetrifierJob",
        "iqa_ray.metrifier.jobs", "run_evaluate", "describe_evaluate",
        "does it predict errors better than other metrics, and than the classifier's confidence?",
        "iqa-ray metrify evaluate --workspace ws\n"
        "iqa-ray metrify evaluate --workspace ws --task-networks another.pt "
        "--metrics lapm,wavs,brisque",
    ),
    "rescore": Command(
        "iqa_ray.rescoring.settings", "RescoreJob",
        "iqa_ray.rescoring.jobs", "run_rescore", "describe_rescore",
        "every night: score what is new or changed, vote again, look for drift",
        "iqa-ray rescore photos --workspace ws\n"
        "iqa-ray rescore s3://bucket/photos --workspace s3://bucket/ws --address auto "
        "--alert-drift 0.25 --alert-rejected 0.1 --alert-errors 0.02",
    ),
    "compact": Command(
        "iqa_ray.rescoring.settings", "CompactJob",
        "iqa_ray.rescoring.jobs", "run_compact", "describe_compact",
        "merge the small parts that many nights leave behind",
        "iqa-ray compact ws",
    ),
    "weights": Command(
        "iqa_ray.weights.settings", "WeightsJob",
        "iqa_ray.weights.jobs", "run_weights", "describe_weights",
        "fetch the files of deep metrics and of classifiers, or verify them",
        "iqa-ray weights pull --to /nfs/weights\n"
        "iqa-ray weights pull --backbones resnet18,resnet34,alexnet,vgg19 --to /nfs/weights\n"
        "iqa-ray weights pull --metrics topiq_nr,clipiqa --to s3://bucket/weights\n"
        "iqa-ray weights check --from /nfs/weights",
    ),
    "demo": Command(
        "iqa_ray.synthetic.settings", "DemoJob",
        "iqa_ray.demo", "run_demo", "describe_demo",
        "run the whole main job on synthetic images",
        "iqa-ray demo --workspace demo-workspace",
    ),
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`{self.prog} --help` shows what there is)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 incomplete, 2 unusable input, 3 done but some threshold for an alert is exceeded.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        refuse_credentials(arguments)  # before any message that repeats one
        return _run(arguments)
    except UsageError as error:
        return _fail(str(error), UNUSABLE)
    except IncompleteError as error:
        return _fail(str(error), INCOMPLETE)
    except KeyboardInterrupt:
        return _fail(
            "interrupted; what is finished is kept, run the same command again to go on", INCOMPLETE
        )
    except BrokenPipeError:
        sys.stderr.close()
        return INCOMPLETE
    except OSError as error:  # no access, a full disk, a store that failed on every try
        from iqa_ray.storage.files import one_line

        is_denied = isinstance(error, PermissionError)
        advice = "" if is_denied else "; run the same command again to go on"
        return _fail(one_line(error) + advice, UNUSABLE if is_denied else INCOMPLETE)


def _run(arguments: list[str]) -> int:
    parser = _Parser(
        prog="iqa-ray",
        description="Image-quality-guided dataset curation on Ray.",
        epilog=_list_commands(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"iqa_ray {iqa_ray.__version__}")
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="see below")
    if not arguments:
        parser.print_help(sys.stderr)
        return UNUSABLE
    arguments = _join_words(arguments)
    chosen = parser.parse_args(arguments[:1])
    command = COMMANDS[chosen.command]
    model = command.load_job()
    options = _Parser(
        prog=f"iqa-ray {chosen.command}",
        description=model.__doc__,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in command.examples.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build_parser(options, model)
    options.add_argument(
        "--json", action="store_true", help="print the summary as JSON; all else goes to stderr"
    )
    parsed = options.parse_args(arguments[1:])
    as_json = parsed.json
    with _stdout_sent_to_stderr():
        job = parse_job(model, parsed)
        summary = command.load(command.run)(job)
    describe: Callable[[dict[str, Any]], str] = command.load(command.describe)
    print(json.dumps(summary, ensure_ascii=False) if as_json else describe(summary), flush=True)
    alerts: list[str] = summary.get("alerts", [])
    for alert in alerts:
        print(f"iqa-ray: alert: {alert}", file=sys.stderr)
    return ALERT if alerts else DONE


def _join_words(arguments: list[str]) -> list[str]:
    """Make one argument of the words of a command that has two, such as `distortions train`."""
    group = arguments[0]
    names = [name for name in COMMANDS if name.startswith(f"{group} ")]
    if not names:
        return arguments
    parser = _Parser(
        prog=f"iqa-ray {group}",
        epilog=_list_commands(names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = [name.removeprefix(f"{group} ") for name in names]
    parser.add_argument("command", choices=words, metavar="COMMAND", help="see below")
    chosen = parser.parse_args(arguments[1:2])
    return [f"{group} {chosen.command}", *arguments[2:]]


@contextmanager
def _stdout_sent_to_stderr() -> Iterator[None]:
    """Send to standard error what is printed meanwhile: standard output holds the summary alone.

    Ray prints errors such as a lost worker on standard output and has no option against it. C
    libraries write to the descriptor, not to `sys.stdout`; so both are redirected.
    """
    with ExitStack() as stack:
        stdout, stderr = sys.stdout, sys.stderr
        if stderr is None:  # the process was started without one
            stderr = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        try:
            descriptor, target = stdout.fileno(), stderr.fileno()
        except (AttributeError, OSError):  # none, or replaced by an object in memory
            pass
        else:
            stdout.flush()
            kept = os.dup(descriptor)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, descriptor)
            stack.callback(stdout.flush)  # what others wrote to it meanwhile goes with the rest
            os.dup2(target, descriptor)
        stack.enter_context(redirect_stdout(stderr))
        yield


def _list_commands(names: Iterable[str] = COMMANDS) -> str:
    lines = [f"  {name:20} {COMMANDS[name].summary}" for name in names]
    return "commands:\n" + "\n".join(lines) + "\n\n`iqa-ray COMMAND --help` shows its settings."


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"iqa-ray: {'error' if code == UNUSABLE else 'incomplete'}: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
