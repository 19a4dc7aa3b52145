"""Finding the weights: the entries and prefixes that training code uses, and what stands beside them."""

from __future__ import annotations

import argparse
import itertools
import pathlib
import re
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detr_fast.checkpoints import open_checkpoint, read_checkpoint, read_file

# names of which some tell the kind of model
DETR = {
    name: torch.randn(2)
    for name in (
        "transformer.decoder.layers.0.multihead_attn.in_proj_weight",
        "backbone.0.body.layer4.0.conv1.weight",
        "class_embed.weight",
        "query_embed.weight",
    )
}
SEGM = {**{f"detr.{name}": t for name, t in DETR.items()}, "mask_head.lay1.weight": torch.randn(3)}
MASK2FORMER = {
    "sem_seg_head.predictor.query_feat.weight": torch.randn(2),
    "backbone.res5.0.conv1.weight": torch.randn(2),
}
RESNET = {"layer4.0.conv1.weight": torch.randn(2), "conv1.weight": torch.randn(2)}
UNKNOWN = {"a.weight": torch.randn(2), "b.weight": torch.randn(2)}
STATES = {"detr": DETR, "segm": SEGM, "mask2former": MASK2FORMER, "resnet": RESNET, "unknown": UNKNOWN}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def saved(content: Any, tmp_path: Path) -> Path:
    torch.save(content, tmp_path / "c.pth")
    return tmp_path / "c.pth"


PREFIXES = ("module.", "_orig_mod.", "model.", "detr.", "net.", "_fsdp_wrapped_module.")


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize(
    "prefix",
    [*PREFIXES, *map("".join, itertools.permutations(PREFIXES[:4], 2)), "model.module.model._orig_mod."],
)
def test_prefixes(kind: str, prefix: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved(prefixed(STATES[kind], prefix), tmp_path))
    assert_same(checkpoint.state, STATES[kind])
    assert any("from the names" in line or "to the names" in line for line in checkpoint.remarks)


@pytest.mark.parametrize("kind", ["detr", "segm", "mask2former"])
def test_unknown_prefix_around_a_known_model(kind: str, tmp_path: Path) -> None:
    assert_same(read_checkpoint(saved(prefixed(STATES[kind], "my_detector.inner."), tmp_path)), STATES[kind])


@pytest.mark.parametrize("kind", STATES)
def test_plain_names_stay(kind: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved(STATES[kind], tmp_path))
    assert_same(checkpoint.state, STATES[kind])
    assert checkpoint.remarks == ()


def test_compiled_and_sharded_parts(tmp_path: Path) -> None:
    """torch.compile and FSDP of submodules leave their marks inside of names."""
    marked = {
        name.replace("layers.0.", "layers.0._fsdp_wrapped_module._orig_mod."): t for name, t in DETR.items()
    }
    assert_same(read_checkpoint(saved(marked, tmp_path)), DETR)


def test_lightning_module_with_other_parts(tmp_path: Path) -> None:
    state = {**prefixed(DETR, "model."), "criterion.empty_weight": torch.ones(3), "map.seen": torch.ones(1)}
    checkpoint = open_checkpoint(saved({"state_dict": state, "epoch": 2}, tmp_path))
    assert_same(checkpoint.state, DETR)
    assert any(
        "2 entries beside it were left out: criterion.empty_weight, map.seen" in r for r in checkpoint.remarks
    )


def test_averaged_model(tmp_path: Path) -> None:
    state = {"n_averaged": torch.tensor(3), **prefixed(DETR, "module.")}
    assert_same(read_checkpoint(saved({"ema": state}, tmp_path)), DETR)


def test_student_is_taken_before_its_average(tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in DETR.items()}
    state = {**prefixed(other, "ema."), **prefixed(DETR, "model.")}
    assert_same(read_checkpoint(saved(state, tmp_path)), DETR)
    state = {**prefixed(other, "first."), **prefixed(DETR, "second.")}
    with pytest.raises(ValueError, match="expected one model; got first and second"):
        read_checkpoint(saved(state, tmp_path))


NESTS = (
    "model", "state_dict", "ema", "ema.module", "ema_state_dict", "net", "model_state_dict", "model_ema",
    "module", "my_weights", "model.state_dict",
)  # fmt: skip


@pytest.mark.parametrize("nest", NESTS)
def test_nests(nest: str, tmp_path: Path) -> None:
    content: Any = DETR
    for name in reversed(nest.split(".")):
        content = {name: content, "epoch": 3, "rng": torch.zeros(9, dtype=torch.uint8)}
    content["optimizer"] = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    checkpoint = open_checkpoint(saved(content, tmp_path))
    assert_same(checkpoint.state, DETR)
    assert f"the weights of the entry '{nest}' were taken" in checkpoint.remarks


@pytest.mark.parametrize(
    ("first", "second"), [*itertools.combinations(("model", "state_dict", "ema", "net"), 2)]
)
def test_the_better_nest_is_taken_and_the_other_named(first: str, second: str, tmp_path: Path) -> None:
    content = {second: UNKNOWN, first: DETR}
    checkpoint = open_checkpoint(saved(content, tmp_path))
    assert_same(checkpoint.state, DETR)
    assert checkpoint.remarks[0] == f"the weights of the entry {first!r} were taken (there is {second!r} too)"


def test_random_states_are_no_weights(tmp_path: Path) -> None:
    states = {"cpu": torch.zeros(9, dtype=torch.uint8), "cuda": torch.zeros(9, dtype=torch.uint8)}
    for content in (
        {**DETR, "rng": states},
        {"model": DETR, "rng": states},
        {"model": {**DETR, "rng": states}},
    ):
        assert_same(read_checkpoint(saved(content, tmp_path)), DETR)
    assert_same(read_checkpoint(saved({"model": DETR, "seen": torch.zeros(4)}, tmp_path)), DETR)


def test_nothing_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one state dict; got 'generator', 'judge'"):
        read_checkpoint(saved({"generator": DETR, "judge": DETR}, tmp_path))


def test_state_dict_alone_in_a_list(tmp_path: Path) -> None:
    assert_same(read_checkpoint(saved([DETR], tmp_path)), DETR)


def test_optimizer_is_no_model(tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    for content in (optimizer.state_dict(), {"optimizer": optimizer.state_dict(), "epoch": 1}):
        with pytest.raises(ValueError, match="an optimizer's state, without a model's weights"):
            read_checkpoint(saved(content, tmp_path))


def test_what_stands_beside_the_weights(tmp_path: Path) -> None:
    beside = {
        "best": np.float64(0.5),
        "count": np.int64(7),
        "folder": pathlib.Path("/data/coco"),
        "windows": pathlib.PureWindowsPath("c:/data"),
        "args": argparse.Namespace(lr=1e-4, output=pathlib.Path("runs")),
        "milestones": Counter([3, 3, 5]),
        "meters": defaultdict(list, loss=[0.1]),
        "names": {"a", "b"},
        "frozen": frozenset({1}),
        "device": torch.device("cuda", 3),
        "dtype": torch.bfloat16,
        "size": torch.Size([2, 3]),
        "array": np.arange(3),
        "nothing": None,
        "bytes": b"\x00\xff",
        "empty": b"",
        "complex": 1.5,
    }
    found = read_file(saved({"model": DETR, **beside}, tmp_path))
    assert found["best"] == 0.5
    assert found["count"] == 7
    assert str(found["folder"]) == "/data/coco"
    assert found["windows"] == beside["windows"]
    assert found["args"] == argparse.Namespace(lr=1e-4, output=pathlib.PurePosixPath("runs"))
    assert found["milestones"] == {3: 2, 5: 1}
    assert found["meters"] == {"loss": [0.1]}
    assert found["device"] == "cuda:3"
    assert found["array"].tolist() == [0, 1, 2]
    for name in ("names", "frozen", "dtype", "size", "nothing", "bytes", "empty"):
        assert found[name] == beside[name], name
    assert_same(read_checkpoint(tmp_path / "c.pth"), DETR)


DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64,
    torch.uint16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_kind(dtype: torch.dtype, legacy: bool, tmp_path: Path) -> None:
    base = torch.randint(0, 2, (4, 6)).to(dtype)
    content = {
        "whole": base,
        "strided": base[1:, ::2],
        "turned": base.T,
        "scalar": base[0, 0],
        "none": base[:0],
        "parameter": torch.nn.Parameter(base, requires_grad=False),
        "expanded": base[0, :1].expand(5),
    }
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    found = read_file(tmp_path / "c.pth")
    for name, expected in content.items():
        assert found[name].dtype == dtype
        same = torch.float32 if dtype == torch.float8_e4m3fn else dtype
        assert torch.equal(found[name].to(same), expected.to(same)), name
    assert found["strided"].data_ptr() == found["whole"][1].data_ptr(), "shared storage stays shared"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "meta"),
        (torch.ones(2, dtype=torch.complex64).conj(), "conjugate bit"),
    ],
)
def test_other_tensors_are_named(tensor: Tensor, what: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"c.pth: .*{what}"):
        read_file(saved({"w": tensor}, tmp_path))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_quantised_tensors_are_named(tmp_path: Path) -> None:
    tensor = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    with pytest.raises(ValueError, match=r"c.pth: .*quantised"):
        read_file(saved({"w": tensor}, tmp_path))


def test_attributes_of_tensors_are_left_out(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "kept by nobody"  # type: ignore[attr-defined]
    assert read_checkpoint(saved({"w": parameter}, tmp_path))["w"].tolist() == [1, 1]


def test_ordered_dicts_with_metadata(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).state_dict()
    assert isinstance(state, OrderedDict)
    assert_same(read_checkpoint(saved(state, tmp_path)), dict(state))


class MyDict(OrderedDict):
    pass


def test_classes_of_others_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"refused, .*import tests\.test_checkpoints_contents\.MyDict"):
        read_checkpoint(saved({"model": MyDict(DETR)}, tmp_path))


def test_entries_that_are_no_tensors_are_said(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(
        saved({**DETR, "version": 3, "head._extra_state": {"a": torch.ones(1)}}, tmp_path)
    )
    assert_same(checkpoint.state, DETR)
    assert checkpoint.remarks == ("entries without weights were left out: version, head._extra_state",)


def test_names_in_bytes(tmp_path: Path) -> None:
    assert_same(read_checkpoint(saved({name.encode(): t for name, t in DETR.items()}, tmp_path)), DETR)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    path = saved({"model": {"a": torch.ones(3), "b": torch.tensor([1, value], dtype=dtype)}}, tmp_path)
    message = re.escape("1 of 2 entries hold NaN or infinite numbers, the first 'b'; allow_non_finite")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)
    assert not read_checkpoint(path, allow_non_finite=True)["b"].isfinite().all()
