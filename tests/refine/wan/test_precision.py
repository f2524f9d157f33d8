"""Number formats, attention and compilation: what they change, and what is said where they cannot run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.refine.wan.test_model import config, model_input, save_lora
from tests.refine.wan.test_refiner import picture
from tests.refine.wan.tiny import TEXT_DIM, make_expert
from tests.render.plane_world import make_format
from vs3r.errors import BackendError
from vs3r.refine import make_clip_refiner
from vs3r.refine.wan import attention, model
from vs3r.refine.wan.attention import agreement_db, choose_attention
from vs3r.refine.wan.checkpoint import HIGH, LOW
from vs3r.refine.wan.model import Experts, compile_blocks, load_model
from vs3r.refine.wan.precision import choose_precision, hold_as

pytestmark = pytest.mark.usefixtures("own_cache")

CPU = torch.device("cpu")
EIGHT_BITS = torch.float8_e4m3fn


def bfloat16_expert() -> Any:
    """Sizes that FP8 products take: multiples of 16."""
    expert = make_expert(0, attention_head_dim=24, num_attention_heads=4, ffn_dim=64).eval().requires_grad_(False)
    return torch.nn.Module.to(expert, torch.bfloat16)


def velocity(expert: Any) -> torch.Tensor:
    (found,) = expert(
        hidden_states=model_input().bfloat16(), timestep=torch.tensor([500.0]),
        encoder_hidden_states=torch.ones(1, 16, TEXT_DIM, dtype=torch.bfloat16), return_dict=False,
    )  # fmt: skip
    return found.float()  # type: ignore[no-any-return]


@torch.no_grad()
@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.02), ("fp8-storage", 0.08), ("fp8-weights", 0.03)])
def test_number_formats_agree(wan_folder: Path, precision: str, most: float) -> None:
    def velocities(precision: str) -> torch.Tensor:
        model = load_model(config(wan_folder, wan_precision=precision))
        return torch.cat([model.experts.velocity(model_input(), sigma) for sigma in (1.0, 0.5)])

    exact = velocities("fp32")
    # Of the velocity's spread; 0.006, 0.016 and 0.009 seen.
    assert 0 < (velocities(precision) - exact).std() / exact.std() < most


@torch.no_grad()
def test_fp8_products_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    # torchao refuses processors, but PyTorch's product in FP8 runs on them.
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda _granularity: None)
    expert = bfloat16_expert()
    exact = velocity(expert)
    hold_as(expert, "fp8")
    found = velocity(expert)
    # Of the velocity's spread; 0.012 seen.
    assert 0 < (found - exact).std() / exact.std() < 0.04


@pytest.mark.parametrize("precision", ["fp8", "fp8-weights"])
def test_the_compiler_stays_as_it_was(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda _granularity: None)
    before = torch._inductor.config.get_config_copy()
    hold_as(bfloat16_expert(), precision)
    assert torch._inductor.config.get_config_copy() == before


@pytest.mark.needs_cuda
@torch.no_grad()
@pytest.mark.parametrize(
    ("precision", "compiled"),
    [("fp8", False), ("fp8-weights", False), ("fp8-storage", False), ("fp8", True), ("fp8-weights", True)],
)
def test_number_formats_on_the_gpu(precision: str, compiled: bool) -> None:
    device = torch.device("cuda")
    assert choose_precision(precision, device) == precision
    exact = velocity(bfloat16_expert())
    expert = bfloat16_expert()
    hold_as(expert, precision)
    if compiled:
        compile_blocks(expert)
    experts = Experts(None, expert, torch.ones(1, 16, TEXT_DIM), device=device, swap=False)
    found = experts.velocity(model_input().to(device), 0.5).cpu()
    assert (found - exact).std() / exact.std() < 0.08
    torch._dynamo.reset()


@pytest.mark.parametrize("precision", ["fp8-weights", "fp8-storage"])
def test_fp8_holds_only_linear_layers_of_the_blocks(precision: str) -> None:
    expert = bfloat16_expert()
    names = {name for name, module in expert.named_modules() if isinstance(module, torch.nn.Linear)}
    hold_as(expert, precision)

    def held(value: Any) -> bool:
        return bool(getattr(value, "qdata", value).dtype == EIGHT_BITS)

    eighths = {name.removesuffix(".weight") for name, value in expert.named_parameters() if held(value)}
    eighths = {name for name in eighths if not name.endswith("bias")}
    assert eighths == {name for name in names if name.startswith("blocks.")}
    assert len(eighths) == 2 * (2 * 4 + 2), "two blocks: two attentions of four layers, and two layers more"


def test_a_lora_is_merged_before_the_weights_lose_precision(wan_folder: Path, tmp_path: Path) -> None:
    for name, seed in ((HIGH, 0), (LOW, 1)):
        save_lora(tmp_path / name, make_expert(seed), seed=seed)
    lora = {"wan_lora": str(tmp_path), "wan_precision": "fp8-weights"}
    ours = load_model(config(wan_folder, **lora)).experts._experts[LOW].state_dict()
    merged = load_model(config(wan_folder, wan_lora=str(tmp_path), wan_precision="bf16")).experts._experts[LOW]
    hold_as(merged, "fp8-weights")
    expected = merged.state_dict()
    for name in ("blocks.0.attn1.to_q.weight", "blocks.1.ffn.net.0.proj.weight"):
        assert torch.equal(ours[name].qdata.view(torch.uint8), expected[name].qdata.view(torch.uint8)), name


def test_auto_falls_back_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vs3r"):
        assert choose_precision("auto", CPU) == "bf16"
    (record,) = caplog.records
    assert record.getMessage() == (
        "wan: the weights stay in bf16, as fp8 needs an NVIDIA GPU of compute capability 8.9 or more and runs on the "
        "processor"
    )


def test_a_full_gpu_is_told_of_the_format_that_auto_took(wan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "choose_precision", lambda *_: "fp8-storage")
    stage = make_clip_refiner(config(wan_folder, wan_precision="auto"), lambda: None)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model.VideoCodec, "encode", full)
    stage.push(picture(make_format("yuv420p", 48, 32), 90, 4), segment=0)
    with pytest.raises(BackendError, match=r"take 29 GB with --wan-experts both --wan-precision fp8-storage"):
        stage.flush()


def test_by_name_it_fails_with_one_line(wan_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"fp8 needs an NVIDIA GPU of .* 8\.9 or more .*use --wan-precision bf16"):
        load_model(config(wan_folder, wan_precision="fp8"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    with pytest.raises(BackendError, match=r"capability 8\.9 or more and finds 8\.0; use --wan-precision bf16"):
        choose_precision("fp8", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 9))
    assert choose_precision("auto", torch.device("cuda")) == "fp8"
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(BackendError, match=r"fp8-weights needs torchao .*pip install 'vs3r\[refine\]'"):
        choose_precision("fp8-weights", CPU)


def test_attention_by_name_says_what_it_lacks(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_attention("sdpa", CPU) == "sdpa"
    with pytest.raises(BackendError, match=r"sage needs the package sageattention.* use --wan-attention sdpa"):
        choose_attention("sage", CPU)
    with caplog.at_level(logging.WARNING, "vs3r"):
        assert choose_attention("auto", CPU) == "sdpa"
    assert not caplog.records, "nothing is installed, so nothing is missed"


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A Hopper GPU with FlashAttention-3, whose place another implementation of diffusers takes."""
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *_: object() if name == "flash_attn_interface" else None
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(attention, "agreement_db", lambda name, _device: agreement_db(name, CPU))
    return lambda name: monkeypatch.setitem(attention.DIFFUSERS, "flash3", name)


def test_attention_that_agrees_is_taken(pretend: Callable[[str], None]) -> None:
    pretend("_native_math")
    assert choose_attention("auto", torch.device("cuda")) == "flash3"
    expert = make_expert(0)
    attention.set_attention(expert, "flash3")
    assert expert.blocks[0].attn1.processor._attention_backend == "_native_math"


def test_attention_that_differs_is_refused(
    pretend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import diffusers.models.attention_dispatch as dispatch

    name = dispatch.AttentionBackendName._NATIVE_MATH
    right = dispatch._AttentionBackendRegistry._backends[name]

    def wrong(query: torch.Tensor, **more: Any) -> Any:
        return right(query=0.9 * query, **more)

    monkeypatch.setitem(dispatch._AttentionBackendRegistry._backends, name, wrong)
    pretend("_native_math")
    with caplog.at_level(logging.WARNING, "vs3r"):
        assert choose_attention("auto", torch.device("cuda")) == "sdpa"
    assert "flash3, which differs too much from PyTorch's own" in caplog.text
    with pytest.raises(BackendError, match=r"flash3 differs too much .* dB, expected at least 40\); use"):
        choose_attention("flash3", torch.device("cuda"))


@torch.no_grad()
def test_blocks_compile_without_breaks_and_once_a_shape() -> None:
    expert = make_expert(0)
    args = {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.ones(1, 8, TEXT_DIM)}
    inputs = [torch.randn(1, 36, count, 4, 4) for count in (2, 3)]
    expected = [expert(hidden_states=given, return_dict=False, **args)[0] for given in inputs]
    graphs = 0

    def count_graphs(module: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    torch._dynamo.reset()
    compile_blocks(expert, backend=count_graphs)
    for _ in range(2):
        for given, plain in zip(inputs, expected, strict=True):
            torch.testing.assert_close(expert(hidden_states=given, return_dict=False, **args)[0], plain)
    assert graphs == 2, "one for each length, none for the second block or the second time"
    torch._dynamo.reset()
