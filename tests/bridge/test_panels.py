"""What Kdenlive and Shotcut show of the MLT filter agrees with what it takes. Needs no build."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from vs3r.config import RenderConfig, SmoothConfig

MLT = Path(__file__).parents[2] / "plugin_bridge" / "mlt"
EFFECTS = Path("/usr/share/kdenlive/effects")
# Of the effects that Kdenlive 22.12 ships; looked up again where it is installed.
ATTRIBUTES = {
    "effect": {"tag", "id", "unique"},
    "parameter": {"type", "name", "default", "min", "max", "decimals", "paramlist"}
    | {"filtertag", "filterparams", "consumer", "consumerparams"},
    "name": {"conditional"},
    "jobparam": {"name"},
    "description": set(),
    "author": set(),
    "comment": set(),
    "paramlistdisplay": set(),
}
TYPES = {"constant", "list", "filterjob"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """As filter_vs3r.yml has it."""

    default: str
    """Empty where there is none."""
    bounds: tuple[str, str]
    """Least and greatest, or empty."""
    values: list[str]
    """Of a choice."""


@pytest.fixture(scope="module")
def described() -> dict[str, Parameter]:
    """The filter's own description."""
    found = {}
    for block in (MLT / "filter_vs3r.yml").read_text().split("\n  - identifier: ")[1:]:
        entries = dict(re.findall(r"^    (\w+): (.+)$", block, re.M))
        found[block.split("\n", 1)[0]] = Parameter(
            default=entries.get("default", ""),
            bounds=(entries.get("minimum", ""), entries.get("maximum", "")),
            values=re.findall(r"^      - (.+)$", block, re.M),
        )
    return found


@pytest.fixture(scope="module")
def panel() -> ET.Element:
    """Kdenlive's."""
    return ET.parse(MLT / "kdenlive" / "kdenlive_vs3r.xml").getroot()


def test_the_filter_s_choices_are_the_engine_s(described: dict[str, Parameter]) -> None:
    choices = {f.name: list(f.metadata["choices"]) for f in fields(RenderConfig) if f.metadata.get("choices")}
    assert described["camera"].values == choices["camera"]
    assert described["camera"].default == RenderConfig().camera
    assert float(described["smoothness"].default) == SmoothConfig().smoothness
    assert float(described["frame_limit"].default) == SmoothConfig().min_own_share


def test_kdenlive_s_panel_agrees_with_the_filter(described: dict[str, Parameter], panel: ET.Element) -> None:
    assert panel.get("tag") == "vs3r"
    shown = {p.get("name", ""): p for p in panel.iter("parameter") if p.get("type") != "filterjob"}
    assert {"smoothness", "frame_limit", "fill", "camera", "unanalysed"} == set(shown)
    for name, parameter in shown.items():
        assert parameter.get("default") == described[name].default, name
        if parameter.get("type") == "constant":
            assert (parameter.get("min"), parameter.get("max")) == described[name].bounds
        if parameter.get("type") == "list":
            listed = parameter.get("paramlist", "").split(";")
            assert listed == described[name].values
            assert len(parameter.findtext("paramlistdisplay", "").split(",")) == len(listed)
    (job,) = (p for p in panel.iter("parameter") if p.get("type") == "filterjob")
    added = dict(part.split("=") for part in job.get("filterparams", "").split())
    assert added == {"analyze": "1"} and set(added) <= set(described)
    told = {p.get("name"): p.text for p in job.iter("jobparam")}
    assert told["key"] in described and told["finalfilter"] == job.get("filtertag") == "vs3r"


def test_kdenlive_s_panel_says_what_kdenlive_understands(panel: ET.Element) -> None:
    for element in panel.iter():
        assert set(element.keys()) <= ATTRIBUTES[element.tag], element.tag
    assert {p.get("type") for p in panel.iter("parameter")} == TYPES


def test_kdenlive_ships_effects_of_the_same_form() -> None:
    if not EFFECTS.is_dir():
        pytest.skip("Kdenlive is not installed")
    attributes: dict[str, set[str]] = {}
    types = set()
    for path in EFFECTS.glob("*.xml"):
        for element in ET.parse(path).iter():
            attributes.setdefault(element.tag, set()).update(element.keys())
            if element.tag == "parameter":
                types.add(element.get("type"))
    assert types >= TYPES
    for tag, known in ATTRIBUTES.items():
        assert attributes[tag] >= known, tag


def test_shotcut_s_panel_agrees_with_the_filter(described: dict[str, Parameter]) -> None:
    panel, about = ((MLT / "shotcut" / name).read_text() for name in ("ui.qml", "meta.qml"))
    used = set(re.findall(r'filter\.(?:set|get|getDouble)\("(\w+)"', panel))
    assert used == {
        "analyze",
        "smoothness",
        "frame_limit",
        "fill",
        "camera",
        "unanalysed",
        "filename",
        "results",
        "reload",
    }
    assert used <= set(described)
    for listed, name in (("fills", "fill"), ("cameras", "camera"), ("waits", "unanalysed")):
        (found,) = re.findall(rf"property var {listed}: \[(.*)\]", panel)
        assert re.findall(r'"([^"]+)"', found) == described[name].values
        (labels,) = re.findall(rf"id: {name}\n.*\n\s+model: \[(.*)\]", panel)
        assert len(re.findall(r'"([^"]+)"', labels)) == len(described[name].values)
    assert 'mlt_service: "vs3r"' in about and 'qml: "ui.qml"' in about


def test_shotcut_s_panel_is_qml() -> None:
    program = shutil.which("qmllint")
    if program is None:
        pytest.skip("qmllint is not installed")
    subprocess.run([program, MLT / "shotcut" / "ui.qml", MLT / "shotcut" / "meta.qml"], check=True, timeout=200)
