"""Peak memory per voxel: the constants behind the estimate in medsynth/scans/patches.py.

    python benchmarks/memory.py

Each figure is the difference of two processes' peaks over the difference of their voxels.
"""

import math
import subprocess
import sys
from pathlib import Path

KIB = 1024  # the unit of ru_maxrss on Linux

NETWORK = """
import sys, torch
from medsynth import zoo
from medsynth.verbs.synthesize import predictor
model = zoo.find("mri2ct-head")
predict = predictor(model, model.weights_file(), torch.device("cpu"))
predict(torch.rand(int(sys.argv[1]), 1, *model.card.grid.patch))
"""
RUN = """
import sys, tempfile
from pathlib import Path
import nibabel as nib, numpy as np
from medsynth.cli import app
side = int(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    image = nib.load(sys.argv[2])
    factor = np.array(image.shape) / side
    index = np.ix_(*[(np.arange(side) * f).astype(int) for f in factor])
    affine = image.affine @ np.diag([*factor, 1])
    scan = Path(folder) / "scan.nii.gz"
    nib.Nifti1Image(np.asarray(image.dataobj)[index], affine).to_filename(scan)
    app(["mri2ct", str(scan), str(Path(folder) / "out"), "--device", "cpu"])
"""


def main() -> None:
    """Print both constants, and what a run needs besides."""
    from medsynth import zoo

    patch = math.prod(zoo.find("mri2ct-head").card.grid.patch)
    one, three = peak_bytes(NETWORK, "1"), peak_bytes(NETWORK, "3")
    example = str(Path(__file__).parents[1] / "examples" / "mr" / "head_t1.nii.gz")
    small, large = peak_bytes(RUN, "128", example), peak_bytes(RUN, "320", example)
    per_scan_voxel = (large - small) / (320**3 - 128**3)
    print(f"network: {(three - one) / (2 * patch):.0f} bytes a voxel of the patches")
    print(f"run: {per_scan_voxel:.0f} bytes a voxel of the scan, {(small - per_scan_voxel * 128**3) / 1e9:.2f} GB besides")


def peak_bytes(program: str, *arguments: str) -> int:
    """Peak resident memory of a Python program."""
    child = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    child += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    command = [sys.executable, "-c", child, sys.executable, "-c", program, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * KIB


if __name__ == "__main__":
    main()
