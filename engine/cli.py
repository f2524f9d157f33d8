"""The command line: `vs3r COMMAND ...`.

Results go to standard output; progress, remarks and errors to standard error. An error is one line "vs3r: error: ..."
and exit code 1, an interrupt exit code 130. Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from vs3r import __version__
from vs3r.config import Config, FlowConfig, VggtConfig
from vs3r.engine.allocator import keep_freed_memory
from vs3r.engine.options import config_from, config_options, settings_from, settings_options
from vs3r.engine.server.settings import ServeConfig
from vs3r.engine.talk import Talk, talk_options
from vs3r.engine.train_commands import train
from vs3r.errors import InputError, OutputError, Vs3rError

if TYPE_CHECKING:
    from vs3r.engine.files import RunReport
    from vs3r.engine.progress import ProgressCallback
    from vs3r.engine.weights import StoredFile

_INTERRUPTED = 130
_IMPATIENT_S = 3.0
_READOUT_WORTH_TELLING_S = 1e-3


def main() -> NoReturn:
    """Entry point of the `vs3r` program."""
    # numpy's BLAS would solve small systems in a thread a core, which wait for each other. Read when numpy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    interrupt = _Interrupt()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup has SIGHUP ignored: that stays.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, interrupt)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            # Closed by whoever started us (2>&-): Python has none then, and a file of ours would take its descriptor.
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            setattr(sys, name, os.fdopen(descriptor, "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that the terminal cannot show must not fail what is done
    keep_freed_memory()
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run one command line; returns the exit code."""
    debug = "--debug" in args
    try:
        with cli.make_context("vs3r", [a for a in args if a != "--debug"]) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except KeyboardInterrupt:
        return _fail("interrupted; no unfinished file is left", code=_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone, `vs3r doctor | head` for one; nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return _fail("expected a command, got none; choose one of those above")
    except click.ClickException as error:
        return _fail(error.format_message())
    except Vs3rError as error:
        if debug:
            traceback.print_exc()
        return _fail(str(error))
    except MemoryError:
        return _fail("out of memory; use a smaller video, or less of --fill-window-frames and --lookahead-frames")
    except OSError as error:  # our own files are told about where they are used; what is left is mostly a full disk
        if debug:
            traceback.print_exc()
        return _fail(f"cannot use {error.filename or 'standard output'}: {error.strerror}; check the disk and the path")
    except Exception as error:
        if debug:
            traceback.print_exc()
        kind = type(error).__name__
        return _fail(f"this is a bug in vs3r ({kind}: {error}); please report it; rerun with --debug for details")
    return 0


def _fail(message: str, *, code: int = 1) -> int:
    line = " ".join(message.split())
    print(f"vs3r: error: {line}", file=sys.stderr)  # noqa: T201
    return code


class _Interrupt:
    """Ctrl-C, a polite termination or a closed terminal: what runs cleans up and ends."""

    def __init__(self) -> None:
        self._last_s = -math.inf

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """Those that follow at once, as of somebody impatient, belong to the first: cleaning up is not cut short."""
        now_s = time.monotonic()
        if now_s - self._last_s > _IMPATIENT_S:
            self._last_s = now_s
            raise KeyboardInterrupt


overwrite_option = click.option("--overwrite", "-y", is_flag=True, help="replace an output file that exists")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="vs3r")
def cli() -> None:
    """Stabilize shaky video without cropping it.

    vs3r stabilize shaky.mp4 steady.mp4

    With --debug, an error is printed with its full origin.
    """


@cli.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@config_options("smooth", "render", "refine", "wan", "flow", "reconstruct", "vggt", "network", "source", "encode")
@click.option("--server", metavar="HOST:PORT", help="let a server (vs3r serve) do the work")
@click.option("--server-token-file", metavar="FILE", help="file with the server's token")
@click.option("--server-ca", metavar="FILE", help="certificate (PEM) that the server's is signed with; turns on TLS")
@click.option("--client-cert", metavar="FILE", help="own certificate (PEM), for a server that asks for one")
@click.option("--client-key", metavar="FILE", help="the key (PEM) of --client-cert")
@overwrite_option
@talk_options
def stabilize(
    source: str,
    target: str,
    server: str | None,
    server_token_file: str | None,
    server_ca: str | None,
    client_cert: str | None,
    client_key: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **values: Any,
) -> None:
    """Stabilize the video IN and write it to OUT (.mp4, .mov or .mkv).

    Sound, subtitles, times, rotation, aspect ratio and colour tags are kept.
    """
    talk, config = Talk(as_json=as_json, quiet=quiet), config_from(values)
    check_target(target, overwrite, source)
    files = (server_token_file, server_ca, client_cert, client_key)
    if server is None and any(files):
        raise InputError(
            "--server-token-file, --server-ca, --client-cert and --client-key need --server HOST:PORT, got none; "
            "name it or leave them out"
        )
    with talk.progress() as progress:
        if server is None:
            from vs3r.engine.files import stabilize_file

            report = stabilize_file(source, target, config, progress=progress)
        else:
            from vs3r.engine.client.connection import read_access
            from vs3r.engine.client.files import stabilize_file_at

            report = stabilize_file_at(server, read_access(*files), source, target, config, progress=progress)
    _tell_report(talk, report, config)


@cli.command()
@click.argument("source", metavar="IN")
@click.option("--output", "-o", "target", required=True, metavar="OUT.vs3r", help="the track file to write")
@config_options("flow", "reconstruct", "vggt", "network", "source")
@overwrite_option
@talk_options
def analyze(source: str, target: str, overwrite: bool, as_json: bool, quiet: bool, **values: Any) -> None:
    """Recover the camera path and depth of the video IN, for `vs3r render --track`."""
    talk, config = Talk(as_json=as_json, quiet=quiet), config_from(values)
    check_target(target, overwrite, source)
    if not target.endswith(".vs3r"):
        raise InputError(f"expected an output name that ends in .vs3r, got {target}")
    from vs3r.engine.files import analyze_file
    from vs3r.engine.track_file import save_track

    with talk.progress() as progress:
        track = analyze_file(source, config, progress=progress)
    save_track(track, target)
    segments = int(track.segment[-1]) + 1
    cuts = "" if segments == 1 else f", {segments} scenes"
    talk.event("result", f"{target}: {len(track)} frames{cuts}", output=target, frames=len(track), scenes=segments)


@cli.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--track", "track_path", required=True, metavar="IN.vs3r", help="the track that vs3r analyze made of IN")
@config_options("smooth", "render", "refine", "wan", "encode")
@overwrite_option
@talk_options
def render(
    source: str, target: str, track_path: str, overwrite: bool, as_json: bool, quiet: bool, **values: Any
) -> None:
    """Render the video IN along the smoothed path of a track, without analyzing it again.

    The whole path is known, so --lookahead-frames has no effect here.
    """
    talk, config = Talk(as_json=as_json, quiet=quiet), config_from(values)
    check_target(target, overwrite, source, track_path)
    from vs3r.engine.files import render_file
    from vs3r.engine.track_file import load_track

    track = load_track(track_path)
    with talk.progress() as progress:
        report = render_file(source, target, track, config, progress=progress)
    _tell_report(talk, report, config)


@cli.command()
@click.argument("source", metavar="IN")
@click.argument("result", metavar="OUT")
@click.option("--quick", is_flag=True, help="leave out the slow measurements")
@click.option("--plot", metavar="PATH.png", help="also draw the camera path of both (needs matplotlib)")
@overwrite_option
@talk_options
def evaluate(
    source: str, result: str, quick: bool, plot: str | None, overwrite: bool, as_json: bool, quiet: bool
) -> None:
    """Measure the stabilized video OUT against its source IN."""
    talk = Talk(as_json=as_json, quiet=quiet)
    if plot is not None:
        check_target(plot, overwrite, source, result)
    from vs3r.engine.evaluate import evaluate_files
    from vs3r.engine.report import check_plotting, evaluation_table, plot_motion

    if plot is not None:
        check_plotting()
    with talk.progress() as progress:
        evaluation = evaluate_files(source, result, quick=quick, progress=_counter(progress, source))
    if plot is not None:
        plot_motion(source, evaluation, plot)
        talk.note(f"the camera path is drawn in {plot}")
    talk.event("result", evaluation_table(evaluation), **evaluation.summary())


@cli.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--output", "-o", "target", required=True, metavar="OUT", help="the video to write (.mp4, .mov or .mkv)")
@overwrite_option
@talk_options
def compare(a: str, b: str, target: str, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Show the videos A and B side by side in one."""
    talk = Talk(as_json=as_json, quiet=quiet)
    check_target(target, overwrite, a, b)
    from vs3r.engine.compare import compare_files

    with talk.progress() as progress:
        notes = compare_files(a, b, target, progress=_counter(progress, a))
    for note in notes:
        talk.note(note)
    talk.event("result", f"{target}: {a} and {b} side by side", output=target)


@cli.command()
@settings_options("serve", ServeConfig)
@talk_options
def serve(as_json: bool, quiet: bool, **values: Any) -> None:
    """Make the engine available to editors and programs over gRPC, until it is told to end.

    Only this machine can reach it unless --listen says otherwise. docs/server.md tells more.
    """
    config = settings_from("serve", ServeConfig, values)
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    from vs3r.engine.server.serve import Server

    with Server(config) as server:
        talk = Talk(as_json=as_json, quiet=quiet)
        talk.event("serving", f"serving on {server.address}", address=server.address, metrics_port=server.metrics_port)
        sys.stdout.flush()
        server.wait()


@cli.group()
def weights() -> None:
    """Checkpoints of the learned parts: list them, fetch them, verify them.

    They belong to their publishers, whose licence is shown before anything is fetched. The default needs none.
    """


@weights.command("list")
@talk_options
def list_weights(as_json: bool, quiet: bool) -> None:
    """List what can be fetched, under which licence, and what is here."""
    from vs3r.engine.weights import is_here
    from vs3r.weights import WEIGHTS, weights_folder

    talk = Talk(as_json=as_json, quiet=quiet)
    for entry in WEIGHTS.values():
        here = is_here(entry.name)
        gated = "; handed out on request" if entry.gated else ""
        text = (
            f"{entry.name:<22}{'here' if here else '-':<6}{entry.used_for}\n"
            f"{'':<28}{entry.source}{gated}\n{'':<28}{entry.licence}"
        )
        data = {"name": entry.name, "here": here, "folder": str(weights_folder(entry.name)), "source": entry.source}
        talk.event("weights", text, **data, licence=entry.licence, gated=entry.gated)


@weights.command("fetch")
@click.argument("name")
@talk_options
def fetch_weights(name: str, as_json: bool, quiet: bool) -> None:
    """Fetch the weights NAME, or what is still missing of them, and verify them."""
    from vs3r.engine.weights import fetch, known
    from vs3r.weights import weights_folder

    talk, entry = Talk(as_json=as_json, quiet=quiet), known(name)
    talk.note(f"{name} comes from {entry.source} under the licence {entry.licence} ({entry.licence_url})")
    with talk.bytes_progress() as progress:
        files = fetch(name, progress)
    _tell_weights(talk, name, f"in {weights_folder(name)}", files)


@weights.command("verify")
@click.argument("name")
@talk_options
def verify_weights(name: str, as_json: bool, quiet: bool) -> None:
    """Read the weights NAME again and compare them with what came."""
    from vs3r.engine.weights import verify

    talk = Talk(as_json=as_json, quiet=quiet)
    with talk.bytes_progress() as progress:
        files = verify(name, progress)
    _tell_weights(talk, name, "as they came", files)


cli.add_command(train)


@cli.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--format", "format_name", required=True, type=click.Choice(("aoti", "onnx", "tensorrt")), help="kind of engine"
)
@click.option(
    "--width",
    type=click.IntRange(min=1),
    default=480,
    help="of the picture that analysis sees, in pixels; vggt4d takes its shape  [default 480]",
)
@click.option("--height", type=click.IntRange(min=1), default=270, help="of the same  [default 270]")
@click.option(
    "--precision",
    type=click.Choice(("fp32", "fp16", "bf16")),
    help="number format of the network  [default fp32 or, of vggt4d, bf16]",
)
@click.option("--raft-iterations", type=click.INT, help="as for stabilize")
@click.option("--frames", type=click.INT, help="as --vggt-window-frames for stabilize")
@click.option("--vggt-weights", help="as for stabilize")
@click.option("--vggt-long-side", type=click.INT, help="as for stabilize")
@overwrite_option
@talk_options
def export(
    model: str,
    format_name: str,
    width: int,
    height: int,
    precision: str | None,
    raft_iterations: int | None,
    frames: int | None,
    vggt_weights: str | None,
    vggt_long_side: int | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Build the network MODEL (raft or vggt4d) as an engine for one picture size, test it, and keep it in the cache.

    stabilize and analyze take it from there, see --runtime.
    """
    talk = Talk(as_json=as_json, quiet=quiet)
    flow = settings_from(
        "flow", FlowConfig, {"flow__raft_precision": precision, "flow__raft_iterations": raft_iterations}
    )
    given = {"weights": vggt_weights, "window_frames": frames, "long_side": vggt_long_side, "precision": precision}
    vggt = settings_from(
        "vggt", VggtConfig, {"vggt__vggt_overlap_frames": 1} | {f"vggt__vggt_{k}": v for k, v in given.items()}
    )
    from vs3r.export.models import Request, export_model

    request = Request(width=width, height=height, flow=flow, vggt=vggt)
    for engine in export_model(model, format_name, request, rebuild=overwrite):
        text = f"{engine.path}: {engine.key.model} for {', '.join(engine.key.inputs)}, differs from PyTorch in float32 "
        text += f"by {engine.error:.1e}"
        talk.event("result", text, output=str(engine.path), error=engine.error, key=dataclasses.asdict(engine.key))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object, for programs")
def doctor(as_json: bool) -> None:
    """Say what can run on this machine, and why something cannot."""
    from vs3r.engine.doctor import examine, report_table

    findings = examine()
    Talk(as_json=as_json, quiet=False).event(
        "doctor", report_table(findings), findings=[dataclasses.asdict(finding) for finding in findings]
    )


def check_target(target: str, overwrite: bool, *inputs: str) -> None:
    """Refuse, before any work, a target that is an input, cannot be made, or exists and may not be replaced.

    Raises:
        OutputError: what to do instead.
    """
    path = Path(target)
    folder = Path(os.path.realpath(target)).parent  # where a link leads to: that is what is written
    try:
        for source in inputs:
            if path == Path(source) or (path.exists() and Path(source).exists() and path.samefile(source)):
                raise OutputError(f"the output {target} is the input; give another name")
        if path.is_dir():
            raise OutputError(f"expected an output file, got a folder: {target}")
        if not folder.is_dir():
            raise OutputError(f"the output folder does not exist: {folder}; create it first")
        if path.exists() and not overwrite:
            raise OutputError(f"the output {target} exists; give another name, or --overwrite to replace it")
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise OutputError(f"cannot use the name {error.filename}: {error.strerror}; give another one") from None
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write into {folder}; choose another folder")


def _counter(callback: ProgressCallback | None, source: str) -> Callable[[int], None]:
    """For work that only counts pictures."""
    from vs3r.engine.media import probe
    from vs3r.engine.progress import Meter

    meter = Meter(callback, probe(source).frames_estimate)
    return lambda _done: meter.tick()


def _tell_weights(talk: Talk, name: str, state: str, files: list[StoredFile]) -> None:
    stated = sum(file.stated for file in files)
    size = sum(file.size for file in files)
    text = f"{name}: {len(files)} files, {size / 2**20:.1f} MiB, {state}; the publisher states the checksum of {stated}"
    talk.event("result", text, name=name, files=[dataclasses.asdict(file) for file in files])


def _tell_report(talk: Talk, report: RunReport, config: Config) -> None:
    for note in report.notes:
        talk.note(note)
    rest = "left empty" if config.refine.backend == "none" else "repaired"
    text = (
        f"{report.output}: {report.frames} frames in {report.seconds:.1f} s ({report.fps:.1f} fps), "
        f"{100 * report.valid_share:.2f} % of the picture from the source, the rest {rest}"
    )
    if report.readout_s is not None and abs(report.readout_s) >= _READOUT_WORTH_TELLING_S:
        text += f"; a rolling shutter of {1000 * report.readout_s:.0f} ms undone"
    if report.distortion:
        text += "; seen through a fisheye"
    data = dataclasses.asdict(report) | {"output": str(report.output), "fps": report.fps}
    talk.event("result", text, **data)
