"""Other models of the latents, as alternatives to IMLE with which GLANN is compared.

- ``gaussian`` and ``mixture``: one Gaussian or several, with full covariances;
- ``flow``: a neural spline flow (arXiv:1906.04032), from zuko;
- ``iresnet``: an invertible residual network (arXiv:1811.00995), from normflows;
- ``flow_matching``: a velocity field from noise to latents (arXiv:2210.02747).
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from glann.errors import GlannError
from glann.evaluate.flow_matching import Velocity, carried, mismatch
from glann.evaluate.settings import Evaluate
from glann.runtime.compute import Execution
from glann.runtime.progress import progress
from glann.runtime.randomness import stream, stream_seed

FITTED_ROWS = 10_000  # most latents to which priors are fitted
WIDTH = 256  # hidden units of all flows
TRANSFORMS, BLOCKS = 3, 8  # of the spline flow and the i-ResNet
LIPSCHITZ, POWERS = 0.97, 8  # of the layers of an i-ResNet; terms of its log-determinant (eq. 4)
STEPS, BATCH, LR = 2000, 256, 2e-3
LOOK, WAIT = 50, 6  # steps between checks on unseen latents; checks without improvement until it stops
# Relative to the latents' spread: on a sphere latents have no density, and a flow would never converge.
NOISE = 0.1
LOOKS = 16  # at the unseen latents in each check of flow matching, whose loss is noisy


def draw_prior(
    kind: str, latents: Tensor, count: int, seed: int, config: Evaluate, execution: Execution
) -> Tensor:
    """Fit a prior to latents and draw from it.

    Parameters
    ----------
    kind
        One of `evaluate.priors`.
    latents
        float32 [n, d]; at most 10,000 are used.
    count, seed
        Number of draws, and seed.
    config
        The `evaluate` section of params.yaml.
    execution
        Device on which flows are fitted.

    Returns
    -------
    Tensor
        float32 [count, d].

    Raises
    ------
    GlannError
        If the library of a flow is not installed, or there are too few latents.
    """
    rows = torch.randperm(len(latents), generator=stream(seed, "evaluate", kind, "rows"))[:FITTED_ROWS]
    return PRIORS[kind].draw(latents[rows], count, seed, config, execution)


def _draw_mixture(fitted: Tensor, components: int, count: int, seed: int) -> Tensor:
    """Draw from a mixture of Gaussians; it has fewer components if there are few latents for each."""
    name = ("evaluate", "mixture", components)
    values = fitted.double().numpy()
    mixture = GaussianMixture(
        max(1, min(components, len(values) // (2 * values.shape[1]))),
        reg_covar=max(1e-4 * values.var(0).mean(), 1e-8),  # latents may lie in a subspace
        max_iter=50,
        random_state=stream_seed(seed, *name) % 2**32,
    )
    with threadpool_limits(1), warnings.catch_warnings():  # parallel sums have no fixed order
        warnings.simplefilter("ignore", ConvergenceWarning)
        drawn, _ = mixture.fit(values).sample(count)
    shuffled = torch.randperm(count, generator=stream(seed, *name, "order"))  # it was sorted by component
    return torch.tensor(drawn, dtype=torch.float32)[shuffled]


def _draw_spline_flow(fitted: Tensor, count: int) -> Tensor:
    try:
        import zuko  # noqa: PLC0415 (an optional dependency)
    except ImportError as error:
        raise _missing("flow", "zuko", error) from None
    dim = fitted.shape[1]
    flow = zuko.flows.NSF(dim, transforms=TRANSFORMS, hidden_features=[WIDTH] * 2).to(fitted.device)
    _fit(flow, fitted, lambda rows: -flow().log_prob(_blurred(rows)).mean(), "flow")
    with torch.no_grad():
        return flow().sample((count,))


def _draw_iresnet(fitted: Tensor, count: int) -> Tensor:
    try:
        import normflows  # noqa: PLC0415
    except ImportError as error:
        raise _missing("iresnet", "normflows", error) from None
    dim = fitted.shape[1]
    layers: list[nn.Module] = []
    for _ in range(BLOCKS):
        branch = normflows.nets.LipschitzMLP([dim, WIDTH, WIDTH, dim], lipschitz_const=LIPSCHITZ)
        layers += [normflows.flows.Residual(branch, n_power_series=POWERS), normflows.flows.ActNorm(dim)]
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(dim, trainable=False), layers)
    flow.to(fitted.device)

    def loss(rows: Tensor) -> Tensor:
        blurred = _blurred(rows)
        normflows.utils.update_lipschitz(flow, 5)  # the weights have changed
        return flow.forward_kld(blurred)

    _fit(flow, fitted, loss, "iresnet")
    with torch.no_grad():
        return flow.sample(count)[0]


def _draw_flow_matching(fitted: Tensor, count: int) -> Tensor:
    velocity = Velocity(fitted.shape[1], WIDTH).to(fitted.device)
    _fit(velocity, fitted, lambda rows: mismatch(velocity, rows), "flow_matching", LOOKS)
    return carried(velocity, torch.randn(count, velocity.dim, device=fitted.device))


def _blurred(rows: Tensor) -> Tensor:
    return rows + NOISE * torch.randn_like(rows)


def _fit(
    flow: nn.Module, fitted: Tensor, loss_of: Callable[[Tensor], Tensor], title: str, looks: int = 1
) -> None:
    """Minimise the loss of nine tenths of the rows, and keep the weights that are best on the rest.

    A check averages so many `looks` at the rest.
    """
    if len(fitted) < 4:
        raise GlannError(f"evaluate.priors: {title} needs 4 or more latents; remove it from the list")
    unseen, seen = fitted.tensor_split([max(2, len(fitted) // 10)])
    optimizer = torch.optim.Adam(flow.parameters(), lr=LR)
    best, best_step, kept = math.inf, 0, flow.state_dict()
    with progress(title, STEPS, "steps") as advance:
        for step in range(1, STEPS + 1):
            rows = seen[torch.randint(len(seen), (BATCH,), device=seen.device)]
            loss = loss_of(rows)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
            optimizer.step()
            advance(1, f"loss {loss.item():.4g}")
            if step % LOOK and step < STEPS:
                continue
            with torch.no_grad():
                reached = float(loss_of(unseen.repeat(looks, 1)))
            if reached < best:
                best, best_step = reached, step
                kept = {name: value.clone() for name, value in flow.state_dict().items()}
            elif step - best_step >= LOOK * WAIT:
                break
    if not math.isfinite(best):
        raise GlannError(
            f"evaluate.priors: {title} could not be fitted to these latents; remove it from the list"
        )
    flow.load_state_dict(kept)


def _missing(kind: str, package: str, error: ImportError) -> GlannError:
    return GlannError(
        f"evaluate.priors: {kind} needs the package {package} ({error}); run: pip install {package}, or "
        f"remove {kind} from the list"
    )


def _flow(name: str, draw: Callable[[Tensor, int], Tensor]) -> "Draw":
    """Return a function that fits a flow and draws from it, in standardised coordinates.

    The libraries use torch's global generator, so it is seeded and restored.
    """

    def drawn(rows: Tensor, count: int, seed: int, config: Evaluate, execution: Execution) -> Tensor:
        mean, spread = rows.mean(dim=0), rows.std(dim=0).clamp_min(1e-6)
        cuda = [execution.device] if execution.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            torch.manual_seed(stream_seed(seed, "evaluate", name))
            found = draw(((rows - mean) / spread).to(execution.device), count)
        return found.cpu() * spread + mean

    return drawn


Draw = Callable[[Tensor, int, int, Evaluate, Execution], Tensor]
"""Called with latents float32 [n, d], count, seed, settings and execution; returns float32 [count, d]."""


@dataclass(frozen=True)
class Prior:
    """A model of the latents.

    Attributes
    ----------
    label
        Label in pictures.
    draw
        Fits it and draws from it.
    """

    label: str
    draw: Draw


PRIORS = {
    "gaussian": Prior(
        "GLO + Gaussian", lambda rows, count, seed, config, _: _draw_mixture(rows, 1, count, seed)
    ),
    "mixture": Prior(
        "GLO + mixture",
        lambda rows, count, seed, config, _: _draw_mixture(rows, config.mixture_components, count, seed),
    ),
    "flow": Prior("GLO + flow", _flow("flow", _draw_spline_flow)),
    "iresnet": Prior("GLO + i-ResNet", _flow("iresnet", _draw_iresnet)),
    "flow_matching": Prior("GLO + flow matching", _flow("flow_matching", _draw_flow_matching)),
}
"""Names as in `evaluate.priors`."""
