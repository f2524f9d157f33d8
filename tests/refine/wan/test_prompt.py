"""The prompt: embedded once by the text encoder that belongs to the model, and kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.refine.wan.tiny import TEXT_DIM
from vs3r.errors import InputError
from vs3r.refine.wan.checkpoint import find_checkpoint
from vs3r.refine.wan.prompt import load_prompt

pytestmark = pytest.mark.usefixtures("own_cache")

PROMPT = "A steady video with words it does not know."


@pytest.fixture
def folder(wan_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(wan_folder, tmp_path / "copy"))


def load(folder: Path) -> Tensor:
    return load_prompt(find_checkpoint(str(folder), only_low=False), PROMPT, form="validity")


def test_the_prompt_is_embedded_once(folder: Path, own_cache: Path) -> None:
    checkpoint = find_checkpoint(str(folder), only_low=False)
    prompt = load_prompt(checkpoint, PROMPT, form="validity")
    assert prompt.shape == (1, 512, TEXT_DIM)
    words = int((prompt[0].abs().sum(-1) > 0).sum())
    assert words == 10 and (prompt[0, words:] == 0).all()
    plain = load_prompt(checkpoint, PROMPT, form="authors")
    assert plain.shape == (1, 226, TEXT_DIM) and (plain[0, words:].abs().sum(-1) > 0).all()
    # Padding that is not masked changes the words, too.
    assert not torch.isclose(plain[0, :words], prompt[0, :words]).all()
    other = load_prompt(checkpoint, "A steady video", form="validity")
    assert int((other[0].abs().sum(-1) > 0).sum()) == 3
    for path in (folder / "text_encoder").iterdir():
        path.write_bytes(b"\0" * path.stat().st_size)  # unreadable; sizes and names are as before
    torch.testing.assert_close(load_prompt(checkpoint, PROMPT, form="validity"), prompt, rtol=0, atol=0)
    size = max(path.stat().st_size for path in own_cache.rglob("*.safetensors"))
    assert size - 2 * prompt.numel() < 1000, "two bytes a number, 4 MB for the published encoder's 4096 channels"
    (folder / "text_encoder").rename(folder / "away")
    torch.testing.assert_close(load_prompt(checkpoint, PROMPT, form="validity"), prompt, rtol=0, atol=0)
    (folder / "away").rename(folder / "text_encoder")
    (folder / "text_encoder" / "another.safetensors").touch()
    with pytest.raises(InputError, match="expected a text encoder that transformers can read"):
        load_prompt(checkpoint, PROMPT, form="validity")
    shutil.rmtree(own_cache)
    with pytest.raises(InputError, match="expected a text encoder that transformers can read"):
        load_prompt(checkpoint, PROMPT, form="validity")
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(InputError, match=r"expected the text_encoder of Wan2.2 in .*vs3r weights fetch"):
        load_prompt(checkpoint, PROMPT, form="validity")


def test_a_text_encoder_that_is_not_whole_is_refused(folder: Path, own_cache: Path) -> None:
    """transformers would make up what is missing, another on every start."""
    path = folder / "text_encoder" / "model.safetensors"
    state = load_file(path)
    query, feed = "encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    for wrong, message in (
        ({key: value for key, value in state.items() if key != query}, f"1 tensors are missing .* {query}"),
        ({f"foo.{key}": value for key, value in state.items()}, "tensors are missing"),
        (state | {feed: state[feed][:, :3].contiguous()}, f"1 tensors are missing .* {feed}"),
        (state | {"encoder.block.1.layer_norm.weight": torch.ones(3)}, "and 1 are not known"),
    ):
        save_file(wrong, path, metadata={"format": "pt"})
        with pytest.raises(InputError, match=f"expected the weights of a UMT5EncoderModel in .*{message}"):
            load(folder)
        assert not own_cache.exists()
    save_file(state | {"decoder.block.0.weight": torch.ones(3)}, path, metadata={"format": "pt"})
    assert load(folder).shape == (1, 512, TEXT_DIM)


def test_a_cache_that_cannot_be_used_costs_time_only(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = load(folder)
    (path,) = own_cache.rglob("*.safetensors")
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-100]):
        path.write_bytes(damaged)
        caplog.clear()
        assert torch.equal(load(folder), expected)
        assert "cannot be read" in caplog.text and "is computed anew" in caplog.text
        assert path.stat().st_size == len(whole)

    def full(_: object, partial: Path, **__: object) -> None:
        partial.write_bytes(whole[:100])
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    path.unlink()
    caplog.clear()
    monkeypatch.setattr("safetensors.torch.save_file", full)
    assert torch.equal(load(folder), expected)
    assert "No space left on device (os error 28)) and is computed at every start" in caplog.text
    assert not list(path.parent.iterdir()), "half a prompt is left"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("text_encoder/model.safetensors", "a text encoder"),
        ("text_encoder/config.json", "a text encoder"),
        ("tokenizer/tokenizer.json", "a tokenizer"),
    ],
)
@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda _: b"[]", lambda _: b""])
def test_a_damaged_text_encoder_is_one_line(
    folder: Path, name: str, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        InputError, match=rf"^expected {kind} that transformers can read in {path.parent}, got \w+: .*$"
    ):
        load(folder)


def test_a_text_encoder_that_was_a_link_may_be_deleted(folder: Path, tmp_path: Path) -> None:
    """As in the cache of the Hugging Face hub."""
    path = folder / "text_encoder" / "model.safetensors"
    blob = path.rename(tmp_path / "blob")
    path.symlink_to(blob)
    expected = load(folder)
    blob.unlink()
    assert torch.equal(load(folder), expected)
    path.unlink()
    assert torch.equal(load(folder), expected)


def test_the_text_encoder_of_an_original_checkpoint_may_be_deleted(folder: Path, own_cache: Path) -> None:
    """Of those some have one of their own, and some that of `wan2.2-parts`."""
    for name, original in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        (folder / name).rename(folder / original)
    expected = load(folder)
    shutil.rmtree(folder / "text_encoder")
    assert torch.equal(load(folder), expected)
    parts = own_cache / "vs3r" / "weights" / "wan2.2-parts" / "text_encoder"
    parts.mkdir(parents=True)
    (parts / "model.safetensors").touch()  # another text encoder
    with pytest.raises(InputError, match=r"expected a text encoder that transformers can read in .*wan2.2-parts"):
        load(folder)
