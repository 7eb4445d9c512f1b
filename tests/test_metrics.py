"""Distances agree with closed forms and other people's numbers; the classifier is good."""

import functools
import json

import numpy as np
import pytest
import scipy.linalg

import data
from evaluation.metrics import classifier, frechet, inception_score, kernel, manifold
from evaluation.metrics.moments import Gaussian, Moments
from tests import golden_cases


def random_covariance(rng, d: int, rank: int | None = None) -> np.ndarray:
    factor = rng.standard_normal((d, rank or 2 * d))
    return factor @ factor.T / factor.shape[1]


# --- Fréchet distance ---


def test_distance_of_commuting_gaussians():
    """Diagonal covariances: |mu_a - mu_b|^2 + sum (sigma_a - sigma_b)^2; any basis."""
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.standard_normal((2, 6))
    sigma_a, sigma_b = rng.uniform(0.1, 2, (2, 6))
    expected = ((mean_a - mean_b) ** 2).sum() + ((sigma_a - sigma_b) ** 2).sum()
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    cov_a, cov_b = (basis @ np.diag(sigma**2) @ basis.T for sigma in (sigma_a, sigma_b))
    found = frechet.gaussian_distance(basis @ mean_a, cov_a, basis @ mean_b, cov_b)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_distance_of_any_gaussians_is_that_of_the_matrix_root():
    rng = np.random.default_rng(1)
    cov_a, cov_b = random_covariance(rng, 7), random_covariance(rng, 7)
    root = scipy.linalg.sqrtm(cov_a)
    cross = np.trace(scipy.linalg.sqrtm(root @ cov_b @ root)).real
    expected = np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    zero = np.zeros(7)
    np.testing.assert_allclose(
        frechet.gaussian_distance(zero, cov_a, zero, cov_b), expected, rtol=1e-10
    )


@pytest.mark.parametrize(("rank_a", "rank_b"), [(3, 40), (40, 3), (3, 5), (1, 1)])
def test_distance_survives_rank_deficiency(rank_a, rank_b):
    """Nuclear norm of A^T B with S = A A^T: the same trace, without any root of a rounded zero."""
    rng = np.random.default_rng(2)
    factor_a = rng.standard_normal((40, rank_a))
    factor_b = rng.standard_normal((40, rank_b))
    cov_a, cov_b = factor_a @ factor_a.T, factor_b @ factor_b.T
    cross = np.linalg.svd(factor_a.T @ factor_b, compute_uv=False).sum()
    expected = np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    zero = np.zeros(40)
    found = frechet.gaussian_distance(zero, cov_a, zero, cov_b)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_distance_to_itself_and_to_a_point():
    rng = np.random.default_rng(3)
    cov, zero = random_covariance(rng, 5), np.zeros(5)
    assert frechet.gaussian_distance(zero, cov, zero, cov) < 1e-12 * np.trace(cov)
    deficient = random_covariance(rng, 30, rank=4)
    distance = frechet.gaussian_distance(np.zeros(30), deficient, np.zeros(30), deficient)
    assert distance < 1e-7 * np.trace(deficient)
    point = np.zeros((5, 5))
    assert frechet.gaussian_distance(zero, cov, zero + 2, point) == pytest.approx(
        20 + np.trace(cov), rel=1e-12
    )


def test_streaming_and_merged_moments_equal_those_of_the_batch():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((101, 6)) * [1, 10, 0.1, 1, 1, 1] + 1e3  # the offset asks for centring
    batch, streamed = Moments.of(x), Moments.empty(6)
    for chunk in np.array_split(x, [1, 2, 2, 50, 99]):
        streamed.add(chunk)
    merged = Moments.of(x[:30]).merge(Moments.of(x[30:])).merge(Moments.empty(6))
    for found in (batch, streamed, merged):
        assert found.count == 101
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-13)
        np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-9, atol=1e-11)
    assert Moments.of(x.astype(np.float32)).scatter.dtype == np.float64


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: Moments.of(np.zeros(4)), r"features must be \[n, d\]"),
        (lambda: Moments.of(np.array([[0.0], [np.nan]])), r"1 image\(s\) are not finite, first: 1"),
        (lambda: Moments.of(np.zeros((1, 3))).covariance, "at least 2 samples"),
        (lambda: Moments.empty(2).merge(Moments.empty(3)), "3"),
        (
            lambda: frechet.frechet_distance(
                Moments.of(np.zeros((2, 3))), Moments.of(np.zeros((2, 4)))
            ),
            "3 features cannot be compared with 4",
        ),
        (lambda: frechet.split_distance(np.zeros((9, 2)), size=5), "at most 2 x 4"),
    ],
)
def test_frechet_refuses(call, expected):
    with pytest.raises(ValueError, match=expected):
        call()


def test_split_distance_draws_disjoint_subsets_of_one_size():
    """One-hot features tell who was drawn: a shared sample would shorten the distance."""
    n = 8
    found = frechet.split_distance(np.eye(n), n_splits=5)
    means = np.repeat([0.25, 0], [4, 4]), np.repeat([0, 0.25], [4, 4])
    covariance = (np.eye(4) - 0.25) / 3
    expected = ((means[0] - means[1]) ** 2).sum() + 2 * np.trace(covariance)
    assert found.size == 4
    assert found.values.shape == (5,)
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)
    assert found.std < 1e-9


def test_split_distance_of_equal_distributions_falls_as_one_over_the_size():
    """The bias that makes distances comparable at equal sizes only: c (1/n_a + 1/n_b)."""
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((2, 2400, 4))
    small = frechet.split_distance(x, 40, size=300)
    large = frechet.split_distance(x, 40, size=1200)
    assert 3.0 < small.mean / large.mean < 5.3
    other = frechet.split_distance(x, 40, size=300, other=y)
    assert other.size == 300
    assert abs(other.mean - small.mean) < 3 * (small.std + other.std) / np.sqrt(40)
    assert frechet.split_distance(x, 3, seed=1).mean == frechet.split_distance(x, 3, seed=1).mean
    assert frechet.split_distance(x, 3, seed=1).mean != frechet.split_distance(x, 3, seed=2).mean


def test_bootstrap_error_is_the_spread_between_sets_of_samples():
    """One feature, N(0.5, 1) against N(0, 1): fresh sets of samples tell the true spread."""
    rng = np.random.default_rng(6)
    unit = Gaussian(np.zeros(1), np.eye(1))
    sets = rng.standard_normal((300, 400, 1)) + 0.5
    spread = np.std([frechet.frechet_distance(Moments.of(x), unit) for x in sets])
    assert spread == pytest.approx(2 * 0.5 / np.sqrt(400), rel=0.2)  # of (mean - 0)^2
    found = [frechet.bootstrap_error(x, unit, 100, seed=i) for i, x in enumerate(sets[:8])]
    assert np.mean(found) == pytest.approx(spread, rel=0.15)
    with pytest.raises(ValueError, match="at least 2 draws"):
        frechet.bootstrap_error(sets[0], unit, 1)


def test_extrapolated_distance_has_little_bias_left():
    """16 features: N(0, 1) is at distance 4 from N(0.5, 1); 300 samples seem further away."""
    rng = np.random.default_rng(7)
    reference = Gaussian(np.full(16, 0.5), np.eye(16))
    plain, infinite = [], []
    for i in range(12):
        x = rng.standard_normal((300, 16))
        plain.append(frechet.frechet_distance(Moments.of(x), reference) - 4)
        infinite.append(frechet.extrapolated_distance(x, reference, seed=i).distance - 4)
    assert np.mean(plain) > 0.08
    assert abs(np.mean(infinite)) < 0.3 * np.mean(plain)
    line = frechet.extrapolated_distance(x, reference, points=5)
    np.testing.assert_array_equal(line.sizes, [30, 97, 165, 232, 300])
    assert line.values[-1] == pytest.approx(plain[-1] + 4)
    with pytest.raises(ValueError, match="9 samples are too few to extrapolate from 5 subsets"):
        frechet.extrapolated_distance(x[:9], reference, points=5)


def test_jackknife_distance_has_no_bias_and_less_variance_than_a_line():
    """Samples of N(0, I) against a Gaussian at d^2 = 4, and of a shifted scale."""
    rng = np.random.default_rng(0)
    reference = Gaussian(np.full(6, 2.0 / np.sqrt(6.0)), np.eye(6))
    plain, jackknife, line = [], [], []
    for i in range(200):
        x = rng.standard_normal((150, 6))
        plain.append(frechet.frechet_distance(Moments.of(x), reference) - 4)
        jackknife.append(frechet.jackknife_distance(x, reference) - 4)
        line.append(frechet.extrapolated_distance(x, reference, seed=i).distance - 4)
    error = np.std(jackknife) / np.sqrt(200)
    assert np.mean(plain) > 0.1 > 3.5 * error
    assert abs(np.mean(jackknife)) < 3.5 * error
    assert np.std(jackknife) < np.std(line)
    with pytest.raises(ValueError, match="19 samples are too few for a jackknife of 10 groups"):
        frechet.jackknife_distance(rng.standard_normal((19, 6)), reference)


# --- kernel distance ---


def test_kernel_distance_by_its_definition():
    x, y = np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]]), np.array([[2.0, 0.0], [1.0, 1.0]])

    def mean(pairs):
        return np.mean([(a @ b / 2 + 1) ** 3 for a, b in pairs])

    expected = mean([(x[i], x[j]) for i in range(3) for j in range(3) if i != j])
    expected += mean([(y[0], y[1])]) - 2 * mean([(a, b) for a in x for b in y])
    assert kernel.squared_mmd(x, y) == pytest.approx(expected, rel=1e-12)
    whole = kernel.kernel_distance(x[:2], y, subsets=3, size=2)  # a subset of all, in any order
    assert whole.mean == pytest.approx(kernel.squared_mmd(x[:2], y))
    assert whole.std < 1e-12


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((2, 600, 5))
    found = kernel.kernel_distance(x, y, subsets=60, size=100)
    assert abs(found.mean) < 3 * found.std / np.sqrt(60 / 6)  # 6 subsets do not overlap
    assert kernel.kernel_distance(x, y + 0.5, subsets=60, size=100).mean > 5 * abs(found.mean)
    assert (found.subsets, found.size) == (60, 100)
    for wrong in (x[:99], x[:, :4], np.full_like(x, np.nan)):
        with pytest.raises(ValueError, match=r"subsets of 100|no kernel distance|not finite"):
            kernel.kernel_distance(wrong, y, size=100)


# --- neighbours ---


def test_neighbours_on_a_line():
    """Real at 0, 1, 2, 10, k = 1: balls of radius 1, 1, 1, 8. Generated at 2.5, 2.6 and -3."""
    real = np.array([[0.0], [1.0], [2.0], [10.0]])
    generated = np.array([[2.5], [2.6], [-3.0]])
    found = manifold.precision_recall(real, generated, k=1)
    assert found.precision == pytest.approx(2 / 3)  # -3 is in no ball
    assert found.recall == pytest.approx(3 / 4)  # the balls: 2.4-2.6, 2.5-2.7, -8.5-2.5
    density, coverage = manifold.density_coverage(real, generated, k=1)
    assert density == pytest.approx((2 + 2) / 3)  # 2.5 and 2.6 are each in the balls of 2 and 10
    assert coverage == pytest.approx(2 / 4)
    third = manifold.density_coverage(real, generated, k=3)  # all radii reach to 10
    assert third == (pytest.approx((4 + 4 + 3) / (3 * 3)), 1.0)


def test_neighbours_of_one_set_and_far_away(monkeypatch):
    rng = np.random.default_rng(9)
    x, y = rng.standard_normal((2, 50, 3)) + 1e4  # the offset asks for centring
    assert manifold.precision_recall(x, x) == (1.0, 1.0)
    assert manifold.density_coverage(x, x).coverage == 1.0
    assert manifold.precision_recall(x, x + 100) == (0.0, 0.0)
    assert manifold.density_coverage(x, x + 100) == (0.0, 0.0)
    whole = manifold.precision_recall(x, y), manifold.density_coverage(x, y)
    assert 0.5 < whole[0].precision < 1
    monkeypatch.setattr(manifold, "_BLOCK", 7)
    assert (manifold.precision_recall(x, y), manifold.density_coverage(x, y)) == whole
    for wrong in (x[:3], x[:, :2], np.full_like(x, np.inf)):
        with pytest.raises(ValueError, match=r"nearest neighbours|be compared|not finite"):
            manifold.precision_recall(wrong, y)


# --- Inception Score ---


def test_inception_score_counts_classes():
    """Certain of one of c classes each: c. Certain of nothing: 1. Of one class only: 1."""
    certain = 100.0 * np.eye(4)[np.arange(40) % 4]
    found = inception_score.inception_score(certain, splits=5)
    assert found == (pytest.approx(4), pytest.approx(0, abs=1e-9), 5)
    assert inception_score.inception_score(np.ones((40, 4)), 2).mean == pytest.approx(1)
    assert inception_score.inception_score(certain + 5, 1).mean == pytest.approx(4)  # no bias
    in_order = certain[np.argsort(certain.argmax(axis=1))]  # each split sees one class
    assert inception_score.inception_score(in_order, 4).mean == pytest.approx(1)
    for wrong, message in (
        (certain[:4], "cannot be split into 5"),
        (np.full((9, 2), np.nan), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            inception_score.inception_score(wrong, 5)


# --- golden numbers of other packages ---


def stored_results(kind: str) -> list:
    """(file, name) of every stored result whose name contains `kind`."""
    return [
        pytest.param(path, name, id=f"{path.stem}-{name}")
        for path in golden_cases.about("metrics", "metrics")
        for name in sorted(golden_cases.load(path)["results_json"])
        if kind in name
    ]


@pytest.mark.golden
@pytest.mark.parametrize(("path", "result"), stored_results("_fid_"))
def test_golden_frechet_distance(path, result):
    """`<set>_fid_<package>` of `<set>_x` and `<set>_y`."""
    stored = golden_cases.load(path)
    name = result.split("_fid_")[0]
    x, y = stored[f"{name}_x"], stored[f"{name}_y"]
    streamed = functools.reduce(Moments.merge, map(Moments.of, np.array_split(x, 7)))
    found = frechet.frechet_distance(streamed, Moments.of(y))
    np.testing.assert_allclose(found, stored["results_json"][result], rtol=1e-5)


@pytest.mark.golden
@pytest.mark.parametrize(("path", "result"), stored_results("_polynomial_mmd2"))
def test_golden_kernel_distance(path, result):
    stored = golden_cases.load(path)
    name = result.split("_kid_")[0]
    count = stored["results_json"][f"{name}_kid_first_n"]
    found = kernel.squared_mmd(stored[f"{name}_x"][:count], stored[f"{name}_y"][:count])
    np.testing.assert_allclose(found, stored["results_json"][result], rtol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize(("path", "result"), stored_results("_prc"))
def test_golden_precision_and_recall(path, result):
    stored = golden_cases.load(path)
    name = result.removesuffix("_prc")
    found = manifold.precision_recall(stored[f"{name}_y"], stored[f"{name}_x"])
    expected = stored["results_json"][result]
    np.testing.assert_allclose(found, [expected["precision"], expected["recall"]], rtol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize(("path", "result"), stored_results("isc_"))
def test_golden_inception_score(path, result):
    stored = golden_cases.load(path)
    splits = int(result.removeprefix("isc_splits").removesuffix("_noshuffle"))
    found = inception_score.inception_score(stored["isc_logits"], splits)
    expected = stored["results_json"][result]
    assert found.mean == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert found.std == pytest.approx(expected["inception_score_std"], rel=1e-6)


def test_golden_cases_are_found():
    assert len(stored_results("_fid_")) >= 6
    for kind in ("_polynomial_mmd2", "_prc"):
        assert len(stored_results(kind)) >= 3
    assert len(stored_results("isc_")) >= 2


# --- the classifier ---


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return data.load("digits", "train", folder), data.load("digits", "test", folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("classifiers")


@pytest.fixture(scope="module")
def trained(digits, cache):
    return classifier.load(digits[0], digits[1], cache)


@pytest.mark.full_compilation  # it trains the network
def test_classifier_is_right_on_test_digits_and_says_so(digits, trained):
    _, test = digits
    predicted = trained.predict(test.images)
    assert trained.accuracy > 0.95
    assert trained.accuracy == pytest.approx((predicted == test.labels).mean())
    assert trained.label == "features: classifier trained on digits, not Inception"
    np.testing.assert_allclose(
        trained.class_shares(test.images), np.bincount(predicted, minlength=10) / 297
    )
    only_zeros = test.images[test.labels == 0]
    assert trained.class_shares(only_zeros)[0] > 0.9


@pytest.mark.slow
def test_features_depend_on_the_image_alone(digits, trained):
    images = digits[0].images[:600]  # more than one call
    features = trained.features(images)
    assert features.shape == (600, classifier.NUM_FEATURES)
    assert features.dtype == np.float32
    assert (features.std(axis=0) > 0).mean() > 0.75
    np.testing.assert_allclose(trained.features(images[550:553]), features[550:553], atol=1e-5)
    with pytest.raises(ValueError, match="no images"):
        trained.features(images[:0])


def test_distance_sees_noise_and_missing_classes(digits, trained):
    """The use of a Fréchet distance: real digits are near, damaged or lopsided ones are far."""
    train, _ = digits
    features = trained.features(train.images)
    real = frechet.split_distance(features, 5, size=500)
    noise = np.random.default_rng(0).integers(-4, 5, train.images.shape)
    damaged = {
        "noisy": np.clip(train.images.astype(int) + noise, 0, 16).astype(np.uint8),
        "pale": (train.images * 0.8).astype(np.uint8),
        "two classes missing": train.images[train.labels < 8],
    }
    for name, images in damaged.items():
        far = frechet.split_distance(trained.features(images), 5, size=500, other=features)
        assert far.mean > 2 * real.mean, name


def test_second_load_reads_the_cache(digits, cache, trained, monkeypatch):
    (file,) = cache.iterdir()  # no half-written file is left either
    assert file.name.startswith("digits-")
    monkeypatch.setattr(classifier, "fit", None)
    again = classifier.load(digits[0], digits[1], cache)
    images = digits[1].images
    np.testing.assert_array_equal(again.features(images), trained.features(images))
    assert again.accuracy == trained.accuracy


TINY = classifier.Recipe(epochs=1, max_steps=2, batch_size=128)


@pytest.fixture(scope="module")
def tiny_params(digits):
    return classifier.fit(digits[0], TINY)


def test_training_is_deterministic(digits, tiny_params):
    again = classifier.fit(digits[0], TINY)
    for name, layer in tiny_params.items():
        for kind, values in layer.items():
            np.testing.assert_array_equal(again[name][kind], values)


def test_cache_is_keyed_by_data_and_recipe_and_damage_is_repaired(
    digits, tiny_params, tmp_path, monkeypatch
):
    train, test = digits
    calls = []

    def fit(dataset, recipe):
        calls.append(recipe)
        return tiny_params

    monkeypatch.setattr(classifier, "fit", fit)
    first = classifier.load(train, test, tmp_path, TINY)
    (file,) = tmp_path.iterdir()
    for damaged in (b"", file.read_bytes()[:1000], b"no archive"):
        file.write_bytes(damaged)
        repaired = classifier.load(train, test, tmp_path, TINY)
        assert repaired.accuracy == first.accuracy
    assert len(calls) == 4
    classifier.load(train, test, tmp_path, TINY)
    assert len(calls) == 4
    classifier.load(train, test, tmp_path, classifier.Recipe(seed=1))
    classifier.load(test, test, tmp_path, TINY)
    assert len(calls) == 6
    assert len(list(tmp_path.iterdir())) == 3
    with np.load(file, allow_pickle=False) as stored:
        assert json.dumps(float(stored["accuracy"]))
