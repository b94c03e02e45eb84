"""The distribution is winnow-nn, and no other package of the name ``winnow`` is taken for this one."""

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import winnow
import winnow_nn

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


def test_the_imported_package_is_ours():
    assert winnow_nn.problem() is None, winnow_nn.problem()
    fix = "another winnow shadows this one: pip uninstall winnow, and install this checkout again"
    assert Path(winnow.__file__).resolve() == (SOURCE / "winnow" / "__init__.py").resolve(), fix


def run(command, *paths):
    """Without site-packages: where winnow is installed there, it would be found behind what is left in ``paths``."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run([sys.executable, "-S", "-m", command, "--version"], capture_output=True, text=True, env=env)


@pytest.fixture
def installed(tmp_path):
    """What the files of both distributions in one folder come to: the parts of ours that start the command."""
    site = tmp_path / "site"
    shutil.copytree(SOURCE / "winnow_nn", site / "winnow_nn")
    (site / "winnow").mkdir()
    shutil.copy(SOURCE / "winnow" / "__main__.py", site / "winnow")
    return site


STRANGER = "from operations import *"  # the whole winnow/__init__.py of winnow 0.1.4 on PyPI, for Python 2


def test_another_package_of_the_name_is_told_in_one_sentence(installed, tmp_path):
    (installed / "winnow" / "__init__.py").write_text(STRANGER)  # winnow installed after winnow-nn
    (tmp_path / "first" / "winnow").mkdir(parents=True)
    (tmp_path / "first" / "winnow" / "__init__.py").write_text(STRANGER)  # and one that comes first on the path
    for paths in ([installed], [tmp_path / "first", SOURCE]):
        done = run("winnow_nn", *paths)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and str(paths[0] / "winnow" / "__init__.py") in done.stderr
        assert "another package named winnow" in done.stderr and "pip uninstall winnow, then install winnow-nn" in done.stderr  # fmt: skip


@pytest.mark.parametrize("command", ["winnow_nn", "winnow"])
def test_what_uninstalling_the_other_one_leaves_is_told(installed, command):
    done = run(command, installed)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "lacks its __init__.py" in done.stderr and "--force-reinstall --no-deps" in done.stderr


def test_env_tells_of_a_second_distribution(tmp_path):
    from winnow.verbs.env import _problems

    info = tmp_path / "winnow-0.1.4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: winnow\nVersion: 0.1.4\n")
    sys.path.insert(0, str(tmp_path))
    try:
        (told,) = _problems()
    finally:
        sys.path.remove(str(tmp_path))
    assert "winnow 0.1.4" in told and str(tmp_path) in told and "pip uninstall winnow" in told


def test_every_install_line_names_our_distribution():
    """``pip install winnow`` fetches the other library, in whatever file a person reads it."""
    wrong = re.compile(r"pip install (?:-\S+ |--\S+ )*['\"]?winnow(?!-nn)\b")
    texts = [p for p in SOURCE.rglob("*.py")] + [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("*.cff"),
    ]
    assert [
        str(p) for p in texts if wrong.search(p.read_text(encoding="utf-8").replace("`pip install winnow` fetches", ""))
    ] == []
    assert wrong.search("pip install 'winnow[hf]'") and not wrong.search("pip install 'winnow-nn[hf]'")
    extras = {e for p in SOURCE.rglob("*.py") for e in re.findall(r"winnow-nn\[(\w+)\]", p.read_text(encoding="utf-8"))}
    project = (ROOT / "pyproject.toml").read_text()
    assert extras and all(f"\n{extra} = [" in project for extra in extras), extras
    assert f'\nname = "{winnow_nn.DISTRIBUTION}"' in project and '\nwinnow = "winnow_nn:main"' in project


def test_the_suite_runs_on_every_python_that_is_named():
    """Classifiers, the lowest version allowed, wheels and the workflow say the same; its steps are targets of the Makefile."""
    project = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    assert len(named) >= 5 and f'requires-python = ">={named[0]}"' in project
    assert re.findall(r"cp3(\d+)-\*", project) == [version.removeprefix("3.") for version in named]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    tests, lint = workflow["jobs"]["tests"], workflow["jobs"]["lint"]
    assert tests["strategy"]["matrix"]["python"] == named  # quoted: 3.10 is no 3.1
    steps = [*tests["steps"], *lint["steps"]]
    set_up = [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")]
    assert set_up[0] == "${{ matrix.python }}" and set_up[1] in named
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert [step["run"] for step in steps if "run" in step] == ["make test", "make lint"]
    assert {"test", "lint"} <= set(targets)
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)


def test_the_version_is_one():
    found = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert found == winnow.__version__ and f"version: {found}\n" in (ROOT / "CITATION.cff").read_text()
    try:
        assert metadata.version(winnow_nn.DISTRIBUTION) == found
    except metadata.PackageNotFoundError:
        pytest.skip("this checkout is on the path without being installed")
