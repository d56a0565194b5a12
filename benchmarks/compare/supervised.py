"""Regression: L1, and L1 with MS-SSIM. The weights with the best validation MAE are kept (early stop)."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .method import Moment, OneEvaluation, l1
from .network import Network
from .problem import Batch

STRUCTURE_WEIGHT = 0.1
WINDOW = 7
SPAN = 2.0  # of network units
C1, C2 = (0.01 * SPAN) ** 2, (0.03 * SPAN) ** 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001)  # Wang 2003, the scales that a patch of 48 holds, normalised below


class L1(OneEvaluation):
    """Weighted L1."""

    keeps_best: bool = True
    noisy: bool = False

    def backward(self, network: Network, batch: Batch, moment: Moment) -> dict[str, float]:
        loss = l1(self.answer(network, batch.condition, moment.rng), batch)
        loss.backward()
        return {"l1": loss.item()}


class L1MultiScale(OneEvaluation):
    """L1 + 0.1 (1 - MS-SSIM)."""

    keeps_best: bool = True
    noisy: bool = False

    def backward(self, network: Network, batch: Batch, moment: Moment) -> dict[str, float]:
        image = self.answer(network, batch.condition, moment.rng)
        absolute, structure = l1(image, batch), 1 - ms_ssim(image, batch.target)
        (absolute + STRUCTURE_WEIGHT * structure).backward()
        return {"l1": absolute.item(), "one_minus_ms_ssim": structure.item()}


def ms_ssim(a: Float[Tensor, "b 1 x y z"], b: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, ""]:
    """MS-SSIM (Wang 2003) over three scales with uniform 7^3 windows, as in SynthRAD; mean over the batch."""
    result = a.new_ones(())
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            a, b = F.avg_pool3d(a, 2), F.avg_pool3d(b, 2)
        luminance, structure = _ssim_terms(a, b)
        term = structure if scale < len(SCALE_WEIGHTS) - 1 else luminance * structure
        result = result * term.mean(dim=(1, 2, 3, 4)).clamp(min=1e-3) ** (weight / sum(SCALE_WEIGHTS))
    return result.mean()


def _ssim_terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    mean_a, mean_b = _mean(a), _mean(b)
    variances = _mean(a * a + b * b) - mean_a**2 - mean_b**2
    covariance = _mean(a * b) - mean_a * mean_b
    return (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1), (2 * covariance + C2) / (variances + C2)


def _mean(x: Tensor) -> Tensor:
    for window in ((WINDOW, 1, 1), (1, WINDOW, 1), (1, 1, WINDOW)):
        x = F.avg_pool3d(x, window, stride=1)
    return x
