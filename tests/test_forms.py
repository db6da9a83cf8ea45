"""What a JSON file holds is checked against the types that are stated for it."""

from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from mixvae.files._forms import conform


@dataclass
class Options:
    name: str
    limit: int | None = None
    kind: Literal["a", "b"] = "a"


class Part(TypedDict):
    epoch: int
    loss: NotRequired[float | None]


class Whole(TypedDict):
    rows: list[Part]
    options: Options | None
    more: dict[str, int]
    anything: Any


GOOD = {"rows": [{"epoch": 1, "loss": 2}, {"epoch": 2, "else": []}], "options": {"name": "x", "kind": "b"},
        "more": {"a": 1}, "anything": [{}]}  # fmt: skip


def test_what_has_the_form_passes():
    conform(GOOD, Whole, "it")
    conform(GOOD | {"options": None}, Whole, "it")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rows": {}}, r"it\.rows cannot be dict"),
        ({"rows": [{}]}, r"it\.rows\[0\] has no epoch"),
        ({"rows": [{"epoch": True}]}, r"it\.rows\[0\]\.epoch cannot be bool"),
        ({"rows": [{"epoch": 1.5}]}, r"rows\[0\]\.epoch cannot be float"),
        ({"rows": [{"epoch": 2**70}]}, r"rows\[0\]\.epoch cannot be int"),
        ({"rows": [{"epoch": 1, "loss": 10**400}]}, r"loss cannot be int 'a number of"),
        ({"rows": [{"epoch": 1, "loss": "x"}]}, r"loss cannot be str 'x'"),
        ({"options": []}, r"it\.options cannot be list"),
        ({"options": "x"}, r"it\.options cannot be str"),
        ({"options": {"name": 5}}, r"it\.options\.name cannot be int"),
        ({"options": {"name": "x", "kind": "c"}}, r"kind cannot be str 'c'"),
        ({"options": {"name": "x", "nam": 1}}, r"it\.options has an unknown part nam"),
        ({"more": {"a": "1"}}, r"it\.more\.a cannot be str"),
        ({"more": [1]}, r"it\.more cannot be list"),
    ],
)
def test_another_form_is_told_where_it_stands(change, told):
    with pytest.raises(TypeError, match=told):
        conform(GOOD | change, Whole, "it")


def test_a_missing_part_is_named():
    with pytest.raises(TypeError, match="it has no more"):
        conform({name: value for name, value in GOOD.items() if name != "more"}, Whole, "it")


@pytest.mark.parametrize(("value", "fits"), [(28, True), ([28, 20], True), (None, True), ("28", False), ([1.5], False)])
def test_a_number_or_a_list_of_them_is_either(value, fits):
    hint = int | list[int] | None
    if fits:
        conform(value, hint, "it")
    else:
        with pytest.raises(TypeError, match="it"):
            conform(value, hint, "it")
