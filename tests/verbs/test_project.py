"""`medsynth project`: what it writes, that its seeds repeat, that its simulation is what a formula says."""

import json
import shutil
from pathlib import Path

import body
import numpy as np
import pytest
import torch
from commandline import contents, failures, medsynth, record, status

from medsynth.core.errors import Exit
from medsynth.physics.geometry import from_toml


@pytest.fixture(scope="module")
def cts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cts") / "in"
    body.write_ct(folder / "body.nii.gz")
    return folder


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return body.write_geometry(tmp_path_factory.mktemp("geometry") / "scan.toml")


@pytest.fixture(scope="module")
def finished(cts: Path, geometry: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    assert medsynth("project", cts, out, "--geometry", geometry, "--seed", "7").exit_code == 0
    return out


def sinogram(out: Path, case: str = "body") -> np.ndarray:
    with np.load(out / f"{case}_sino.npz") as file:
        assert list(file) == ["sinogram"]
        return file["sinogram"]


def test_each_ct_gives_a_sinogram_its_geometry_and_a_sidecar(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {"body_sino.npz", "body_geometry.toml", "body_sino.json", "run.json"}
    measured = sinogram(finished)
    assert (measured.dtype, measured.shape) == (np.float32, (6, 24, 64))
    assert json.loads((finished / "body_sino.json").read_text(encoding="utf-8"))["Projection"]["Noise"] == {"i0": 1e6, "seed": 7}
    assert record(finished)["model"] is None


def test_the_geometry_file_leads_back_to_the_cts_own_grid(finished: Path) -> None:
    scan = from_toml((finished / "body_geometry.toml").read_text(encoding="utf-8"), "body")
    assert scan.geometry.views == 24
    assert scan.image is not None
    assert scan.image.shape == body.SHAPE
    assert np.array_equal(np.array(scan.image.affine), body.affine_ras())


def test_without_a_geometry_file_it_is_the_benchmarks_fan(cts: Path, tmp_path: Path) -> None:
    assert medsynth("project", cts, tmp_path, "--views", "18").exit_code == 0
    assert sinogram(tmp_path).shape == (6, 18, 736)


def test_rays_through_the_middle_measure_what_lies_on_them(geometry: Path, tmp_path: Path) -> None:
    """A cylinder of water of 25 mm radius: 50 mm of .0192 /mm; noise on top is as strong as photons say."""
    x, y = np.meshgrid(np.arange(48) - 23.5, np.arange(40) - 19.5, indexing="ij")
    array = np.repeat(np.where(np.hypot(x, y) * 1.5 < 25, 0.0, -1000.0)[:, :, None], 6, axis=2)
    body.write_ct(tmp_path / "in" / "body.nii.gz", array)
    for name, options in (("clean", ("--noiseless",)), ("noisy", ("--i0", "1e5"))):
        assert medsynth("project", tmp_path / "in", tmp_path / name, "--geometry", geometry, *options).exit_code == 0
    clean, noisy = sinogram(tmp_path / "clean"), sinogram(tmp_path / "noisy")
    assert clean[:, :, 31:33].mean() == pytest.approx(50 * 0.0192, rel=0.02)
    assert np.abs(clean[:, :, [0, -1]]).max() == 0
    relative = np.linalg.norm(noisy - clean) / np.linalg.norm(noisy)
    expected = record(tmp_path / "noisy")["cases"][0]["measured"]["ExpectedRelativeNoise"]
    assert relative == pytest.approx(expected, rel=0.05)


def test_seeds_repeat_and_do_not_depend_on_other_cases(cts: Path, geometry: Path, finished: Path, tmp_path: Path) -> None:
    several = shutil.copytree(cts, tmp_path / "several")
    shutil.copy(cts / "body.nii.gz", several / "a twin.nii.gz")
    assert medsynth("project", several, tmp_path / "several-out", "--geometry", geometry, "--seed", "7").exit_code == 0
    assert medsynth("project", cts, tmp_path / "other", "--geometry", geometry, "--seed", "8").exit_code == 0
    assert np.array_equal(sinogram(tmp_path / "several-out"), sinogram(finished))
    assert not np.array_equal(sinogram(tmp_path / "several-out", "a twin"), sinogram(finished))
    assert not np.array_equal(sinogram(tmp_path / "other"), sinogram(finished))
    measured = sinogram(finished)
    assert not np.array_equal(measured[0, :, :5], measured[1, :, :5])  # air, whose noise differs from slice to slice


def test_a_second_run_skips_what_is_whole(cts: Path, geometry: Path, finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    before = contents(out)
    options = ("project", cts, out, "--geometry", geometry, "--seed", "7")
    assert medsynth(*options).exit_code == 0
    assert status(out) == {"body": "skipped"}
    for change in ((out / "body_geometry.toml").unlink, lambda: (out / "body_sino.npz").write_bytes(b"half"), lambda: None):
        change()
        assert medsynth(*options).exit_code == 0
    assert status(out) == {"body": "skipped"}
    assert contents(out) == before
    assert medsynth(*options, "--i0", "1e5").exit_code == 0
    assert status(out) == {"body": "done"}


def test_one_bad_scan_does_not_stop_the_others(cts: Path, geometry: Path, tmp_path: Path) -> None:
    scans = shutil.copytree(cts, tmp_path / "in")
    (scans / "broken.nii.gz").write_bytes(b"")
    body.write_ct(scans / "mr.nii.gz", body.ct_hu() + 1000)
    assert medsynth("project", scans, tmp_path / "out", "--geometry", geometry).exit_code == Exit.PARTIAL
    assert failures(tmp_path / "out") == {"broken": "E-READ", "mr": "E-MODALITY"}


def test_a_mac_projects_on_its_processor_and_says_so(cts: Path, geometry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its GPU has no products with sparse matrices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    result = medsynth("project", cts, tmp_path / "auto", "--geometry", geometry)
    assert result.exit_code == 0
    assert record(tmp_path / "auto")["device"] == "cpu"
    assert result.stderr.count("sparse matrices") == 1
    refused = medsynth("project", cts, tmp_path / "mps", "--geometry", geometry, "--device", "mps")
    assert refused.exit_code == Exit.USAGE
    assert "E-DEVICE" in refused.stderr
    assert "--device cpu" in refused.stderr


@pytest.mark.parametrize("options", [(), ("--views", "18", "--geometry", "scan.toml"), ("--views", "18", "--noiseless", "--i0", "1e5")])
def test_options_that_do_not_go_together_are_refused(options: tuple[str, ...], cts: Path, tmp_path: Path) -> None:
    result = medsynth("project", cts, tmp_path / "out", *options)
    assert result.exit_code == Exit.USAGE
    assert "E-OPTION" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_geometry_file_that_is_not_there_is_named(cts: Path, tmp_path: Path) -> None:
    result = medsynth("project", cts, tmp_path / "out", "--geometry", tmp_path / "missing.toml")
    assert result.exit_code == Exit.USAGE
    assert "E-PATH" in result.stderr
