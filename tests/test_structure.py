"""What the folders promise: who may import whom, what is light, what is in the wheel, what is documented."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from vs3r import config

ROOT = Path(__file__).parent.parent
BASE = {"vs3r", "vs3r.types", "vs3r.errors", "vs3r.config", "vs3r.lens"}

# Part -> the parts that it may import, beside BASE and itself.
ARROWS: dict[str, set[str]] = {
    "base": set(),
    "kernels": set(),
    "method": {"kernels"},
    "export": {"kernels", "method"},
    "engine": {"kernels", "method", "export"},
}
# Package -> where alone it may be imported, and only inside functions.
LAZY = {
    "grpc": ("engine/server", "engine/client"),
    "tensorrt": ("export",),
    "diffusers": ("vs3r/refine",),
    "peft": ("vs3r/refine",),
}
FOLDERS = ("vs3r", "kernels", "export", "engine")


def part_of(module: str) -> str:
    """The part of the project that a module belongs to."""
    second = module.split(".")[1] if "." in module else ""
    if second == "__main__":
        return "engine"
    if second in ("kernels", "export", "engine"):
        return second
    return "base" if ".".join(module.split(".")[:2]) in BASE else "method"


def sources() -> Iterator[tuple[Path, str]]:
    """Every source file once, with its module name."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if folder == "vs3r" and relative.parts[1] in FOLDERS:
                continue  # the links
            name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            yield path, name if folder == "vs3r" else f"vs3r.{name}"


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether at its top level (not in a function, not for type checkers only)."""
    tree = ast.parse(path.read_text())
    inner: set[ast.AST] = set()
    for node in ast.walk(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if is_function or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            inner.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node not in inner
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module is not None
            yield node.module, node not in inner
            # `from vs3r import config` imports a module too.
            if node.module == "vs3r":
                for alias in node.names:
                    yield f"vs3r.{alias.name}", node not in inner


def forbidden(module: str, target: str) -> str | None:
    """Why `module` may not import `target`; None when it may."""
    if target.split(".")[0] in ("engine", "kernels", "export"):
        return "a bare top-level name: import it as vs3r...."
    if target.split(".")[0] != "vs3r" or target == "vs3r.__version__":
        return None
    here, there = part_of(module), part_of(target)
    if there == "base" or here == there or there in ARROWS[here]:
        return None
    return f"{here} may not import {there}"


def test_arrows_between_parts() -> None:
    seen = 0
    for path, module in sources():
        for target, _ in imports(path):
            problem = forbidden(module, target)
            assert problem is None, f"{path.relative_to(ROOT)} imports {target}: {problem}"
            seen += target.startswith("vs3r")
    assert seen > 20, "the sources were not found"


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("vs3r.types", "vs3r.flow"),
        ("vs3r.kernels.splat", "vs3r.render"),
        ("vs3r.render.warp", "vs3r.engine.media"),
        ("vs3r.render.warp", "vs3r.export"),
        ("vs3r.engine.cli", "engine.media"),
    ],
)
def test_wrong_arrows_are_seen(module: str, target: str) -> None:
    assert forbidden(module, target) is not None


def test_optional_packages_are_imported_late_and_in_their_place() -> None:
    for path, _ in sources():
        relative = path.relative_to(ROOT).as_posix()
        for target, at_top in imports(path):
            places = LAZY.get(target.split(".")[0])
            if places is not None:
                assert relative.startswith(places), f"{relative} imports {target}; only {', '.join(places)} may"
                assert not at_top, f"{relative} imports {target} at its top; import it in the function that needs it"


@pytest.mark.parametrize(
    "code",
    [
        "import vs3r",
        "import vs3r.config, vs3r.errors",
        "import vs3r.engine",
        "from vs3r.engine.cli import run; assert run(['--help']) == 0",
        "from vs3r.engine.cli import run; assert run(['stabilize', '--help']) == 0",
        "from vs3r.engine.cli import run; assert run(['stabilize', 'in.mp4']) == 1",
    ],
)
def test_light_imports(code: str) -> None:
    heavy = "import sys; print([m for m in ('torch', 'cv2', 'av', 'numpy') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{heavy}"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_init_directly_in_kernels() -> None:
    assert (ROOT / "vs3r" / "kernels").is_symlink()
    assert (ROOT / "vs3r" / "engine").is_symlink()
    assert (ROOT / "vs3r" / "export").is_symlink()
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what packages are made of, and of tests at its root."""
    copy = tmp_path / "project"
    (copy / "tests").mkdir(parents=True)
    for name in (
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "tests/__init__.py",
        "tests/test_structure.py",
    ):
        shutil.copy(ROOT / name, copy / name)
    for folder in FOLDERS:
        if (ROOT / folder).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=ignore)
    return copy


def test_wheel(project: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, project],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    expected = {module_file(module, path) for path, module in sources()}
    packed = {n for n in names if n.endswith(".py")}
    assert packed == expected
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"vs3r"}
    assert "vs3r/py.typed" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert "vs3r = vs3r.__main__:main" in scripts


def test_source_distribution(project: Path, tmp_path: Path) -> None:
    """It has the package and no tests: those that setuptools would take cannot be collected alone."""
    build = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=project, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {n for n in names if n.endswith(".py")} == {module_file(module, path) for path, module in sources()}
    assert {"vs3r/py.typed", "LICENSE", "README.md", "pyproject.toml"} <= names


def module_file(module: str, path: Path) -> str:
    """Where a module lies in the wheel."""
    name = module.replace(".", "/")
    return f"{name}/__init__.py" if path.name == "__init__.py" else f"{name}.py"


def documented_classes() -> list[type]:
    found = [c for c in vars(config).values() if isinstance(c, type) and is_dataclass(c)]
    assert config.Config in found
    return found


@pytest.mark.parametrize("settings", documented_classes())
def test_every_setting_is_documented_and_bounded(settings: type) -> None:
    assert settings.__doc__
    for spec in fields(settings):
        if settings is config.Config:
            continue
        doc = spec.metadata["doc"]
        assert doc.strip(), spec.name
        assert doc[0].islower(), f"{spec.name}: help texts start in lower case"
        if isinstance(spec.default, int | float) and not isinstance(spec.default, bool):
            assert spec.metadata["low"] is not None, spec.name
            assert spec.metadata["high"] is not None, spec.name


def attributes_of_dataclasses() -> Iterator[tuple[str, bool]]:
    for path, module in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            decorated = isinstance(node, ast.ClassDef) and any(
                "dataclass" in ast.unparse(d) for d in node.decorator_list
            )
            if not decorated:
                continue
            assert isinstance(node, ast.ClassDef)
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    name, doc = field.target.id, ast.get_docstring(node) or ""
                    described = text or "option(" in ast.unparse(field) or name in re.findall(r"\w+", doc)
                    yield f"{module}.{node.name}.{name}", described or node.name == "Config"


def test_every_public_dataclass_field_has_a_docstring() -> None:
    found = list(attributes_of_dataclasses())
    assert len(found) > 50
    bare = [name for name, described in found if not described and "._" not in name]
    assert not bare
