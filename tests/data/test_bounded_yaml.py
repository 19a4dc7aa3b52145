"""YAML files that would take for ever, or all memory, are refused; all others read as PyYAML does."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import yaml

from detr_fast.data.bounded_yaml import read_yaml


def written(text: str, tmp_path: Path) -> Path:
    (tmp_path / "data.yaml").write_text(text)
    return tmp_path / "data.yaml"


def test_ordinary_files(tmp_path: Path) -> None:
    text = "path: &root ../data\ntrain: *root\nnames:\n  0: cat\n  1: dog\nnc: 2\nlist: [a, {b: [c]}]\n"
    assert read_yaml(written(text, tmp_path)) == yaml.load(text, yaml.BaseLoader)
    assert read_yaml(written("names: [no, 012, 1.10]", tmp_path)) == {"names": ["no", "012", "1.10"]}


def test_many_names(tmp_path: Path) -> None:
    names = {k: f"class {k}" for k in range(2000)}
    assert read_yaml(written(yaml.safe_dump({"names": names}), tmp_path))["names"] == {
        str(k): name for k, name in names.items()
    }


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"\*a0 repeats one"),
        ("names: &n [a, *n]", r"\*n repeats one"),
        ("base: &b {a: 1}\nother:\n  <<: *b", r"\*b repeats one"),
        ("[" * 100_000, "at most 20 levels"),
        ("- " * 100_000, "at most 20 levels"),
        ("a: {" * 50, "at most 20 levels"),
        ("x" * (1 << 21), "at most 1048576 bytes"),
        ("a: [", "not a YAML file"),
        ("a: \x00", "not a YAML file"),
    ],
)
def test_bombs(text: str, message: str, tmp_path: Path) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        read_yaml(written(text, tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6


def test_values_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr_fast.data.bounded_yaml.MAX_EVENTS", 1000)
    with pytest.raises(ValueError, match="at most 1000 values"):
        read_yaml(written("[" + "1," * 1100 + "]", tmp_path))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.yaml: no such file"):
        read_yaml(tmp_path / "data.yaml")
