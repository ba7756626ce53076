"""Layers, origins, range errors, and the file that reads back."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jukebox.errors import HparamsError
from jukebox.hparams.resolve import DEFAULT, Layer, Schema, key, keys_of, section


@section("net", "Net")
class NetHps:
    width: int = key(128, "width of the net", unit="channels", gt=0)
    depth: int | None = key(None, "layers")
    name: str = key("", "its name")


@section("course", "Course")
class CourseHps:
    lr: float = key(0.0003, "learning rate", gt=0)
    hops: tuple[float, ...] = key((0.5, 0.25), "hops")
    train: bool = key(False, "train")


SCHEMA = Schema([NetHps, CourseHps])


def test_later_layers_win_and_origins_are_kept() -> None:
    resolved = SCHEMA.resolve([Layer("preset a", {"width": 1, "lr": 1.0}), Layer("preset b", {"width": 2})])
    assert resolved.section(NetHps) == NetHps(width=2)
    assert resolved.section(CourseHps).lr == 1.0
    assert [resolved.origins[name] for name in ("width", "lr", "name")] == ["preset b", "preset a", DEFAULT]
    assert resolved.given("lr") and not resolved.given("depth")
    assert list(resolved.values) == ["width", "depth", "name", "lr", "hops", "train"]


def test_sections_and_values_are_frozen() -> None:
    resolved = SCHEMA.resolve([])
    with pytest.raises(AttributeError):
        resolved.section(NetHps).width = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        resolved.values["width"] = 3  # type: ignore[index]


def test_with_values_leaves_the_first_set_alone() -> None:
    first = SCHEMA.resolve([])
    second = first.with_values("checkpoint x", width=8.0, hops=[1, 2])
    assert (first.values["width"], second.values["width"]) == (128, 8)
    assert second.values["hops"] == (1.0, 2.0)
    assert second.origins["width"] == "checkpoint x"
    assert first.differences(second) == {"width": (128, 8), "hops": ((0.5, 0.25), (1.0, 2.0))}
    with pytest.raises(HparamsError, match=r"no hyperparameter widht. Did you mean --width \(Net: width of the net\)"):
        first.with_values("Python", widht=3)


def test_a_value_out_of_range_names_flag_value_and_origin() -> None:
    with pytest.raises(HparamsError, match=r"--width=0 \(from: preset a\) should be greater than 0. See --help width"):
        SCHEMA.resolve([Layer("preset a", {"width": 0})])


def test_a_key_stands_in_one_section_only() -> None:
    with pytest.raises(AssertionError, match="width"):
        Schema([NetHps, NetHps])


def test_what_a_key_says_about_itself() -> None:
    width = keys_of(NetHps)["width"]
    assert (width.default, width.text, width.unit, str(width.kind)) == (
        128,
        "width of the net",
        "channels",
        "an integer",
    )


def test_the_file_shows_origins_and_reads_back() -> None:
    resolved = SCHEMA.resolve([Layer("preset a", {"width": 3, "lr": 1e-8})])
    text = resolved.to_toml()
    assert '# Net\nwidth = 3  # preset a\ndepth = "None"  # default\n' in text
    again = SCHEMA.resolve([]).with_values("file", **tomllib.loads(text))
    assert again.values == resolved.values


@given(
    st.builds(dict, width=st.integers(1, 2**62), depth=st.none() | st.integers(-9, 9), name=st.text())
    | st.builds(dict, lr=st.floats(1e-300, 1e300), hops=st.lists(st.floats(-1e300, 1e300)), train=st.booleans())
)
def test_any_values_read_back(values: dict[str, object]) -> None:
    resolved = SCHEMA.resolve([]).with_values("x", **values)
    again = SCHEMA.resolve([]).with_values("file", **tomllib.loads(resolved.to_toml()))
    assert again.values == resolved.values


def test_a_name_that_no_text_file_can_hold_is_written_legibly() -> None:
    text = SCHEMA.resolve([Layer("command line", {"name": "caf\udce9"})]).to_toml()
    assert tomllib.loads(text)["name"] == "caf\\udce9"
