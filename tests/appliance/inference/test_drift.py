# SPDX-License-Identifier: Apache-2.0
"""The mathematics of drift, against closed forms, numpy and scipy; and that it tells what it should, and no more."""

import math

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import jensenshannon

from appliance.inference.drift import (
    QUANTITIES,
    SIGNIFICANT,
    Reference,
    bin_numbers,
    distance,
    edges_of,
    reference,
    samples,
)

PX = 128


def images(rng, n, brightness=(0.5, 1.2), levels=(0.02, 0.12)):
    """Yield n (image, result, level) as a denoiser of smooth tissue would see and leave them; tissue near 1."""
    for _ in range(n):
        tissue = np.clip(gaussian_filter(rng.normal(size=(PX, PX)), 6) * 12 + 0.5, 0, None) * rng.uniform(*brightness)
        level = rng.uniform(*levels)
        noise = rng.normal(0, level, (PX, PX))
        yield tuple(np.float32(one) for one in (tissue + noise, tissue + 0.2 * noise, level))


def card_of(triples):
    return Reference.model_validate(reference(*zip(*triples, strict=True)))


@pytest.fixture(scope="module")
def card():
    return card_of(images(np.random.default_rng(0), 200))


def compared(known, triples):
    """How far a window of these frames is from the card, in limits."""
    edges = edges_of(known)
    whole = dict.fromkeys(QUANTITIES, 0)
    for triple in triples:
        for name, values in samples(*triple, 1.0).items():
            whole[name] = whole[name] + np.bincount(bin_numbers(values, edges[name]), minlength=len(edges[name]) + 1)
    own = {name: getattr(known, name) for name in QUANTITIES}
    return {name: distance(whole[name], own[name].shares) / own[name].limit for name in QUANTITIES}


def told(known, triples):
    """What a window of these frames is unlike in."""
    return {name for name, far in compared(known, triples).items() if far > 1}


def test_the_distance_of_two_bins_by_hand():
    # mean (3/4, 1/4); divergence (log2(4/3) + (log2(2/3) + log2(2)) / 2) / 2 = (0.41504 + 0.20752) / 2
    assert distance(np.array([8, 0]), np.array([0.5, 0.5])) == pytest.approx(math.sqrt(0.311278), abs=1e-6)
    assert distance(np.array([1, 0]), np.array([0, 5])) == 1
    assert distance(np.array([1, 2, 3]), np.array([2, 4, 6])) == 0


counts = arrays.arrays(np.int64, 12, elements=st.integers(0, 10**12))


@given(counts.filter(np.any), counts.filter(np.any))
def test_the_distance_is_scipys(first, second):
    # near 0 the root turns rounding (1e-16) into 1e-8
    assert distance(first, second) == pytest.approx(jensenshannon(first, second, 2), abs=1e-7)
    assert 0 <= distance(first, second) <= 1


def test_the_least_limit_is_a_stability_index_of_a_quarter():
    expected = np.full(10, 0.1)
    tilt = np.linspace(-1, 1, 10)

    def stability_index(size):
        got = expected * (1 + size * tilt)
        return float(np.sum((got - expected) * np.log(got / expected)))

    sizes = np.linspace(0.01, 0.95, 2000)
    at = sizes[np.argmin([abs(stability_index(size) - 0.25) for size in sizes])]
    assert distance(expected * (1 + at * tilt), expected) == pytest.approx(SIGNIFICANT, rel=0.02)


def test_samples_are_a_grid_of_the_frame_in_the_units_of_the_histograms():
    rng = np.random.default_rng(1)
    image, result = rng.normal(500, 100, (2, 512, 500)).astype(np.float32)
    level = rng.uniform(1, 5, (512, 500)).astype(np.float32)
    found = samples(image, result, level, 250.0)
    grid = np.s_[4::8, 4::8]
    np.testing.assert_allclose(found["input"], image[grid].ravel() / 250, rtol=1e-6)
    np.testing.assert_allclose(found["output"], result[grid].ravel() / 250, rtol=1e-6)
    np.testing.assert_allclose(found["level"], level[grid].ravel() / 250, rtol=1e-6)
    np.testing.assert_allclose(found["removed"], ((image - result) / level)[grid].ravel(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(512, 512), (1, 1), (17, 900), (64, 64), (65, 63), (1024, 8)])
def test_a_frame_of_any_size_gives_few_samples(shape):
    image = np.ones(shape, np.float32)
    found = samples(image, image, 0.1, 1.0)
    assert 1 <= found["input"].size <= 64 * 64
    assert found["removed"].tolist() == [0] * found["input"].size


def test_what_is_not_finite_or_has_no_noise_is_left_out():
    image = np.array([[np.nan, np.inf, 1.0, 2.0]], np.float32)
    level = np.array([[1.0, 1.0, 0.0, 0.5]], np.float32)
    found = samples(image, np.zeros_like(image), level, 2.0)
    assert {name: values.tolist() for name, values in found.items()} == {
        "input": [0.5, 1.0],
        "output": [0, 0, 0, 0],
        "level": [0.5, 0.5, 0, 0.25],
        "removed": [4.0],
    }
    assert all(values.size == 0 for name, values in samples(image, image, 0.0, 0.0).items() if name != "output")


def test_a_site_that_takes_out_less_noise_is_no_drift():
    (image, result, level), *_ = images(np.random.default_rng(9), 1)
    whole, half = samples(image, result, level, 1.0), samples(image, (image + result) / 2, level, 1.0, strength=0.5)
    for name in QUANTITIES:
        np.testing.assert_allclose(half[name], whole[name], atol=1e-4)  # rounding, over the least level


def test_bins_are_numpys_histogram():
    edges = edges_of(None)["removed"]
    values = np.random.default_rng(2).normal(0, 3, 10_000).astype(np.float32)
    got = np.bincount(bin_numbers(values, edges), minlength=len(edges) + 1)
    outside = (values < edges[0]).sum(), (values >= edges[-1]).sum()
    np.testing.assert_array_equal(got, [outside[0], *np.histogram(values, edges)[0], outside[1]])
    assert bin_numbers(np.float32([-4.0, 4.0]), edges).tolist() == [1, len(edges)], "an edge begins its bin"


def test_a_reference_is_what_went_in_and_survives_its_card():
    triples = list(images(np.random.default_rng(3), 40))
    plain = reference(*zip(*triples, strict=True))
    known = Reference.model_validate(yaml.safe_load(yaml.safe_dump(plain)))
    assert known == Reference.model_validate(plain)
    every = np.concatenate([samples(*triple, 1.0)["removed"] for triple in triples])
    np.testing.assert_allclose(known.removed.edges[1:-1], np.quantile(every, np.arange(1, 10) / 10), rtol=1e-3)
    np.testing.assert_allclose(known.removed.shares, [0.001, 0.099, *[0.1] * 8, 0.099, 0.001], atol=2e-3)
    assert known.removed.limit == SIGNIFICANT > known.removed.usual, "single images agree: noise is noise"
    assert known.level.usual > 0.8, "each image has one level"


def test_a_training_without_noise_gives_no_reference():
    image = np.ones((8, 8), np.float32)
    with pytest.raises(ValueError, match=r"reference: no image has a finite value of removed \(what was removed over"):
        reference([image], [image], [0.0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shares": [0.5, 0.5]}, "expected 3 shares that add up to 1, got 2"),
        ({"shares": [0.5, 0.2, 0.2]}, "expected 3 shares that add up to 1, got 3"),
        ({"shares": [1.5, -0.2, -0.3]}, "expected 3 shares that add up to 1, got 3"),
        ({"edges": [2.0, 1.0]}, "expected edges that increase"),
        ({"usual": 1.5}, "less than or equal to 1"),
        ({"more": 1}, "not permitted"),
    ],
)
def test_a_card_with_a_wrong_reference_is_refused(change, words):
    good = {"edges": [1.0, 2.0], "shares": [0.2, 0.5, 0.3], "usual": 0.4}
    known = dict.fromkeys(QUANTITIES, good)
    Reference.model_validate(known)
    with pytest.raises(ValidationError, match=words):
        Reference.model_validate({**known, "output": {**good, **change}})


def test_many_images_like_the_training_are_far_from_being_told(card):
    """40 windows of 50 other images each: none comes nearer to a limit than half of it."""
    rng = np.random.default_rng(4)
    assert max(max(compared(card, images(rng, 50)).values()) for _ in range(40)) < 0.5


def test_a_site_that_images_one_thing_all_day_is_seldom_told(card):
    """The worst a window can be: one image, over and over. A limit that 1 % of single images pass, in two quantities
    that differ between images (input and output, nearly the same) and two that do not. At 4 % for all four together
    at most 22 of 300 would be told in all but one of 1000 runs (binomial)."""
    rng = np.random.default_rng(5)
    assert sum(bool(told(card, [one])) for one in images(rng, 300)) <= 22


@pytest.mark.parametrize(
    ("drifted", "expected"),
    [
        ({"levels": (0.2, 0.3)}, {"level"}),  # more noise than at training
        ({"brightness": (3.0, 4.0)}, {"input", "output"}),  # a scale that does not fit
        ({"brightness": (0.02, 0.05)}, {"input", "output"}),
    ],
)
def test_other_images_are_told(card, drifted, expected):
    for seed in range(20):
        assert told(card, images(np.random.default_rng([6, seed]), 10, **drifted)) >= expected


def test_a_model_that_removes_something_else_is_told(card):
    rng = np.random.default_rng(7)
    spoilt = [(image, image - np.float32(2.5) * (image - result), level) for image, result, level in images(rng, 20)]
    assert "removed" in told(card, spoilt)


def test_half_of_a_window_is_enough(card):
    rng = np.random.default_rng(8)
    mixed = [*images(rng, 25), *images(rng, 25, brightness=(3.0, 4.0))]
    assert {"input", "output"} <= told(card, mixed)
