"""Frames of a PET: their times in a sidecar, which are averaged, and the mean by hand."""
import numpy as np
import pytest

from cohort.frames import Timing, choose_frames, mean_of_frames, read_timing
from cohort.tracers import find_tracer

FOUR = {"FrameTimesStart": [3000, 3300, 3600, 3900], "FrameDuration": [300] * 4, "InjectionStart": 0}


def late(count: int = 4, start: float = 3000.0, length: float = 300.0, from_injection: bool = True) -> Timing:
    """Frames of one length after each other, from 50 minutes on unless said otherwise."""
    return Timing(tuple(start + length * i for i in range(count)), (length,) * count, from_injection)


# ---------------------------------------------------------------- the mean

def test_the_mean_is_weighted_by_durations_as_by_hand():
    rng = np.random.default_rng(0)
    volumes = [rng.random((3, 4, 5), dtype=np.float32) for _ in range(3)]
    one, two, three = (volume.astype(float) for volume in volumes)
    expected = (60 * one + 300 * two + 120 * three) / 480
    np.testing.assert_allclose(mean_of_frames(volumes, [60.0, 300.0, 120.0]), expected, atol=1e-6)


def test_large_uptakes_lose_no_precision():
    one, other = np.full((2, 2, 2), 20_001, np.float32), np.full((2, 2, 2), 40_003, np.float32)
    np.testing.assert_allclose(mean_of_frames([one, other], [300.0, 900.0]), 35_002.5, rtol=1e-6)


@pytest.mark.parametrize("durations", [None, [300.0, 300.0]])
def test_equal_durations_give_the_very_voxels_of_the_plain_mean(durations):
    volumes = list(np.random.default_rng(1).random((2, 3, 3, 3), dtype=np.float32))
    expected = np.mean(volumes, axis=0, dtype=np.float32)
    np.testing.assert_array_equal(mean_of_frames(volumes, durations), expected)


# ---------------------------------------------------------------- times

@pytest.mark.parametrize("change, starts, from_injection", [
    ({}, (3000, 3300, 3600, 3900), True),
    ({"FrameTimesStart": [0, 300, 600, 900], "InjectionStart": -3000}, (3000, 3300, 3600, 3900), True),
    ({"InjectionStart": "10:00:00", "TimeZero": "10:50:00", "FrameTimesStart": [0, 300, 600, 900]},
     (3000, 3300, 3600, 3900), True),
    ({"InjectionStart": [0]}, (3000, 3300, 3600, 3900), True),
    ({"InjectionStart": None}, (3000, 3300, 3600, 3900), False),
])
def test_times_are_counted_from_the_injection(change, starts, from_injection):
    timing = read_timing(FOUR | change)
    assert timing == Timing(starts, (300.0,) * 4, from_injection)


def test_a_sidecar_of_a_static_scan_may_hold_plain_numbers_or_no_times():
    assert read_timing({"FrameDuration": 1200, "FrameTimesStart": 0}) == Timing((0.0,), (1200.0,), False)
    assert read_timing({"FrameDuration": [300, 300]}) == Timing((), (300.0, 300.0))
    assert read_timing({"TracerName": "PiB"}) is None


@pytest.mark.parametrize("change, words", [
    ({"FrameDuration": ["300"] * 4}, "FrameDuration holds '300'"),
    ({"FrameDuration": [300, 300, float("nan"), 300]}, "holds nan"),
    ({"FrameDuration": [300, 0, 300, 300]}, "seconds above 0"),
    ({"FrameDuration": []}, "seconds above 0"),
    ({"FrameDuration": [[300] * 4]}, "FrameDuration holds"),
    ({"FrameDuration": {"a": 1}}, "FrameDuration holds"),
    ({"FrameDuration": [True] * 4}, "FrameDuration holds True"),
    ({"FrameTimesStart": [0, 300]}, "FrameTimesStart has 2 entries, FrameDuration 4"),
    ({"FrameTimesStart": [300, 0, 600, 900]}, "order of time"),
    ({"InjectionStart": "10:00:00"}, "but TimeZero is none"),
    ({"InjectionStart": "yesterday"}, "InjectionStart holds 'yesterday'"),
    ({"InjectionStart": [0, 1]}, "InjectionStart has 2 entries"),
])
def test_what_cannot_be_times_is_named(change, words):
    with pytest.raises(ValueError, match="Frame|Injection") as caught:
        read_timing(FOUR | change)
    assert words in str(caught.value)


# ---------------------------------------------------------------- the choice

def test_a_dynamic_scan_gives_the_frames_of_the_window_with_their_durations():
    timing = Timing((0.0, 600, 1800, 3000, 3600), (600.0, 1200, 1200, 600, 600))
    chosen = choose_frames(5, timing, (50, 70))
    assert chosen.places == [3, 4] and chosen.durations == [600.0, 600.0] and not chosen.remark


def test_a_frame_counts_if_its_middle_lies_in_the_window():
    timing = Timing((2700.0, 3300, 3900), (600.0, 600, 600))                 # 45-55, 55-65, 65-75 min
    assert choose_frames(3, timing, (50, 70)).places == [0, 1, 2]
    timing = Timing((2640.0, 3240, 3840), (600.0, 600, 600))                 # 44-54, 54-64, 64-74 min
    assert choose_frames(3, timing, (50, 70)).places == [1, 2]


def test_half_of_the_window_is_enough_and_remarked_less_is_refused():
    chosen = choose_frames(9, late(9, start=600, length=300), (50, 60))      # 10 to 55 min: 5 of 10
    assert chosen.places == [8] and "5 min of the window" in chosen.remark
    with pytest.raises(ValueError, match="cover 5 of the 20 min from 50 to 70"):
        choose_frames(9, late(9, start=600, length=300), (50, 70))


@pytest.mark.parametrize("durations", [(300.0,) * 4, (300.0,) * 6, (600.0, 1800), (60.0, 300, 240)])
@pytest.mark.parametrize("window", [(50, 70), (90, 110)])
def test_few_frames_from_the_scans_start_without_injection_are_averaged_with_a_remark(durations, window):
    starts = tuple(float(sum(durations[:i])) for i in range(len(durations)))
    chosen = choose_frames(len(durations), Timing(starts, durations, False), window)
    assert chosen.places == list(range(len(durations))) and chosen.durations == list(durations)
    assert "no InjectionStart in its sidecar" in chosen.remark


@pytest.mark.parametrize("timing", [
    late(7, start=0, from_injection=False), late(30, start=0, length=60, from_injection=False),
    late(4, start=0, length=601, from_injection=False),     # 40 min and 4 s
    late(4, start=300, from_injection=False), late(4, start=-300, from_injection=False)])
def test_other_frames_from_the_scans_start_without_injection_are_refused_with_what_is_there(timing):
    with pytest.raises(ValueError, match="no InjectionStart") as caught:
        choose_frames(len(timing.durations), timing, (50, 70))
    assert " min after time zero" in str(caught.value) and "--pet_frames" in str(caught.value)


def test_early_frames_with_an_injection_are_no_late_scan():
    with pytest.raises(ValueError, match="cover 0 of the 20 min"):
        choose_frames(4, late(start=0), (50, 70))


def test_a_window_that_frames_without_injection_cover_is_taken_of_them():
    assert choose_frames(4, late(start=0, from_injection=False), (0, 10)).places == [0, 1]


def test_without_sidecar_few_frames_pass_with_a_remark_and_many_are_refused():
    assert choose_frames(1, None, (50, 70)).remark == ""
    six = choose_frames(6, None, None)
    assert six.places == list(range(6)) and six.durations is None and "plain mean of 6" in six.remark
    with pytest.raises(ValueError, match="7 frames and no sidecar.*dynamic.*--pet_frames"):
        choose_frames(7, None, (50, 70))


@pytest.mark.parametrize("count", [1, 3, 5])
def test_lists_that_do_not_match_the_frames_are_refused(count):
    with pytest.raises(ValueError, match="the times of 4"):
        choose_frames(count, late(), (50, 70))
    assert choose_frames(count, late(), (50, 70), (1, 1)).durations is None  # the user knows better


def test_frames_that_are_asked_for_come_before_any_window():
    timing = Timing((0.0, 600, 1800), (600.0, 1200, 1200))
    assert choose_frames(3, timing, (50, 70), (2, 3)).durations == [1200.0, 1200.0]
    assert choose_frames(12, None, None, (9, 12)).places == [8, 9, 10, 11]
    with pytest.raises(ValueError, match="pet_frames 9 13"):
        choose_frames(12, None, None, (9, 13))


def test_without_window_few_frames_are_all_averaged_by_duration_and_many_refused():
    timing = Timing((0.0, 60), (60.0, 300.0))
    assert choose_frames(2, timing, None).durations == [60.0, 300.0]
    with pytest.raises(ValueError, match="no window is known for its tracer; give .*--pet_window"):
        choose_frames(8, late(8), None)
    with pytest.raises(ValueError, match="no FrameTimesStart"):
        choose_frames(8, Timing((), (300.0,) * 8), (50, 70))


# ---------------------------------------------------------------- tracers

@pytest.mark.parametrize("text, label", [
    ("18FAV45", "18FAV45"), ("florbetapir", "18FAV45"), ("FBP", "18FAV45"), ("[18F]AV-45", "18FAV45"),
    ("Amyvid", "18FAV45"), ("Florbetapir F18", "18FAV45"), ("18F-AV45", "18FAV45"), ("11CPIB", "11CPIB"),
    ("[11C]PiB", "11CPIB"), ("PIB", "11CPIB"), ("Pittsburgh Compound B", "11CPIB"), ("FBB", "18FFBB"),
    ("18FFBB", "18FFBB"), ("Neuraceq (florbetaben)", "18FFBB"), ("FMM", "18FFMM"),
    ("18F-flutemetamol", "18FFMM"),
    ("NAV4694", "18FNAV4694"), ("AZD4694", "18FNAV4694"),
])
def test_amyloid_tracers_are_known_by_any_of_their_names(text, label):
    tracer = find_tracer(text)
    assert tracer.is_amyloid and tracer.label == label and tracer.window


@pytest.mark.parametrize("text", ["18FFDG", "FDG", "18FAV1451", "flortaucipir", "[18F]MK-6240", "PI-2620",
                                  "18FRO948", "Fluorodeoxyglucose", "UCB-J"])
def test_other_tracers_are_never_taken_for_amyloid(text):
    assert not find_tracer(text).is_amyloid


@pytest.mark.parametrize("text", ["", "XYZ12", "18F", "amyloid", "AV"])
def test_what_is_no_known_name_is_unknown(text):
    assert find_tracer(text) is None
