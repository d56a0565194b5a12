"""pix2pix in 3-D (Isola 2017): L1 and a conditional PatchGAN with least-squares losses (Mao 2017), 100 to 1."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .method import CT_SCALE, Moment, OneEvaluation, Setting, l1
from .network import Network
from .problem import Batch

ADVERSARIAL_WEIGHT = 0.01  # L1 counts 1: the ratio is pix2pix's
LEARNING_RATE, BETAS = 2e-4, (0.5, 0.999)
WINDOWS_HU = ((-1024.0, 2048.0), (-160.0, 240.0))  # the second, or texture would be a hundredth of what the discriminator sees


class Gan(OneEvaluation):
    """The generator's noise is an input channel; the discriminator sees MR and CT."""

    def __init__(self, setting: Setting) -> None:
        self.discriminator = PatchDiscriminator().to(setting.device)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=LEARNING_RATE, betas=BETAS)

    def backward(self, network: Network, batch: Batch, moment: Moment) -> dict[str, float]:
        image = self.answer(network, batch.condition, moment.rng)
        self.discriminator.requires_grad_(False)
        absolute = l1(image, batch)
        fooled = (self.discriminator(batch.condition, image) - 1).square().mean()
        (absolute + ADVERSARIAL_WEIGHT * fooled).backward()
        self.discriminator.requires_grad_(True)
        real = (self.discriminator(batch.condition, batch.target) - 1).square().mean()
        fake = self.discriminator(batch.condition, image.detach()).square().mean()
        self.optimizer.zero_grad()
        ((real + fake) / 2).backward()
        self.optimizer.step()
        return {"l1": absolute.item(), "fooled": fooled.item(), "real": real.item(), "fake": fake.item()}

    def state(self) -> dict[str, Any]:
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches of 22 voxels, each by a number."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(1 + len(WINDOWS_HU), width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv3d(width, 2 * width, 4, stride=2, padding=1),
            nn.InstanceNorm3d(2 * width, affine=True),
            nn.LeakyReLU(0.2),
            nn.Conv3d(2 * width, 4 * width, 3, padding=1),
            nn.InstanceNorm3d(4 * width, affine=True),
            nn.LeakyReLU(0.2),
            nn.Conv3d(4 * width, 1, 3, padding=1),
        )

    def forward(self, condition: Float[Tensor, "b 1 x y z"], image: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, "b 1 i j k"]:
        ct_hu = CT_SCALE.decode(image)
        windows = [(ct_hu.clamp(low, high) - low) / (high - low) * 2 - 1 for low, high in WINDOWS_HU]
        return self.layers(torch.cat([condition, *windows], dim=1).contiguous(memory_format=torch.channels_last_3d))
