"""The methods that are compared, by name, in the order of the table."""

from collections.abc import Callable

from .drift import Drift
from .gan import Gan
from .generative import Diffusion, Flow
from .method import Method, Setting
from .supervised import L1, L1MultiScale

METHODS: dict[str, Callable[[Setting], Method]] = {
    "l1": lambda _: L1(),
    "l1_msssim": lambda _: L1MultiScale(),
    "gan": Gan,
    "flow": lambda _: Flow(),
    "diffusion": lambda _: Diffusion(),
    "drift_global": lambda setting: Drift(setting, levels=("global",), stages=(3,)),
    "drift_sum": lambda setting: Drift(setting, coordination="sum"),
    "drift": Drift,
}
TITLES = {
    "l1": "L1, early stop",
    "l1_msssim": "L1 + MS-SSIM, early stop",
    "gan": "GAN (pix2pix-3D)",
    "flow": "flow matching",
    "diffusion": "diffusion (SDE)",
    "drift_global": "drift without bank levels",
    "drift_sum": "drift without coordination",
    "drift": "drift, complete",
    "again": "target with other texture",
    "clean": "target without texture",
    "start": "consistent start, no network",
}
