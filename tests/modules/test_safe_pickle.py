"""Pickles that are programs, broken or hostile: data is read as it was written, all else is refused, nothing is run."""

import argparse
import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, run

from modules.errors import InputError
from modules.safe_pickle import DEPTH, load_pickle


class Program:
    def __reduce__(self):
        return os.system, ("touch executed",)


class Named:
    """Pickled by protocol 0 as a call of module.name with these arguments."""

    def __init__(self, function, *arguments) -> None:
        self.recipe = function, arguments

    def __reduce__(self):
        return self.recipe


def written(path, data: bytes):
    path.write_bytes(data)
    return path


def torch_bytes(content, **settings) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **settings)
    return file.getvalue()


def nested(depth: int, close: bytes, opened: bytes = b"") -> bytes:
    return b"\x80\x04" + opened + b")" + close * depth


HOSTILE = {
    "an object array over eight bytes of the file": b"cnumpy\nndarray\n(I1\n\x85\x8c\x01O\x43\x08AAAAAAAAtR.",
    "an object array by _frombuffer": pickle.dumps(np.zeros(3), 5).replace(b"\x8c\x02f8", b"\x8c\x02O8"),
    "a scalar of objects": pickle.dumps(np.float64(1), 2).replace(b"f8", b"O8"),
    "a field beyond the array": pickle.dumps(np.zeros(2, [("a", "i4"), ("b", "i4")]), 4),
    "a key 200,000 deep": nested(200_000, b"\x85", b"}") + b"K\x01s.",
    "a key 200,000 deep, in an OrderedDict": b"\x80\x04ccollections\nOrderedDict\n]" + nested(200_000, b"\x85")[2:]
    + b"K\x01\x86a\x85R.",
    "a value 200,000 deep": nested(200_000, b"\x85") + b".",
    "a list that contains itself": b"\x80\x04]\x94h\x00a.",
    "deeper than it looks": b"\x80\x04]\x94(" + b"]\x94" + b"".join(b"]\x94h%ca" % n for n in range(1, 200)) + b"e.",
    "a huge index of the memo": b"\x80\x04Nr\xff\xff\xff\x7fcos\nsystem\n.",
    "a byte array of a tebibyte": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
    "a frame of an exbibyte": b"\x80\x05\x95" + (1 << 60).to_bytes(8, "little") + b".",
    "bytes named ten thousand times": b"\x80\x04]\x94(c_codecs\nencode\n\x94X" + (100_000).to_bytes(4, "little")
    + b"A" * 100_000 + b"\x94\x8c\x06latin1\x94h\x02h\x03\x86\x94" + b"h\x01h\x04R" * 10_000 + b"e.",
    "an item of a text": b"\x80\x04\x8c\x01aK\x01a.",
    "an item of an array": pickle.dumps(np.zeros(3), 5)[:-1] + b"K\x00K\x01s.",
    "a state for a tensor's storage": b"\x80\x04ctorch\nfloat32\n}b.",
    "a recipe as a value": b"cnumpy\ndtype\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "an instance": b"(ios\nsystem\n.",
}  # fmt: skip


def test_hostile_pickles_are_refused_in_a_process_that_lives(tmp_path):
    for number, data in enumerate(HOSTILE.values()):
        written(tmp_path / f"{number:02d}.pkl", data)
    done = run(ROOT / "tests" / "modules" / "safe_pickle_fuzz.py", "--folder", tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == len(HOSTILE) and "MemoryError" not in done.stdout, done.stdout
    for name, line in zip(HOSTILE, lines):
        assert "cannot be read as data: " in line or "wants to run " in line, (name, line)


@pytest.mark.parametrize("command", ["main_test.py --load", "main_train.py --no-gid --no-adm --knowledge_path"])
def test_a_pickle_of_87_bytes_ends_no_command_by_a_signal(mini, tmp_path, command):
    from conftest import inputs

    data = b"\x80\x04cnumpy\nndarray\n(K\x01\x85\x8c\x01OC\x08AAAAAAAAtR."
    path = written(tmp_path / "x.pkl", data)
    script, *flags, last = command.split()
    common = inputs(mini)[: 4 if last == "--load" else None]
    done = run(script, *common, *flags, "--save_dir", tmp_path / "run", last, path, code=2)
    assert f"{path} cannot be read as data" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_not_executed(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    saved = {
        "evil.pkl": pickle.dumps({(0,) * 14: Program()}, protocol),
        "evil.pth": torch_bytes({"model": Program()}),
        "old.pth": torch_bytes({"model": Program()}, _use_new_zipfile_serialization=False),
    }
    for name, data in saved.items():
        with pytest.raises(InputError, match=f"{name} wants to run .*system.*Nothing of it was executed"):
            load_pickle(written(tmp_path / name, data))
    assert not (tmp_path / "executed").exists()


def equal(found, content) -> None:
    if isinstance(content, (dict, argparse.Namespace)):
        content = content if isinstance(content, dict) else vars(content)
        assert type(found) is dict and list(found) == list(content)
        for key, value in content.items():
            equal(found[key], value)
    elif isinstance(content, (list, tuple)):
        assert type(found) is (list if isinstance(content, list) else tuple) and len(found) == len(content)
        for mine, value in zip(found, content):
            equal(mine, value)
    elif isinstance(content, (torch.Tensor, np.ndarray)):
        assert found.dtype == content.dtype and found.shape == content.shape
        assert type(found) is not torch.nn.Parameter and bool((found == content).all())
    else:
        assert type(found) is type(content) and found == content


def tensors() -> dict:
    torch.manual_seed(0)
    base = torch.randn(10, 6)
    made = {str(dtype): torch.arange(5).to(dtype) for dtype in (torch.bool, torch.uint8, torch.int64, torch.float16,
            torch.bfloat16, torch.float64, torch.complex64)}  # fmt: skip
    return made | {
        "base": base, "turned": base.t(), "part": base[3:, ::2], "number": torch.zeros(()), "empty": torch.empty(0, 3),
        "expanded": torch.zeros(1).expand(7), "parameter": torch.nn.Parameter(base),
    }  # fmt: skip


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read(tmp_path, protocol):
    arrays = {
        (np.int64(1), 0): np.ones((2, 3), np.float32),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "big": np.arange(3, dtype=">i2"),
        "words": np.array(["a", "bcd"]), "part": np.arange(20)[::3], "empty": np.zeros((0, 3)), "bool": np.bool_(True),
        "number": np.array(5), "complex": np.zeros(2, np.complex64),
    }  # fmt: skip
    plain = {(1, 1): [1, 2.5, "ü", None, True, b"ab", b"", 1 << 80, (1, (2,), [])], torch.Size((2, 3)): 1}
    content = plain | tensors() | arrays | {"ordered": collections.OrderedDict(a=1)}
    equal(load_pickle(written(tmp_path / "data.pkl", pickle.dumps(content, protocol))), content)


@pytest.mark.parametrize("new", [True, False])
def test_torch_files_are_read_as_torch_reads_them(tmp_path, new):
    """Also where torch's own weights_only reader refuses harmless values: a numpy scalar, a Namespace."""
    content = tensors() | {"dtype": torch.float16, "state": torch.nn.BatchNorm1d(3).state_dict()}
    content |= {"size": torch.Size((2, 3)), "best": np.float64(0.25), "args": argparse.Namespace(lr=1e-4, name="x")}
    data = torch_bytes(content, _use_new_zipfile_serialization=new)
    found = load_pickle(written(tmp_path / "data.pth", data))
    equal(found, content | {"size": (2, 3)})
    found["base"][0, 0] = 7
    assert found["turned"][0, 0] == 7 and found["part"].stride() == content["part"].stride()  # views of one storage


@pytest.mark.parametrize("key", [((1, 2), 3), frozenset((1, 2)), torch.float32])
def test_keys_are_plain(tmp_path, key):
    with pytest.raises(InputError, match="data.pkl cannot be read as data: (a .* in the key of a dict|an instruction)"):
        load_pickle(written(tmp_path / "data.pkl", pickle.dumps({key: 1})))


def test_depth_is_bounded_exactly(tmp_path):
    deep = [1]
    for _ in range(DEPTH - 1):
        deep = [deep]
    assert load_pickle(written(tmp_path / "deep.pkl", pickle.dumps(deep)))
    with pytest.raises(InputError, match=f"nested more than {DEPTH} deep"):
        load_pickle(written(tmp_path / "deep.pkl", pickle.dumps([deep])))


def repacked(data: bytes, change) -> bytes:
    """A torch zip with every record changed by change(name, bytes), checksums right."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))
    return made.getvalue()


@pytest.mark.parametrize("old, new", [
    (b"K\x04tq", b"M\xff\xfftq"),  # a storage longer than its record
    (b"K\x04\x85", b"M\xff\xff\x85"),  # a tensor larger than its storage
    (b"QK\x00", b"QK\x01"),  # one that ends outside
    (b"K\x01\x85q\x09", b"K\x02\x85q\x09"),  # strides that lead outside
    (b"K\x01\x85q\x09", b"J\xff\xff\xff\xff\x85q\x09"),  # and before the beginning
    (b"FloatStorage", b"DoubleStorage"),
])  # fmt: skip
def test_a_tensor_stays_inside_its_storage(tmp_path, old, new):
    data = torch_bytes({"w": torch.zeros(4)})
    changed = repacked(data, lambda name, record: record.replace(old, new, 1))
    assert torch.equal(load_pickle(written(tmp_path / "w.pt", repacked(data, lambda name, r: r)))["w"], torch.zeros(4))
    with pytest.raises(InputError, match="cannot be read as data: a (tensor|storage|shape)"):
        load_pickle(written(tmp_path / "w.pt", changed))


def test_a_flipped_bit_of_a_torch_file_is_noticed(tmp_path):
    """Every byte of the file: refused, or one that no content hangs on (padding, dates of the zip)."""
    content = {"w": torch.arange(64.0), "name": "x"}
    data = torch_bytes(content)
    refused = 0
    for position in range(0, len(data), 3):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        try:
            equal(load_pickle(written(tmp_path / "w.pt", bytes(changed))), content)
        except InputError:
            refused += 1
    assert refused > 0.3 * len(data) / 3  # 256 bytes of weights and the pickle, of 1,400 or so
    start = data.index(content["w"].numpy().tobytes())
    changed = data[: start + 5] + bytes([data[start + 5] ^ 1]) + data[start + 6 :]
    with pytest.raises(InputError, match="w.pt .*: record .*data/0 is damaged: its checksum differs"):
        load_pickle(written(tmp_path / "w.pt", changed))


def test_ten_thousand_mutations_end_in_data_or_a_refusal(tmp_path):
    """In a child process: no signal, no call, no large allocation, no exception but InputError; see safe_pickle_fuzz.py."""
    done = run(ROOT / "tests" / "modules" / "safe_pickle_fuzz.py", "--mutations", "10000", "--seed", "11", cwd=tmp_path)
    read, refused = (int(word) for word in done.stdout.split()[:2])
    assert read + refused == 10_000 and read > 300 and refused > 5_000, done.stdout
    assert list(tmp_path.iterdir()) == []
