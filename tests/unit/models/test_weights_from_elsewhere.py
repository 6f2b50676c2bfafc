"""Damaged and hostile files as --encoder.weights: one line each, at once, and nothing in them is executed."""

import io
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import SPECIAL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.models.weights import read_state

NETWORK = {"name": "cnn-small", "channels": 1, "image_size": 8}
STATE = build_encoder(**NETWORK).net.state_dict()


def torch_bytes(value: Any, **how: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **how)
    return out.getvalue()


SMALL = {"conv.weight": torch.arange(8.0).reshape(2, 1, 2, 2), "conv.bias": torch.ones(2)}
GOOD = {
    ".pt": torch_bytes(SMALL),
    ".pth": torch_bytes(SMALL, _use_new_zipfile_serialization=False),
    ".safetensors": save(SMALL),
}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        build_encoder(weights=str(path), **NETWORK)
    told = str(error.value)
    assert "\n" not in told
    assert len(told) < 700 + len(str(path))
    return told


class Evil:
    """What would make a folder if it were unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


PICKLES = {
    "empty": b"",
    "only stop": b".",
    "a number": pickle.dumps(5),
    "not utf-8": b"\x80\x02X\x04\x00\x00\x00\xd7\xd7\xd7\xd7.",
    "a text of 4 GB": b"\x80\x02X\xff\xff\xff\xff",
    "a text of 2**62": b"\x80\x04\x8d" + struct.pack("<Q", 2**62),
    "a number of 2**31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7f",
    "nothing to pop": b"\x80\x020.",
    "no memo": b"\x80\x02h\x05.",
    "no class": b"\x80\x02cnowhere\nnothing\n)R.",
    "eval": b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
    "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep tuples": b"\x80\x02" + b")" + b"\x85" * 100_000 + b".",
    "persistent": b"\x80\x02K\x01Q.",
    "set item of a list": b"\x80\x02]K\x01K\x02s.",
    "build": b"\x80\x02}}b.",
    "long line": b"I" + b"9" * 100_000 + b"\n.",
    "protocol 9": b"\x80\x09N.",
    "zeros": bytes(10_000),
    "a tar": b"x".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"),
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("inside", ["alone", "behind torch's number", "in a zip"])
def test_an_odd_pickle_is_one_line(name: str, inside: str, tmp_path: Path) -> None:
    content = PICKLES[name]
    if inside == "behind torch's number":
        head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001, "type_sizes": {}}]
        content = b"".join(pickle.dumps(part, 2) for part in head) + content
    elif inside == "in a zip":
        content = changed_zip(GOOD[".pt"], {"data.pkl": content})
    (tmp_path / "odd.pt").write_bytes(content)
    assert str(tmp_path / "odd.pt") in refusal(tmp_path / "odd.pt")


def changed_zip(content: bytes, parts: dict[str, bytes], **how: Any) -> bytes:
    """An archive of torch's with other parts."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", **how) as new:
        for one in old.infolist():
            new.writestr(one.filename, parts.get(one.filename.partition("/")[2], old.read(one)))
    return out.getvalue()


def test_a_pickle_that_would_run_something_does_not(tmp_path: Path) -> None:
    for how in ({}, {"_use_new_zipfile_serialization": False}):
        (tmp_path / "evil.pt").write_bytes(torch_bytes({"a": Evil(tmp_path / "made")}, **how))
        assert "holds more than tensors" in refusal(tmp_path / "evil.pt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    refusal(tmp_path / "evil.pt")
    assert not (tmp_path / "made").exists()


ODD: dict[str, tuple[Callable[[], Any], str]] = {
    "repeats one number": (lambda: {**STATE, first(): torch.ones(1).expand(64, 10**9, 3, 3)}, "more than the file has"),
    "no channels": (lambda: {**STATE, first(): torch.ones(*STATE[first()].shape[:1], 0, 3, 3)}, "do not fit"),
    "sparse": (lambda: {**STATE, first(): STATE[first()].to_sparse()}, "odd.pt"),
    "complex": (lambda: {**STATE, first(): STATE[first()].to(torch.complex64)}, "missing"),
    "eight bits": (lambda: {**STATE, first(): STATE[first()].to(torch.float8_e4m3fn)}, "missing"),
    "meta": (lambda: {**STATE, first(): STATE[first()].to("meta")}, "missing"),
    "not a number": (lambda: {**STATE, first(): STATE[first()] * float("nan")}, "no finite number"),
    "infinite": (lambda: {**STATE, first(): STATE[first()] * float("inf")}, "no finite number"),
    "numbers as keys": (lambda: {5: torch.ones(2), None: torch.ones(2)}, "holds no state_dict"),
    "of itself": (lambda: of_itself(), "holds no state_dict"),
    "a list": (lambda: [torch.ones(2)], "holds no state_dict"),
    "a long key": (lambda: {"x" * 10**6: torch.ones(2)}, "missing"),
    "a long key of a known part": (lambda: {**STATE, f"{first().split('.')[0]}.{'x' * 10**6}": torch.ones(2)}, "fit"),
    "a number in place of a tensor": (lambda: {**STATE, first(): 5}, "missing"),
    "a scalar": (lambda: {**STATE, first(): torch.tensor(5.0)}, "do not fit"),
}


def first() -> str:
    return next(key for key, value in STATE.items() if value.ndim == 4)


def of_itself() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["state_dict"] = found["model"] = found
    return found


@pytest.mark.parametrize("name", ODD)
def test_an_odd_state_is_one_line(name: str, tmp_path: Path) -> None:
    make, told = ODD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(make(), tmp_path / "odd.pt")
    assert told in refusal(tmp_path / "odd.pt")


@pytest.mark.parametrize("suffix", GOOD)
@pytest.mark.parametrize("kind", [*SPECIAL, "hole", "long", "nobody"])
def test_what_is_no_file_of_weights_is_one_line(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"given{suffix}"
    if kind in SPECIAL:
        SPECIAL[kind](path)
    elif kind == "hole":
        path.write_bytes(GOOD[suffix])
        os.truncate(path, 2**42)
    else:
        path = tmp_path / ("x" * 5000 + suffix) if kind == "long" else Path(f"~nobody-here/given{suffix}")
    refusal(path)


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    content = changed_zip(GOOD[".pt"], {"data/0": bytes(50_000_000)}, compression=zipfile.ZIP_DEFLATED)
    (tmp_path / "bomb.pt").write_bytes(content)
    assert "claims 0.1 GB and has 0.0 GB" in refusal(tmp_path / "bomb.pt")


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"{}",
        b"[]",
        b'{"a": 5}',
        b'{"conv.weight":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
        b'{"conv.weight":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"conv.weight":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}',
        b'{"conv.weight":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}',
        b'{"__metadata__":{"a":5}}',
    ],
)
def test_an_odd_header_of_safetensors_is_one_line(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "odd.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refusal(tmp_path / "odd.safetensors")


def test_a_header_of_safetensors_that_claims_too_much(tmp_path: Path) -> None:
    for claimed in (2**63, 2**40, 10**8 + 1, 9):
        (tmp_path / "odd.safetensors").write_bytes(struct.pack("<Q", claimed) + b"{}")
        refusal(tmp_path / "odd.safetensors")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(GOOD)),
    st.floats(0, 1, exclude_max=True),
    st.binary(max_size=8),
    st.integers(0, 16),
    st.booleans(),
)
def test_any_change_of_bytes_is_taken_or_refused(
    tmp_path: Path, suffix: str, where: float, new: bytes, length: int, cut_there: bool
) -> None:
    content = GOOD[suffix]
    start = int(where * len(content))
    changed = content[:start] + new + (b"" if cut_there else content[start + length :])
    taken_or_refused(tmp_path / f"odd{suffix}", changed)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4), st.integers(0, 6))
def test_any_change_of_the_pickle_in_an_archive_is_taken_or_refused(
    tmp_path: Path, where: float, new: bytes, length: int
) -> None:
    with zipfile.ZipFile(io.BytesIO(GOOD[".pt"])) as archive:
        told = archive.read(next(one for one in archive.namelist() if one.endswith("data.pkl")))
    start = int(where * len(told))
    content = changed_zip(GOOD[".pt"], {"data.pkl": told[:start] + new + told[start + length :]})
    taken_or_refused(tmp_path / "odd.pt", content)


def taken_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    told = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_state(path)
        except UserError as error:
            told = str(error)
    assert "\n" not in told
    assert len(told) < 700


def test_good_files_are_read_in_all_forms(tmp_path: Path) -> None:
    for suffix, content in GOOD.items():
        (tmp_path / f"good{suffix}").write_bytes(content)
        found = read_state(tmp_path / f"good{suffix}")
        assert found.keys() == SMALL.keys()
        assert all(torch.equal(found[key], value) for key, value in SMALL.items())
