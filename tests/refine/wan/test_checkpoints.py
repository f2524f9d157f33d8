"""Other base checkpoints: TI2V-5B, which is told what is known by a time for every token, and Fun-A14B-InP's layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.refine.wan.test_model import config, model_input
from tests.refine.wan.test_refiner import picture, run
from tests.refine.wan.tiny import TEXT_DIM, make_expert, make_ti2v
from tests.render.plane_world import make_format
from vs3r.errors import InputError
from vs3r.refine.wan.ask import known_tokens
from vs3r.refine.wan.checkpoint import HIGH, LOW, PARTS
from vs3r.refine.wan.denoise import Condition, denoise
from vs3r.refine.wan.model import Experts, VideoCodec, load_model
from vs3r.refine.wan.refiner import WanRefiner
from vs3r.refine.wan.schedule import sigma_table
from vs3r.refine.wan.windows import TI2V_5B, fold_mask, working_size
from vs3r.weights import weights_folder

pytestmark = pytest.mark.usefixtures("own_cache")

CPU = torch.device("cpu")
STEPS = 4


@pytest.fixture(scope="module")
def ti2v_folder(wan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ti2v")
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(wan_folder / name, folder / name)
    expert, vae = make_ti2v()
    expert.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    return folder


@torch.no_grad()
def test_ti2v_same_latents_as_diffusers_with_only_the_first_frame_known() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline

    class Unshifted(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
        """See test_model."""

        def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
            super().set_timesteps(
                sigmas=[1 - k / num_inference_steps for k in range(num_inference_steps)], device=device
            )

    expert, vae = make_ti2v()
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randn(1, 512, TEXT_DIM, generator=generator)
    noise = torch.randn(1, 48, 3, 2, 4, generator=generator)
    image = torch.rand(1, 3, 32, 64, generator=generator)
    pipeline = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=Unshifted(shift=5.0), transformer=expert,
        expand_timesteps=True,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        image=image, height=32, width=64, num_frames=9, num_inference_steps=STEPS, guidance_scale=1.0, latents=noise,
        prompt_embeds=prompt, output_type="latent",
    ).frames  # fmt: skip
    codec = VideoCodec(vae, device=CPU, decode_dtype=torch.float32)
    video = torch.zeros(1, 3, 9, 32, 64)
    video[:, :, 0] = 2 * image - 1
    known = np.zeros((9, 32, 64), bool)
    known[0] = True
    condition = Condition(render=codec.encode(video), mask=fold_mask(known, TI2V_5B))
    experts = Experts(expert, None, prompt, device=CPU, swap=False)
    found = denoise(experts, condition, noise, sigmas=sigma_table(STEPS), check=lambda: None)
    # 4e-7 seen.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    nothing = Condition(render=condition.render, mask=torch.zeros_like(condition.mask))
    wrong = denoise(experts, nothing, noise, sigmas=sigma_table(STEPS), check=lambda: None)
    assert (wrong - expected).abs().max() > 1e-2


def test_a_token_is_known_when_all_of_it_is() -> None:
    mask = torch.ones(1, 4, 2, 4, 4)
    mask[0, 3, 1, 0, 3] = 0.0
    tokens = known_tokens(mask)
    assert tokens.shape == (1, 1, 2, 2, 2)
    assert [tuple(place) for place in (~tokens).nonzero().tolist()] == [(0, 0, 1, 0, 1)]


def test_ti2v_is_not_told_that_all_is_right(ti2v_folder: Path) -> None:
    """It would take the render for the result, after all the steps."""
    with pytest.raises(InputError, match=r"^--wan-condition authors tells .*expected weights with two experts"):
        load_model(config(ti2v_folder, wan_condition="authors"))


@pytest.mark.parametrize("experts", ["both", "low"])
def test_ti2v_repairs_a_clip(ti2v_folder: Path, experts: str) -> None:
    settings = config(
        ti2v_folder, wan_steps=4, wan_window_frames=9, wan_stride_frames=4, wan_pixels=96 * 64, wan_experts=experts
    )
    model = load_model(settings)
    assert model.layout == TI2V_5B and working_size(20, 20, 100, model.layout) == (32, 32)
    fmt = make_format("yuv420p", 100, 70)
    given = [picture(fmt, None, 6, pts=i) for i in range(11)]
    stage = WanRefiner(settings, model.experts, model.codec, check=lambda: None, layout=model.layout)
    out = run(stage, given)
    assert [frame.pts for frame in out] == list(range(11))
    for frame, was in zip(out, given, strict=True):
        np.testing.assert_array_equal(frame.planes[0][:, 34:], was.frame.planes[0][:, 34:])
    assert any((frame.planes[0] != was.frame.planes[0]).any() for frame, was in zip(out, given, strict=True))


# What the models' own code calls the layers, in the order in which they are replaced.
ORIGINAL_NAMES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "attn2": "cross_attn",
    "attn1": "self_attn",
    ".to_out.0.": ".o.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    "proj_out": "head.head",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
}


def original_key(key: str) -> str:
    if key == "scale_shift_table":
        return "head.modulation"
    for ours, theirs in ORIGINAL_NAMES.items():
        key = key.replace(ours, theirs)
    return key.replace("scale_shift_table", "modulation")


@pytest.fixture
def fun_folder(wan_folder: Path, tmp_path: Path) -> Path:
    """Both experts as Wan2.2-Fun-A14B-InP has them, and the other parts where they are looked for."""
    for name, theirs in ((HIGH, "high_noise_model"), (LOW, "low_noise_model")):
        state = load_file(wan_folder / name / "diffusion_pytorch_model.safetensors")
        folder = tmp_path / "fun" / theirs
        folder.mkdir(parents=True)
        save_file({original_key(key): value for key, value in state.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"num_heads": 2}))
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(wan_folder / part, weights_folder(PARTS) / part)
    return tmp_path / "fun"


@torch.no_grad()
def test_the_layout_of_the_models_own_code_is_read(fun_folder: Path, wan_folder: Path) -> None:
    ours = load_model(config(fun_folder)).experts
    expected = load_model(config(wan_folder)).experts
    for sigma in (1.0, 0.5):
        torch.testing.assert_close(ours.velocity(model_input(), sigma), expected.velocity(model_input(), sigma))
    low = load_model(config(fun_folder, wan_experts="low", wan_precision="bf16")).experts._experts[LOW]
    like = load_model(config(wan_folder, wan_experts="low", wan_precision="bf16")).experts._experts[LOW]
    types = {name: value.dtype for name, value in low.state_dict().items()}
    assert types == {name: value.dtype for name, value in like.state_dict().items()}


def test_what_is_wrong_with_it_is_said(fun_folder: Path) -> None:
    path = fun_folder / "high_noise_model" / "model.safetensors"
    state = load_file(path)
    save_file({key: value for key, value in state.items() if "blocks.0.self_attn.q" not in key}, path)
    with pytest.raises(InputError, match=r"another model's: 2 tensors are missing .*blocks.0.attn1.to_q"):
        load_model(config(fun_folder))
    save_file(state | {"patch_embedding.weight": torch.zeros(24, 16, 1, 2, 2)}, path)
    with pytest.raises(InputError, match=r"36 channels in and 16 out .*got 16 and 16"):
        load_model(config(fun_folder))
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"expected the weights of an expert of Wan2.2 in .*high_noise_model"):
        load_model(config(fun_folder))
    save_file(state, path)
    for damaged in ("{", "[]", '{"num_heads": "two"}'):
        (path.parent / "config.json").write_text(damaged)
        with pytest.raises(InputError, match=r"expected the weights of an expert of Wan2.2 in .*high_noise_model"):
            load_model(config(fun_folder))
    (path.parent / "config.json").write_text(json.dumps({"num_heads": 2}))
    shutil.rmtree(weights_folder(PARTS) / "vae")
    with pytest.raises(InputError, match=r"autoencoder of Wan2.2 .* vs3r weights fetch wan2.2-parts"):
        load_model(config(fun_folder))


def test_an_expert_of_other_channels_is_refused(tmp_path: Path) -> None:
    make_expert(0, in_channels=20).save_pretrained(tmp_path / "transformer")
    with pytest.raises(InputError, match=r"in_channels 36, .* got 20, 16, None"):
        load_model(config(tmp_path))


@pytest.mark.parametrize(("part", "kind"), [("transformer", "WanTransformer3DModel"), ("vae", "AutoencoderKLWan")])
def test_a_file_that_is_not_what_the_index_says_is_told(wan_folder: Path, tmp_path: Path, part: str, kind: str) -> None:
    folder = Path(shutil.copytree(wan_folder, tmp_path / "copy"))
    whole = folder / part / "diffusion_pytorch_model.safetensors"
    state = load_file(whole)
    whole.unlink()
    keys = sorted(state)
    first, rest = keys[:5], keys[5:]
    index = {key: f"{1 if key in first else 2}.safetensors" for key in keys}
    listed = whole.with_name(whole.name + ".index.json")
    listed.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for name, contents in (("1", first), ("2", rest)):
        save_file({key: state[key] for key in contents}, folder / part / f"{name}.safetensors")
    load_model(config(folder))
    shutil.copy(folder / part / "1.safetensors", folder / part / "2.safetensors")
    with pytest.raises(InputError, match=f"the weights of a {kind} in .*: {len(rest)} tensors are missing and 0 "):
        load_model(config(folder))
    listed.write_text("{}")
    with pytest.raises(InputError, match=r"expected weights that diffusers can read in .*KeyError: 'weight_map'"):
        load_model(config(folder))


def test_a_configuration_that_is_none_is_told(wan_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(wan_folder, tmp_path / "copy"))
    (folder / "transformer" / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"no config\.json that can be read"):
        load_model(config(folder))
