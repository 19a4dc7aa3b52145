"""Reading files safely; loading state dicts with nothing silently dropped."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detr_fast.checkpoints import LoadReport, describe, load_state_dict, read_checkpoint, read_file


class Head(nn.Module):
    """The smallest model with the names that matter."""

    def __init__(self, classes: int = 3, channels: int = 4) -> None:
        super().__init__()
        self.input_proj = nn.Linear(5, channels)
        self.class_embed = nn.Linear(channels, classes + 1)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_torch_file(wrapper: str | None, tmp_path: Path) -> None:
    state = Head().state_dict()
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "c.pth")
    assert same(read_checkpoint(tmp_path / "c.pth"), state)


def test_official_file_with_its_command_line(tmp_path: Path) -> None:
    state, args = Head().state_dict(), argparse.Namespace(hidden_dim=256, masks=False)
    torch.save({"model": state, "args": args, "optimizer": {"state": {}}, "epoch": 1}, tmp_path / "c.pth")
    assert same(read_checkpoint(tmp_path / "c.pth"), state)
    assert read_file(tmp_path / "c.pth")["args"] == args


def test_safetensors_file(tmp_path: Path) -> None:
    safetensors = importlib.import_module("safetensors.torch")
    state = Head().state_dict()
    safetensors.save_file(state, tmp_path / "c.safetensors")
    assert same(read_checkpoint(tmp_path / "c.safetensors"), state)
    (tmp_path / "c.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(ValueError, match=r"c.safetensors: damaged, .*not a safetensors file"):
        read_checkpoint(tmp_path / "c.safetensors")


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_pickle_is_refused_and_not_run(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"model": {"weight": torch.zeros(2)}, "extra": Hostile()}
    if legacy:
        Path("c.pth").write_bytes(pickle.dumps({"model": Hostile()}, protocol=2))
    else:
        torch.save(content, "c.pth")
    with pytest.raises(ValueError, match=r"c.pth: refused, because unpickling it would import \w+\.mkdir"):
        read_checkpoint("c.pth")
    assert not Path("hacked").exists()


def test_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(Head(), tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"refused, because unpickling it would import .*Head"):
        read_checkpoint(tmp_path / "c.pth")


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    with pytest.raises(FileNotFoundError, match=r"c.pth: no such checkpoint file"):
        read_checkpoint(path)
    for legacy in (False, True):
        torch.save({"weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=not legacy)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=r"c.pth: damaged, or not a checkpoint"):
            read_checkpoint(path)
    for content in (b"hello, this is text", bytes(range(200, 256))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"c.pth: .*not a checkpoint"):
            read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_flipped_bytes_never_end_in_another_error(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "c.pth"
    for legacy in (False, True):
        torch.save({"w": torch.zeros(9)}, path, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for position in torch.randint(len(whole), (4,), generator=rng).tolist():
                damaged[position] ^= 1 + int(torch.randint(255, (), generator=rng))
            path.write_bytes(damaged)
            with contextlib.suppress(ValueError):
                read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "expected a state dict of tensors; got a list of 1"),
        ({}, "expected a state dict of tensors; got nothing"),
        ({"epoch": 3}, "expected a state dict of tensors; got the entries epoch"),
        (torch.zeros(2), "expected a state dict of tensors; got a Tensor"),
        ({3: torch.zeros(2)}, "expected a state dict of tensors; got the entries 3"),
        ({"AP": torch.tensor(0.4)}, "expected a state dict of tensors; got the entries AP"),
    ],
)
def test_files_without_a_state_dict(content, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "c.pth")


def test_exact_load_leaves_nothing_out() -> None:
    model, given = Head(), Head()
    extra = {"criterion.empty_weight": torch.ones(4)}
    assert load_state_dict(model, {**given.state_dict(), **extra}) == LoadReport(
        ignored=("criterion.empty_weight",)
    )
    assert same(model.state_dict(), given.state_dict())


@pytest.mark.parametrize(("classes", "given_classes"), [(3, 91), (91, 3), (0, 2), (2, 0)])
def test_of_another_class_count_the_first_rows_are_taken(classes: int, given_classes: int) -> None:
    """ "No object" is the last row of both."""
    model, given = Head(classes), Head(given_classes)
    fresh = {name: x.clone() for name, x in model.state_dict().items()}
    report = load_state_dict(model, given.state_dict())
    assert report == LoadReport(resized=("class_embed.bias", "class_embed.weight"))
    shared = min(classes, given_classes)
    for name in report.resized:
        own, old = model.state_dict()[name], given.state_dict()[name]
        assert torch.equal(own[:shared], old[:shared])
        assert torch.equal(own[shared:-1], fresh[name][shared:-1])
        assert torch.equal(own[-1], old[-1])
    assert torch.equal(model.input_proj.weight, given.input_proj.weight)


class Queries(nn.Module):
    """Queries, and the heads of a Deformable DETR, which have no row for "no object"."""

    def __init__(self, queries: int, classes: int) -> None:
        super().__init__()
        self.query_embed = nn.Embedding(queries, 4)
        self.class_embed = nn.ModuleList(nn.Linear(4, classes) for _ in range(2))


@pytest.mark.parametrize(("queries", "given_queries"), [(5, 3), (3, 5)])
def test_of_other_queries_the_first_rows_are_taken(queries: int, given_queries: int) -> None:
    model, given = Queries(queries, 6), Queries(given_queries, 4)
    fresh = model.query_embed.weight.clone()
    report = load_state_dict(model, given.state_dict())
    assert len(report.resized) == 5
    shared = min(queries, given_queries)
    assert torch.equal(model.query_embed.weight[:shared], given.query_embed.weight[:shared])
    assert torch.equal(model.query_embed.weight[shared:], fresh[shared:])
    assert torch.equal(model.class_embed[1].weight[:4], given.class_embed[1].weight)


def test_counts_of_batch_norms_are_left_out() -> None:
    model, given = Head(), Head()
    state = {**given.state_dict(), "input_proj.num_batches_tracked": torch.tensor(3)}
    assert load_state_dict(model, state) == LoadReport(ignored=("input_proj.num_batches_tracked",))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_refused(dtype: torch.dtype) -> None:
    state = {**Head().state_dict(), "input_proj.bias": torch.ones(4).to(dtype)}
    with pytest.raises(ValueError, match=rf"input_proj.bias: expected torch.float32; got {dtype}"):
        load_state_dict(Head(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_numbers_are_widened(dtype: torch.dtype) -> None:
    model, given = Head(), Head()
    load_state_dict(model, {name: x.to(dtype) for name, x in given.state_dict().items()})
    assert torch.equal(model.input_proj.weight, given.input_proj.weight.to(dtype).float())


def test_other_differences_are_errors() -> None:
    state = Head(channels=8).state_dict()
    with pytest.raises(
        ValueError, match=r"this Head; .*of another shape: class_embed.weight \[4, 8\], expected"
    ):
        load_state_dict(Head(), state)
    state = Head().state_dict()
    state["mask_head.lay1.weight"] = state.pop("input_proj.bias")
    message = (
        r"looks like a DETR for segmentation. missing: input_proj.bias. unexpected: mask_head.lay1.weight"
    )
    with pytest.raises(ValueError, match=message):
        load_state_dict(Head(), state)


def test_what_fits_can_be_loaded_alone() -> None:
    model, given = Head(), Head()
    state = given.state_dict()
    state["other"] = state.pop("input_proj.bias")
    state["class_embed.weight"] = torch.zeros(4, 9)
    assert load_state_dict(model, state, strict=False) == LoadReport(
        missing=("class_embed.weight", "input_proj.bias"), unexpected=("class_embed.weight", "other")
    )
    assert torch.equal(model.input_proj.weight, given.input_proj.weight)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer.decoder.layers.0.multihead_attn.in_proj_weight", "a DETR"),
        ("mask_head.lay1.weight", "a DETR for segmentation"),
        ("transformer.level_embed", "a Deformable DETR"),
        ("sem_seg_head.predictor.query_feat.weight", "a Mask2Former"),
        ("sem_seg_head.predictor.static_query.weight", "a Mask2Former"),
        ("sem_seg_head.predictor.query_embed.weight", "a MaskFormer"),
        ("model.pixel_level_module.encoder.stem.weight", "a Hugging Face transformers model"),
        ("res5.0.conv1.weight", "a ResNet backbone"),
        ("model.encoder.layers.0.self_attn.q_proj.weight", "a Hugging Face transformers model"),
        ("fc.weight", "a torchvision ResNet classifier"),
        ("layer4.0.conv1.weight", "a ResNet backbone"),
        ("lm_head.weight", "an unknown model"),
    ],
)
def test_models_are_recognised(name: str, kind: str) -> None:
    assert describe([name, "anything.else"]) == kind
