import pytest

from jukebox.codestore.geometry import Geometry
from jukebox.errors import StoreError

PUBLISHED = Geometry(44100, (8, 32, 128), 2048)


def test_lengths_of_all_levels_follow_from_one_number():
    assert PUBLISHED.padded_length(881_920) == 881_920
    assert [PUBLISHED.codes_for(level, 881_920) for level in range(3)] == [110_240, 27_560, 6_890]
    assert PUBLISHED.padded_length(1) == 128 and PUBLISHED.codes_for(0, 1) == 16
    assert PUBLISHED.valid_codes(0, 9) == 2 and PUBLISHED.valid_codes(2, 128) == 1
    assert PUBLISHED.ratio(0, 2) == 16 and PUBLISHED.samples_for(1, 10) == 320


def test_code_n_means_time_n_times_hop():
    for level in range(3):
        for code in (0, 1, 17, 123_457):
            assert PUBLISHED.code_at(level, PUBLISHED.seconds_at(level, code)) == code
    assert PUBLISHED.code_at(2, 1.0) == 44_100 // 128


def test_geometry_survives_a_file():
    assert Geometry.from_json(PUBLISHED.to_json()) == PUBLISHED


@pytest.mark.parametrize(
    "values", [(0, (8,), 4), (8000, (), 4), (8000, (8, 12), 4), (8000, (-8,), 4), (8000, (8,), -1), (8000, (8.0,), 4)]
)
def test_impossible_geometries_are_refused(values):
    with pytest.raises(StoreError):
        Geometry(*values)


@pytest.mark.parametrize("data", [{}, {"hops": "8"}, {"hops": [8], "sample_rate": "x", "bins": 4}, {"hops": [True]}])
def test_hostile_files_are_refused(data):
    with pytest.raises(StoreError):
        Geometry.from_json(data)
