"""Laplace approximation of the last layer (Daxberger et al., NeurIPS 2021), from stored factors.

The posterior of the last layer's weights is a Gaussian around the trained ones. Its precision is
the generalised Gauss-Newton matrix of the cross entropy plus that of the prior:
``Σ_i (diag p_i - p_i p_iᵀ) ⊗ f̃_i f̃_iᵀ + λ I`` with ``f̃ = (f, 1)``, or ``f`` for a layer without a
bias. It needs the features and the logits of the training rows, and no network. For a row, the
logits then have the mean ``z`` and the covariance ``Σ(x)``, which no step computes by a Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from stages.errors import InputError
from stages.reflection.losses import softmax
from store.artifacts import Artifact

Values = NDArray[np.float64]
Block = tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]
"""Features ``[n, d]`` and logits ``[n, N]`` of finite rows."""

Noise = NDArray[np.floating[Any]]

POSTERIOR_KEY = "posterior.safetensors"
MAX_PARAMETERS = 6000
"""Weights and biases of the full structure: 10 classes of 512 features have 5,130."""


class Posterior(Protocol):
    """A Gaussian over the weights of a last layer."""

    def variances(self, features: NDArray[np.floating[Any]]) -> Values:
        """Variance of each logit, ``[n, N]``."""

    def deviations(self, features: NDArray[np.floating[Any]], noise: Noise) -> Values:
        """Deviations of the logits from their mean, of standard normal noise ``[n, s, N]``."""


class Curvature(Protocol):
    """The Gauss-Newton matrix of the training rows, before the prior."""

    @property
    def eigenvalues(self) -> Values:
        """One for each weight and bias, in any order."""

    def posterior(self, prior: float) -> Posterior:
        """The posterior with the prior precision ``λ``."""


@dataclass(frozen=True, eq=False)
class Full:
    """The whole matrix, by its eigenvectors; parameter ``(c, j)`` is number ``c (d + 1) + j``."""

    eigenvalues: Values
    vectors: Values
    n_classes: int
    has_bias: bool

    @classmethod
    def of(cls, blocks: Iterable[Block], *, has_bias: bool) -> Full:
        """Sum the matrix over blocks of rows, then decompose it once.

        Raises:
            InputError: no row, or more than `MAX_PARAMETERS`.
        """
        total: Values | None = None
        for features, logits in blocks:
            f, p = extended(features, has_bias=has_bias), _probabilities(logits)
            if total is None:
                _check_size(p.shape[1] * f.shape[1])
                total = np.zeros((p.shape[1], f.shape[1]) * 2)
            for at in range(p.shape[1]):
                total[at, :, at] += (f * p[:, at, np.newaxis]).T @ f
            weighted = (p[:, :, np.newaxis] * f[:, np.newaxis]).reshape(len(f), -1)
            np.subtract(total, (weighted.T @ weighted).reshape(total.shape), out=total)
        if total is None:
            raise InputError(_NO_ROWS)
        n_classes, width = total.shape[:2]
        found, vectors = np.linalg.eigh(total.reshape(n_classes * width, -1))
        return cls(found.clip(min=0), vectors, n_classes, has_bias)

    def posterior(self, prior: float) -> FullPosterior:
        """``(H + λ I)⁻¹``."""
        covariance = (self.vectors / (self.eigenvalues + prior)) @ self.vectors.T
        width = len(covariance) // self.n_classes
        return FullPosterior(covariance.reshape((self.n_classes, width) * 2), self.has_bias)


@dataclass(frozen=True, eq=False)
class FullPosterior:
    """The covariance of all weights, ``[N, d + 1, N, d + 1]``."""

    covariance: Values
    has_bias: bool

    def variances(self, features: NDArray[np.floating[Any]]) -> Values:
        """Variance of each logit, ``[n, N]``: ``f̃ᵀ C_kk f̃``."""
        f = extended(features, has_bias=self.has_bias)
        n_classes = len(self.covariance)
        parts = [((f @ self.covariance[k, :, k]) * f).sum(axis=1) for k in range(n_classes)]
        return np.stack(parts, axis=1)

    def covariances(self, features: NDArray[np.floating[Any]]) -> Values:
        """Covariance of the logits, ``[n, N, N]``."""
        f = extended(features, has_bias=self.has_bias)
        n_classes = len(self.covariance)
        found = np.empty((len(f), n_classes, n_classes))
        for k in range(n_classes):
            for other in range(k + 1):
                found[:, k, other] = ((f @ self.covariance[k, :, other]) * f).sum(axis=1)
                found[:, other, k] = found[:, k, other]
        return found

    def deviations(self, features: NDArray[np.floating[Any]], noise: Noise) -> Values:
        """Cholesky factors times noise, ``[n, s, N]``."""
        found: Values = noise @ self.roots(features).transpose(0, 2, 1)
        return found

    def roots(self, features: NDArray[np.floating[Any]]) -> Values:
        """Cholesky factors of the covariances, ``[n, N, N]``."""
        found = self.covariances(features)
        # Rounding may take away what makes it positive definite.
        jitter = 1e-10 * np.trace(found, axis1=1, axis2=2) + np.finfo(np.float64).tiny
        roots: Values = np.linalg.cholesky(
            found + jitter[:, np.newaxis, np.newaxis] * np.eye(found.shape[1])
        )
        return roots


@dataclass(frozen=True, eq=False)
class Kronecker:
    """``n G ⊗ A`` with ``A = Σ f̃ f̃ᵀ / n`` and ``G = Σ (diag p - p pᵀ) / n``, both decomposed.

    The Kronecker-factored approximation (Martens & Grosse 2015; Ritter et al. 2018), with one
    factor for weights and bias together.
    """

    classes: Values
    class_vectors: Values
    inputs: Values
    input_vectors: Values
    n_rows: int
    has_bias: bool

    @classmethod
    def of(cls, blocks: Iterable[Block], *, has_bias: bool) -> Kronecker:
        """Sum both factors over blocks of rows, then decompose each once.

        Raises:
            InputError: no row.
        """
        sums: tuple[Values, Values] | None = None
        n_rows = 0
        for features, logits in blocks:
            f, p = extended(features, has_bias=has_bias), _probabilities(logits)
            found = np.diag(p.sum(axis=0)) - p.T @ p, f.T @ f
            sums = found if sums is None else (sums[0] + found[0], sums[1] + found[1])
            n_rows += len(f)
        if sums is None:
            raise InputError(_NO_ROWS)
        of_classes, of_inputs = (np.linalg.eigh(each / n_rows) for each in sums)
        return cls(
            of_classes[0].clip(min=0),
            of_classes[1],
            of_inputs[0].clip(min=0),
            of_inputs[1],
            n_rows,
            has_bias,
        )

    @property
    def eigenvalues(self) -> Values:
        """Products of the eigenvalues of both factors, times ``n``."""
        return self.n_rows * np.multiply.outer(self.classes, self.inputs).ravel()

    def posterior(self, prior: float) -> KroneckerPosterior:
        """``(n G ⊗ A + λ I)⁻¹``, exact by the eigenvectors of the factors."""
        shrinkage = 1 / (self.n_rows * np.multiply.outer(self.inputs, self.classes) + prior)
        return KroneckerPosterior(self.class_vectors, self.input_vectors, shrinkage, self.has_bias)


@dataclass(frozen=True, eq=False)
class KroneckerPosterior:
    """The covariance ``Σ(x) = V diag((Uᵀ f̃)² S) Vᵀ`` of the logits.

    Attributes:
        class_vectors: ``V``, ``[N, N]``.
        input_vectors: ``U``, ``[d + 1, d + 1]``.
        shrinkage: ``S``, the variance of each pair of eigenvectors, ``[d + 1, N]``.
    """

    class_vectors: Values
    input_vectors: Values
    shrinkage: Values
    has_bias: bool

    def variances(self, features: NDArray[np.floating[Any]]) -> Values:
        """Variance of each logit, ``[n, N]``."""
        found: Values = self._along(features) @ np.square(self.class_vectors).T
        return found

    def deviations(self, features: NDArray[np.floating[Any]], noise: Noise) -> Values:
        """``V (std ∘ noise)``, ``[n, s, N]``, without a matrix for each row."""
        std = np.sqrt(self._along(features))
        found: Values = (noise * std[:, np.newaxis]) @ self.class_vectors.T
        return found

    def _along(self, features: NDArray[np.floating[Any]]) -> Values:
        """Variance along each eigenvector of the classes, ``[n, N]``."""
        f = extended(features, has_bias=self.has_bias)
        found: Values = np.square(f @ self.input_vectors) @ self.shrinkage
        return found


CURVATURES: dict[str, type[Full] | type[Kronecker]] = {"full": Full, "kfac": Kronecker}


def probit_logits(logits: NDArray[np.floating[Any]], variances: Values) -> Values:
    """``z_k / sqrt(1 + π/8 var_k)``: logits whose softmax approximates the mean prediction.

    The probit approximation of MacKay (1992), for each class on its own.
    """
    scaled: Values = logits / np.sqrt(1 + math.pi / 8 * variances)
    return scaled


def posterior_bytes(posterior: FullPosterior | KroneckerPosterior) -> bytes:
    """The arrays of a posterior as a safetensors file."""
    arrays = {key: value for key, value in vars(posterior).items() if key != "has_bias"}
    data: bytes = save({key: np.ascontiguousarray(value) for key, value in arrays.items()})
    return data


def read_posterior(
    artifact: Artifact, structure: str, *, has_bias: bool
) -> FullPosterior | KroneckerPosterior:
    """The posterior of a finished head.

    Raises:
        NotFoundError, DamagedError: the head is not finished, or was altered.
        InputError: its file is of another structure.
    """
    kind = FullPosterior if structure == "full" else KroneckerPosterior
    try:
        return kind(**load(artifact.read(POSTERIOR_KEY)), has_bias=has_bias)
    except (SafetensorError, TypeError) as error:
        raise InputError(
            f"head '{artifact.name}': expected the arrays of a {structure} posterior; {error}"
        ) from error


def extended(features: NDArray[np.floating[Any]], *, has_bias: bool) -> Values:
    """``f̃`` in float64: the features, followed by 1 if the layer has a bias."""
    f = features.astype(np.float64)
    return np.concatenate([f, np.ones((len(f), 1))], axis=1) if has_bias else f


def _probabilities(logits: NDArray[np.floating[Any]]) -> Values:
    return softmax(logits.astype(np.float64)).astype(np.float64, copy=False)


def _check_size(n_parameters: int) -> None:
    if n_parameters > MAX_PARAMETERS:
        raise InputError(
            f"laplace: expected at most {MAX_PARAMETERS:,} weights and biases for the full "
            f"matrix, found {n_parameters:,}: use --structure kfac"
        )


_NO_ROWS = "laplace: expected labelled rows without NaN, found none; use a split that has labels"
