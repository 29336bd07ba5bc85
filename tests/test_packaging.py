"""The wheel holds all of epsc, under that one name."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import epsc

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).parents[1]
FLOW = ("codegen", "examples", "grammar", "passes")
SHIPPED = {".css", ".eps", ".html", ".jinja", ".js", ".json", ".lark", ".py", ".toml", ".typed"}


def shipped_files(package: Path, name: str) -> set[str]:
    """Every file under `package` that belongs in the wheel, by its name there."""
    found = set()
    for path in package.iterdir():
        inside = f"{name}/{path.name}"
        if path.is_dir():  # through the symlinks, too
            found |= shipped_files(path, inside)
        elif path.suffix in SHIPPED:
            found.add(inside)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names inside a freshly built wheel."""
    # From a copy: a build leaves folders beside the sources, and old ones leak into new wheels.
    source = tmp_path_factory.mktemp("source")
    for name in ("epsc", *FLOW):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name in ("pyproject.toml", settings["project"].get("readme"), *settings["project"]["license-files"]):
        if name:
            shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    offline = ["--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", *offline, "-w", out, source], check=True)
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_site_packages_gets_one_name(wheel: set[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert top == {"epsc", f"epsc-{epsc.__version__}.dist-info"}


def test_wheel_holds_every_package_and_data_file(wheel: set[str]) -> None:
    packed = {name for name in wheel if name.startswith("epsc/")}
    assert packed == shipped_files(ROOT / "epsc", "epsc")


@pytest.mark.parametrize("folder", FLOW)
def test_flow_folders_are_linked_into_the_package(folder: str) -> None:
    link = ROOT / "epsc" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..") / folder
    assert (link / "__init__.py").samefile(ROOT / folder / "__init__.py")


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == epsc.__version__


def test_makefile_tells_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    told = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    assert sorted(told) == sorted(phony[1].split())
