"""What executes never becomes visible: by name, by bytes, by what a configuration asks a loader to do."""

from __future__ import annotations

import collections
import functools
import io
import json
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from hotshelf_daemon.config import Settings
from hotshelf_daemon.policy import Policy, check, check_weights_left, is_document, reason_by_bytes
from hotshelf_shared.errors import UnsafeContent
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Skipped
from tests import objects

Reason = Callable[[bytes], str | None]
STRICT = Policy()


@pytest.fixture
def reason(tmp_path: pathlib.Path) -> Reason:
    def of(data: bytes) -> str | None:
        (tmp_path / "f").write_bytes(data)
        fd = os.open(tmp_path / "f", os.O_RDONLY)
        try:
            return reason_by_bytes(fd, len(data))
        finally:
            os.close(fd)

    return of


class Executes:
    def __reduce__(self) -> Any:
        return print, ("boo",)


# ---- by name


@pytest.mark.parametrize(
    "path", ["a.bin", "a.ckpt", "unet/A.PT", "a.pth", "a.pkl", "a.pickle", "a.joblib", "pytorch_model.bin", "a.dill"]
)
def test_a_pickle_s_name_is_enough_to_leave_it_out(path: str) -> None:
    assert STRICT.reason_by_name(path) == "pickle by name"
    assert Policy(allow_pickle=True).reason_by_name(path) is None


@pytest.mark.parametrize("path", ["pipeline.py", "unet/modeling.PY", "x.pyc"])
def test_code_s_name_is_enough_to_leave_it_out(path: str) -> None:
    assert STRICT.reason_by_name(path) == "python code"
    assert Policy(allow_code=True).reason_by_name(path) is None


@pytest.mark.parametrize(
    "path", ["a.safetensors", "config.json", "merges.txt", "README.md", "a.bin.json", "py", "a.onnx", ".py.txt"]
)
def test_other_names_may_come(path: str) -> None:
    assert STRICT.reason_by_name(path) is None


def test_pickle_needs_the_operator_s_leave_and_a_pinned_source() -> None:
    pinned = Source.parse(f"s3://b/m@{objects.Digest.of(b'x')}")
    plain = Source.parse("s3://b/m")
    leave = Settings.model_validate({"safety": {"allow_pickle": True}})
    assert Policy.of(leave, pinned).allow_pickle
    assert not Policy.of(leave, plain).allow_pickle
    assert not Policy.of(Settings(), pinned).allow_pickle


def test_code_and_libraries_need_the_operator_s_leave_only() -> None:
    given = Settings.model_validate({"safety": {"allow_code": True, "allow_libraries": ["mine"]}})
    policy = Policy.of(given, Source.parse("s3://b/m"))
    assert (policy.allow_code, policy.allow_libraries) == (True, frozenset({"mine"}))
    assert str(policy) != str(STRICT)


# ---- by bytes

PICKLED: dict[str, object] = {
    "a call": Executes(),
    "an ordered dict": collections.OrderedDict(a=1),
    "a partial": functools.partial(print, "boo"),
    "a call deep inside": {"state_dict": [{"weights": (b"x" * 5_000, [Executes()])}]},
    "a call after much": [*range(30_000), Executes()],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("what", PICKLED)
def test_a_pickle_is_a_pickle_in_every_protocol(reason: Reason, what: str, protocol: int) -> None:
    assert reason(pickle.dumps(PICKLED[what], protocol)) == "pickle by content"


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_data_that_says_it_is_a_pickle_is_one(reason: Reason, protocol: int) -> None:
    assert reason(pickle.dumps({"a": [1, 2.5, "x", None]}, protocol)) == "pickle by content"


@pytest.mark.parametrize(
    "padding",
    [
        b"(" * 3_000 + b"0" * 0,
        b"N0" * 9_000,
        b"N0" * 60_000,
        b"I1\n0" * 500,
        b"\x8c\xffx" + b"x" * 254 + b"0",
        b"]q\x000" * 100,
    ],
    ids=["marks", "nothing, often", "nothing, very often", "numbers", "a long string", "lists"],
)
def test_padding_before_the_call_hides_nothing(reason: Reason, padding: bytes) -> None:
    for protocol in (0, 4):
        hidden = padding + pickle.dumps(Executes(), protocol)
        assert reason(hidden) == "pickle by content"


def test_what_comes_after_the_call_hides_nothing(reason: Reason) -> None:
    call = pickle.dumps(Executes(), 0)
    assert reason(call + b"\xff" * 100_000) == "pickle by content"
    assert reason(call[:-1] + b"0" + objects.safetensors(1, 5_000)) == "pickle by content"


def test_a_call_by_instance_or_by_number_is_seen(reason: Reason) -> None:
    assert reason(b"(S'boo'\nios\nsystem\n.") == "pickle by content"
    assert reason(b"\x82\x01(tR.") == "pickle by content"


def test_a_name_put_together_from_the_memo_is_seen(reason: Reason) -> None:
    assert reason(b"\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93\x8c\x03boo\x85R.") == "pickle by content"


@pytest.mark.parametrize(
    "trick",
    [b"I0x10\n0", b"L0b1L\n0", b"I5\0whatever\n0", b"F1e5\0whatever\n0", b"S'\xc3\xa9'\n0", b"V" + b"x" * 5_000 + b"\n0",
     b"V" + b"x" * (2 << 20) + b"\n0", b"Vx\np0x\n0"[:3] + b"p1\n0", b"(0", b"N200"],
    ids=["hexadecimal", "binary", "an int and a NUL", "a float and a NUL", "UTF-8", "a long line", "a very long line", "memo",
         "a mark popped", "duplicates popped"],
)  # fmt: skip
def test_what_a_stricter_parser_stumbles_over_hides_nothing(reason: Reason, trick: bytes) -> None:
    """Each of these made pickletools give up where some unpickler goes on."""
    call = pickle.dumps(Executes(), 0)
    called = list[object]()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return lambda *given: called.append(given)

    Unpickler(io.BytesIO(trick + call), encoding="utf-8").load()
    assert called  # it really does execute
    assert reason(trick + call) == "pickle by content"


def test_an_import_that_the_machine_cannot_use_is_none(reason: Reason) -> None:
    for text in (b"cat\ndog\nbird\n", b"cos\nsystem\nR.", b"cos\nsystem\nt."):
        with pytest.raises((pickle.UnpicklingError, ModuleNotFoundError, AttributeError, IndexError)):
            pickle.loads(text)
        assert reason(text) is None


def test_a_torch_file_is_known_by_its_zip_whatever_its_name(reason: Reason) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", b"weights")
    assert reason(out.getvalue()) == "zip archive with pickle or code"


def test_a_zip_without_pickle_or_code_may_come(reason: Reason) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("words.txt", "a b c")
    assert reason(out.getvalue()) is None


def test_a_zip_that_cannot_be_read_through_is_not_trusted(reason: Reason) -> None:
    assert reason(b"PK\x03\x04" + bytes(200)) == "unreadable zip archive"


INERT: dict[str, bytes] = {
    "safetensors": objects.safetensors(1, 100_000),
    "nothing": b"",
    "one byte": b"c",
    "zeros": bytes(4_096),
    "json": json.dumps({"a": list(range(100))}).encode(),
    "json list": b'["c", "d"]',
    "a BPE merge list": b"#version: 0.2\ni n\nt h\na n\nr e\n",
    "a merge list without a head": b"i n\nt h\na n\nr e\nc o\n",
    "BERT's vocabulary": b"[PAD]\n[unused0]\n[unused1]\n[CLS]\nthe\nof\nand\nbuild\nbe\n",
    "words": b"apple\nbanana\ncherry\nbread\nReal\n",
    "words that begin like an import": b"cat\ndog\nbird\nRat\n",
    "labels": b"background\nclassical\ntable\nReading\nchair\n",
    "a sentence": b"copy this file to the folder\nand then\nRun it. Be careful.\n",
    "prose": b"(c) 2024 The Authors.\nAll rights reserved.\nRedistribution and use in source and binary\n",
    "a licence": b"                                 Apache License\n                           Version 2.0, January 2004\n",
    "markdown": b"---\nlicense: mit\ntags:\n- diffusion\n---\n# Model card\nbuilt by us.\n",
    "yaml": b"model:\n  target: ldm.models.diffusion\n  params: {a: 1}\n",
    "csv": b"a,b,c\n1,2,3\n0.5,0.25,R.\n",
    "numbers": b"0.1 0.2 0.3\n" * 3_000,
    "gguf": b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(500),
    "png": b"\x89PNG\r\n\x1a\n" + objects.noise("png", 5_000),
    "numpy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }" + bytes(80),
    "sentencepiece": b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x0c\n\x03<s>\x15",
    "protobuf": b"\x08\x07\x12\x0cbackend-test:" + bytes(range(256)),
    "utf-16": "config\nvalue\nbuild".encode("utf-16"),
}


@pytest.mark.parametrize("what", INERT)
def test_what_is_no_pickle_may_come(reason: Reason, what: str) -> None:
    assert reason(INERT[what]) is None


def test_noise_is_hardly_ever_taken_for_a_pickle(reason: Reason) -> None:
    assert [seed for seed in range(300) if reason(objects.noise(("noise", seed), 600))] == []


# ---- by what a configuration asks for


def refusal(path: str, body: object, policy: Policy = STRICT) -> str:
    with pytest.raises(UnsafeContent) as refused:
        check(path, json.dumps(body).encode(), policy)
    assert refused.value.message.startswith(path)
    return refused.value.message


def test_an_auto_map_refuses_the_snapshot() -> None:
    assert "auto_map" in refusal("unet/config.json", {"auto_map": {"AutoModel": "modeling.Evil"}})


def test_a_list_as_class_name_refuses_the_snapshot() -> None:
    assert "_class_name" in refusal("model_index.json", {"_class_name": ["pipeline", "Evil"]})


def test_a_library_that_is_not_known_refuses_the_snapshot() -> None:
    assert "'evil'" in refusal("model_index.json", {"unet": ["evil", "UNet"]})


@pytest.mark.parametrize("library", ["diffusers", "transformers", "stable_diffusion", "flux", None])
def test_known_libraries_may_come(library: str | None) -> None:
    check("model_index.json", json.dumps({"_class_name": "X", "unet": [library, "UNet"]}).encode(), STRICT)


def test_the_operator_s_switches_let_in_what_they_name_and_no_more() -> None:
    mine = json.dumps({"unet": ["mine", "UNet"]}).encode()
    check("model_index.json", mine, Policy(allow_libraries=frozenset({"mine"})))
    check("config.json", b'{"auto_map": {}}', Policy(allow_code=True))
    refusal("config.json", {"auto_map": {}}, Policy(allow_pickle=True, allow_libraries=frozenset({"mine"})))


@pytest.mark.parametrize("data", [b"", b"[]", b"not json", b"[" * 5_000, b"\xff\xfe", b'{"a": 1}'])
def test_what_asks_for_nothing_may_come(data: bytes) -> None:
    check("config.json", data, STRICT)


def test_a_component_s_list_matters_only_in_the_model_index() -> None:
    check("scheduler/config.json", b'{"beta": ["linear", 1]}', STRICT)


def test_a_configuration_too_large_to_look_into_is_refused_and_not_waved_through() -> None:
    padded = json.dumps({"auto_map": {"AutoModel": "modeling.Evil"}, "padding": "x" * (5 << 20)}).encode()
    for path in ("unet/config.json", "model_index.json", "tokenizer_config.json"):
        assert is_document(path, len(padded))
        with pytest.raises(UnsafeContent):
            check(path, padded, STRICT)


def test_a_large_vocabulary_is_not_looked_into() -> None:
    assert not is_document("tokenizer/vocab.json", 20 << 20)
    assert not is_document("tokenizer.json", 20 << 20)


# ---- what is left


@pytest.mark.parametrize(
    ("kept", "skipped"),
    [
        ([], ["a.bin"]),
        (["config.json"], ["a.bin"]),
        (["config.json", "merges.txt"], ["unet/a.safetensors"]),
        ([], ["pipeline.py"]),
    ],
)
def test_no_weights_left_is_unsafe(kept: list[str], skipped: list[str]) -> None:
    with pytest.raises(UnsafeContent, match=skipped[0]):
        check_weights_left(Source.parse("s3://b/m"), kept, [Skipped(path, "why") for path in skipped])


@pytest.mark.parametrize(
    ("kept", "skipped"),
    [(["a.safetensors"], ["a.bin"]), (["config.json"], []), (["config.json"], ["pipeline.py"]), (["a.gguf"], ["a.ckpt"])],
)
def test_weights_left_or_none_wanted_is_fine(kept: list[str], skipped: list[str]) -> None:
    check_weights_left(Source.parse("s3://b/m"), kept, [Skipped(path, "why") for path in skipped])


@pytest.mark.parametrize("library", [["transformers", "X"], {"a": 1}, 3, True])
def test_a_library_that_is_no_name_refuses_the_snapshot(library: object) -> None:
    with pytest.raises(UnsafeContent, match="tokenizer"):
        check("model_index.json", json.dumps({"tokenizer": [library, "CLIPTokenizer"]}).encode(), Policy())
