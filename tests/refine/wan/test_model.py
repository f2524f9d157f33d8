"""The networks: against diffusers' own pipeline, and whatever may be wrong with a folder of weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.refine.wan.tiny import TEXT_DIM, change_json, make_expert, make_vae
from vs3r.config import WanConfig
from vs3r.errors import BackendError, InputError
from vs3r.refine.wan.checkpoint import HIGH, LOW
from vs3r.refine.wan.denoise import Condition, denoise
from vs3r.refine.wan.lora import DIFFUSERS_FILE, PEFT_CONFIG, PEFT_FILE, merge_lora
from vs3r.refine.wan.model import Experts, VideoCodec, load_model
from vs3r.refine.wan.schedule import sigma_table
from vs3r.refine.wan.windows import fold_mask

pytestmark = pytest.mark.usefixtures("own_cache")

CPU = torch.device("cpu")
STEPS = 5


def config(folder: Path, **changes: Any) -> WanConfig:
    values = {"wan_weights": str(folder), "wan_device": "cpu", "wan_precision": "fp32"}
    return WanConfig(**(values | changes))


def model_input(seed: int = 5) -> torch.Tensor:
    return torch.randn(1, 36, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_same_latents_as_diffusers_with_only_the_first_frame_known(guidance: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline

    class Unshifted(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
        """Given levels before the shift: what it makes up itself begins and ends at levels that are shifted already."""

        def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
            super().set_timesteps(
                sigmas=[1 - k / num_inference_steps for k in range(num_inference_steps)], device=device
            )

    high, low, vae = make_expert(0), make_expert(1), make_vae()
    generator = torch.Generator().manual_seed(0)
    prompt, against = torch.randn(2, 1, 512, TEXT_DIM, generator=generator)
    noise = torch.randn(1, 16, 3, 4, 6, generator=generator)
    image = torch.rand(1, 3, 32, 48, generator=generator)
    pipeline = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=Unshifted(shift=5.0), transformer=high,
        transformer_2=low, boundary_ratio=0.9,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        image=image, height=32, width=48, num_frames=9, num_inference_steps=STEPS, guidance_scale=guidance,
        latents=noise, prompt_embeds=prompt, negative_prompt_embeds=against, output_type="latent",
    ).frames  # fmt: skip

    video = torch.zeros(1, 3, 9, 32, 48)
    video[:, :, 0] = 2 * image - 1
    known = np.zeros((9, 32, 48), bool)
    known[0] = True
    codec = VideoCodec(vae, device=CPU, decode_dtype=torch.float32)
    condition = Condition(render=codec.encode(video), mask=fold_mask(known))
    guided: dict[str, Any] = {"against": None if guidance == 1 else against, "guidance": guidance}
    experts = Experts(high, low, prompt, device=CPU, swap=False, **guided)
    found = denoise(experts, condition, noise, sigmas=sigma_table(STEPS), check=lambda: None)
    # 2.4e-6 seen; with the experts exchanged 2.2.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    exchanged = Experts(low, high, prompt, device=CPU, swap=False, **guided)
    wrong = denoise(exchanged, condition, noise, sigmas=sigma_table(STEPS), check=lambda: None)
    assert (wrong - expected).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(("sigma", "seed"), [(1.0, 0), (0.9, 0), (0.8999, 1), (0.1, 1)])
def test_each_expert_has_its_noise_levels(swap: bool, sigma: float, seed: int) -> None:
    prompt = torch.randn(1, 8, TEXT_DIM)
    experts = Experts(make_expert(0), make_expert(1), prompt, device=CPU, swap=swap)
    experts.velocity(model_input(), 1.5 - sigma)  # the other one was in use before
    (expected,) = make_expert(seed)(
        hidden_states=model_input(), timestep=torch.tensor([1000 * sigma]), encoder_hidden_states=prompt,
        return_dict=False,
    )  # fmt: skip
    torch.testing.assert_close(experts.velocity(model_input(), sigma), expected, rtol=1e-5, atol=1e-5)


def test_the_low_expert_alone_needs_no_other(wan_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "low"
    shutil.copytree(wan_folder, folder)
    shutil.rmtree(folder / "transformer")
    model = load_model(config(folder, wan_experts="low"))
    assert model.experts.velocity(model_input(), 0.5).shape == (1, 16, 2, 4, 4)
    with pytest.raises(InputError, match=r"expected transformer of Wan2.2 in .*fetch wan2.2-i2v-a14b"):
        load_model(config(folder))


def test_latents_are_normalised_and_come_back() -> None:
    vae = make_vae()
    codec = VideoCodec(vae, device=CPU, decode_dtype=torch.float32)
    video = torch.rand(1, 3, 5, 16, 32) * 2 - 1
    with torch.no_grad():
        latents = codec.encode(video)
        raw = vae.encode(video).latent_dist.mode()
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
        torch.testing.assert_close(latents * std + mean, raw)
        torch.testing.assert_close(codec.decode(latents), vae.decode(raw).sample)


def save_lora(folder: Path, expert: Any, seed: int, *, by: str = "diffusers", **settings: Any) -> Path:
    """Random LoRA weights on some layers, saved as diffusers or peft does."""
    from diffusers import WanImageToVideoPipeline
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    layers = ["to_q", "to_out.0", "ffn.net.0.proj"]
    config = LoraConfig(**({"r": 4, "lora_alpha": 4, "target_modules": layers} | settings))
    if by == "peft":
        wrapped = get_peft_model(expert, config)
    else:
        expert.add_adapter(config)
    torch.manual_seed(seed)
    for name, value in expert.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.2)
    if by == "peft":
        wrapped.save_pretrained(folder)
    else:
        WanImageToVideoPipeline.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(expert),
            transformer_lora_adapter_metadata=config.to_dict(),
        )
    assert (folder / (PEFT_FILE if by == "peft" else DIFFUSERS_FILE)).is_file()
    return folder


@torch.no_grad()
@pytest.mark.parametrize("by", ["diffusers", "peft"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora_alpha": 10},
        {"lora_alpha": 10, "use_rslora": True},
        {"lora_alpha": 10, "rank_pattern": {"attn1.to_q": 2, "^blocks.1.attn2.to_q": 3}},
        {"alpha_pattern": {"to_q": 10, "^blocks.0.ffn.net.0.proj": 1}},
        {"lora_alpha": 10, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 3}, "use_rslora": True},
        {"lora_alpha": 10, "use_dora": True},
        {"lora_alpha": 10, "init_lora_weights": "pissa"},
    ],
    ids=str,
)
def test_a_merged_lora_is_the_adapter(tmp_path: Path, by: str, settings: dict[str, Any]) -> None:
    adapted = make_expert(0)
    folder = save_lora(tmp_path / HIGH, adapted, seed=9, by=by, **settings)
    inputs = {
        "hidden_states": model_input(), "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 8, TEXT_DIM), "return_dict": False,
    }  # fmt: skip
    merged = make_expert(0)
    before = merged(**inputs)[0]
    merge_lora(merged, folder)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged(**inputs)[0], adapted(**inputs)[0], rtol=1e-5, atol=1e-5)
    assert (merged(**inputs)[0] - before).abs().max() > 1e-3


@torch.no_grad()
def test_guidance_reads_both_prompts(wan_folder: Path) -> None:
    changed: list[dict[str, Any]] = [
        {},
        {"wan_guidance": 3.0},
        {"wan_guidance": 3.0, "wan_negative_prompt": WanConfig().wan_prompt},
    ]
    plain, guided, same = (
        load_model(config(wan_folder, **changes)).experts.velocity(model_input(), 0.5) for changes in changed
    )
    assert (guided - plain).abs().max() > 1e-4
    torch.testing.assert_close(same, plain, rtol=1e-5, atol=1e-5)


def test_both_experts_get_their_lora(wan_folder: Path, tmp_path: Path) -> None:
    for name, seed in ((HIGH, 0), (LOW, 1)):
        save_lora(tmp_path / name, make_expert(seed), seed=seed)
    plain = load_model(config(wan_folder)).experts
    merged = load_model(config(wan_folder, wan_lora=str(tmp_path))).experts
    for sigma in (1.0, 0.5):
        assert (merged.velocity(model_input(), sigma) - plain.velocity(model_input(), sigma)).abs().max() > 1e-3
    shutil.rmtree(tmp_path / LOW)
    with pytest.raises(InputError, match="expected a LoRA of transformer_2 in"):
        load_model(config(wan_folder, wan_lora=str(tmp_path)))


def test_a_foreign_lora_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / HIGH
    folder.mkdir()
    for key, message in (
        ("unet.to_q.lora_A.weight", r"named transformer\.\* in .*, got unet.to_q"),
        ("transformer.blocks.9.attn1.to_q.lora_A.weight", "the model has no transformer.blocks.9.attn1.to_q"),
    ):
        save_file({key: torch.zeros(4, 24)}, folder / DIFFUSERS_FILE)
        with pytest.raises(InputError, match=message):
            merge_lora(make_expert(0), folder)
    name = "transformer.blocks.0.attn1.to_q.lora_"
    save_file({f"{name}A.weight": torch.zeros(4, 30), f"{name}B.weight": torch.zeros(30, 4)}, folder / DIFFUSERS_FILE)
    with pytest.raises(InputError, match="expected a LoRA that fits the model"):
        merge_lora(make_expert(0), folder)
    folder = save_lora(tmp_path / "peft", make_expert(0), seed=9, by="peft")
    for damaged in ("{", "{}", "[]", '{"r": "four", "lora_alpha": 4}'):
        (folder / PEFT_CONFIG).write_text(damaged)
        with pytest.raises(InputError, match="expected a LoRA that fits the model"):
            merge_lora(make_expert(0), folder)


def test_missing_weights(own_cache: Path) -> None:
    with pytest.raises(InputError, match=r"vs3r weights fetch wan2\.2-i2v-a14b"):
        load_model(WanConfig(wan_device="cpu"))
    with pytest.raises(InputError, match="got /nowhere; fetch them with: vs3r weights fetch wan"):
        load_model(config(Path("/nowhere")))
    assert not own_cache.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_no_gpu(wan_folder: Path) -> None:
    with pytest.raises(BackendError, match=r"needs an NVIDIA GPU .* use --refine fill, or .* --wan-device cpu"):
        load_model(config(wan_folder, wan_device="auto"))


def test_a_wrong_checkpoint_names_its_keys(wan_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(wan_folder, folder)
    change_json(folder / "transformer" / "config.json", num_layers=1)
    with pytest.raises(
        InputError, match=r"another model's: 0 tensors are missing and \d+ are not known, blocks.1.attn"
    ):
        load_model(config(folder))
    change_json(folder / "transformer" / "config.json", num_layers=3)
    with pytest.raises(InputError, match=r"another model's: \d+ tensors are missing .*, blocks.2.attn"):
        load_model(config(folder))
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="expected weights that diffusers can read"):
        load_model(config(folder))
    shutil.rmtree(folder / "transformer")
    make_expert(0, in_channels=16).save_pretrained(folder / "transformer")
    with pytest.raises(InputError, match=r"in_channels 36, .* got 16, 16, None; use wan2"):
        load_model(config(folder))


@pytest.mark.needs_cuda
@torch.no_grad()
@pytest.mark.parametrize("experts", ["both", "swap"])
def test_the_gpu_agrees_with_the_processor(wan_folder: Path, experts: str) -> None:
    ours = load_model(config(wan_folder, wan_device="auto", wan_experts=experts))
    reference = load_model(config(wan_folder))
    for sigma in (1.0, 0.5, 1.0):
        found = ours.experts.velocity(model_input().to(ours.device), sigma).cpu()
        # Convolutions may use TF32 there.
        torch.testing.assert_close(found, reference.experts.velocity(model_input(), sigma), rtol=1e-2, atol=1e-2)
    video = torch.rand(1, 3, 5, 16, 32) * 2 - 1
    latents = reference.codec.encode(video)
    torch.testing.assert_close(ours.codec.encode(video).cpu(), latents, rtol=1e-2, atol=1e-2)
    difference = ours.codec.decode(latents.to(ours.device)).cpu() - reference.codec.decode(latents)
    assert difference.abs().mean() < 0.02
