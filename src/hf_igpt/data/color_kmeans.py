"""k-means on weighted colours, fast because a colour is only compared with the centres that can be nearest to it.

The start is greedy k-means++ (Arthur and Vassilvitskii, 2007) on a coarse histogram; Lloyd's iterations then run from
coarse to fine. Two things lead out of the poor optima in which plain k-means stops: noise on the centres that fades
out (stochastic relaxation: Zeger, Vaisey and Gersho, 1992), and moving centres from where they are hardly missed to
where one is too few (after the "utility" of Patané and Russo's enhanced LBG, 2001).
"""

from dataclasses import dataclass

import numpy as np

from hf_igpt.palette_igpt import CandidateLists, color_cells, split_codes


_BITS = (5, 6, 8)  # bits a channel of the histograms, from coarse to exact
_POINTS_PER_CENTER = 8  # a coarser histogram must have this many points for every centre
_SMALL = 1 << 18  # distances: up to here plain comparison is faster than building lists
_BLOCK_POINTS = 1 << 15
_NEIGHBORS = 16
_MOVING_POINTS = 400_000  # finer histograms only polish: the moves were made on coarser ones
_ROUND_ITERATIONS, _ROUND_TOLERANCE = 12, 1e-3
_FINAL_ITERATIONS, _FINAL_TOLERANCE = 100, 1e-6
_NOISE = 0.5  # at first, in standard deviations of each cluster's own points
_TINY = 1 << 12  # points times centres


@dataclass
class _Colors:
    """Points with weights."""

    means: np.ndarray  # (3, points), float64
    weights: np.ndarray  # (points,), float64
    cells: np.ndarray  # (points,), sorted: neighbours in space are neighbours in memory

    def __len__(self) -> int:
        return len(self.weights)


@dataclass
class _Clustering:
    centers: np.ndarray  # (centres, 3)
    labels: np.ndarray  # (points,)
    error: float  # weighted sum of squared distances


def fit_colors(codes: np.ndarray, weights: np.ndarray, num_colors: int, seed: int) -> np.ndarray:
    """Fit centres to distinct 24-bit colours.

    Args:
        codes: distinct colour codes, int64 of shape (colours,).
        weights: how often each occurs, int64 of shape (colours,).
        num_colors: centres wanted; with no more distinct colours than that, these are returned.
        seed: seed of the starts.

    Returns:
        float64 array of shape (centres, 3), from dark to bright.
    """
    if len(codes) <= num_colors:
        return _ordered(np.stack(split_codes(codes), axis=1).astype(np.float64))
    levels = [_histogram(codes, weights, bits) for bits in _BITS[:-1]]
    levels = [colors for colors in levels if len(colors) >= _POINTS_PER_CENTER * num_colors]
    levels = [*(colors for colors in levels if len(colors) < len(codes)), _histogram(codes, weights, _BITS[-1])]

    rng = np.random.default_rng(seed)
    starts, noise_iterations = _effort(len(levels[0]), num_colors)
    tries = [_start(levels[0], num_colors, noise_iterations, rng) for _ in range(starts)]
    centers = min(tries, key=lambda clustering: clustering.error).centers
    for colors in levels[1:]:
        if len(colors) <= _MOVING_POINTS:
            centers = _move_centers(colors, centers).centers
    return _ordered(_lloyd(levels[-1], centers, _FINAL_ITERATIONS, _FINAL_TOLERANCE).centers)


def _ordered(centers: np.ndarray) -> np.ndarray:
    return centers[np.lexsort((*centers.T, centers.sum(axis=1)))]


def _histogram(codes: np.ndarray, weights: np.ndarray, bits: int) -> _Colors:
    """Merge colours that agree in the upper bits of every channel into their weighted mean."""
    levels = [level.astype(np.uint8) for level in split_codes(codes)]
    bins = color_cells(*levels)  # sorted by cell first
    for level in levels:
        bins = (bins << 3) | ((level & 7) >> (8 - bits))
    order = np.argsort(bins, kind="stable")
    bins, weights = bins[order], weights[order]
    first = np.flatnonzero(np.diff(bins, prepend=-1))
    weight = np.add.reduceat(weights, first).astype(np.float64)
    means = np.stack([np.add.reduceat(level[order] * weights, first) / weight for level in levels])
    return _Colors(means, weight, bins[first] >> 9)


def _effort(num_points: int, num_centers: int) -> tuple[int, int]:
    """Starts, and iterations with noise in each. The fewer the centres, the more a start decides; it costs less, too.

    Enough for a lower error than scikit-learn's k-means on photographs, digits and random pixels, and for the optimum
    on a few grey levels, where it can be computed.
    """
    if num_points * num_centers <= _TINY:
        return 48, 60
    return int(np.clip(1024 // num_centers, 1, 8)), 150


def _start(colors: _Colors, num_centers: int, noise_iterations: int, rng: np.random.Generator) -> _Clustering:
    plain = _move_centers(colors, _plus_plus(colors, num_centers, rng))
    relaxed = _move_centers(colors, _relax(colors, plain.centers, noise_iterations, rng))
    return min(plain, relaxed, key=lambda clustering: clustering.error)


def _plus_plus(colors: _Colors, num_centers: int, rng: np.random.Generator) -> np.ndarray:
    """Greedy k-means++: of a few points drawn by their share of the error, each time take the one that helps most."""
    trials = 2 + int(np.log(num_centers))
    points = colors.means.astype(np.float32)
    weights = colors.weights.astype(np.float32)
    chosen = [int(np.searchsorted(np.cumsum(colors.weights), rng.random() * colors.weights.sum(), side="right"))]
    nearest = _squared_distances(points, points[:, chosen[0]])
    while len(chosen) < num_centers:
        share = np.cumsum(nearest * weights, dtype=np.float64)
        drawn = np.searchsorted(share, rng.random(trials) * share[-1], side="right")
        options = [np.minimum(nearest, _squared_distances(points, points[:, point])) for point in drawn]
        best = int(np.argmin([np.sum(option * colors.weights) for option in options]))
        chosen.append(int(drawn[best]))
        nearest = options[best]
    return colors.means[:, chosen].T


def _squared_distances(points: np.ndarray, center: np.ndarray) -> np.ndarray:
    return sum((channel - value) ** 2 for channel, value in zip(points, center, strict=True))


def _lloyd(colors: _Colors, centers: np.ndarray, iterations: int, tolerance: float) -> _Clustering:
    """Lloyd's iterations until the error falls by less than `tolerance` of itself."""
    last = np.inf
    for _ in range(iterations):
        labels = _assign(colors, centers)
        weight, centers = _means(colors, labels, len(centers))
        if not weight.all():
            centers = _fill_empty(colors, labels, centers, weight)
            continue
        error = _error(colors, labels, centers)
        if last - error <= tolerance * error:
            break
        last = error
    return _Clustering(centers, labels, _error(colors, labels, centers))


def _relax(colors: _Colors, centers: np.ndarray, iterations: int, rng: np.random.Generator) -> np.ndarray:
    """Lloyd's iterations with noise on the centres that fades out."""
    for iteration in range(iterations):
        labels = _assign(colors, centers)
        weight, means = _means(colors, labels, len(centers))
        if not weight.all():
            means = _fill_empty(colors, labels, means, weight)
        errors = np.bincount(labels, _point_errors(colors, labels, means) * colors.weights, minlength=len(means))
        scale = _NOISE * (1 - iteration / iterations) ** 3 * np.sqrt(errors / np.maximum(weight, 1) / 3)
        centers = np.clip(means + rng.standard_normal(means.shape) * scale[:, None], 0, 255)
    return centers


def _assign(colors: _Colors, centers: np.ndarray) -> np.ndarray:
    if len(colors) * len(centers) <= _SMALL:
        pairs = zip(colors.means, centers.T, strict=True)
        return sum((mean[:, None] - center) ** 2 for mean, center in pairs).argmin(axis=1)
    lists = CandidateLists(centers)
    labels = np.empty(len(colors), dtype=np.int64)
    for start in range(0, len(colors), _BLOCK_POINTS):
        block = slice(start, start + _BLOCK_POINTS)
        labels[block] = lists.nearest(*colors.means[:, block], colors.cells[block])
    return labels


def _means(colors: _Colors, labels: np.ndarray, num_centers: int) -> tuple[np.ndarray, np.ndarray]:
    weight = np.bincount(labels, colors.weights, minlength=num_centers)
    sums = [np.bincount(labels, mean * colors.weights, minlength=num_centers) for mean in colors.means]
    return weight, np.stack(sums, axis=1) / np.maximum(weight, 1)[:, None]


def _point_errors(colors: _Colors, labels: np.ndarray, centers: np.ndarray) -> np.ndarray:
    return sum((mean - center.take(labels)) ** 2 for mean, center in zip(colors.means, centers.T, strict=True))


def _error(colors: _Colors, labels: np.ndarray, centers: np.ndarray) -> float:
    # Not a dot product: BLAS adds in an order that depends on the number of threads.
    return float(np.sum(_point_errors(colors, labels, centers) * colors.weights))


def _fill_empty(colors: _Colors, labels: np.ndarray, centers: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Put the centres that lost all their points on the points that cost most."""
    empty = np.flatnonzero(weight == 0)
    worst = np.argsort(-_point_errors(colors, labels, centers) * colors.weights, kind="stable")[: len(empty)]
    centers = centers.copy()
    centers[empty] = colors.means[:, worst].T
    return centers


def _move_centers(colors: _Colors, centers: np.ndarray) -> _Clustering:
    """Lloyd's iterations with moves of centres in between, as long as they lower the error."""
    best = _lloyd(colors, centers, _ROUND_ITERATIONS, _ROUND_TOLERANCE)
    moves = max(1, len(centers) // 4)
    while moves:
        proposal = _propose_moves(colors, best, moves)
        if proposal is None:
            break
        attempt = _lloyd(colors, proposal, _ROUND_ITERATIONS, _ROUND_TOLERANCE)
        if attempt.error < best.error:
            gained = best.error - attempt.error
            best = attempt
            if gained > 1e-4 * best.error:
                continue
        moves //= 2
    return best


def _propose_moves(colors: _Colors, clustering: _Clustering, moves: int) -> np.ndarray | None:
    """Centres after up to `moves` moves that each promise to lower the error; None where none does."""
    gains, halves = _split_gains(colors, clustering)
    costs, neighbors = _removal_costs(colors, clustering)
    centers = clustering.centers.copy()
    touched = np.zeros(len(centers), dtype=bool)
    from_, to = iter(np.argsort(costs, kind="stable")), iter(np.argsort(-gains, kind="stable"))
    made = 0
    for source in from_:
        if touched[source] or touched[neighbors[source]]:
            continue
        target = next((center for center in to if not touched[center] and center != source), None)
        if target is None or gains[target] <= costs[source]:
            break
        centers[target], centers[source] = halves[0][target], halves[1][target]
        touched[[source, neighbors[source], target]] = True
        made += 1
        if made == moves:
            break
    return centers if made else None


def _split_gains(colors: _Colors, clustering: _Clustering) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """What splitting each cluster at its mean, across its longest axis, takes off the error; and the two halves."""
    labels, num_centers = clustering.labels, len(clustering.centers)
    weight, means = _means(colors, labels, num_centers)
    offsets = colors.means - means.T[:, labels]
    scatter = np.empty((num_centers, 3, 3))
    for i in range(3):
        for j in range(i + 1):
            products = np.bincount(labels, weights=offsets[i] * offsets[j] * colors.weights, minlength=num_centers)
            scatter[:, i, j] = scatter[:, j, i] = products
    axes = np.linalg.eigh(scatter)[1][:, :, 2]
    upper = sum(offset * axis.take(labels) for offset, axis in zip(offsets, axes.T, strict=True)) > 0
    side_weight, side_means = _means(colors, 2 * labels + upper, 2 * num_centers)
    halves = side_means[0::2], side_means[1::2]
    distance = ((halves[0] - halves[1]) ** 2).sum(axis=1)
    gains = side_weight[0::2] * side_weight[1::2] / np.maximum(weight, 1) * distance
    return gains, halves


def _removal_costs(colors: _Colors, clustering: _Clustering) -> tuple[np.ndarray, np.ndarray]:
    """What taking each centre away adds to the error, at most, and each centre's nearest neighbour."""
    centers, labels = clustering.centers, clustering.labels
    neighbors = _nearest_centers(centers)
    second = np.full(len(colors), np.inf)
    for column in neighbors.T:
        np.minimum(second, _point_errors(colors, column.take(labels), centers), out=second)
    extra = (second - _point_errors(colors, labels, centers)) * colors.weights
    return np.bincount(labels, weights=extra, minlength=len(centers)), neighbors[:, 0]


def _nearest_centers(centers: np.ndarray) -> np.ndarray:
    """Other centres by growing distance, int64 of shape (centres, up to 16)."""
    neighbors = []
    for start in range(0, len(centers), 256):
        distances = ((centers[start : start + 256, None] - centers) ** 2).sum(axis=2)
        rows = np.arange(len(distances))
        distances[rows, rows + start] = np.inf
        neighbors.append(np.argsort(distances, axis=1, kind="stable")[:, : min(_NEIGHBORS, len(centers) - 1)])
    return np.concatenate(neighbors)
