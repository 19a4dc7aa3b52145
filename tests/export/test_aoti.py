"""Machine code of AOTInductor does what the detector does, in a process without this package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detr_fast.engine import load_detector
from detr_fast.export import export
from detr_fast.export.program import Portable
from tests.export.test_export import check_answers, detector_of

PROGRAM = """
import sys, torch
program = torch._inductor.aoti_load_package(sys.argv[1])
inputs, expected = torch.load(sys.argv[2])
for given, wanted in zip(inputs, expected):
    found = program(**given)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4 * float(tensor.abs().max()))
assert "detr_fast" in program.get_metadata()
assert not any(name.partition(".")[0] == "detr_fast" for name in sys.modules)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="AOTInductor needs a compiler of the platform")
def test_a_package_runs_in_a_fresh_process(tmp_path: Path, rng: torch.Generator) -> None:
    detector = detector_of("detr", rng)
    path = export(detector, tmp_path / "model.pt2", format="aoti", example=(2, 3, 64, 96))
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    check_answers(detector, load_detector(path), rng)
    network = Portable(detector, True)
    inputs, expected = [], []
    for batch, h, w in ((1, 64, 70), (3, 93, 64)):
        sizes = torch.tensor([[h, w]]).repeat(batch, 1)
        images = 255 * torch.rand(batch, 3, h, w, generator=rng)
        inputs.append({"images": images, "sizes": sizes, "output_sizes": 2 * sizes})
        with torch.no_grad():
            expected.append(network(**inputs[-1]))
    torch.save((inputs, expected), tmp_path / "calls.pt")
    command = [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "calls.pt")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr
