# SPDX-License-Identifier: Apache-2.0
"""Faults planted in k-space are found where they were planted; clean data stays silent."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from appliance.faults.detector import default_thresholds
from appliance.mri.baseline import ADOPT_FRAMES, N_BASELINES, Baseline, Baselines, lower_median, measure, upper_median
from appliance.mri.faults import MrFaults
from appliance.mri.phantom import NOISE_STD, cine_kspace, noise_samples
from appliance.mri.rules import RULES

MATRIX = (128, 128)
N_BEFORE = 6  # clean frames before the fault
SEEDS = range(5)
NEEDS_BASELINE = {"coil_drop", "noisy_coil", "signal_drop", "low_snr", "displacement", "motion", "odd_even"}


def lines(n_ky, acceleration=1):
    return np.arange(0, n_ky, acceleration)


def clean(frame_index, n_coils=8, acceleration=1, matrix=MATRIX, noise_std=NOISE_STD):
    kspace = cine_kspace(frame_index, matrix, n_coils, noise_std)[:, ::acceleration].copy()
    kspace.flags.writeable = False
    return kspace


def find(kspace, ky, baseline=None, calibration=None):
    """What one frame shows against a baseline: findings, levels, and the rules without a basis."""
    calibration = np.zeros(len(ky), bool) if calibration is None else calibration
    detector, baseline = MrFaults(default_thresholds(RULES)), baseline or Baseline()
    levels = measure(kspace, ky, ~calibration, baseline)
    found = detector.judge_kspace(kspace, ky, calibration, baseline, levels)
    return found, levels, sorted(set(detector.unchecked) - NEEDS_BASELINE)


def settled(n_coils=8, acceleration=1, **more):
    """A baseline that has seen N_BEFORE clean frames."""
    baseline, ky = Baseline(), lines(MATRIX[0], acceleration)
    for index in range(N_BEFORE):
        found, levels, _ = find(clean(index, n_coils, acceleration, **more), ky, baseline)
        assert found == []
        baseline.accept(levels)
    return baseline


def over_coils(samples):
    """Fourth root of the sum of fourth powers."""
    return (np.abs(samples) ** 4).sum(axis=0) ** 0.25


def place(seed, n_coils, n_lines, n_columns):
    """Somewhere outside the centre of k-space."""
    rng = np.random.default_rng(seed)
    while True:
        coil, line, column = rng.integers(n_coils), rng.integers(n_lines), rng.integers(n_columns)
        if abs(line - n_lines // 2) > n_lines // 8 or abs(column - n_columns // 2) > n_columns // 8:
            return int(coil), int(line), int(column)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("acceleration", [1, 2, 3])
@pytest.mark.parametrize("n_coils", [1, 4, 8])
def test_a_spike_is_found_in_the_first_frame_and_placed(seed, acceleration, n_coils):
    kspace, ky = clean(seed, n_coils, acceleration).copy(), lines(MATRIX[0], acceleration)
    coil, line, column = place(seed, n_coils, len(ky), MATRIX[1])
    around = max(
        over_coils(kspace[:, y, x])
        for y in range(max(0, line - 2), min(len(ky), line + 3))
        for x in range(max(0, column - 4), min(MATRIX[1], column + 5))
        if y != line or abs(x - column) > 1
    )
    kspace[:, line, column] = 0
    kspace[coil, line, column] = 12 * around
    found, _, unchecked = find(kspace, ky)
    assert [f.kind for f in found] == ["spike"]
    assert unchecked == []
    assert dict(found[0].where) == {"coil": coil, "line": int(ky[line]), "column": column}
    assert found[0].measured == pytest.approx(12, rel=1e-5)
    assert found[0].message == (
        f"RF spike in k-space on coil {coil}, line {ky[line]}, column {column}: 12 times the expected level; "
        "check for loose metal or arcing in the room"
    )


def test_an_arc_that_hits_every_coil_is_one_finding():
    kspace = clean(0).copy()
    kspace[:, 20, 30] += 5
    kspace[:, 90, 100] += 2
    found, _, _ = find(kspace, lines(128))
    assert [f.kind for f in found] == ["spike"]
    assert (found[0].where["line"], found[0].where["column"]) == (20, 30)
    assert "(1 more in this frame)" in found[0].message


@pytest.mark.parametrize("times_neighbours", [5, 15])
def test_the_limit_near_the_centre_of_kspace_is_ten_times_the_neighbours(times_neighbours):
    kspace = clean(0).copy()
    line, column = 66, 67
    around = over_coils(kspace[:, line - 2 : line + 3, column - 4 : column + 5]).max()
    kspace[2, line, column] = times_neighbours * around
    assert [f.kind for f in find(kspace, lines(128))[0]] == (["spike"] if times_neighbours > 10 else [])


@pytest.mark.parametrize("first_frame", [True, False])
@pytest.mark.parametrize("n_coils", [2, 3, 8, 16])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_dropped_coil_is_named(seed, n_coils, first_frame):
    baseline, coil, ky = Baseline() if first_frame else settled(n_coils), seed % n_coils, lines(128)
    kspace = clean(7, n_coils).copy()
    kspace[coil] = 0
    expected = [("coil_drop", {"coil": coil})]
    found = find(kspace, ky, baseline)[0]
    assert [(f.kind, dict(f.where)) for f in found] == expected
    assert found[0].message == f"coil {coil} gives no data; check its plug and whether it is selected"
    kspace[coil] = noise_samples(kspace.shape[1:], seed=seed)
    found = find(kspace, ky, baseline)[0]
    assert [(f.kind, dict(f.where)) for f in found] == expected
    assert found[0].severity == "warning"
    why = "gives only noise" if first_frame else "of its usual signal"
    assert why in found[0].message


@pytest.mark.parametrize("first_frame", [True, False])
def test_a_coil_that_is_not_connected_is_named(first_frame):
    kspace = clean(7).copy()
    kspace[5] *= 0.01
    found = find(kspace, lines(128), None if first_frame else settled())[0]
    assert [(f.kind, f.where["coil"]) for f in found] == [("coil_drop", 5)]
    assert ("of the signal of the others" if first_frame else "of its usual signal") in found[0].message


def test_a_receiver_that_is_off_is_a_signal_drop_and_not_eight_dropped_coils():
    found = find((0.01 * clean(7)).astype(np.complex64), lines(128), settled())[0]
    assert [(f.kind, f.measured) for f in found] == [("signal_drop", pytest.approx(0.99, abs=1e-3))]


def test_lines_that_only_one_coil_lost_are_a_dropped_coil():
    kspace = clean(0).copy()
    kspace[4, 10:14] = 0
    found = find(kspace, lines(128))[0]
    assert [f.message for f in found] == ["coil 4 gives no data on 4 lines; check its plug and whether it is selected"]


@pytest.mark.parametrize("first_frame", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_noisy_coil_is_named_over_the_frame_or_by_its_lines(seed, first_frame):
    baseline, coil, ky = Baseline() if first_frame else settled(8, 2), seed, lines(128, 2)
    kspace = clean(7, 8, 2).copy()
    kspace[coil] += 10 * noise_samples(kspace.shape[1:], seed=seed)
    found = find(kspace, ky, baseline)[0]
    assert [(f.kind, dict(f.where)) for f in found] == [("noisy_coil", {"coil": coil})]
    assert found[0].measured == pytest.approx(math.sqrt(101), rel=0.15)  # the noise of 500 samples
    assert found[0].message == (
        f"coil {coil} is {found[0].measured:.1f} times as noisy as expected; "
        "check its plug and cable, and for interference in the room"
    )
    kspace = clean(7, 8, 2).copy()
    kspace[coil, 5:9] += 20 * noise_samples(kspace[coil, 5:9].shape, seed=seed)
    found = find(kspace, ky, baseline)[0]
    assert [(f.kind, dict(f.where)) for f in found] == [("noisy_coil", {"coil": coil, "line": 10, "last_line": 16})]
    assert "as expected on lines 10 to 16; check" in found[0].message


@pytest.mark.parametrize("rail", [32767.0, 20000.0])
@pytest.mark.parametrize("first_frame", [True, False])
def test_a_saturated_converter_is_found(rail, first_frame):
    scale = 1.6 * rail / np.abs(clean(7).view(np.float32)).max()
    low = -32768.0 if rail == 32767 else -rail
    kspace = np.clip(np.round(clean(7).view(np.float32) * scale), low, rail).view(np.complex64)
    at_rail = np.isin(kspace.view(np.float32), (rail, low)).reshape(8, -1).sum(axis=1)
    baseline = None
    if not first_frame:
        baseline = Baseline()
        for index in range(N_BEFORE):
            found, levels, _ = find(np.round(clean(index).view(np.float32) * scale).view(np.complex64), lines(128))
            assert found == []
            baseline.accept(levels)
    found = find(kspace, lines(128), baseline)[0]
    assert [f.kind for f in found] == ["clipping"]
    assert found[0].where == {"coil": int(at_rail.argmax()), "coils": np.count_nonzero(at_rail)}
    assert found[0].measured == at_rail.sum()
    assert f"{at_rail.sum()} values sit at its limit of " in found[0].message
    assert found[0].message.endswith("lower the receiver gain (repeat the prescan)")


@pytest.mark.parametrize("n_coils", [1, 8])
def test_a_signal_drop_is_told_from_a_dropped_coil_and_from_noise(n_coils):
    baseline, ky = settled(n_coils), lines(128)
    found = find((0.6 * clean(7, n_coils)).astype(np.complex64), ky, baseline)[0]
    assert [f.kind for f in found] == ["signal_drop"]
    assert found[0].measured == pytest.approx(0.4, abs=0.02)  # the heart beats on
    assert found[0].message == (
        f"the signal fell to {100 * (1 - found[0].measured):.0f} % of that of the last frames; "
        "check that the patient did not move and that the transmitter is stable"
    )
    assert find((0.85 * clean(7, n_coils)).astype(np.complex64), ky, baseline)[0] == []
    found = find(clean(7, n_coils) + noise_samples((n_coils, *MATRIX), 4 * NOISE_STD, seed=1), ky, baseline)[0]
    assert [f.kind for f in found] == ["low_snr"]
    assert found[0].measured == pytest.approx(10 * math.log10(17), abs=1)
    assert found[0].message == (
        f"the SNR is {found[0].measured:.0f} dB lower than in the last frames; check for interference in the room"
    )


@pytest.mark.parametrize("first_frame", [True, False])
def test_noise_alone_is_no_signal(first_frame):
    found = find(noise_samples((8, *MATRIX)), lines(128), None if first_frame else settled())[0]
    assert [f.kind for f in found] == ["low_snr"]
    assert found[0].message == (
        "no coil shows any signal above the noise; check the transmitter and the patient's position"
    )


def test_zeros_and_what_is_not_a_number_are_never_fine():
    ky = lines(128)
    (zero,) = find(np.zeros((8, *MATRIX), np.complex64), ky)[0]
    assert (zero.kind, zero.message) == (
        "all_zero",
        "the frame holds only zeros; check the receiver and repeat the scan",
    )
    for value in (np.nan, np.inf, complex(0, -np.inf)):
        kspace = clean(0).copy()
        kspace[3, 40, 50] = value
        (broken,) = find(kspace, ky, settled())[0]
        assert (broken.kind, broken.where) == ("not_finite", {"coil": 3, "line": 40, "column": 50})
        assert broken.message.startswith("1 k-space values are not numbers, first on coil 3, line 40, column 50; ")
    for scale in (1e-30, 1e30):
        (absurd,) = find((clean(0) * np.float32(scale)).astype(np.complex64), ky)[0]
        assert absurd.kind == "not_finite"
        assert "out of any sensible range (largest " in absurd.message


def test_the_same_data_twice_is_frozen():
    baseline = Baseline()
    assert find(clean(0), lines(128), baseline)[0] == []
    (frozen,) = find(clean(0), lines(128), baseline)[0]
    assert frozen.kind == "frozen"
    assert frozen.message.startswith("the data is the same as in the frame before; ")
    assert find(clean(1), lines(128), baseline)[0] == []


@pytest.mark.parametrize("matrix", [(64, 64), (97, 131), (160, 100)])
@pytest.mark.parametrize("n_coils", [1, 2, 8, 32])
@pytest.mark.parametrize("noise_std", [0.002, NOISE_STD, 4 * NOISE_STD])
def test_clean_frames_of_any_kind_are_silent(matrix, n_coils, noise_std):
    for acceleration in (1, 2, 3):
        baseline = Baseline()
        for index in range(5):
            ky = lines(matrix[0], acceleration)
            found, levels, unchecked = find(clean(index, n_coils, acceleration, matrix, noise_std), ky, baseline)
            assert (found, set(unchecked) - {"odd_even_first"}) == ([], {"zipper"} if len(ky) < 32 else set())
            baseline.accept(levels)


def test_calibration_lines_are_searched_for_spikes_but_are_not_part_of_the_baseline():
    every, baseline = np.arange(128), Baseline()
    calibration = (np.abs(every - 64) < 12) & (every % 2 == 1)
    taken = calibration | (every % 2 == 0)
    kspace = clean(0)[:, taken].copy()
    found, first, _ = find(kspace, every[taken], baseline, calibration[taken])
    assert found == []
    second = measure(clean(0, 8, 2), lines(128, 2), np.ones(64, bool), baseline)
    np.testing.assert_array_equal(first.signal, second.signal)
    np.testing.assert_array_equal(first.noise, second.noise)
    row = int(np.flatnonzero(every[taken] == 55)[0])
    kspace[1, row, 10] += 5
    assert dict(find(kspace, every[taken], None, calibration[taken])[0][0].where) == {
        "coil": 1,
        "line": 55,
        "column": 10,
    }


def test_sparse_sampling_says_what_it_cannot_check():
    kspace = clean(0) * (np.random.default_rng(0).random(MATRIX) < 0.12)
    found, _, unchecked = find(kspace, lines(128))
    assert found == []
    assert unchecked == ["line_drop", "odd_even_first", "spike", "zipper"]


def test_a_lasting_change_of_level_becomes_normal_and_old_baselines_are_forgotten():
    baselines, levels = Baselines(), find(clean(0), lines(128))[1]
    for _ in range(5):
        baselines.learn("slice 0", levels, clean=True, changed=False)
    for _ in range(ADOPT_FRAMES - 1):
        baselines.learn("slice 0", levels, clean=False, changed=True)
    assert baselines.get("slice 0").usual is not None
    baselines.learn("slice 0", levels, clean=False, changed=True)
    assert baselines.get("slice 0").usual is None
    kept = baselines.get("slice 0")
    for index in range(N_BASELINES):
        baselines.get(index)
    assert baselines.get("slice 0") is not kept


def test_the_medians_of_two_differ():
    assert (lower_median(np.array([3.0, 1.0])), upper_median(np.array([3.0, 1.0]))) == (1.0, 3.0)


shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=20)


def test_a_magnitude_beyond_float32_is_told_as_a_number():
    kspace = np.full((1, 1, 1), 2.4061597e38 + 2.4061597e38j, np.complex64)
    found, _, _ = find(kspace, np.arange(1), Baseline())
    assert [f.kind for f in found] == ["not_finite"]
    assert found[0].measured == pytest.approx(3.4028e38, rel=1e-3)


@settings(max_examples=150, deadline=None)
@given(
    shapes.flatmap(
        lambda shape: hnp.arrays(np.complex64, shape, elements=st.complex_numbers(width=64), fill=st.just(0j))
    )
)
def test_any_data_is_judged_without_an_exception_and_without_being_changed(kspace):
    before = kspace.tobytes()
    kspace.flags.writeable = False
    baseline = Baseline()
    ky = np.arange(kspace.shape[1])
    for _ in range(5):
        found, levels, _ = find(kspace, ky, baseline)
        if not found:
            baseline.accept(levels)
    assert kspace.tobytes() == before
    if not np.isfinite(kspace).all():
        assert [f.kind for f in found] == ["not_finite"]
    assert all(math.isfinite(f.measured) and f.message for f in found)
