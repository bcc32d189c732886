"""Many regularised logistic regressions on the same features at once: several training sets, a path of strengths.

The objective is scikit-learn's (`LogisticRegression(C=C)`: binary for two classes, softmax for more, the intercept not
penalised), the answer its optimum. What is shared is computed once: features are turned into the eigenvectors of their
covariance, whose eigenvalues then precondition a batched L-BFGS, and all fits go through each matrix product together,
in float32. Strengths rise and each starts where the last ended. Which rows are for what:
pathray.evaluation.metrics.apd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

TOLERANCE = 1e-4  # of the energy norm of the solution, see `_has_converged`
HISTORY = 6
LINE_STEPS = 6


class Rotated:
    """Features `[N, D]` as coordinates along the eigenvectors of their covariance, float32, centred.

    A regression with an intercept is the same in these coordinates: only its intercept is another.
    """

    def __init__(self, features: npt.NDArray[np.floating[Any]]) -> None:
        x = np.asarray(features, np.float64)
        self.mean = x.mean(axis=0)
        centred = (x - self.mean).astype(np.float32)
        values, self.vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(x))
        self.spread = np.maximum(values, 0.0).astype(np.float32)
        self.x = np.ascontiguousarray(centred @ self.vectors.astype(np.float32))

    def place(self, features: npt.NDArray[np.floating[Any]]) -> Singles:
        """Other features `[M, D]` in the same coordinates."""
        placed: Singles = (np.asarray(features, np.float64) - self.mean).astype(np.float32)
        placed = placed @ self.vectors.astype(np.float32)
        return placed


@dataclass
class _Fits:
    """The state of P fits with M columns each (one for two classes): weights `[P, M, D]`, intercepts `[P, M]`."""

    x: Singles
    spread: Singles
    labels: Ints  # [N]
    used: Singles  # [P, N] 1/n for a training row of n, 0 for another
    columns: int
    constant_w: Singles = field(init=False)  # the gradient of 1/K − y
    constant_b: Singles = field(init=False)
    w: Singles = field(init=False)
    b: Singles = field(init=False)
    z: Singles = field(init=False)  # [P, M, N] logits

    def __post_init__(self) -> None:
        fits, n = self.used.shape
        classes = max(self.columns, 2)
        wanted = self.labels == np.arange(classes)[:, None]
        wanted = wanted[1:] if self.columns == 1 else wanted
        pull = self.used[:, None] * (1 / classes - wanted).astype(np.float32)
        self.constant_w = (pull.reshape(-1, n) @ self.x).reshape(fits, self.columns, -1)
        rows = self.used > 0
        share = (rows[:, None] & wanted).sum(axis=2) / rows.sum(axis=1)[:, None]  # exact, so that even classes give 0
        self.constant_b = (1 / classes - share).astype(np.float32)
        self.w = np.zeros((fits, self.columns, self.x.shape[1]), np.float32)
        self.b = np.zeros((fits, self.columns), np.float32)
        self.z = np.zeros((fits, self.columns, n), np.float32)


def fit_paths(
    rotated: Rotated, labels: Ints, used: Bools, cs: Sequence[float], *, max_iter: int = 100
) -> Iterator[tuple[float, Singles, Singles]]:
    """(C, weights `[P, M, D]`, intercepts `[P, M]`) by rising C, of P fits to the rows `used` `[P, N]`.

    labels: classes 0 … K−1 `[N]`; M is 1 for two classes and K for more. At most `max_iter` steps a strength, as in
    scikit-learn: where classes can be separated a weak penalty has its optimum far away.
    """
    classes = int(labels.max()) + 1
    columns = 1 if classes == 2 else classes
    weights = (used / used.sum(axis=1, keepdims=True)).astype(np.float32)
    state = _Fits(rotated.x, rotated.spread, labels, weights, columns)
    for c in sorted(cs):
        _solve(state, c, max_iter)
        yield c, state.w.copy(), state.b.copy()


def logits(x: Singles, w: Singles, b: Singles) -> Singles:
    """`[P, M, N]` of rows `[N, D]`."""
    fits, columns, dim = w.shape
    z: Singles = (w.reshape(-1, dim) @ x.T).reshape(fits, columns, len(x)) + b[:, :, None]
    return z


def predict_classes(z: Singles) -> Ints:
    """Classes `[P, N]` of logits `[P, M, N]`."""
    return (z[:, 0] > 0).astype(np.int64) if z.shape[1] == 1 else z.argmax(axis=1)


def _solve(state: _Fits, c: float, max_iter: int) -> None:
    """Move every fit to its optimum at strength C: L-BFGS on the fits that are not there yet."""
    penalty = (state.used.max(axis=1) / c).astype(np.float32)  # 1 / (C·n)
    active = np.arange(len(penalty))
    residual, curvature = _residual(state, active, state.z)
    gw, gb = _gradient(state, active, residual, penalty)
    hw = curvature[:, :, None] * state.spread + penalty[:, None, None]
    hb = np.maximum(curvature, 1e-6)
    history: list[tuple[Singles, ...]] = []
    for _ in range(max_iter):
        done = _has_converged(state, active, gw, gb, hw, hb)
        if done.any():
            keep = ~done
            active, penalty = active[keep], penalty[keep]
            gw, gb, hw, hb = (a[keep] for a in (gw, gb, hw, hb))
            history = [tuple(a[keep] for a in pair) for pair in history]
        if not active.size:
            return
        dw, db = _direction(gw, gb, hw, hb, history)
        t, residual = _line(state, active, dw, db, gw, gb, penalty)
        new_gw, new_gb = _gradient(state, active, residual, penalty)
        sw, sb = t[:, None, None] * dw, t[:, None] * db
        history = [*history[-HISTORY + 1 :], (sw, sb, new_gw - gw, new_gb - gb)]
        gw, gb = new_gw, new_gb


def _residual(state: _Fits, active: Ints, z: Singles) -> tuple[Singles, Singles]:
    """((p − 1/K)/n `[P, M, N]`, mean of p(1−p) `[P, M]`) at logits z of the active fits."""
    used = state.used[active]
    if state.columns == 1:
        h = 0.5 * np.tanh(0.5 * z)
        p = h + np.float32(0.5)
    else:
        u = np.expm1(z - z.max(axis=1, keepdims=True))
        h = (u - u.mean(axis=1, keepdims=True)) / (state.columns + u.sum(axis=1, keepdims=True))
        p = h + np.float32(1 / state.columns)
    curvature = np.einsum("pmn,pn->pm", p * (1 - p), used)
    h *= used[:, None]
    return h, curvature


def _gradient(state: _Fits, active: Ints, r: Singles, penalty: Singles) -> tuple[Singles, Singles]:
    fits, columns, n = r.shape
    gw = (r.reshape(-1, n) @ state.x).reshape(fits, columns, -1) + penalty[:, None, None] * state.w[active]
    return gw + state.constant_w[active], r.sum(axis=2) + state.constant_b[active]


def _has_converged(state: _Fits, active: Ints, gw: Singles, gb: Singles, hw: Singles, hb: Singles) -> Bools:
    """The Newton step left, by the preconditioner's estimate, is below TOLERANCE of the solution, in energy norm."""
    left = np.einsum("pmd,pmd->p", gw, gw / hw) + np.einsum("pm,pm->p", gb, gb / hb)
    here = np.einsum("pmd,pmd->p", state.w[active] ** 2, hw)
    done: Bools = left <= TOLERANCE**2 * here
    return done


def _direction(
    gw: Singles, gb: Singles, hw: Singles, hb: Singles, history: list[tuple[Singles, ...]]
) -> tuple[Singles, Singles]:
    """The two-loop recursion, every fit by itself; a pair without curvature counts for nothing."""

    def dot(aw: Singles, ab: Singles, cw: Singles, cb: Singles) -> Singles:
        both: Singles = np.einsum("pmd,pmd->p", aw, cw) + np.einsum("pm,pm->p", ab, cb)
        return both

    qw, qb, alphas = gw.copy(), gb.copy(), []
    for sw, sb, yw, yb in reversed(history):
        sy = dot(sw, sb, yw, yb)
        rho = np.where(sy > 1e-30, 1 / np.maximum(sy, 1e-30), 0).astype(np.float32)
        alpha = rho * dot(sw, sb, qw, qb)
        qw -= alpha[:, None, None] * yw
        qb -= alpha[:, None] * yb
        alphas.append((alpha, rho))
    qw /= hw
    qb /= hb
    for (sw, sb, yw, yb), (alpha, rho) in zip(history, reversed(alphas), strict=True):
        beta = alpha - rho * dot(yw, yb, qw, qb)
        qw += beta[:, None, None] * sw
        qb += beta[:, None] * sb
    return -qw, -qb


def _line(
    state: _Fits, active: Ints, dw: Singles, db: Singles, gw: Singles, gb: Singles, penalty: Singles
) -> tuple[Singles, Singles]:
    """Step along d, each fit by its own length: from 1, by secants on the slope, until it is half of what it was (the
    loss is convex: a smaller slope is a better place). Costs no product with the features but the one for z + t·d.
    """
    zd = logits(state.x, dw, db)
    along = np.einsum("pmd,pmd->p", dw, dw) * penalty
    across = np.einsum("pmd,pmd->p", dw, state.w[active]) * penalty
    slope = np.einsum("pmd,pmd->p", gw, dw) + np.einsum("pm,pm->p", gb, db)
    across += np.einsum("pmd,pmd->p", dw, state.constant_w[active]) + np.einsum(
        "pm,pm->p", db, state.constant_b[active]
    )
    t, z = np.ones(len(active), np.float32), state.z[active]
    for i in range(LINE_STEPS):
        trial = z + t[:, None, None] * zd
        residual, _ = _residual(state, active, trial)
        here = np.einsum("pmn,pmn->p", residual, zd) + across + t * along
        bad = here > -0.5 * slope
        if not bad.any() or i == LINE_STEPS - 1:
            break
        shorter = t * np.clip(slope / np.minimum(slope - here, -1e-30), 0.1, 0.9)
        t = np.where(bad, shorter, t).astype(np.float32)
    state.w[active] += t[:, None, None] * dw
    state.b[active] += t[:, None] * db
    state.z[active] = trial
    return t, residual
