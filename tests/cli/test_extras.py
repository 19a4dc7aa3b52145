"""Without the packages of extras: operators and models work, commands say what to install."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch

from detr_fast.engine import Detector
from detr_fast.extras import EXTRAS
from tests.engine.tiny import detr
from tests.paths import ROOT

MODULES = set().union(*EXTRAS.values())
# these names import as if nothing of them were installed
BLOCK = "import sys; sys.modules.update(dict.fromkeys({modules!r})); "


def run(modules: set[str], program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCK.format(modules=sorted(modules)) + program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_operators_and_models_need_torch_and_numpy_alone() -> None:
    program = """
import torch
import detr_fast.families, detr_fast.integrations, detr_fast.ops
costs = torch.rand(1, 3, 5)
assert detr_fast.ops.linear_assignment(costs, [3], backend="cpu").unique().numel() == 3
try:
    detr_fast.ops.linear_assignment(costs, [3], backend="reference")
except detr_fast.ops.BackendUnavailable as error:
    print(error)
"""
    done = run(MODULES, program)
    assert done.returncode == 0, done.stderr
    assert "reference: scipy is not installed; `pip install scipy`" in done.stdout


def test_importing_the_package_loads_nothing_else() -> None:
    done = run(set(), "import detr_fast; print({'torch', 'numpy'} & sys.modules.keys())")
    assert done.stdout == "set()\n"


def test_all_names_of_the_package_are_there() -> None:
    program = """
import detr_fast
for name in detr_fast.__all__:
    value = getattr(detr_fast, name)
    assert getattr(value, "__name__", name).endswith(name), name
from detr_fast import *
print(DETR, restore, ops.linear_assignment)
"""
    done = run(set(), program)
    assert done.returncode == 0, done.stderr


def test_importing_operators_loads_nothing_of_the_extra() -> None:
    program = f"""
import torch
before = set(sys.modules)
import detr_fast, detr_fast.families, detr_fast.ops
print({MODULES!r} & (sys.modules.keys() - before))
"""
    assert run(set(), program).stdout == "set()\n"


@pytest.mark.parametrize("module", ["typer", "PIL", "pycocotools"])
def test_the_command_names_the_extra(module: str) -> None:
    arguments = "sys.argv[1:] = ['eval', '--checkpoint', 'a.pt']; "
    done = run({module}, arguments + "from detr_fast.__main__ import main; main()")
    assert done.returncode == 2
    assert done.stderr == (f"error: {module} is not installed; `pip install 'detr_fast[train]'` brings it\n")


def test_a_command_that_needs_more_than_others_names_it(tmp_path) -> None:
    (tmp_path / "data.yaml").write_text("names: [cat]")
    arguments = ["convert", "yolo", str(tmp_path / "data.yaml"), str(tmp_path / "coco")]
    done = run({"yaml"}, f"sys.argv[1:] = {arguments!r}; from detr_fast.__main__ import main; main()")
    assert done.returncode == 2
    assert done.stderr == "error: yaml is not installed; `pip install 'detr_fast[train]'` brings it\n"


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [("av", "video", ["predict", "clip.mp4", "--checkpoint"]), ("starlette", "serve", ["serve"])],
)
def test_video_and_server_name_theirs(module: str, extra: str, arguments: list[str], tmp_path: Path) -> None:
    model = detr()
    (tmp_path / "clip.mp4").touch()
    torch.save(
        {"model": model.state_dict(), "detector": Detector(model, {}).description()}, tmp_path / "a.pt"
    )
    arguments = [*arguments, str(tmp_path / "a.pt"), *(["--output", str(tmp_path)] if module == "av" else [])]
    done = run({module}, f"sys.argv[1:] = {arguments!r}; from detr_fast.__main__ import main; main()")
    assert done.returncode == 2
    assert f"error: {module} is not installed; `pip install 'detr_fast[{extra}]'` brings it" in done.stderr


def test_other_missing_modules_are_defects() -> None:
    done = run({"detr_fast.engine"}, "sys.argv[1:] = ['eval']; from detr_fast.__main__ import main; main()")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_module_and_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "detr_fast", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("detr_fast 0.")


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_the_modules_that_are_said_to_be_of_it(extra: str) -> None:
    listed = (ROOT / "pyproject.toml").read_text().split(f"\n{extra} = [")[1].split("]\n")[0]
    providers = packages_distributions()
    named = set(re.findall(r'"([a-z_-]+)[>"]', listed))
    assert {providers[module][0].lower() for module in EXTRAS[extra]} == named
