"""A handler's value becomes JSON, or an error that says where in it the trouble is."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import types
import uuid
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec
import pytest

from supervisor.errors import EncodeError
from supervisor.worker.encode import MAX_DEPTH, encode, error_text


class Text(str):
    def __str__(self):
        return "not this"


class Whole(int):
    def __int__(self):
        return -1


class Broken(float):
    pass


class Octets(bytes):
    pass


class Moment(datetime.datetime):
    pass


class Money(decimal.Decimal):
    pass


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)
    NOTHING = None


class Word(str, enum.Enum):
    A = "a"


class Bits(enum.Flag):
    ONE = 1
    TWO = 2


class Pair(NamedTuple):
    left: int
    right: int


class Image:
    """What no one can write as JSON."""

    __module__ = "PIL.Image"


@dataclasses.dataclass
class Box:
    size: int
    inside: Any = None


@dataclasses.dataclass
class Slotted:
    __slots__ = ("size",)
    size: int


class Record(msgspec.Struct, rename="camel"):
    full_name: str
    inside: Any = None


class Folder:
    def __fspath__(self):
        return "/data"


class Failing:
    def __fspath__(self):
        raise OSError("the disk is gone")


class Model:
    """Shaped as pydantic's models are."""

    def model_dump(self):
        return {"when": datetime.date(2024, 5, 1), "inside": Image() if self.bad else 1}

    def __init__(self, bad: bool = False) -> None:
        self.bad = bad


UTC = datetime.timezone.utc
HUGE = 10**5000  # more digits than str(int) agrees to

CASES: dict[str, tuple[Any, str]] = {
    "null": (None, "null"),
    "false": (False, "false"),
    "zero": (0, "0"),
    "empty text": ("", '""'),
    "empty list": ([], "[]"),
    "unicode": ("é😀\x00", '"é😀\\u0000"'),
    "text subclass": ([Text("x")], '["x"]'),
    "int subclass": ([Whole(5)], "[5]"),
    "float subclass": ([Broken(1.5)], "[1.5]"),
    "nan": ([float("nan"), float("inf"), -float("inf")], "[null,null,null]"),
    "64 bits": ([2**64 - 1, -(2**63)], "[18446744073709551615,-9223372036854775808]"),
    "more than 64 bits": ([2**64, -(2**70)], "[18446744073709551616,-1180591620717411303424]"),
    "5001 digits": ({"n": HUGE, "m": -HUGE, HUGE: 1}, f'{{"n":1{"0" * 5000},"m":-1{"0" * 5000},"1{"0" * 5000}":1}}'),
    "bytes": ([b"\xff\x00", bytearray(b"a"), memoryview(b"b")], '["/wA=","YQ==","Yg=="]'),
    "bytes subclass": (Octets(b"a"), '"YQ=="'),
    "memoryview with steps": (memoryview(b"abcd")[::2], '"YWM="'),
    "datetime": (datetime.datetime(2024, 5, 1, 12, 30, tzinfo=UTC), '"2024-05-01T12:30:00Z"'),
    "naive datetime": (datetime.datetime(2024, 5, 1, 12, 30), '"2024-05-01T12:30:00"'),
    "datetime subclass": (Moment(2024, 5, 1), '"2024-05-01T00:00:00"'),
    "date and time": ([datetime.date(2024, 5, 1), datetime.time(12, 30)], '["2024-05-01","12:30:00"]'),
    "timedelta": (datetime.timedelta(seconds=1.5), '"PT1.5S"'),
    "uuid": (uuid.UUID(int=5), '"00000000-0000-0000-0000-000000000005"'),
    "decimal": ([decimal.Decimal("1.50"), Money("2")], '["1.50","2"]'),
    "enum": ([Colour.RED, Colour.PAIR, Colour.NOTHING, Word.A, Bits.ONE | Bits.TWO], '["red",[1,2],null,"a",3]'),
    "path": ([Path("/a/b"), PurePosixPath("c"), Folder()], '["/a/b","c","/data"]'),
    "namedtuple": (Pair(1, 2), "[1,2]"),
    "set": ([{1}, frozenset({2}), {"a": 1}.keys()], '[[1],[2],["a"]]'),
    "dataclass": (Box(1, Box(2)), '{"size":1,"inside":{"size":2,"inside":null}}'),
    "dataclass with slots": (Slotted(1), '{"size":1}'),
    "msgspec struct": (Record("x"), '{"fullName":"x","inside":null}'),
    "dict subclasses": ([collections.OrderedDict(a=1), collections.Counter("aa")], '[{"a":1},{"a":2}]'),
    "mappings": ([types.MappingProxyType({"a": 1}), collections.UserDict(b=2)], '[{"a":1},{"b":2}]'),
    "model_dump": (Model(), '{"when":"2024-05-01","inside":1}'),
    "raw JSON": (msgspec.Raw(b'{"a":1}'), '{"a":1}'),
    "deep, and not plain": ({"a": [{"b": (Path("x"), memoryview(b"abcd")[::2])}]}, '{"a":[{"b":["x","YWM="]}]}'),
}


@pytest.mark.parametrize(("value", "expected"), CASES.values(), ids=CASES.keys())
def test_converts(value: Any, expected: str) -> None:
    assert encode(value).decode() == expected


@pytest.mark.parametrize(("value", "expected"), CASES.values(), ids=CASES.keys())
def test_the_walk_in_python_writes_the_same(value: Any, expected: str) -> None:
    # A value of which one part needs the walk is walked as a whole.
    assert encode([value, memoryview(b"abcd")[::2]]).decode() == f'[{expected},"YWM="]'


def test_keys_are_what_json_makes_of_them() -> None:
    value = {True: "a", None: "b", 1.5: "c", -7: "d", "é": "e", 0: "f"}
    assert json.loads(encode(value)) == json.loads(json.dumps(value))


def test_other_keys() -> None:
    value = {Word.A: 1, Path("p"): 2, uuid.UUID(int=5): 3, datetime.date(2024, 5, 1): 4, Whole(6): 5}
    expected = {"a": 1, "p": 2, str(uuid.UUID(int=5)): 3, "2024-05-01": 4, "6": 5}
    assert json.loads(encode(value)) == expected
    assert json.loads(encode([value, memoryview(b"abcd")[::2]]))[0] == expected


def test_the_value_is_not_changed() -> None:
    value = {"list": [1, {2: Path("x")}, HUGE], "set": {1}, "box": Box(1, [2])}
    before = copy.deepcopy(value)
    encode(value)
    assert value == before


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def cycle() -> dict[str, Any]:
    value: dict[str, Any] = {"a": [1, {}]}
    value["a"][1]["back"] = value
    return value


REFUSED: dict[str, tuple[Any, str]] = {
    "contract": ({"images": [Image()]}, "output.images[0]: cannot encode PIL.Image.Image"),
    "top": (Image(), "output: cannot encode PIL.Image.Image"),
    "key with a space": ({"my key": (1, Image())}, "output['my key'][1]: cannot encode PIL.Image.Image"),
    "number as key": ({3: {2.5: Image()}}, "output[3][2.5]: cannot encode PIL.Image.Image"),
    "dataclass": (Box(1, [Image()]), "output.inside[0]: cannot encode PIL.Image.Image"),
    "struct": (Record("x", Image()), "output.inside: cannot encode PIL.Image.Image"),
    "model": ({"m": Model(bad=True)}, "output.m.inside: cannot encode PIL.Image.Image"),
    "mapping": (collections.UserDict(a=Image()), "output.a: cannot encode PIL.Image.Image"),
    "set": ({print}, "output[0]: cannot encode builtin_function_or_method"),
    "generator": ((i for i in ()), "output: cannot encode generator"),
    "class": (Model, "output: cannot encode type"),
    "function": ([print], "output[0]: cannot encode builtin_function_or_method"),
    "complex": ([1j], "output[0]: cannot encode complex"),
    "exception": ({"e": ValueError("x")}, "output.e: cannot encode ValueError"),
    "tuple as key": ({"a": {(1, 2): 3}}, "output.a: cannot use tuple as a key"),
    "object as key": ({Image(): 1}, "output: cannot use PIL.Image.Image as a key"),
    "code of the value": ([Failing()], "output[0]: cannot encode test_encode.Failing: OSError: the disk is gone"),
    "lone surrogate": (
        {"t": ["ab\ud800"]},
        "output.t[0]: the text holds a lone surrogate (character 2 is '\\ud800'), which UTF-8 cannot write",
    ),
    "lone surrogate in a key": (
        {"\udfff": 1},
        "output['\\udfff']: the text holds a lone surrogate (character 0 is '\\udfff'), which UTF-8 cannot write",
    ),
    "cycle": (cycle(), "output.a[1].back: refers back to output"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_says_where_and_what(value: Any, message: str) -> None:
    with pytest.raises(EncodeError) as caught:
        encode(value)
    assert str(caught.value).replace(f"{__name__}.", "test_encode.") == message


def test_too_deep() -> None:
    with pytest.raises(EncodeError) as caught:
        encode(nested(100_000))
    place, _, reason = str(caught.value).partition(": ")
    assert place.startswith("output[0][0]")
    assert len(place) < 300
    assert reason == f"nested more than {MAX_DEPTH} levels deep"


def test_the_root_of_the_path_can_be_named() -> None:
    with pytest.raises(EncodeError, match=r"^progress\.a: cannot encode object$"):
        encode({"a": object()}, "progress")


def test_what_the_values_own_code_raised_is_the_cause() -> None:
    with pytest.raises(EncodeError) as caught:
        encode([Failing()])
    assert isinstance(caught.value.__cause__, OSError)


def test_a_mapping_without_end_is_refused() -> None:
    class Endless(collections.UserDict):
        def items(self):
            return {"more": Endless()}.items()

    with pytest.raises(EncodeError, match=f"nested more than {MAX_DEPTH} levels deep"):
        encode(Endless())


@pytest.mark.parametrize("value", ["cycle()", "nested(1_000_000)", "{'box': loop}"])
def test_no_crash_under_a_recursion_limit_that_the_stack_cannot_keep(value: str) -> None:
    script = (
        "import dataclasses, sys\n"
        "from supervisor.errors import EncodeError\n"
        "from supervisor.worker.encode import encode\n"
        "sys.setrecursionlimit(10**7)\n"
        "def cycle():\n    value = []\n    value.append({'again': value})\n    return value\n"
        "def nested(levels):\n    value = []\n    for _ in range(levels):\n        value = [value]\n    return value\n"
        "@dataclasses.dataclass\nclass Loop:\n    it: object = None\n"
        "loop = Loop()\nloop.it = loop\n"
        f"value = {value}\n"
        "try:\n    encode(value)\nexcept EncodeError as error:\n    print(error)\n"
        "sys.stdout.flush()\nimport os\nos._exit(0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=repository_env())
    assert ended.returncode == 0, ended.stderr
    assert "refers back to" in ended.stdout or "levels deep" in ended.stdout


def test_threads_encode_at_the_same_time() -> None:
    value = {"paths": [Path(str(index)) for index in range(2_000)]}
    expected, wrong = encode(value), []

    def again() -> None:
        wrong.extend(result for _ in range(5) if (result := encode(value)) != expected)

    threads = [threading.Thread(target=again) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_plain_values_cost_little_more_than_msgspec() -> None:
    value = {"ok": True, "n": 1, "text": "hello", "xs": [1, 2, 3]}

    def best(function: Any) -> float:
        rounds = []
        for _ in range(20):
            began = time.perf_counter()
            for _ in range(2_000):
                function(value)
            rounds.append(time.perf_counter() - began)
        return min(rounds) / 2_000

    assert best(encode) < best(msgspec.json.encode) + 1e-6


@pytest.mark.unmeasured
def test_needs_none_of_the_libraries_whose_values_it_writes() -> None:
    script = (
        "import sys, supervisor.worker.encode; print({'numpy', 'torch', 'pydantic', 'dataclasses'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=repository_env())
    assert ended.stdout.strip() == "set()", ended.stderr


ERRORS: dict[str, tuple[Any, str]] = {
    "text": ("no such model", "no such model"),
    "text subclass": (Text("x"), "x"),
    "dict": ({"code": 3, "at": Path("x")}, '{"code":3,"at":"x"}'),
    "list": ([1, "é"], '[1,"é"]'),
    "number": (3, "3"),
    "exception": (ValueError("no such model"), "no such model"),
    "lone surrogate": ("a\ud800", "a\\ud800"),
    "lone surrogate inside": (["a\ud800"], "['a\\ud800']"),
}


@pytest.mark.parametrize(("value", "expected"), ERRORS.values(), ids=ERRORS.keys())
def test_error_text(value: Any, expected: str) -> None:
    assert error_text(value) == expected


def test_error_text_never_raises() -> None:
    class Hopeless:
        def __str__(self):
            raise RuntimeError("no text")

    assert error_text(Hopeless()).startswith("error: cannot encode ")


needs_numpy = pytest.mark.skipif(importlib.util.find_spec("numpy") is None, reason="numpy is not installed")


@needs_numpy
def test_numpy() -> None:
    import numpy as np

    cases: list[tuple[Any, Any]] = [
        (np.float32(0.5), 0.5),
        (np.float64(1.5), 1.5),
        (np.float16(1.5), 1.5),
        (np.longdouble(1.5), 1.5),
        (np.int64(3), 3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.bytes_(b"a"), "YQ=="),
        (np.arange(3), [0, 1, 2]),
        (np.eye(2, dtype=np.float32), [[1.0, 0.0], [0.0, 1.0]]),
        (np.array(5), 5),
        (np.array([1.0, np.nan, np.inf]), [1.0, None, None]),
        (np.array([1.5], dtype=np.longdouble), [1.5]),
        (np.array([{"a": Path("x")}], dtype=object), [{"a": "x"}]),
        (np.array([]), []),
        (np.datetime64("2024-05-01T12:30"), "2024-05-01T12:30"),
        (np.array(["2024-05-01"], dtype="M8[ns]"), ["2024-05-01T00:00:00.000000000"]),
        (np.ma.array([1, 2], mask=[False, True]), [1, None]),
        ({np.int64(1): np.float32(2)}, {"1": 2.0}),
    ]
    for value, expected in cases:
        assert json.loads(encode(value)) == expected, repr(value)


@needs_numpy
def test_numpy_refused() -> None:
    import numpy as np

    for value, message in [
        ({"z": np.array([1j])}, r"output\.z\[0\]: cannot encode complex"),
        ({"z": np.array([[None, Image()]], dtype=object)}, r"output\.z\[0\]\[1\]: cannot encode PIL\.Image\.Image"),
    ]:
        with pytest.raises(EncodeError, match=f"^{message}$"):
            encode(value)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch() -> None:
    import torch

    cases: list[tuple[Any, Any]] = [
        (torch.tensor(2.5), 2.5),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor([1.5], dtype=torch.bfloat16), [1.5]),
        (torch.tensor([1.5], requires_grad=True), [1.5]),
        (torch.nn.Parameter(torch.ones(1, 2)), [[1.0, 1.0]]),
        (torch.eye(2).to_sparse(), [[1.0, 0.0], [0.0, 1.0]]),
        (torch.Size([1, 2]), [1, 2]),
        (torch.tensor([float("nan")]), [None]),
    ]
    for value, expected in cases:
        assert json.loads(encode(value)) == expected, repr(value)


class Tensor:
    """What torch's tensors answer to: one that needs grad, is on a GPU, or is sparse, refuses ``tolist``."""

    def __init__(self, values: list[Any], needs: frozenset[str] = frozenset(), is_quantized: bool = False) -> None:
        self.values, self.needs, self.is_quantized = values, needs, is_quantized
        self.layout = "sparse" if "to_dense" in needs else "strided"

    def without(self, need: str) -> Tensor:
        return Tensor(self.values, self.needs - {need}, self.is_quantized and need != "dequantize")

    def detach(self) -> Tensor:
        return self.without("detach")

    def cpu(self) -> Tensor:
        if "cuda error" in self.needs:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self.without("cpu")

    def dequantize(self) -> Tensor:
        return self.without("dequantize")

    def to_dense(self) -> Tensor:
        return Tensor(self.values, self.needs - {"to_dense"})

    def tolist(self) -> list[Any]:
        assert not self.needs
        assert not self.is_quantized
        return self.values


@pytest.fixture
def torch_like(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torch")
    vars(module).update(Tensor=Tensor, strided="strided")
    monkeypatch.setitem(sys.modules, "torch", module)


def test_a_tensor_is_brought_to_where_it_can_be_read(torch_like: None) -> None:
    assert encode(Tensor([1, 2])) == b"[1,2]"
    assert encode(Tensor([1], frozenset({"detach", "cpu", "to_dense"}))) == b"[1]"
    assert encode(Tensor([1], frozenset({"dequantize"}), is_quantized=True)) == b"[1]"


def test_a_cuda_error_is_told_and_is_the_cause(torch_like: None) -> None:
    with pytest.raises(
        EncodeError, match=r"^output\.latents: cannot encode .*Tensor: RuntimeError: CUDA error: an ill"
    ) as caught:
        encode({"latents": Tensor([1], frozenset({"cuda error"}))})
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_library_that_is_only_half_imported_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numpy", "torch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert encode([Path("x")]) == b'["x"]'


@pytest.mark.skipif(importlib.util.find_spec("pydantic") is None, reason="pydantic is not installed")
def test_pydantic() -> None:
    import pydantic

    class Answer(pydantic.BaseModel):
        where: Path = Path("x")
        inside: Any = None

    assert json.loads(encode([Answer()])) == [{"where": "x", "inside": None}]
    with pytest.raises(EncodeError, match=r"^output\[0\]\.inside: cannot encode PIL\.Image\.Image$"):
        encode([Answer(inside=Image())])


def repository_env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
