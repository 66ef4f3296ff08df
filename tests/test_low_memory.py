"""--low-memory: the sub-batches of the default mode, but is nothing of the file ever loaded?

Whether they are right whatever refers to what is the question of test_slices.py.
"""

from __future__ import annotations

import gzip
import os
import pickle
import re
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
from helpers import limit, load, load_set, names, opcodes, split, write_batch


@pytest.mark.parametrize("suffix", [".pkl", ".pkl.gz"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_command_line_gives_what_the_default_mode_gives(
    tmp_path: Path, suffix: str, protocol: int
) -> None:
    common = ["shared", 1.5]
    traces = [{"q": i, "common": common, "big": os.urandom(90_000)} for i in range(7)]
    source = write_batch(tmp_path / f"a{suffix}", traces, protocol)
    reports = []
    for folder, mode in (("default", []), ("low", ["--low-memory"])):
        done = split("-i", source, "-o", tmp_path / folder, "-n", 3, *mode)
        assert (done.returncode, done.stderr) == (0, "")
        reports.append(done.stdout.splitlines()[1].split(",")[0])
    assert reports[0] == reports[1] == f"a{suffix}: 7 traces → 3 sub-batches"
    assert names(tmp_path / "low") == names(tmp_path / "default")
    assert load_set(tmp_path / "low", "a") == load_set(tmp_path / "default", "a")


def memoized_text(protocol: int) -> bytes:
    return pickle.dumps([["a\nb\\c\udcff", -(2**80), 0.1, "á"]] * 3, protocol)


HARD_CASES = [
    pytest.param(memoized_text(0), id="text-opcodes"),
    pytest.param(b"\x80\x02](\x82\x01\x83\x01\x01\x84\x01\x00\x00\x00e.", id="extension-codes"),
    pytest.param(b"\x80\x03](c__main__\nSe\xc3\xb1al\nq\x05h\x05e.", id="global-not-ascii"),
    pytest.param(b"](K\x01(imodule\nname\n(cmodule\nname\nK\x02oe.", id="inst-and-obj"),
    pytest.param(b"\x80\x02]q\x01(U\x01aq\x02h\x02h\x02e.", id="python-2-memo-from-1"),
    pytest.param(
        b"\x80\x04](\x8c\x0bno_such_modX\x04\x00\x00\x00Name\x93)\x81}b\x8c\x01xe.",
        id="no-such-module",
    ),
    pytest.param(b"\x80\x02]q\x05(U\x01aq\x09h\x09h\x09e.", id="memo-ids-with-gaps"),
]


@pytest.mark.parametrize("data", HARD_CASES)
def test_hard_case_keeps_all_opcodes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(data)
    options = ["-n", "100", "--low-memory", "--no-compress"]
    done = split("-i", tmp_path / "a.pkl", "-o", tmp_path / "out", *options)
    assert (done.returncode, done.stderr) == (0, "")
    copied = (tmp_path / "out" / "a_sub0000.pkl").read_bytes()

    def without_numbers(pickled: bytes) -> list[tuple[str, Any]]:
        text = pickled.replace("Señal".encode(), b"Senal")  # genops cannot read it
        fetched = ("GET", "BINGET")  # renumbered; and the list itself is not memoized
        return [
            (name, None if name in fetched else arg)
            for name, arg in opcodes(text)
            if name not in ("PUT", "BINPUT")
        ]

    assert without_numbers(copied) == without_numbers(data)


class Writer:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_the_file_does_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    source = write_batch(tmp_path / "a.pkl.gz", [Writer(mark), 2], protocol)
    done = split("-i", source, "-o", tmp_path / "out", "-n", 1, "--low-memory")
    assert done.returncode == 0
    assert not mark.exists()
    load(tmp_path / "out" / "a_sub0000.pkl.gz")
    assert mark.exists()


def cyclic() -> list[Any]:
    traces: list[Any] = [[1]]
    traces[0].append(traces)
    return traces


OTHER_MODE = r"(.*\n)+.*sin --low-memory; si tampoco puede, vuelve a copiar"
NOT_COPYABLE = "no se pueden copiar" + OTHER_MODE
REFUSED = [
    pytest.param(pickle.dumps((1, 2)), "objeto tuple.*\n.*\n.*como una lista", id="tuple"),
    pytest.param(pickle.dumps({"a": 1}), "objeto dict", id="dict"),
    pytest.param(pickle.dumps("text"), "objeto str", id="str"),
    pytest.param(pickle.dumps(5), "objeto int", id="int"),
    pytest.param(pickle.dumps(None), "objeto None", id="none"),
    pytest.param(pickle.dumps({1}), "objeto set", id="set"),
    pytest.param(
        pickle.dumps(OSError(1)), r"de otra clase, no(.*\n)+.*como una lista", id="other-class"
    ),
    pytest.param(pickle.dumps([]), "vacía", id="empty-list"),
    pytest.param(
        pickle.dumps(cyclic()), "lista entera(.*\n)+.*sin --low-memory", id="refers-to-list"
    ),
    pytest.param(b"\x80\x05](\x97e.", "fuera del archivo", id="next-buffer"),
    pytest.param(b"\x80\x05](K\x01\x98e.", "fuera del archivo", id="readonly-buffer"),
    pytest.param(b"](K\x012e.", "no se pueden copiar", id="dup"),
    pytest.param(pickle.dumps([1]) * 2, "más datos", id="two-pickles"),
    pytest.param(gzip.compress(pickle.dumps([1])) * 2, "más datos", id="two-members"),
    pytest.param(pickle.dumps([1]) + b"x", "no son otro pickle", id="trailing-byte"),
    pytest.param(b"](\x8e" + struct.pack("<Q", 2**50) + b"xe.", "truncado", id="lying-bytes"),
    pytest.param(b"](\x8d" + struct.pack("<Q", 2**50) + b"xe.", "truncado", id="lying-text"),
    pytest.param(b"](\x96" + struct.pack("<Q", 2**63) + b"xe.", "truncado", id="lying-bytearray"),
    pytest.param(b"](\x8b\xff\xff\xff\x7fxe.", "truncado", id="lying-long"),
    pytest.param(b"](\xfee.", "dañado", id="unknown-opcode"),
    pytest.param(b"]K\x01\x86.", "dañado|de otra|tuple", id="list-in-a-tuple"),
    pytest.param(b"](\x85e.", "dañado", id="stack-underflow"),
    pytest.param(b"0].", "dañado", id="pop-of-nothing"),
    pytest.param(b"](h\x07e.", "dañado", id="undefined-memo-id"),
    pytest.param(b"](g" + b"1" * 40 + b"\ne.", "memo no cuadran", id="undefined-long-memo-id"),
    pytest.param(b"(lp-1\nI1\na.", "memo no cuadran", id="negative-memo-id"),
    pytest.param(b"(lp0\nPsome id\na.", "fuera del archivo", id="persistent-id-text"),
    pytest.param(b"\x80\x02](K\x01QK\x02Qe.", "fuera del archivo", id="persistent-id"),
    pytest.param(
        b"](K\x01q\x01K\x02q\x01e.", "dos veces(.*\n)+.*sin --low-memory", id="memo-id-twice"
    ),
    pytest.param(b"\x80\x02](]q\x01K\x010K\x02e.", NOT_COPYABLE, id="pop-for-no-reason"),
    pytest.param(b"](}(K\x01ue.", "dañado", id="key-without-a-value"),
    pytest.param(b"((K\x01dl.", "dañado", id="dict-with-a-key-without-a-value"),
    pytest.param(b"(K\x01l.", "no está escrita(.*\n)+.*sin --low-memory", id="list-made-at-once"),
    pytest.param(b"\x80\x02](K\x01\x80\x04K\x01e.", NOT_COPYABLE, id="protocol-in-the-middle"),
    pytest.param(b"]K\x01e.", "dañado", id="no-mark"),
    pytest.param(b"](K\x01.", "dañado", id="mark-left"),
    pytest.param(b"\x80\x63](K\x01e.", "dañado", id="unknown-protocol"),
]


@pytest.mark.parametrize(("data", "expected"), REFUSED)
def test_what_cannot_be_split_is_one_clear_error(
    tmp_path: Path, data: bytes, expected: str
) -> None:
    (tmp_path / "a.pkl").write_bytes(data)
    args = ("-i", tmp_path / "a.pkl", "-o", tmp_path / "out", "--low-memory")
    done = split(*args, preexec_fn=limit(resource.RLIMIT_AS, 1 << 30))  # no lie is believed
    assert done.returncode == 1
    assert re.search(expected, done.stderr)
    assert done.stderr.count("ERROR") == 1
    assert "Traceback" not in done.stderr
    assert names(tmp_path / "out") == []
    assert (tmp_path / "a.pkl").read_bytes() == data
