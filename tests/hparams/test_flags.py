"""Words of a command line become typed values, and nothing is guessed."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jukebox.errors import HparamsError, UsageError
from jukebox.hparams.flags import Kind, spell, split, typed

KINDS = {
    "name": Kind(str),
    "bs": Kind(int),
    "lr": Kind(float),
    "train": Kind(bool),
    "downs_t": Kind(int, many=True),
    "mu": Kind(float, optional=True),
    "loss_fn": Kind.of(Literal["l1", "l2"]),
}


def values(*argv: str) -> dict[str, object]:
    return {flag.key: typed(flag, KINDS[flag.key]) for flag in split(argv, KINDS)}


@pytest.mark.parametrize("text", ["2024_01_01", "1e3", "0x10", "None", "True", "a b", "x=y", "", "5,3"])
def test_text_stays_text(text: str) -> None:
    assert values(f"--name={text}") == {"name": text}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--train"], {"train": True}),
        (["--train=False"], {"train": False}),
        (["--train=false"], {"train": False}),
        (["--train", "False"], {"train": False}),
        (["--notrain"], {"train": False}),
        (["--no-train"], {"train": False}),
        (["--no_train"], {"train": False}),
        (["--bs=4"], {"bs": 4}),
        (["--bs", "4"], {"bs": 4}),
        (["--bs=1e5"], {"bs": 100000}),
        (["--bs", "-1"], {"bs": -1}),
        (["--lr=3e-4"], {"lr": 0.0003}),
        (["--lr=1"], {"lr": 1.0}),
        (["--downs-t=5,3"], {"downs_t": (5, 3)}),
        (["--downs_t=(5, 3)"], {"downs_t": (5, 3)}),
        (["--downs_t=[5,3]"], {"downs_t": (5, 3)}),
        (["--downs_t=8"], {"downs_t": (8,)}),
        (["--downs_t=(8,)"], {"downs_t": (8,)}),
        (["--downs_t=()"], {"downs_t": ()}),
        (["--mu=None"], {"mu": None}),
        (["--mu=0.5"], {"mu": 0.5}),
        (["--loss_fn=l1"], {"loss_fn": "l1"}),
        (["--train", "--bs=2"], {"train": True, "bs": 2}),
    ],
)
def test_values(argv: list[str], expected: dict[str, object]) -> None:
    assert values(*argv) == expected
    assert all(type(value) is type(expected[key]) for key, value in values(*argv).items())


@pytest.mark.parametrize(
    "word",
    ["--bs=1.5", "--bs=x", "--bs=2**3", "--bs=1_000", "--bs=None", "--bs=True", "--bs=", "--bs=1e400", "--lr=nan"]
    + ["--lr=inf", "--lr=0x1", "--train=maybe", "--downs_t=5,,3", "--downs_t=5,x", "--loss_fn=l3", "--mu=x"],
)
def test_a_mistyped_value_names_its_flag(word: str) -> None:
    with pytest.raises(HparamsError, match=word.split("=")[0]):
        values(word)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["foo"], "'foo' belongs to no flag"),
        (["--name", "foo", "bar"], "'bar' after --name foo"),
        (["--train", "yes please"], "'yes please'"),
        (["-bs=4"], "'-bs=4'"),
        (["--"], "'--'"),
        (["--bs=1", "--bs=1"], "--bs is given twice: --bs=1 and --bs=1"),
        (["--train", "--notrain"], "--train is given twice"),
        (["--downs_t=1", "--downs-t=1"], "--downs_t is given twice"),
        (["--bs"], "--bs needs a value: an integer"),
        (["--bs", "--train"], "--bs needs a value"),
        (["--notrain=True"], "takes no value"),
    ],
)
def test_a_malformed_line_is_a_usage_error(argv: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text.replace("(", r"\(")):
        split(argv, KINDS)


def test_words_without_a_flag_fill_the_keys_that_wait_for_them() -> None:
    kinds = {"action": Kind(str), "store": Kind(str), "bs": Kind(int)}
    found = split(["verify", "--bs=2", "codes"], kinds, words=("action", "store"))
    assert {flag.key: flag.text for flag in found} == {"action": "verify", "bs": "2", "store": "codes"}
    with pytest.raises(UsageError, match="action is given twice"):
        split(["verify", "--action=cut"], kinds, words=("action",))


@pytest.mark.parametrize("value", [True, "5", 1.5, None, [1], float("nan")])
def test_python_and_toml_values_are_not_coerced(value: object) -> None:
    with pytest.raises(ValueError, match="an integer is needed"):
        Kind(int).convert(value)


def test_python_and_toml_values() -> None:
    assert Kind(int).convert(8.0) == 8
    assert Kind(float).convert(8) == 8.0 and isinstance(Kind(float).convert(8), float)
    assert Kind(int, many=True).convert([5, 3]) == (5, 3)
    assert Kind(int, many=True).convert(5) == (5,)
    assert Kind(int, optional=True).convert("None") is None
    assert Kind(str).convert("None") == "None"
    with pytest.raises(ValueError, match="a number is needed"):
        Kind(float).convert(10**400)


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans()))
def test_a_spelt_value_reads_back(value: bool | int | float) -> None:
    if isinstance(value, float):
        assert Kind(float).read(spell(value)) == value
    else:
        assert Kind(type(value)).read(spell(value)) == value


@given(st.lists(st.text(max_size=8), max_size=5))
def test_any_line_is_parsed_or_refused_as_a_usage_error(argv: list[str]) -> None:
    try:
        for flag in split(argv, KINDS):
            if flag.key in KINDS:
                typed(flag, KINDS[flag.key])
    except UsageError as error:
        assert error.exit_code == 2
