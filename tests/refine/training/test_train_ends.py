"""How `vs3r train dvdm` ends early: all processes together, and with what was learnt."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.refine.training.test_train import losses, settings
from vs3r.engine.threads import Stopped
from vs3r.engine.train import TrainStep, last_checkpoint, train_dvdm
from vs3r.engine.train_commands import gentle_interrupt
from vs3r.errors import BackendError, InputError, OutputError
from vs3r.refine.wan.checkpoint import HIGH, LOW

pytestmark = pytest.mark.usefixtures("own_cache")


def test_several_processes_end_together_and_tell_once(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    options = [
        "--weights", str(wan_folder), "--device", "cpu", "--precision", "fp32", "--steps", "1000000", "--accumulation",
        "1", "--validate-every", "0", "--experts", "low", "--checkpoint-every", "1000000",
    ]  # fmt: skip
    command = [sys.executable, "-m", "vs3r", "train", "dvdm", str(pairs), str(tmp_path / "out"), *options]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        assert processes[0].stdout is not None
        told = [processes[0].stdout.readline()]
        # Only one hears of it: of a signal to both, one may be past its check when the other comes to its own.
        processes[1].send_signal(signal.SIGINT)
        (rest, error), (others, other_error) = (process.communicate(timeout=120) for process in processes)
    finally:
        for process in processes:
            process.kill()
    told += rest.splitlines()
    assert (error, other_error, others) == ("vs3r: error: interrupted; no unfinished file is left\n",) * 2 + ("",)
    newest = last_checkpoint(tmp_path / "out", LOW)
    assert newest is not None and newest[0] == len(told) == len(losses(tmp_path / "out"))


def test_what_was_learnt_before_a_damaged_pair_is_kept(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    def tell(now: TrainStep) -> None:
        if now.step == 3:
            for path in pairs.iterdir():
                path.write_bytes(b"nothing")

    with pytest.raises(InputError, match=r"expected a pair in .*, it cannot be read"):
        train_dvdm(pairs, tmp_path / "out", settings(wan_folder, checkpoint_every=100), tell=tell)
    newest = last_checkpoint(tmp_path / "out", HIGH)
    assert newest is not None and newest[0] == 3


def test_a_validation_clip_without_room_costs_no_step(
    wan_folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("vs3r.refine.training.setup.load_codec", full)
    config = settings(wan_folder, checkpoint_every=100, validate_every=3, validation_steps=4)
    with pytest.raises(BackendError, match=r"for a validation clip of transformer, .* go on with --validate-every 0"):
        train_dvdm(pairs, tmp_path, config)
    newest = last_checkpoint(tmp_path, HIGH)
    assert newest is not None and newest[0] == 3
    train_dvdm(pairs, tmp_path, replace(config, validate_every=0))


def test_the_first_interrupt_waits_for_the_step() -> None:
    with gentle_interrupt() as check:
        check()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped):
            check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_closed_terminal_waits_for_the_step() -> None:
    def lost(_number: int, _frame: object) -> None:
        pytest.fail("what was learnt would be lost")

    before = signal.signal(signal.SIGHUP, lost)
    try:
        with gentle_interrupt() as check:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Stopped):
                check()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with gentle_interrupt() as check:
            os.kill(os.getpid(), signal.SIGHUP)
            check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_step_that_cannot_be_told_is_kept(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    def tell(now: TrainStep) -> None:
        if now.step == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        train_dvdm(pairs, tmp_path, settings(wan_folder, checkpoint_every=100), tell=tell)
    newest = last_checkpoint(tmp_path, HIGH)
    assert newest is not None and newest[0] == 3


def test_a_step_that_cannot_be_logged_is_kept(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"cannot write the log .*log\.jsonl: No space left on device; check that"):
        train_dvdm(pairs, tmp_path, settings(wan_folder))
    newest = last_checkpoint(tmp_path, HIGH)
    assert newest is not None and newest[0] == 1


def test_what_a_killed_run_left_unfinished_is_removed(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / f".{HIGH}-000001.safetensors.4711.part"
    left.parent.mkdir()
    left.touch()
    train_dvdm(pairs, tmp_path, settings(wan_folder, experts="high", steps=1))
    assert [path.name for path in left.parent.iterdir()] == [f"{HIGH}-000001.safetensors"]
