"""`vs3r train dvdm`, with small random experts: what is learnt, and that interruptions leave no trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from tests.refine.training.test_objective import TEXT, draw_pair, velocity
from tests.refine.wan.test_model import config as wan_config
from tests.refine.wan.tiny import make_expert, make_ti2v
from vs3r.config import TrainConfig
from vs3r.engine.cli import run
from vs3r.engine.media import VideoReader
from vs3r.engine.threads import Stopped
from vs3r.engine.train import TrainStep, last_checkpoint, split_pairs, train_dvdm, write_clip
from vs3r.errors import BackendError, InputError, OutputError
from vs3r.refine.training.adapter import add_lora
from vs3r.refine.training.objective import draw_sigma, flow_loss
from vs3r.refine.training.pairs import Pair, pack
from vs3r.refine.training.trainer import ExpertTrainer, make_accelerator
from vs3r.refine.wan.checkpoint import HIGH, LOW
from vs3r.refine.wan.model import load_model
from vs3r.refine.wan.windows import seeded

pytestmark = pytest.mark.usefixtures("own_cache")

LORA = "pytorch_lora_weights.safetensors"


def settings(folder: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "weights": str(folder), "device": "cpu", "precision": "fp32", "steps": 4, "accumulation": 2,
        "learning_rate": 1e-3, "warmup_steps": 2, "checkpoint_every": 2, "validate_every": 0,
    }  # fmt: skip
    return TrainConfig(**(values | changes))


def trainer(expert: Any, **changes: Any) -> ExpertTrainer:
    accelerator = make_accelerator(torch.device("cpu"))
    return ExpertTrainer(expert, "transformer_2", TEXT, settings(Path(), **changes), accelerator)


def losses(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def final(out: Path) -> dict[str, bytes]:
    """The LoRAs and the newest checkpoints."""
    newest = [last_checkpoint(out, part) for part in (HIGH, LOW)]
    paths = [out / HIGH / LORA, out / LOW / LORA, *(found[1] for found in newest if found is not None)]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths if path.exists()}


def stop_after(count: int) -> Callable[[], None]:
    calls = 0

    def check() -> None:
        nonlocal calls
        if calls == count:
            raise Stopped
        calls += 1

    return check


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_clip_is_learnt(precision: str) -> None:
    expert = make_expert(0)
    if precision == "bf16":
        expert = torch.nn.Module.to(expert, torch.bfloat16)
    frozen = {name: value.clone() for name, value in expert.state_dict().items()}
    ours = trainer(expert, precision=precision, learning_rate=1e-2, accumulation=1)
    pair = [draw_pair(3)]
    before = ours.check_loss(pair)
    for _ in range(40):
        ours.step(pair)
    # 0.77 of it seen.
    assert ours.check_loss(pair) < 0.88 * before
    assert all(value.dtype is torch.float32 for value in ours._names.values())
    now = {name.replace(".base_layer", ""): value for name, value in expert.state_dict().items()}
    assert all(torch.equal(now[name], value) and now[name].dtype == value.dtype for name, value in frozen.items())


def test_steps_are_those_of_the_literal_algorithm() -> None:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) on the mean gradient of the clips, shortened, the rate rising."""
    # Gradients so short that the smallest number in AdamW's divisor counts: else it would hide how long they are.
    changes = {"clip_norm": 1e-6, "weight_decay": 0.5, "learning_rate": 1e-2, "warmup_steps": 3}
    ours, theirs = trainer(make_expert(0), **changes), make_expert(0)
    assert ours.expert.is_gradient_checkpointing
    values = dict(zip(ours._names, add_lora(theirs), strict=True))
    for name, value in values.items():
        value.data = ours._names[name].detach().clone()
    first, second = ({name: torch.zeros_like(value) for name, value in values.items()} for _ in range(2))
    pairs = [draw_pair(seed) for seed in range(3)]
    for step in range(2):
        for clip in (2 * step, 2 * step + 1):
            random = seeded(0, 1, 1, clip)
            sigma = draw_sigma("transformer_2", random)
            pair = pairs[ours._order(clip, 3)]
            noise = torch.randn(pair.clean.shape, generator=random)
            loss = flow_loss(theirs, pair, TEXT, noise=noise, sigma=sigma, known_weight=0.2)
            (loss / 2).backward()  # type: ignore[no-untyped-call]
        ours.step(pairs)
        length = torch.stack([value.grad.square().sum() for value in values.values() if value.grad is not None])
        shorter = min(1.0, 1e-6 / float(length.sum().sqrt()))
        rate = 1e-2 * (step + 1) / 3
        for name, value in values.items():
            assert value.grad is not None
            gradient, value.grad = shorter * value.grad, None
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            along = first[name] / (1 - 0.9 ** (step + 1))
            across = (second[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            value.data -= rate * (along / across + 0.5 * value.data)
            torch.testing.assert_close(ours._names[name].detach(), value.detach(), rtol=1e-3, atol=1e-6)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate reads its settings anew, and forgets them afterwards."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("setting", ["ACCELERATE_MIXED_PRECISION=bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4"])
def test_settings_of_accelerate_change_nothing(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `accelerate launch` passes on what its own configuration says."""

    def step() -> tuple[float, dict[str, torch.Tensor]]:
        ours = trainer(make_expert(0))
        loss = ours.step([draw_pair(3)])
        return loss, ours.state()

    plain, state = step()
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv(*setting.split("="))
    loss, found = step()
    assert loss == plain and all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.needs_cuda
@pytest.mark.usefixtures("fresh_accelerate")
def test_a_step_on_the_gpu_is_that_on_the_processor() -> None:
    values = []
    for name in ("cuda", "cpu"):
        AcceleratorState._reset_state(reset_partial_state=True)
        config = settings(Path(), accumulation=1)
        accelerator = make_accelerator(torch.device(name))
        ours = ExpertTrainer(make_expert(0), "transformer_2", TEXT, config, accelerator)
        values.append([ours.step([draw_pair(3)]) for _ in range(3)])
    # Products may use TF32 there.
    assert values[0] == pytest.approx(values[1], rel=1e-2)


def test_every_clip_is_seen_once_a_round() -> None:
    ours = trainer(make_expert(0))
    rounds = [[ours._order(5 * turn + i, 5) for i in range(5)] for turn in range(4)]
    assert all(sorted(seen) == [0, 1, 2, 3, 4] for seen in rounds)
    assert len({tuple(seen) for seen in rounds}) > 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_equals_one_that_was_not_interrupted(
    wan_folder: Path, pairs: Path, tmp_path: Path, precision: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = settings(wan_folder, precision=precision)
    told: list[TrainStep] = []
    assert train_dvdm(pairs, whole, config, tell=told.append) == [HIGH, LOW]
    assert [(now.part, now.step, now.steps) for now in told] == [(p, i, 4) for p in (HIGH, LOW) for i in range(1, 5)]
    # Ended between checkpoints, then by a loss of power after one, then in the second expert.
    for check in (stop_after(3), stop_after(4)):
        with pytest.raises(Stopped):
            train_dvdm(pairs, parts, config, check=check)
    for path in (parts / "checkpoints").glob("transformer_2-*"):
        path.unlink()
    train_dvdm(pairs, parts, config)
    assert final(parts) == final(whole)
    by_step = {(entry["part"], entry["step"]): entry["loss"] for entry in losses(parts)}
    assert by_step == {(entry["part"], entry["step"]): entry["loss"] for entry in losses(whole)}
    different = tmp_path / "different"
    train_dvdm(pairs, different, replace(config, seed=1))
    assert final(different)[f"{HIGH}/{LORA}"] != final(whole)[f"{HIGH}/{LORA}"]
    assert len(list((whole / "checkpoints").iterdir())) == 4, "two of each are kept"


def test_checkpoints_beyond_a_million_steps(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    config = settings(wan_folder, experts="low", accumulation=1, checkpoint_every=1)
    train_dvdm(pairs, tmp_path, replace(config, steps=2))
    for path, steps in zip(sorted((tmp_path / "checkpoints").iterdir()), (999_998, 999_999), strict=True):
        path.rename(path.with_name(f"{LOW}-{steps}.safetensors"))
    train_dvdm(pairs, tmp_path, replace(config, steps=1_000_001))
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(names) == [f"{LOW}-1000000.safetensors", f"{LOW}-1000001.safetensors"]
    newest = last_checkpoint(tmp_path, LOW)
    assert newest is not None and newest[0] == 1_000_001


def test_together_is_the_same(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    train_dvdm(pairs, tmp_path / "one", settings(wan_folder))
    train_dvdm(pairs, tmp_path / "both", settings(wan_folder, experts="together"))
    train_dvdm(pairs, tmp_path / "low", settings(wan_folder, experts="low"))
    assert final(tmp_path / "one") == final(tmp_path / "both")
    assert final(tmp_path / "low") == {k: v for k, v in final(tmp_path / "one").items() if LOW in k}


def test_what_was_trained_is_what_refinement_uses(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    config = settings(wan_folder, learning_rate=0.1, warmup_steps=0)
    train_dvdm(pairs, tmp_path / "out", config)
    plain = load_model(wan_config(wan_folder)).experts
    merged = load_model(wan_config(wan_folder, wan_lora=str(tmp_path / "out"))).experts
    for number, part in enumerate((HIGH, LOW)):
        ours = trainer(make_expert(number))
        found = last_checkpoint(tmp_path / "out", part)
        assert found is not None
        ours.restore(load_file(found[1]), found[0])
        ours.expert.eval()
        expected = velocity(ours.expert)
        torch.testing.assert_close(velocity(merged._experts[part]), expected, rtol=1e-4, atol=1e-4)
        assert (velocity(plain._experts[part]) - expected).abs().max() > 1e-2


def test_validation_clips_and_losses(wan_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for seed, name in enumerate(("aaaa-000000-000", "aaaa-000005-000")):
        latents = torch.randn(2, 1, 16, 2, 2, 4, generator=torch.Generator().manual_seed(seed))
        pair = Pair(clean=latents[0], render=latents[1], mask=torch.zeros(1, 4, 2, 2, 4))
        save_file(pack(pair), folder / f"{name}.safetensors")
    train_dvdm(folder, tmp_path / "out", settings(wan_folder, steps=3, validate_every=2, validation_steps=5))
    clips = sorted(path.name for path in (tmp_path / "out" / "validation").iterdir())
    assert clips == [f"{part}-00000{i}.mp4" for part in (HIGH, LOW) for i in (2, 3)]
    with VideoReader(tmp_path / "out" / "validation" / clips[0]) as reader:
        assert (reader.info.format.width, reader.info.format.height) == (3 * 32, 16)
        assert len(list(reader)) == 5
    checked = [entry["validation_loss"] for entry in losses(tmp_path / "out") if "validation_loss" in entry]
    assert len(checked) == 4 and len(set(checked)) == 4


def test_one_piece_is_held_out(pairs: Path) -> None:
    training, held_out = split_pairs(pairs)
    assert [path.stem for path in held_out] == ["bbbb-000000-000"] and len(training) == 4
    for path in training:
        path.unlink()
    assert split_pairs(pairs) == (held_out, held_out)


def test_several_processes_do_what_one_does(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    train_dvdm(pairs, tmp_path / "one", settings(wan_folder, experts="low", steps=2))
    options = [
        "--weights", str(wan_folder), "--device", "cpu", "--precision", "fp32", "--steps", "2", "--accumulation", "1",
        "--learning-rate", "1e-3", "--warmup-steps", "2", "--validate-every", "0", "--experts", "low",
    ]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(Path(sys.executable).with_name("vs3r")), "train", "dvdm", str(pairs), str(tmp_path / "two")]
    done = subprocess.run(
        [*command, *options], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / LOW / LORA) for name in ("one", "two"))
    for name, value in one.items():
        # Gradients are summed in another order, which AdamW enlarges where next to nothing: no bound on each.
        assert (two[name] - value).norm() <= 0.01 * value.norm()
    assert [entry["loss"] for entry in losses(tmp_path / "two")] == pytest.approx(
        [entry["loss"] for entry in losses(tmp_path / "one")], rel=1e-5
    )


def test_a_checkpoint_of_a_wider_model_is_refused() -> None:
    """As of other weights that were put into the folder with which it was begun."""
    ours, wider = trainer(make_expert(0)), trainer(make_expert(0, ffn_dim=64))
    wider.step([draw_pair(0)])
    with pytest.raises(InputError, match=r"checkpoint of transformer_2 whose .* is \(32, 32\), got \(64, 32\)"):
        ours.restore(wider.state(), 1)


def test_a_checkpoint_put_aside_is_none(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    train_dvdm(pairs, tmp_path, settings(wan_folder, experts="high", steps=2))
    newest = last_checkpoint(tmp_path, HIGH)
    assert newest is not None
    aside = newest[1].with_name(f"{HIGH}-good.safetensors")
    aside.write_bytes(newest[1].read_bytes())
    train_dvdm(pairs, tmp_path, settings(wan_folder, experts="high", steps=8))
    assert aside.exists()


def test_a_loss_that_is_no_number_ends_it(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    bad = replace(draw_pair(0), clean=torch.full((1, 16, 2, 4, 4), float("nan")))
    for path in pairs.iterdir():
        save_file(pack(bad), path)
    with pytest.raises(BackendError, match=r"went astray at step 1: the loss is nan; .* smaller --learning-rate"):
        train_dvdm(pairs, tmp_path / "out", settings(wan_folder))
    assert not list((tmp_path / "out" / "checkpoints").iterdir())


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    ours = trainer(make_expert(0))
    before = {name: value.clone() for name, value in ours.state().items()}
    next(iter(ours._names.values())).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(BackendError, match=r"went astray at step 1: the length of its gradient is nan"):
        ours.step([draw_pair(0)])
    assert ours.steps == 0 and all(torch.equal(value, before[name]) for name, value in ours.state().items())


def test_a_full_gpu_is_told_what_is_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, large = trainer(make_expert(0)), make_expert(0)

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ours.expert, "forward", full)
    monkeypatch.setattr(large, "to", full)
    for work in (lambda: ours.step([draw_pair(0)]), lambda: trainer(large)):
        with pytest.raises(BackendError, match=r"to train transformer_2: .* 0 GB.* make pairs with fewer --pixels"):
            work()


def test_what_is_missing_or_does_not_fit_is_said(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected pairs in .* make some with: vs3r train make-pairs"):
        train_dvdm(tmp_path, tmp_path / "out", settings(wan_folder))
    train_dvdm(pairs, tmp_path / "out", settings(wan_folder, experts="high", steps=1))
    with pytest.raises(InputError, match=r"begun with learning_rate 0.001, now it is 0.1; go on with the same"):
        train_dvdm(pairs, tmp_path / "out", settings(wan_folder, learning_rate=0.1))
    for damaged in ("{", "[]"):
        (tmp_path / "settings.json").write_text(damaged)
        with pytest.raises(InputError, match=r"settings\.json: expected settings as a JSON object"):
            train_dvdm(pairs, tmp_path, settings(wan_folder))
    newest = last_checkpoint(tmp_path / "out", HIGH)
    assert newest is not None
    state = load_file(newest[1])
    save_file(dict(list(state.items())[1:]), newest[1])
    with pytest.raises(InputError, match="expected a checkpoint of transformer with 120 tensors, got one with 119"):
        train_dvdm(pairs, tmp_path / "out", settings(wan_folder))
    newest[1].write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"expected a checkpoint in .*cannot be read"):
        train_dvdm(pairs, tmp_path / "out", settings(wan_folder))
    wide = Pair(clean=torch.zeros(1, 48, 2, 2, 2), render=torch.zeros(1, 48, 2, 2, 2), mask=torch.zeros(1, 4, 2, 2, 2))
    for path in pairs.iterdir():
        save_file(pack(wide), path)
    with pytest.raises(InputError, match=r"latents of 16 channels .* got 48; make pairs with the weights"):
        train_dvdm(pairs, tmp_path / "other", settings(wan_folder))
    make_ti2v()[0].save_pretrained(tmp_path / "ti2v" / "transformer")
    with pytest.raises(InputError, match=r"with two experts, such as wan2.2-i2v-a14b, .*TI2V-5B is not fine-tuned"):
        train_dvdm(pairs, tmp_path / "other", settings(tmp_path / "ti2v"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_no_gpu(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"^train dvdm needs an NVIDIA GPU .* finds none; ask .*: --device cpu "):
        train_dvdm(pairs, tmp_path / "out", settings(wan_folder, device="auto"))


def test_from_the_command_line(
    wan_folder: Path, pairs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    options = ["--weights", str(wan_folder), "--device", "cpu", "--steps", "1", "--accumulation", "1"]
    assert run(["train", "dvdm", str(pairs), out, "--validate-every", "0", *options]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("transformer: step 1 of 1, loss ") and lines[1].startswith("transformer_2: step 1 of 1")
    assert lines[2] == f"{out}: LoRAs of transformer and transformer_2; use them with: --wan-lora {out}"


def test_what_is_advised_can_be_done(
    wan_folder: Path, pairs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each expert by itself: refinement with both experts takes no half of the LoRAs."""
    options = ["--weights", str(wan_folder), "--device", "cpu", "--steps", "1", "--accumulation", "1"]
    out, other = str(tmp_path / "out"), str(tmp_path / "other")
    for folder, experts in ((out, "high"), (other, "low"), (out, "low")):
        assert run(["train", "dvdm", str(pairs), folder, "--validate-every", "0", "--experts", experts, *options]) == 0
    told = [line.partition("; ")[2] for line in capfd.readouterr().out.splitlines() if "LoRAs of" in line]
    assert told == [
        "refinement needs that of transformer_2, too: train it with --experts low",
        f"use them with: --wan-lora {other} --wan-experts low",
        f"use them with: --wan-lora {out}",
    ]
    load_model(wan_config(wan_folder, wan_lora=other, wan_experts="low"))
    load_model(wan_config(wan_folder, wan_lora=out))
    with pytest.raises(InputError, match=r"LoRA of transformer in .* alone: --wan-experts low$"):
        load_model(wan_config(wan_folder, wan_lora=other))


def full_disk(path: Path) -> None:
    """Where a file grows before it gets its name."""
    path.with_name(f".{path.name}.{os.getpid()}.part").symlink_to("/dev/full")


def test_nothing_unfinished_is_left_on_a_full_disk(wan_folder: Path, pairs: Path, tmp_path: Path) -> None:
    full_disk(tmp_path / "clip.mp4")
    with pytest.raises(OutputError, match=r"cannot write the clip .*clip\.mp4: No space left on device"):
        write_clip(tmp_path / "clip.mp4", np.zeros((3, 16, 32, 3), np.uint8))
    out = tmp_path / "out"
    out.mkdir()
    full_disk(out / "settings.json")
    with pytest.raises(OutputError, match=r"cannot write to .*out: No space left on device"):
        train_dvdm(pairs, out, settings(wan_folder))
    assert not list(tmp_path.rglob(".*"))
