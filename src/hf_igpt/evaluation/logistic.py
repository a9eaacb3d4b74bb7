"""
Multinomial logistic regression by L-BFGS, for all layers and penalties at once.

It reaches the optimum that scikit-learn's LogisticRegression reaches, with C = 1 / (penalty x images), faster:

- Features are rotated into the eigenvectors of their covariance, which leaves an L2 penalty as it is. There the
  curvature is nearly diagonal, below eigenvalue / 2 + penalty (Boehning, 1992), and its inverse is the initial matrix
  of L-BFGS, replaced on the way by the diagonal's own values: tens of iterations in place of hundreds.
- Logits are linear in the weights: a line search costs softmaxes alone, an iteration two products with the features.
- Penalties share these products.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

HISTORY = 12
MAX_HALVINGS = 30
ARMIJO = 1e-4
# Below so many numbers in a layer's features double precision costs nothing that anyone waits for.
DOUBLE_ELEMENTS = 1 << 18
# Iterations after which the curvature is measured. With few labels and a small penalty answers grow sure, and the
# curvature falls by orders of magnitude; measured more often, it shakes where it should settle.
MEASURED_AT = (3, 12, 48, 192)
# Of the curvature assumed before: a direction in which all answers are sure now may be needed yet.
MEASURED_FLOOR = 1e-3
# Nats an image below which an objective need not be exact to its own last digits: no probability differs by them.
NEGLIGIBLE = 1e-3
# Logits are carried along with the weights; after so many iterations they are computed anew.
FRESH_LOGITS = 50


@dataclass(frozen=True)
class LinearProbes:
    """
    Fitted probes for G layers and P penalties, with d features and K classes.

    Args:
        weights: float32 of shape (G, P, d, K), for features as they are: standardisation is folded in.
        bias: float32 of shape (G, P, K).
        objective: float64 of shape (G, P), mean cross-entropy plus half the penalty times the squared weights of the
            standardised features.
        train_loss: float64 of shape (G, P), the mean cross-entropy.
        iterations: int64 of shape (G, P).
        converged: bool of shape (G, P).
    """

    weights: "torch.Tensor"
    bias: "torch.Tensor"
    objective: "torch.Tensor"
    train_loss: "torch.Tensor"
    iterations: "torch.Tensor"
    converged: "torch.Tensor"

    def logits(self, features: "torch.Tensor") -> "torch.Tensor":
        """Logits of shape (G, P, n, K) for features of shape (G, n, d)."""
        groups, penalties, width, classes = self.weights.shape
        weights = self.weights.transpose(1, 2).reshape(groups, width, penalties * classes)
        logits = (features.to(weights.dtype) @ weights).view(groups, -1, penalties, classes).transpose(1, 2)
        return logits + self.bias.unsqueeze(2)

    def accuracies(self, features: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """Shares of right answers, float64 of shape (G, P), one layer at a time."""
        import torch

        rows = []
        for weights, bias, values in zip(self.weights, self.bias, features, strict=True):
            logits = values.to(weights.dtype) @ weights + bias.unsqueeze(1)
            rows.append((logits.argmax(dim=2) == labels).double().mean(dim=1))
        return torch.stack(rows)


def fit_logistic(
    features: "torch.Tensor",
    labels: "torch.Tensor",
    penalties: "torch.Tensor",
    num_classes: int,
    *,
    standardize: bool = True,
    tolerance: float = 1e-7,
    max_iterations: int = 1000,
) -> LinearProbes:
    """
    Minimises, for every layer and penalty, mean cross-entropy + penalty / 2 x squared weights; the bias is free.

    Args:
        features: float32 of shape (G, n, d), on any device.
        labels: int64 of shape (n,), in [0, num_classes); a class may be absent.
        penalties: of shape (G, P), above 0.
        num_classes: K, at least 2.
        standardize: give every feature mean 0 and variance 1 over the images; a constant one then counts for nothing.
        tolerance: a problem is finished when an iteration promises to lower its objective by less, relative to it
            or to `NEGLIGIBLE`.
        max_iterations: bound of iterations; a warning says how many problems have reached it.

    Raises:
        ValueError: shapes that don't fit, labels out of range, or features that aren't finite (names the layer).
    """
    import torch

    _check(features, labels, penalties, num_classes)
    labels, penalties = labels.to(features.device, torch.int64), penalties.to(features.device, torch.float64)
    # On a CPU one layer after the other stays in the cache, and finished penalties can be left out of the products.
    step = 1 if features.device.type == "cpu" else len(features)
    parts = [
        _fit_group(
            features[start : start + step],
            labels,
            penalties[start : start + step],
            num_classes,
            standardize,
            tolerance,
            max_iterations,
        )
        for start in range(0, len(features), step)
    ]
    probes = LinearProbes(
        *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(LinearProbes))
    )
    if unfinished := int((~probes.converged).sum()):
        logger.warning("%d of %d probes have not converged.", unfinished, probes.converged.numel())
    return probes


def _check(features: Any, labels: Any, penalties: Any, num_classes: int) -> None:
    if features.dim() != 3 or 0 in features.shape:
        raise ValueError(f"`features` must be of shape (layers, images, width), none 0, got {list(features.shape)}.")
    if num_classes < 2:
        raise ValueError(f"`num_classes` must be at least 2, got {num_classes}.")
    if labels.shape != features.shape[1:2] or labels.is_floating_point():
        raise ValueError(
            f"`labels` must be whole numbers of shape [{features.shape[1]}], got {labels.dtype} of shape "
            f"{list(labels.shape)}."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(
            f"`labels` must be from 0 to {num_classes - 1}, got {int(labels.min())} to {int(labels.max())}."
        )
    if penalties.dim() != 2 or len(penalties) != len(features) or 0 in penalties.shape:
        raise ValueError(f"`penalties` must be of shape [{len(features)}, penalties], got {list(penalties.shape)}.")
    if not bool((penalties.isfinite() & (penalties > 0)).all()):
        raise ValueError(f"`penalties` must be finite and above 0, got {penalties.tolist()}.")
    for layer, values in enumerate(features):
        if not bool(values.isfinite().all()):
            raise ValueError(f"`features` of layer {layer} must be finite, got NaN or infinity.")


def _fit_group(
    features: "torch.Tensor",
    labels: "torch.Tensor",
    penalties: "torch.Tensor",
    num_classes: int,
    standardize: bool,
    tolerance: float,
    max_iterations: int,
) -> LinearProbes:
    import torch

    # What the iterations read: with fewer images than features, a square.
    is_small = features.shape[1] * min(features.shape[1:]) <= DOUBLE_ELEMENTS
    values = features.double() if is_small else features.float()
    # The bias is free, so that centred features have the same optimum, and better conditioned.
    # Rounded before it is taken off, so that the bias below takes off the same.
    mean = values.mean(dim=1, keepdim=True, dtype=torch.float64).to(values.dtype).double()
    centred = values - mean.to(values.dtype)
    del values
    scale = torch.ones_like(mean)
    if standardize:
        std = centred.square().mean(dim=1, keepdim=True, dtype=torch.float64).sqrt()
        # What rounding leaves of a constant is no variance.
        constant = std <= 1e-6 * mean.abs().clamp(min=1e-12)
        scale = torch.where(constant, 0.0, 1.0 / std.clamp(min=torch.finfo(torch.float64).tiny))
        centred *= scale.to(centred.dtype)
    basis, eigenvalues = _principal_basis(centred)
    groups, count, _ = centred.shape
    inputs = torch.ones(groups, basis.shape[2] + 1, count, dtype=centred.dtype, device=centred.device)
    inputs[:, :-1] = (centred @ basis.to(centred.dtype)).transpose(1, 2)
    del centred
    problem = _Problem(inputs, labels, penalties, eigenvalues, num_classes)
    result = _minimize(problem, tolerance, max_iterations)
    rotated = result["weights"][..., :-1]
    weights = torch.einsum("gdr,gpkr->gpdk", basis, rotated) * scale.transpose(1, 2).unsqueeze(1)
    bias = result["weights"][..., -1] - torch.einsum("god,gpdk->gpk", mean, weights)
    return LinearProbes(
        weights.float(),
        bias.float(),
        result["objective"],
        result["loss"],
        result["iterations"],
        result["converged"],
    )


def _principal_basis(centred: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Orthonormal columns (G, d, r) that span the images, and the variances along them (G, r); float64."""
    import torch

    _, count, width = centred.shape
    if count >= width:
        covariance = (centred.transpose(1, 2) @ centred).double() / count
        eigenvalues, basis = torch.linalg.eigh(covariance)
        return basis, eigenvalues.clamp(min=0)
    # With fewer images than features the weights lie in the span of the images.
    precise = centred.double()
    eigenvalues, vectors = torch.linalg.eigh(precise @ precise.transpose(1, 2) / count)
    eigenvalues = eigenvalues.clamp(min=0)
    spread = (count * eigenvalues).sqrt()
    is_zero = eigenvalues <= 1e-12 * eigenvalues.amax(dim=1, keepdim=True)
    inverse = torch.where(is_zero, 0.0, 1 / spread.clamp(min=1e-300))
    return precise.transpose(1, 2) @ vectors * inverse.unsqueeze(1), torch.where(is_zero, 0.0, eigenvalues)


class _Problem:
    """
    Objectives of G layers x P penalties in rotated coordinates. Weights are (G, P, K, r + 1) in float64, the last of
    each row the bias; logits (G, P, K, n), so that what is summed over classes runs along images.
    """

    def __init__(
        self,
        inputs: "torch.Tensor",
        labels: "torch.Tensor",
        penalties: "torch.Tensor",
        eigenvalues: "torch.Tensor",
        num_classes: int,
    ):
        import torch

        self.inputs = inputs  # (G, r + 1, n), the last row ones
        self.labels, self.penalties, self.num_classes = labels, penalties, num_classes
        bias = torch.ones_like(eigenvalues[:, :1])
        curvature = torch.cat([eigenvalues, bias], dim=1)[:, None, None] / 2  # (G, 1, 1, r + 1)
        is_weight = torch.cat([torch.ones_like(eigenvalues), torch.zeros_like(bias)], dim=1)[:, None, None]
        self.ridge = penalties[:, :, None, None] * is_weight  # (G, P, 1, r + 1)
        self.initial = 1 / (curvature + self.ridge).clamp(min=1e-12)

    def measure_curvature(self, errors: "torch.Tensor") -> None:
        """Replaces the bound by the diagonal of the curvature at these errors, much less where an answer is sure."""
        # An error is p or p - 1, so that this is p (1 - p).
        variances = errors.abs() - errors.square()
        measured = self._mean_over_images(variances, self.inputs.square())
        import torch

        bounded = torch.maximum(measured + self.ridge, MEASURED_FLOOR / self.initial)
        self.initial = 1 / bounded.clamp(min=1e-12)

    def keep(self, chosen: "torch.Tensor") -> None:
        """Goes on with some of the penalties."""
        self.penalties, self.ridge, self.initial = (
            tensor[:, chosen] for tensor in (self.penalties, self.ridge, self.initial)
        )

    def logits(self, weights: "torch.Tensor") -> "torch.Tensor":
        """(G, P, K, n)"""
        return (weights.flatten(1, 2).to(self.inputs.dtype) @ self.inputs).unflatten(1, weights.shape[1:3])

    def loss_and_errors(self, logits: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Mean cross-entropy, (G, P), and probabilities less the right answer, (G, P, K, n), from one exponential."""
        import torch

        groups, penalties, _, count = logits.shape
        index = self.labels.view(1, 1, 1, -1).expand(groups, penalties, 1, count)
        # The other classes against the right one: where that one is sure, a difference of large numbers would leave
        # nothing but rounding.
        errors = logits - logits.gather(2, index)
        highest = errors.amax(dim=2, keepdim=True)  # at least 0, the right class's own
        errors.sub_(highest).exp_().scatter_(2, index, 0.0)
        others = errors.sum(dim=2, keepdim=True)
        losses = highest + torch.log1p(others + torch.expm1(-highest))
        total = others + torch.exp(-highest)
        errors.div_(total).scatter_(2, index, -others / total)
        return losses.squeeze(2).mean(dim=2, dtype=torch.float64), errors

    def penalty(self, weights: "torch.Tensor") -> "torch.Tensor":
        """Half the penalty times the squared weights, (G, P)."""
        return (self.ridge * weights.square()).sum(dim=(2, 3)) / 2

    def gradient(self, errors: "torch.Tensor", weights: "torch.Tensor") -> "torch.Tensor":
        """Of loss and penalty together."""
        return self._mean_over_images(errors, self.inputs) + self.ridge * weights

    def _mean_over_images(self, errors: "torch.Tensor", inputs: "torch.Tensor") -> "torch.Tensor":
        """Errors (G, P, K, n) times inputs (G, r + 1, n): float64 of shape (G, P, K, r + 1)."""
        products = errors.flatten(1, 2) @ inputs.transpose(1, 2)
        return products.unflatten(1, errors.shape[1:3]).double() / errors.shape[3]


def _dot(first: "torch.Tensor", second: "torch.Tensor") -> "torch.Tensor":
    """Inner products of each problem, of shape (G, P, 1, 1)."""
    return (first * second).sum(dim=(2, 3), keepdim=True)


def _direction(
    gradient: "torch.Tensor", pairs: Sequence[tuple["torch.Tensor", ...]], initial: "torch.Tensor"
) -> "torch.Tensor":
    """The two-loop recursion (Nocedal and Wright, algorithm 7.4), for every problem with its own history."""
    import torch

    result, alphas = gradient.clone(), []
    for step, change, rho in reversed(pairs):
        alpha = rho * _dot(step, result)
        alphas.append(alpha)
        result -= alpha * change
    scaling = torch.ones_like(gradient[:, :, :1, :1])
    if pairs:
        step, change, rho = pairs[-1]
        usual = _dot(step, change) / _dot(change, initial * change).clamp(min=1e-300)
        scaling = torch.where(rho > 0, usual, scaling)
    result *= scaling * initial
    for (step, change, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        result += step * (alpha - rho * _dot(change, result))
    return -result


@dataclass
class _State:
    """Where every unfinished problem is; first axes G and P."""

    weights: "torch.Tensor"
    logits: "torch.Tensor"
    loss: "torch.Tensor"
    objective: "torch.Tensor"
    gradient: "torch.Tensor"
    iterations: "torch.Tensor"
    converged: "torch.Tensor"
    stalled: "torch.Tensor"

    @classmethod
    def start(cls, problem: _Problem) -> "_State":
        import torch

        groups, penalties = problem.penalties.shape
        inputs = problem.inputs
        weights = torch.zeros(
            groups, penalties, problem.num_classes, inputs.shape[1], dtype=torch.float64, device=inputs.device
        )
        logits = problem.logits(weights)
        loss, errors = problem.loss_and_errors(logits)
        none = torch.zeros(groups, penalties, dtype=torch.bool, device=inputs.device)
        gradient = problem.gradient(errors, weights)
        return cls(weights, logits, loss, loss.clone(), gradient, none.long(), none, none.clone())

    @property
    def finished(self) -> "torch.Tensor":
        return self.converged | self.stalled

    def keep(self, chosen: "torch.Tensor") -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[:, chosen])


def _minimize(problem: _Problem, tolerance: float, max_iterations: int) -> dict[str, "torch.Tensor"]:
    import torch

    state, pairs = _State.start(problem), []
    active = torch.arange(problem.penalties.shape[1], device=problem.inputs.device)
    found = {
        name: torch.empty_like(getattr(state, name))
        for name in ("weights", "objective", "loss", "iterations", "converged")
    }
    for iteration in range(1, max_iterations + 1):
        direction = _direction(state.gradient, pairs, problem.initial)
        slope = _dot(state.gradient, direction)
        state.converged |= -slope[:, :, 0, 0] <= tolerance * state.objective.clamp(min=NEGLIGIBLE)
        if bool((ended := state.finished.all(dim=0)).any()):
            _take_out(found, active, state, ended)
            problem.keep(~ended)
            state.keep(~ended)
            active, direction, slope = active[~ended], direction[:, ~ended], slope[:, ~ended]
            pairs = [tuple(tensor[:, ~ended] for tensor in pair) for pair in pairs]
            if not len(active):
                return found
        if iteration % FRESH_LOGITS == 0:
            state.logits = problem.logits(state.weights)
        moved, errors = _line_search(problem, state, direction, slope)
        # Rounding ends the descent of a problem that can't be lowered along a direction of descent.
        is_close = -slope[:, :, 0, 0] <= 100 * tolerance * state.objective.clamp(min=NEGLIGIBLE)
        stuck = (moved == 0).all(dim=(2, 3)) & ~state.finished
        state.converged |= stuck & is_close
        state.stalled |= stuck
        state.iterations += ~state.finished
        if iteration in MEASURED_AT:
            problem.measure_curvature(errors)
        previous, state.gradient = state.gradient, problem.gradient(errors, state.weights)
        change = state.gradient - previous
        curvature = _dot(moved, change)
        rho = torch.where(curvature > 1e-300, 1 / curvature.clamp(min=1e-300), 0.0)
        pairs = [*pairs[1 - HISTORY :], (moved, change, rho)]
    _take_out(found, active, state, torch.ones_like(active, dtype=torch.bool))
    return found


def _take_out(found: dict[str, Any], active: "torch.Tensor", state: _State, chosen: "torch.Tensor") -> None:
    for name, tensor in found.items():
        tensor[:, active[chosen]] = getattr(state, name)[:, chosen]


def _line_search(
    problem: _Problem, state: _State, direction: "torch.Tensor", slope: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """
    Moves every unfinished problem along its direction, halving the step until that lowers it (Armijo), all of the
    state except its gradient. Returns how far the weights moved, 0 where nothing lowers it, and the errors there.
    """
    import torch

    change = problem.logits(direction)
    step = torch.where(state.finished[:, :, None, None], 0.0, torch.ones_like(slope))
    # Of numbers that are sums over images; without it, rounding alone would refuse the last steps.
    slack = 4 * torch.finfo(problem.inputs.dtype).eps * state.objective
    for halving in range(MAX_HALVINGS + 1):
        weights = state.weights + step * direction
        logits = torch.addcmul(state.logits, step.to(change.dtype), change)
        loss, errors = problem.loss_and_errors(logits)
        objective = loss + problem.penalty(weights)
        too_high = objective > state.objective + (ARMIJO * step * slope)[:, :, 0, 0] + slack
        if not bool(too_high.any()):
            break
        shorter = step / 2 if halving + 1 < MAX_HALVINGS else torch.zeros_like(step)
        step = torch.where(too_high[:, :, None, None], shorter, step)
    state.weights, state.logits, state.loss, state.objective = weights, logits, loss, objective
    return step * direction, errors
