"""Records as JSON and back: nothing converted, nothing unknown, one sentence for each fault."""

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbit.records.codec import (
    ConfigTable,
    canonical,
    digest,
    from_json,
    from_plain,
    plain,
    pretty,
    record,
    strict,
    with_schema,
)
from slimbit.records.errors import InputError
from slimbit.records.point import FrontierPoint, PlannedPoint
from slimbit.records.setting import Bits, Epoch, Price, Setting, Sigma


@record
class Inner:
    name: str
    sizes: tuple[int, ...] = ()


@record
class Outer:
    inner: tuple[Inner, ...]
    ratio: float = 0.5
    known: Mapping[str, float] = field(default_factory=dict)
    setting: Setting | None = None

    def __post_init__(self) -> None:
        if self.ratio == 0:
            raise InputError("ratio must not be 0, got 0")


@dataclass(frozen=True)
@strict
class Pair:
    first: int
    second: float


VALUE = Outer(
    inner=(Inner(name="a", sizes=(1, 2)), Inner(name="b")), known={"x": 1.5}, setting=Price(2e-9, "esn_digital")
)


def test_a_record_comes_back_as_it_was() -> None:
    for content in (canonical(VALUE), pretty(VALUE)):
        assert from_json(Outer, content, where="x") == VALUE
    assert from_plain(Pair, {"first": 1, "second": 2}, where="x") == Pair(1, 2.0)
    assert from_plain(tuple[Inner, ...], [{"name": "a"}], where="x") == (Inner(name="a"),)
    assert from_plain(Outer, with_schema(VALUE, 3), where="x", schema=3) == VALUE
    with pytest.raises(TypeError):
        Inner("a")  # keyword arguments only


def test_canonical_bytes_depend_on_nothing_but_the_value() -> None:
    assert canonical(VALUE) == canonical(plain(VALUE)) == canonical(json.loads(pretty(VALUE)))
    assert canonical({"b": 1, "a": [2.5, None, True]}) == b'{"a":[2.5,null,true],"b":1}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 2.5})
    assert digest([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"  # sha256 of "[]"
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"a": math.nan})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"inner": [], "ratio": "0.5"}, "ratio of x must be a valid number, got '0.5'"),
        ({"inner": [], "ratio": True}, "ratio of x must be a valid number, got True"),
        ({"inner": [], "ratio": None}, "ratio of x must be a valid number, got None"),
        ({"inner": [], "ratio": 0}, "x: ratio must not be 0, got 0"),
        ({"inner": [], "ratoi": 1}, "x must hold only known keys, got ratoi; did you mean ratio?"),
        ({"ratoi": 1}, "x must hold only known keys, got ratoi; did you mean ratio?"),
        ({}, "x must hold inner, got none"),
        ({"inner": [{"name": "a"}, {}]}, "x must hold inner.1.name, got none"),
        ({"inner": [{"name": "a", "size": []}]}, "x must hold only known keys, got inner.0.size; did you mean sizes?"),
        ({"inner": [{"name": "a", "sizes": [1, 2.0]}]}, "inner.0.sizes.1 of x must be a valid integer, got 2.0"),
        ({"inner": [{"name": "a", "sizes": 3}]}, "inner.0.sizes of x must be a list, got 3"),
        ({"inner": [3]}, "inner.0 of x must be a table with the fields of Inner, got 3"),
        ({"inner": {}}, "inner of x must be a list, got {}"),
        ({"inner": [], "known": {"y": "z"}}, "known.y of x must be a valid number, got 'z'"),
        ({"inner": [], "known": {"y": math.inf}}, "x must hold finite numbers and text only, got inf at known.y"),
        (
            {"inner": [], "known": {"y": object}},
            "x must hold finite numbers and text only, got <class 'object'> at known",
        ),
        ({"inner": [], "setting": {"kind": "bits"}}, "x must hold setting.value, got none"),
        (
            {"inner": [], "setting": {"kind": "bits", "value": "4"}},
            "setting.value of x must be a valid number, got '4'",
        ),
        ({"inner": [], "setting": {"kind": "bit", "value": 4}}, "kind of setting of x must be one of 'bits', 'price',"),
        ({"inner": [], "setting": {"value": 4}}, "setting of x must"),
        ({"inner": [], "setting": {"kind": "price", "value": -1, "metric": "a"}}, "x: price must be a positive number"),
        ([], "value of x must be a table with the fields of Outer, got []"),
        (None, "value of x must be a table with the fields of Outer, got None"),
    ],
)
def test_a_fault_is_one_sentence_with_place_rule_and_value(data: Any, said: str) -> None:
    with pytest.raises(InputError) as raised:
        from_plain(Outer, data, where="x")
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)
    assert "pydantic" not in str(raised.value)


def test_long_values_are_clipped() -> None:
    with pytest.raises(InputError) as raised:
        from_plain(Outer, {"inner": [], "ratio": "x" * 1_000_000}, where="x")
    assert len(str(raised.value)) < 300
    with pytest.raises(InputError) as raised:
        from_plain(Outer, {"inner": [], "y" * 1_000_000: 1}, where="x")
    assert len(str(raised.value)) < 300


def test_another_schema_is_named_first() -> None:
    for data, found in (({"schema": 4, "evil": 1}, "4"), ({}, "None"), ([1], "'list'"), ({"schema": "3"}, "'3'")):
        with pytest.raises(InputError, match=f"^x must have schema 3, got {found}"):
            from_plain(Outer, data, where="x", schema=3)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["inner", "ratio", "known", "setting", "name", "sizes", "kind", "value", "metric", "x"])


@given(JSON | st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON, max_size=3), max_size=4))
def test_any_data_is_a_record_or_one_input_error(data: Any) -> None:
    found = None
    with contextlib.suppress(InputError):
        found = from_plain(Outer, data, where="x")
    if found is None:
        with pytest.raises(InputError, match=r"\A[^\n]+\Z"):
            from_plain(Outer, data, where="x")
    else:
        assert from_plain(Outer, plain(found), where="x") == found


@pytest.mark.parametrize(
    ("setting", "text", "data"),
    [
        (Bits(4.0), "4 bits", {"value": 4.0, "kind": "bits"}),
        (Bits(3.25), "3.25 bits", {"value": 3.25, "kind": "bits"}),
        (
            Price(2.1234e-9, "esn_digital"),
            "price 2.12e-09",
            {"value": 2.1234e-9, "metric": "esn_digital", "kind": "price"},
        ),
        (Epoch(12), "epoch 12", {"value": 12, "kind": "epoch"}),
        (Sigma(0.8), "k = 0.8", {"value": 0.8, "kind": "sigma"}),
    ],
)
def test_settings_are_typed_and_shown(setting: Any, text: str, data: dict[str, Any]) -> None:
    assert str(setting) == text
    assert plain(setting) == data
    assert from_plain(Setting, json.loads(json.dumps(data)), where="x") == setting
    point = PlannedPoint(key="k", plan="p", policy="mine", setting=setting)
    assert from_json(PlannedPoint, canonical(point), where="x") == point
    assert (point.price, point.metric) == (
        (setting.value, setting.metric) if isinstance(setting, Price) else (None, None)
    )
    assert point.label == f"mine, {text}"


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_prices_are_positive(value: float) -> None:
    with pytest.raises(InputError, match="price must be a positive number"):
        Price(value, "esn_digital")


def test_points_keep_their_flat_json() -> None:
    point = FrontierPoint(
        number=3, state="done", key="width-0.5-sweep-01", plan="p", policy="optimal", accuracy=91.0, keep_ratio=0.5,
        setting=Price(2e-9, "esn_digital"), costs={"esn_digital": 7.0}, objects={"plan": "p"}, hits="gA==",
    )  # fmt: skip
    data = point.to_dict()
    assert {"setting": "price 2e-09", "metric": "esn_digital", "price": 2e-9, "width": 0.5}.items() <= data.items()
    assert (data["esn_digital"], data["number"]) == (7.0, 3)
    assert not {"costs", "keep_ratio", "hits"} & set(data)
    assert FrontierPoint(number=0, state="done", policy="mine").to_dict()["setting"] == ""


class Settings(ConfigTable):
    """Settings of the test."""

    count: int = 3
    inner: "InnerSettings | None" = None


class InnerSettings(ConfigTable):
    """Settings within."""

    names: tuple[str, ...] = ()


def test_settings_say_what_was_given() -> None:
    assert Settings(count=4).with_options({"inner": {"names": None}}) == Settings(count=4)
    assert Settings().with_options({"count": None}) == Settings()
    assert Settings(inner=InnerSettings(names=("a",))).with_options({"count": 2}).inner.names == ("a",)
    with pytest.raises(InputError, match=r"^settings must hold only known keys, got cuont; did you mean count\?$"):
        Settings(cuont=3)
    with pytest.raises(
        InputError, match=r"^settings must hold only known keys, got inner\.nams; did you mean names\?$"
    ):
        Settings(inner={"nams": ()})
    with pytest.raises(InputError, match=r"^inner\.names\.0 must be a valid string, got 3$"):
        Settings().with_options({"inner": {"names": (3,)}})
