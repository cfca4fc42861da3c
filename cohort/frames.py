"""Frames of a PET: their times in a sidecar, which of them are averaged, and their mean by duration."""
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.files import brief

FEW_FRAMES = 6                                             # a late static scan has 4, or 6 of five minutes
LATE_SPAN = 40.0                                           # minutes that late static frames last at most
COVERED = 0.5                                              # least share of a window that frames cover
MINUTE = 60.0                                              # seconds
CLOCK = re.compile(r"(\d{1,2}):(\d{2}):(\d{2}(?:\.\d+)?)")


@dataclass(frozen=True)
class Timing:
    """Times of the frames of a PET, in seconds.

    starts: after injection; () if the sidecar does not say. durations: of the frames. from_injection: False
    if the sidecar lacks the injection, so that starts are counted from its time zero.
    """
    starts: tuple[float, ...]
    durations: tuple[float, ...]
    from_injection: bool = True

    def describe(self) -> str:
        """The frames in minutes, for a message: first to last and their number."""
        number = f"{len(self.durations)} frame{'s' if len(self.durations) > 1 else ''}"
        if not self.starts:
            return f"{number} of {sum(self.durations) / MINUTE:.4g} min"
        end = self.starts[-1] + self.durations[-1]
        origin = "injection" if self.from_injection else "time zero (the sidecar has no InjectionStart)"
        return f"{number} from {self.starts[0] / MINUTE:.4g} to {end / MINUTE:.4g} min after {origin}"


@dataclass(frozen=True)
class Chosen:
    """The frames of a PET that are averaged: their places from 0, their durations in s, None for a plain
    mean, and a remark on how they were chosen."""
    places: list[int]
    durations: list[float] | None = None
    remark: str = ""


# ---------------------------------------------------------------- sidecars

def read_timing(sidecar: dict) -> Timing | None:
    """The times of frames in the content of a PET's sidecar, None if it has none.

    Raises ValueError that names the entry that cannot be used.
    """
    if sidecar.get("FrameDuration") is None:
        return None
    durations = _numbers("FrameDuration", sidecar["FrameDuration"])
    if not durations or min(durations) <= 0:
        raise ValueError(f"FrameDuration {brief(sidecar['FrameDuration'])}: expected seconds above 0")
    if sidecar.get("FrameTimesStart") is None:
        return Timing((), durations)
    starts = _numbers("FrameTimesStart", sidecar["FrameTimesStart"])
    if len(starts) != len(durations):
        raise ValueError(f"FrameTimesStart has {len(starts)} entries, FrameDuration {len(durations)}")
    if list(starts) != sorted(starts):
        raise ValueError("FrameTimesStart is not in the order of time")
    injection = _injection(sidecar)
    return Timing(tuple(start - (injection or 0.0) for start in starts), durations, injection is not None)


def _numbers(name: str, value) -> tuple[float, ...]:
    """A list of finite numbers; a single number is a list of one."""
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"{name} holds {brief(repr(number))}; expected numbers of seconds")
    return tuple(float(number) for number in numbers)


def _injection(sidecar: dict) -> float | None:
    """The start of the injection in seconds after the sidecar's time zero, None if it is not given.

    Some sidecars give it as a clock time, like TimeZero itself.
    """
    value, zero = sidecar.get("InjectionStart"), sidecar.get("TimeZero")
    if value is None:
        return None
    if isinstance(value, str) and (clock := CLOCK.fullmatch(value)):
        if not (isinstance(zero, str) and (zero_clock := CLOCK.fullmatch(zero))):
            raise ValueError(f"InjectionStart {value} is a clock time, but TimeZero is none")
        return _seconds(clock) - _seconds(zero_clock)
    numbers = _numbers("InjectionStart", value)
    if len(numbers) != 1:
        raise ValueError(f"InjectionStart has {len(numbers)} entries; expected one number of seconds")
    return numbers[0]


def _seconds(clock: re.Match) -> float:
    return 3600 * int(clock[1]) + MINUTE * int(clock[2]) + float(clock[3])


# ---------------------------------------------------------------- the choice

def choose_frames(count: int, timing: Timing | None, window: tuple[float, float] | None,
                  asked: tuple[int, int] = (0, 0)) -> Chosen:
    """The frames of a PET that are averaged.

    count: frames in the file. window: minutes after injection, None if unknown. asked: first and last frame
    by number from 1, which the user gave; (0, 0): none. Raises ValueError with what is there and what to do.
    """
    if any(asked):
        return _asked(count, timing, asked)
    if timing is None and count > FEW_FRAMES:
        raise ValueError(f"has {count} frames and no sidecar with their times: a dynamic scan? Give "
                         "--pet_frames FIRST LAST, or a sidecar with FrameTimesStart and FrameDuration")
    if timing is None:
        remark = f"plain mean of {count} frames, as there is no sidecar with their times"
        return Chosen(list(range(count)), None, remark if count > 1 else "")
    if len(timing.durations) != count:
        raise ValueError(f"has {count} frame{'s' if count > 1 else ''}, but its sidecar the times of "
                         f"{len(timing.durations)}; correct the sidecar, or give --pet_frames FIRST LAST")
    if count == 1:
        return Chosen([0])
    if window is None or not timing.starts:
        return _all_of_few(timing, window)
    return _inside(timing, window)


def _asked(count: int, timing: Timing | None, asked: tuple[int, int]) -> Chosen:
    """The frames that the user asked for, weighted if their durations are known."""
    first, last = asked
    if not 1 <= first <= last <= count:
        raise ValueError(f"has {count} frame{'s' if count > 1 else ''}; pet_frames {first} {last} must be "
                         "the first and the last of them, counted from 1")
    places = list(range(first - 1, last))
    if timing is None or len(timing.durations) != count:
        return Chosen(places)
    return Chosen(places, [timing.durations[place] for place in places])


def _all_of_few(timing: Timing, window: tuple[float, float] | None) -> Chosen:
    """All frames by duration, where they are few and no window can choose among them."""
    lacks = "no window is known for its tracer"
    if window:
        lacks = f"no {'InjectionStart' if timing.starts else 'FrameTimesStart'} in its sidecar"
    if len(timing.durations) > FEW_FRAMES:
        raise ValueError(f"has {timing.describe()}, and {lacks}; give --pet_frames FIRST LAST"
                         + ("" if window else " or --pet_window START END"))
    remark = f"all {len(timing.durations)} frames are averaged by their durations: {lacks}"
    return Chosen(list(range(len(timing.durations))), list(timing.durations), remark)


def _inside(timing: Timing, window: tuple[float, float]) -> Chosen:
    """The frames whose middle lies in the window, which must cover half of it."""
    low, high = window[0] * MINUTE, window[1] * MINUTE
    places, covered = [], 0.0
    for place, (start, duration) in enumerate(zip(timing.starts, timing.durations, strict=True)):
        if low <= start + duration / 2 <= high:
            places.append(place)
            covered += min(high, start + duration) - max(low, start)
    if covered < COVERED * (high - low) and _may_be_late(timing):
        return _all_of_few(timing, window)
    if covered < COVERED * (high - low):
        raise ValueError(f"has {timing.describe()}, which cover {covered / MINUTE:.4g} of the "
                         f"{window[1] - window[0]:g} min from {window[0]:g} to {window[1]:g}; give "
                         "--pet_window START END in minutes after injection, or --pet_frames FIRST LAST")
    durations = [timing.durations[place] for place in places]
    remark = ""
    if not timing.from_injection:
        remark = "its sidecar has no InjectionStart: minutes are counted from its time zero"
    if len(places) < len(timing.durations) and covered < 0.99 * (high - low):
        remark += f"{'; ' if remark else ''}{covered / MINUTE:.4g} min of the window are covered by frames"
    return Chosen(places, durations, remark)


def _may_be_late(timing: Timing) -> bool:
    """Whether frames may be those of a late static scan, counted from its start: few and short together,
    where nothing says when the injection was."""
    minutes = (timing.starts[-1] + timing.durations[-1]) / MINUTE
    return (not timing.from_injection and timing.starts[0] == 0 and minutes <= LATE_SPAN
            and len(timing.durations) <= FEW_FRAMES)


def mean_of_frames(volumes: Sequence[np.ndarray], durations: Sequence[float] | None) -> np.ndarray:
    """The mean of volumes [X, Y, Z], weighted by durations; None or equal ones: the plain mean. float32."""
    if durations is None or len(set(durations)) <= 1:
        return np.mean(volumes, axis=0, dtype=np.float32)
    total = np.zeros(volumes[0].shape)
    for volume, duration in zip(volumes, durations, strict=True):
        total += duration * volume.astype(np.float64)
    return (total / sum(durations)).astype(np.float32)
