"""`vs3r train make-pairs`, with a small random autoencoder."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.clips import Clip, barred, make_frames, write_clip
from tests.refine.wan.tiny import make_vae
from vs3r.config import PairsConfig
from vs3r.engine.cli import run
from vs3r.engine.media import Inset, VideoReader
from vs3r.engine.media.bars import Bars
from vs3r.engine.pairs import load_pair, make_pairs, pair_header, piece_starts
from vs3r.engine.track_file import load_track
from vs3r.errors import BackendError, InputError, MediaError
from vs3r.refine.training.damage import expose, exposure_path
from vs3r.refine.training.pairs import Pair, pack, unpack, working_frame
from vs3r.refine.training.recipe import Recipe, draw_recipe
from vs3r.refine.wan.model import VideoCodec
from vs3r.refine.wan.pictures import model_video, rgb_from_frame
from vs3r.refine.wan.windows import A14B, working_size
from vs3r.types import Frame

pytestmark = pytest.mark.usefixtures("own_cache")


def settings(folder: Path, **changes: Any) -> PairsConfig:
    values: dict[str, Any] = {"weights": str(folder), "device": "cpu", "frames": 9, "variants": 4, "pixels": 64 * 48}
    return PairsConfig(**(values | changes))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its last bits are the machine's own, and recipes are drawn by them: tests hold for any recipe."""
    return write_clip(tmp_path_factory.mktemp("clips") / "stable.mp4", Clip(frames=21))


@pytest.fixture(scope="module")
def made(video: Path, wan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pairs of a clip; not to be changed."""
    out = tmp_path_factory.mktemp("pairs") / "out"
    report = make_pairs([video], out, settings(wan_folder))
    assert (report.made, report.found, report.notes) == (8, 0, ())
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))}


def test_pairs_say_where_they_come_from(made: Path, video: Path, wan_folder: Path) -> None:
    paths = sorted(made.glob("*.safetensors"))
    assert [path.stem[17:] for path in paths] == [f"{first:06}-{i:03}" for first in (0, 9) for i in range(4)]
    recipes, holes = set(), 0
    for path in paths:
        pair, header = load_pair(path), pair_header(path)
        assert pair.clean.shape == pair.render.shape == (1, 16, 3, 6, 8) and pair.mask.shape == (1, 4, 3, 6, 8)
        assert header["clip"] == video.name and path.name.startswith(header["sha256"][:16])
        assert header["first_frame"] == int(path.stem[17:23]) and header["frames"] == 9
        assert header["weights"] == str(wan_folder) and header["version"]
        recipe = Recipe(**header["recipe"])
        assert recipe == draw_recipe(recipe.seed)
        recipes.add(recipe.seed)
        assert recipe.identity == torch.equal(pair.clean, pair.render)
        holes += bool(0 < pair.mask.mean() < 1)
    assert len(recipes) == 8 and holes >= 1
    assert not list(made.glob(".*")), "nothing unfinished is left"


def test_what_is_there_is_not_made_again(made: Path, video: Path, wan_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_pairs([video], out, settings(wan_folder), check=check)
    before = contents(out)
    assert 0 < len(before) < 8 and not list(out.glob(".*"))
    report = make_pairs([video], out, settings(wan_folder))
    assert (report.made, report.found) == (8 - len(before), len(before))
    assert contents(out) == contents(made), "an interrupted run ends with the same bytes"


def test_settings_of_a_folder_stay(made: Path, video: Path, wan_folder: Path) -> None:
    with pytest.raises(InputError, match=r"begun with seed 0, now it is 5; go on with the same settings"):
        make_pairs([video], made, settings(wan_folder, seed=5))


def test_clips_that_cannot_be_used(wan_folder: Path, tmp_path: Path) -> None:
    short = write_clip(tmp_path / "short.mkv", Clip(frames=6))
    report = make_pairs([short], tmp_path / "out", settings(wan_folder))
    assert report.made == 0 and report.notes == (f"{short}: no scene has 9 frames, no pair is made of it",)
    with pytest.raises(InputError, match="input file not found"):
        make_pairs([tmp_path / "none.mkv"], tmp_path / "out", settings(wan_folder))
    (tmp_path / "text.mkv").write_text("no video")
    with pytest.raises(MediaError):
        make_pairs([tmp_path / "text.mkv"], tmp_path / "out", settings(wan_folder))


def test_a_full_gpu_is_told_what_is_smaller(
    video: Path, wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(VideoCodec, "encode", full)
    with pytest.raises(BackendError, match="to encode a pair; use fewer --pixels or --frames"):
        make_pairs([video], tmp_path / "out", settings(wan_folder))


def test_pieces_do_not_cross_a_cut(made: Path) -> None:
    track = load_track(next(made.glob("tracks/*.vs3r")))
    assert piece_starts(track, 9) == [0, 9] and piece_starts(track, 21) == [0] and piece_starts(track, 22) == []
    segment = np.repeat(np.array([0, 1], np.int32), [10, 11])
    assert piece_starts(replace(track, segment=segment), 5) == [0, 5, 10, 15]


def check_clean(out: Path, sources: list[Frame]) -> None:
    """The clean halves are what the autoencoder makes of the sources, as bright as the degraded halves."""
    codec = VideoCodec(make_vae(), device=torch.device("cpu"), decode_dtype=torch.float32)
    size = working_size(sources[0].format.width, sources[0].format.height, 64 * 48)
    small = [working_frame(frame, size) for frame in sources]
    for path in out.glob("*.safetensors"):
        header = pair_header(path)
        first, recipe = header["first_frame"], Recipe(**header["recipe"])
        gains = np.ones(9) if recipe.identity else exposure_path(recipe, 9)
        pictures = [
            rgb_from_frame(expose(frame, gain), size)
            for frame, gain in zip(small[first : first + 9], gains, strict=True)
        ]
        with torch.no_grad():
            expected = codec.encode(model_video(pictures, 9, A14B))
        torch.testing.assert_close(load_pair(path).clean, expected, rtol=6e-4, atol=1e-6)


def test_clean_latents_are_those_of_the_clip(made: Path, video: Path) -> None:
    with VideoReader(video) as reader:
        check_clean(made, list(reader))


def test_black_bars_are_left_out(wan_folder: Path, tmp_path: Path) -> None:
    clip = Clip(frames=9, width=160, height=120, codec="ffv1")
    frames = [barred(frame, Bars(top=28, bottom=28)) for frame in make_frames(clip)]
    video = write_clip(tmp_path / "wide.mkv", clip, frames=frames)
    make_pairs([video], tmp_path / "out", settings(wan_folder, variants=1))
    inset = Inset(clip.format, Bars(top=30, bottom=30))
    check_clean(tmp_path / "out", [inset.take(frame) for frame in frames])


def test_packing_keeps_half_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, render = torch.randn(2, 1, 16, 3, 4, 6, generator=generator).unbind()
    mask = (torch.rand(1, 4, 3, 4, 6, generator=generator) > 0.5).float()
    again = unpack(pack(Pair(clean=clean, render=render, mask=mask)))
    torch.testing.assert_close(again.clean, clean, rtol=6e-4, atol=1e-6)
    torch.testing.assert_close(again.mask, mask, rtol=0, atol=0)
    with pytest.raises(InputError, match="got no 'mask'; make pairs anew"):
        unpack({"clean": clean, "render": render})
    with pytest.raises(InputError, match="latents of one size"):
        unpack({"clean": clean[0], "render": render[0, :, :2], "mask": mask[0]})


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_no_gpu(video: Path, wan_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BackendError, match=r"^train make-pairs needs an NVIDIA GPU .* finds none; ask .*: --device cpu "
    ):
        make_pairs([video], tmp_path / "pairs", settings(wan_folder, device="auto"))


def test_from_the_command_line(
    video: Path, wan_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--device", "cpu", "--frames", "9", "--variants", "1", "--weights", str(wan_folder)]
    out = tmp_path / "pairs"
    assert run(["train", "make-pairs", str(video), str(out), *options]) == 0
    assert capfd.readouterr().out == f"{out}: 2 pairs made, 0 were there\n"
    assert run(["train", "make-pairs", str(video), str(out), *options, "--pixels", "1000000"]) == 1
    assert "was begun with pixels 399360, now it is 1000000" in capfd.readouterr().err
    assert run(["train", "make-pairs", str(video), str(out), "--frames", "10"]) == 1
    assert "one more than a multiple of 4" in capfd.readouterr().err
    assert asdict(PairsConfig())["weights"] == "wan2.2-i2v-a14b"
