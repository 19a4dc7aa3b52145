"""detectron2's .pkl files, and hostile ones: read without running anything, or refused."""

from __future__ import annotations

import builtins
import codecs
import contextlib
import copyreg
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detr_fast.checkpoints import read_checkpoint, read_file, write_checkpoint

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def arrays() -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    return {
        "matrix": numbers.standard_normal((3, 4)).astype(np.float32),
        "fortran": np.asfortranarray(numbers.standard_normal((3, 4))),
        "half": np.ones(2, np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "one": np.array(3, np.int64),
        "flags": np.array([True, False]),
        "bytes": np.arange(256, dtype=np.uint8),
        "big": np.arange(4, dtype=">f4"),
        "strided": np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_detectron2_file(protocol: int, tmp_path: Path) -> None:
    """As its model zoo writes them; every protocol writes arrays in another way."""
    content = {"model": arrays(), "__author__": "third_party", "matching_heuristics": True}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    state = read_checkpoint(tmp_path / "m.pkl")
    assert state.keys() == arrays().keys()
    for name, array in arrays().items():
        expected = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        assert state[name].dtype == expected.dtype, name
        assert torch.equal(state[name], expected), name
    assert read_file(tmp_path / "m.pkl")["matching_heuristics"] is True


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_and_ordered_dicts(protocol: int, tmp_path: Path) -> None:
    model = OrderedDict(a=np.ones(2), b=np.zeros(1))
    model._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    content = {"model": model, "epoch": 3, "lr": np.float64(0.5), "sizes": [(1, 2), (1, 2)], "no": None}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_file(tmp_path / "m.pkl")
    assert type(found["model"]) is dict
    assert list(found.pop("model")) == ["a", "b"]
    assert found == {"epoch": 3, "lr": 0.5, "sizes": [(1, 2), (1, 2)], "no": None}


def test_file_of_python_2(tmp_path: Path) -> None:
    """Strings for bytes, as old converters left them."""
    pickled = pickle.dumps({"w": np.arange(3, dtype=np.int16)}, protocol=2)
    data = np.arange(3, dtype=np.int16).tobytes()
    old = b"U" + bytes([len(data)]) + data  # SHORT_BINSTRING
    # new: "_codecs encode" applied to a string, which starts at its BINGET and ends at REDUCE
    start = pickled.index(b"X\x06\x00\x00\x00" + data) - 2
    end = pickled.index(b"R", start + 2 + 5 + len(data)) + 1
    (tmp_path / "m.pkl").write_bytes(pickled[:start] + old + pickled[end:])
    assert read_checkpoint(tmp_path / "m.pkl")["w"].tolist() == [0, 1, 2]


def test_torch_files_may_be_called_pkl(tmp_path: Path) -> None:
    for new in (True, False):
        torch.save({"w": torch.ones(2)}, tmp_path / "m.pkl", _use_new_zipfile_serialization=new)
        assert read_checkpoint(tmp_path / "m.pkl")["w"].tolist() == [1, 1]


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
def test_written_files_read_back(suffix: str, tmp_path: Path) -> None:
    linear = torch.nn.Linear(2, 3)
    state = {**linear.state_dict(), "alias": linear.weight, "view": torch.arange(6).view(2, 3).T}
    write_checkpoint(state, tmp_path / f"m{suffix}")
    found = read_checkpoint(tmp_path / f"m{suffix}")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_unknown_suffix_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: expected a name that ends in .pth, .pkl or .safetensors"):
        write_checkpoint({}, tmp_path / "m.bin")


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class Slots:
    """Pickles through copyreg's functions with protocol 0 and 1, through NEWOBJ from 2 on."""


HACK = "import os; os.mkdir('hacked')"
HOSTILE: dict[str, Callable[[], Any]] = {
    "os.system": partial(Calls, os.system, "mkdir hacked"),
    "os.mkdir": partial(Calls, os.mkdir, "hacked"),
    "eval": partial(Calls, builtins.eval, "__import__('os').mkdir('hacked')"),
    "exec": partial(Calls, builtins.exec, HACK),
    "getattr": partial(Calls, builtins.getattr, os.mkdir, "__self__"),
    "nested": lambda: {"model": {"w": [(Calls(os.mkdir, "hacked"),)]}},
    "key": lambda: {(1, Calls(os.mkdir, "hacked")): np.ones(1)},
    "argument": lambda: Calls(OrderedDict, [("w", Calls(os.mkdir, "hacked"))]),
    "objects": lambda: np.array([Calls(os.mkdir, "hacked"), 2], dtype=object),
    "partial": lambda: partial(os.mkdir, "hacked"),
    "class": lambda: Slots,
    "instance": Slots,
    "copyreg": lambda: Calls(copyreg._reconstructor, OrderedDict, object, None),  # type: ignore[attr-defined]
    "codec": lambda: Calls(codecs.encode, b"x", "bz2"),
    "torch": lambda: torch.ones(2),
    "numpy.load": lambda: Calls(np.load, "w.npy"),
    "numpy.frombuffer": lambda: Calls(np.frombuffer, b"abcd"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_are_refused_and_not_run(
    kind: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.pkl").write_bytes(pickle.dumps({"model": HOSTILE[kind]()}, protocol=protocol))
    with pytest.raises(ValueError, match=r"m.pkl: (refused, because unpickling it would import|damaged)"):
        read_checkpoint("m.pkl")
    assert not Path("hacked").exists()


def test_refusal_names_the_culprit(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": Calls(builtins.eval, "1")}))
    with pytest.raises(ValueError, match=r"would import builtins.eval, which could run code; expected tens"):
        read_file(tmp_path / "m.pkl")


def binary(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def array_state(shape: bytes, kind: str, data: bytes) -> bytes:
    """The opcodes of an array with this state."""
    return (
        b"\x80\x04cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\n"
        + binary(kind)
        + b"\x89\x88\x87R(K\x03"
        + binary("<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + data
        + b"tb."
    )


CONTENTS = b"C\x08" + bytes(8)
GIANT = b"\x8a\x08" + struct.pack("<q", 2**60)  # LONG1
BAD: dict[str, bytes] = {
    "shape beyond the contents": array_state(b"K\x03\x85", "f4", CONTENTS),
    "giant shape": array_state(GIANT + b"\x85", "f4", CONTENTS),
    "overflowing shape": array_state(GIANT + GIANT + b"\x86", "f4", CONTENTS),
    "negative shape": array_state(b"J\xfe\xff\xff\xffJ\xff\xff\xff\xff\x86", "f4", CONTENTS),
    "shape of strings": array_state(binary("x") + GIANT + b"\x86", "f4", CONTENTS),
    "number for contents": array_state(b"K\x02\x85", "f4", GIANT),
    "list for contents": array_state(b"K\x01\x85", "f4", b"]K\x01a"),
    "objects": array_state(b"K\x01\x85", "O8", b"]K\x01a"),
    "records": array_state(b"K\x01\x85", "V8", CONTENTS),
    "unknown type": array_state(b"K\x01\x85", "q,q", CONTENTS),
    "giant bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "giant bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"abc.",
    "giant string": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
    "giant memo": b"\x80\x04}r" + struct.pack("<I", 2**32 - 1) + b".",
    "giant frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "giant integer": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"1.",
    "array without contents": b"\x80\x04cnumpy\nndarray\n)R.",
    "a name itself": b"\x80\x04cnumpy\nndarray\n.",
    "state of a name": b"\x80\x04cnumpy\nndarray\n}" + binary("__call__") + b"K\x01sb.",
    "slots of a name": b"\x80\x04cnumpy\nndarray\nN}" + binary("__call__") + b"K\x01s\x86b.",
    "new object of a name": b"\x80\x04cnumpy\nndarray\n)\x81.",
    "outside buffer": b"\x80\x05\x97.",
    "persistent": b"Pfile\n.",
    "unregistered extension": b"\x80\x02\x82\xf0.",
    "itself inside": b"\x80\x04]q\x00h\x00a.",
    "deep": b"\x80\x04" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "two values": b"K\x01}.",
    "nothing": b".",
    "no end": b"\x80\x04}",
    "unknown instruction": b"\x80\x04\xff.",
    "future protocol": b"\x80\x63}.",
    "text": b"hello, this is text",
    "tuples as a key": b"\x80\x02}" + b")" + b"2\x86" * 100 + b"K\x01s.",
    "tuples in a set": b"\x80\x04\x8f(" + b")" + b"2\x86" * 100 + b"\x90.",
    "fill of a name": b"\x80\x04cnumpy\nndarray\nK\x01a.",
    "empty stack": b"\x80\x02000.",
    "no mark": b"\x80\x02]K\x01e.",
    "unknown memo": b"\x80\x02h\x07.",
    "bytes of a length": b"\x80\x02c__builtin__\nbytes\n" + GIANT + b"\x85R.",
    "many arrays of one buffer": array_state(b"K\x01\x85", "f4", b"C\x04aaaa"),
}


@pytest.mark.parametrize("kind", BAD)
def test_damaged_and_lying_pickles(kind: str, tmp_path: Path) -> None:
    """No claim is believed: neither sizes nor types nor what a name may be used for."""
    (tmp_path / "m.pkl").write_bytes(BAD[kind])
    with pytest.raises(ValueError, match=r"m.pkl: (damaged|refused|expected a state dict)"):
        read_checkpoint(tmp_path / "m.pkl")


def test_instructions_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detr_fast.checkpoints.pickle_machine.MAX_INSTRUCTIONS", 1000)
    (tmp_path / "m.pkl").write_bytes(b"\x80\x02" + b"N0" * 500 + b"N.")
    with pytest.raises(ValueError, match="a pickle of more than 1000 instructions"):
        read_file(tmp_path / "m.pkl")


def test_builder_of_bad_arrays_builds_good_ones(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(array_state(b"K\x02\x85", "f4", CONTENTS))
    assert torch.equal(read_file(tmp_path / "m.pkl"), torch.zeros(2))


def test_registered_extensions_are_refused(tmp_path: Path) -> None:
    """A process that once met the extension would take the class from its cache and ask nobody."""
    copyreg.add_extension("os", "mkdir", 240)
    try:
        hostile = b"\x80\x02\x82\xf0" + binary(str(tmp_path / "hacked")) + b"\x85R."
        pickle.loads(b"\x80\x02\x82\xf0.")
        (tmp_path / "m.pkl").write_bytes(hostile)
        with pytest.raises(ValueError, match=r"refused, because .* the registered extension 240"):
            read_file(tmp_path / "m.pkl")
    finally:
        copyreg.remove_extension("os", "mkdir", 240)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("doublings", [60, 200])
@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_parts_that_repeat_take_no_time(doublings: int, kind: type, suffix: str, tmp_path: Path) -> None:
    """2 ** 200 entries, if each were visited, printed or hashed."""
    x: Any = kind([1])
    for _ in range(doublings):
        x = kind([x, x])
    (tmp_path / f"m{suffix}").write_bytes(pickle.dumps({"detector": {"family": x}}))
    with pytest.raises(ValueError, match=r"stand for more than|nested deeper than"):
        read_file(tmp_path / f"m{suffix}")


def test_parts_may_repeat_a_little(tmp_path: Path) -> None:
    part = [np.ones(2), "a"]
    (tmp_path / "m.pkl").write_bytes(pickle.dumps([part] * 100))
    found = read_file(tmp_path / "m.pkl")
    assert len(found) == 100
    assert found[0] is found[99]


def test_arrays_may_not_multiply_their_contents(tmp_path: Path) -> None:
    """Many arrays over one buffer of the file."""
    buffer = b"C\x80" + bytes(128) + b"\x94"  # memo 0
    one = array_state(b"K\x20\x85", "f4", b"h\x00").removeprefix(b"\x80\x04").removesuffix(b".")
    many = one + b"\x94" + b"0(" + b"h\x01" * 50 + b"l."  # the same array again is no memory
    (tmp_path / "m.pkl").write_bytes(b"\x80\x04" + buffer + b"0" + many)
    assert len(read_file(tmp_path / "m.pkl")) == 50
    many = b"(" + one * 50 + b"l."
    content = b"\x80\x04C\xff" + bytes(255) + b"\x94" + b"0" + many.replace(b"K\x20", b"K\x3f")
    (tmp_path / "m.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_file(tmp_path / "m.pkl")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_flipped_and_missing_bytes(protocol: int, tmp_path: Path, rng: torch.Generator) -> None:
    whole = pickle.dumps({"model": {"w": np.zeros(9, np.float32)}, "epoch": 2}, protocol=protocol)
    path = tmp_path / "m.pkl"
    for _ in range(100):
        damaged = bytearray(whole)
        for position in torch.randint(len(whole), (3,), generator=rng).tolist():
            damaged[position] ^= 1 + int(torch.randint(255, (), generator=rng))
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            read_checkpoint(path)
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"m.pkl: (damaged, or )?not a checkpoint"):
            read_checkpoint(path)
