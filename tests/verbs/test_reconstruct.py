"""`medsynth sparse-ct`: what it writes for CTs and sinograms, where, what its record says, what it refuses."""

import json
import math
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import body
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from commandline import contents, failures, medsynth, partial_files, record, status
from PIL import Image
from scipy.spatial.transform import Rotation

from medsynth.core import metrics
from medsynth.core.errors import Exit
from medsynth.nets.slice_unet import SliceUNet
from medsynth.physics.acquisition import Acquisition
from medsynth.physics.geometry import ImageGrid, from_toml
from medsynth.tasks import sparse_ct
from medsynth.tasks.sparse_ct import TASK
from medsynth.verbs import measure, methods, truth
from medsynth.verbs.synthesize import find_model

RADIANS = ", ".join(f"{math.tau * view / 24:.4f}" for view in range(24))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network for 18, 24 and 36 views."""
    return body.write_tiny_sparse(tmp_path_factory.mktemp("models") / "tiny-sparse")


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return body.write_geometry(tmp_path_factory.mktemp("geometry") / "scan.toml")


@pytest.fixture(scope="module")
def cts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one CT, `body.nii.gz`."""
    folder = tmp_path_factory.mktemp("cts") / "in"
    body.write_ct(folder / "body.nii.gz")
    return folder


@pytest.fixture(scope="module")
def by_network(cts: Path, sparse: Path, geometry: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("network") / "out"
    result = medsynth("sparse-ct", cts, out, "--geometry", geometry, "--model", sparse)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def sinograms(cts: Path, geometry: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sinograms")
    assert medsynth("project", cts, out, "--geometry", geometry).exit_code == 0
    return out


def run(*arguments: object) -> Any:
    result = medsynth("sparse-ct", *arguments)
    assert result.exit_code == 0, result.output
    return result


def case(out: Path, name: str = "body") -> dict[str, Any]:
    """What the record measured of a scan."""
    return next(one["measured"] for one in record(out)["cases"] if one["case"] == name)


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def turned() -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (8, -5, 14), degrees=True).as_matrix()
    return turn @ body.affine_ras()


def sheared(axis: int) -> np.ndarray:
    affine = body.affine_ras()
    affine[:3, axis] += 0.15 * affine[:3, axis - 1]
    return affine


GRIDS: dict[str, tuple[np.ndarray, tuple[int, int, int]]] = {
    "as a rule": (body.affine_ras(), body.SHAPE),
    "left, back, feet first": (body.affine_ras() @ np.diag([-1.0, -1, -1, 1]), body.SHAPE),
    "odd": (body.affine_ras((1.5, 1.5, 3.0), (47, 43, 5)), (47, 43, 5)),
    "oblique": (turned(), body.SHAPE),
    "fine": (body.affine_ras((0.2, 0.2, 9.0), (360, 330, 2)), (360, 330, 2)),
    "coarse": (body.affine_ras((3.0, 3.0, 3.0), (24, 20, 6)), (24, 20, 6)),
    "other steps across than down": (body.affine_ras((1.5, 2.1, 3.0), (48, 31, 6)), (48, 31, 6)),
    "sagittal": (body.affine_ras()[:, [1, 2, 0, 3]], (40, 6, 48)),
    "tilted gantry": (sheared(2), body.SHAPE),
    "sheared in the plane": (sheared(1), body.SHAPE),
    "one slice": (body.affine_ras((1.5, 1.5, 3.0), (48, 40, 1)), (48, 40, 1)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_result_lies_on_the_scans_own_grid_and_where_the_scan_shows_it(name: str, geometry: Path, tmp_path: Path) -> None:
    affine, shape = GRIDS[name]
    affine = affine.copy()
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    scan = body.write_ct(tmp_path / "body.nii.gz", body.ct_hu(affine, shape), affine)
    run(scan, tmp_path / "out", "--geometry", geometry, "--method", "sirt", "--force")
    source, result = nib.load(scan), nib.load(tmp_path / "out" / "body_ct.nii.gz")
    assert result.shape == source.shape
    assert np.array_equal(result.affine, source.affine)
    assert result.get_data_dtype() == np.int16
    truth, made = voxels(scan).astype(float), voxels(tmp_path / "out" / "body_ct.nii.gz").astype(float)
    alike = np.corrcoef(truth.ravel(), made.ravel())[0, 1]
    assert alike > (0.88 if name == "fine" else 0.96)  # finer than the detector
    for axis in range(3):
        if shape[axis] > 1 and np.corrcoef(truth.ravel(), np.flip(truth, axis).ravel())[0, 1] < 0.999:
            assert np.corrcoef(truth.ravel(), np.flip(made, axis).ravel())[0, 1] < alike


def test_a_scan_gives_a_ct_a_map_a_picture_and_a_sidecar(by_network: Path) -> None:
    names = {"body_ct.nii.gz", "body_uncertainty.nii.gz", "body_ct.png", "body_ct.json", "run.json", "dataset_description.json"}
    assert {path.name for path in by_network.iterdir()} == names
    ct, map_ = (nib.load(by_network / f"body_{what}.nii.gz") for what in ("ct", "uncertainty"))
    assert (ct.shape, map_.get_data_dtype()) == (map_.shape, np.int16)
    assert np.array_equal(ct.affine, map_.affine)
    assert voxels(by_network / "body_uncertainty.nii.gz").min() >= 0
    with Image.open(by_network / "body_ct.png") as picture:
        assert min(picture.size) > 200


def test_record_and_sidecar_say_how_it_was_measured_and_made(by_network: Path) -> None:
    said = case(by_network)
    sidecar = json.loads((by_network / "body_ct.json").read_text(encoding="utf-8"))
    assert sidecar["Reconstruction"] == said
    assert (said["Method"], said["Views"], said["Evaluations"]) == ("network", 24, 2)
    assert said["Geometry"]["detectors"] == 64
    assert said["Grid"] == {"size": 48, "pixel_mm": 1.5}
    assert said["Noise"] == {"i0": 1e6, "seed": 0}
    assert 1e-4 < said["ExpectedRelativeNoise"] < 1e-2
    assert set(said["RelativeResidual"]) == {"start", "network", "result", "reference"}
    assert said["RelativeResidual"]["result"] < said["RelativeResidual"]["network"]
    assert said["AgainstReference"]["span_hu"] == 4096
    assert set(said["AgainstReference"]) == {"psnr_db", "mae_soft_hu", "span_hu", "psnr_on_grid_db"}  # too thin for SSIM
    assert record(by_network)["model"]["name"] == sidecar["Model"]["Name"] == "tiny-sparse"
    assert set(record(by_network)["cases"][0]["seconds"]) == {"read", "project", "reconstruct", "write"}
    assert any("1 cm" in text for text in sidecar["Warnings"])


def test_few_views_are_warned_of_on_the_terminal(cts: Path, geometry: Path, tmp_path: Path) -> None:
    assert "24 views do not show soft tissue" in run(cts, tmp_path, "--geometry", geometry, "--method", "fbp").stderr


def test_one_pass_is_one_evaluation_of_the_network(
    cts: Path, sparse: Path, geometry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    forward = SliceUNet.forward
    monkeypatch.setattr(SliceUNet, "forward", lambda self, x: calls.append(len(x)) or forward(self, x))
    run(cts, tmp_path, "--geometry", geometry, "--model", sparse, "--passes", "1")
    assert calls == [body.SHAPE[2]]
    assert case(tmp_path)["Evaluations"] == 1


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_slices_at_the_ends_of_a_batch_see_their_neighbours(
    passes: int, sparse: Path, geometry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each pass: what is cut into batches of three is what is not cut. In float32: in bfloat16 a batch's size changes roundings."""
    shape, cpu = (48, 40, 11), torch.device("cpu")
    scan = body.volume(body.affine_ras(body.SPACING_MM, shape), shape)
    grid, rays = sparse_ct.plane_grid(shape, scan.affine_ras), from_toml(geometry.read_text(encoding="utf-8"), "scan").geometry
    measured = measure.project(scan, grid, rays, measure.Noise(), cpu)
    acquisition = Acquisition(rays, ImageGrid(size=grid.size, pixel_mm=grid.pixel_mm))
    model = find_model(str(sparse), TASK)
    network = methods.load_network(model, model.weights_file(), cpu, passes)._replace(dtype=torch.float32)
    seen: list[int] = []
    network.generator.net.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    made: list[methods.Reconstruction] = []
    for batch in (11, 3):
        monkeypatch.setattr("medsynth.verbs.methods.BATCH", batch)
        made.append(methods.by_network(network, measured, acquisition))
    whole, cut = made
    assert whole.uncertainty_hu is not None
    assert cut.uncertainty_hu is not None
    assert (cut.image_hu - whole.image_hu).abs().max() < 1e-3
    assert (cut.uncertainty_hu - whole.uncertainty_hu).abs().max() < 1e-3
    assert cut.residuals == pytest.approx(whole.residuals, rel=1e-4)
    assert seen == passes * [11] + passes * [4, 5, 5, 3]  # each with a neighbour at each end, and none of them twice in a pass


@pytest.mark.parametrize("method", ["fbp", "sirt", "tv"])
def test_classical_methods_need_no_model_and_leave_no_map(method: str, cts: Path, geometry: Path, tmp_path: Path) -> None:
    run(cts, tmp_path / "out", "--geometry", geometry, "--method", method)
    assert not (tmp_path / "out" / "body_uncertainty.nii.gz").exists()
    said = case(tmp_path / "out")
    assert (said["Method"], said["Evaluations"]) == (method, 0)
    assert set(said["RelativeResidual"]) == {"result", "reference"}
    assert record(tmp_path / "out")["model"] is None
    assert json.loads((tmp_path / "out" / "body_ct.json").read_text(encoding="utf-8"))["Model"] is None


def test_tv_beats_sirt_and_sirt_beats_fbp_and_all_agree_with_the_data(cts: Path, geometry: Path, tmp_path: Path) -> None:
    figures: dict[str, dict[str, Any]] = {}
    for method in ("fbp", "sirt", "tv"):
        run(cts, tmp_path / method, "--geometry", geometry, "--method", method)
        figures[method] = case(tmp_path / method)
    psnr = [figures[method]["AgainstReference"]["psnr_db"] for method in ("fbp", "sirt", "tv")]
    assert psnr[0] + 1 < psnr[1] < psnr[2] - 1
    assert figures["tv"]["RelativeResidual"]["result"] < 3 * figures["tv"]["RelativeResidual"]["reference"]
    noise = figures["tv"]["ExpectedRelativeNoise"]
    assert noise < figures["tv"]["RelativeResidual"]["reference"]


def test_fbp_takes_more_views_than_a_matrix_holds(cts: Path, geometry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(cts, tmp_path / "plain", "--geometry", geometry, "--method", "fbp")
    monkeypatch.setattr("medsynth.verbs.measure.MATRIX_BYTES", 1e6)
    monkeypatch.setattr("medsynth.verbs.methods.MATRIX_LIMIT_BYTES", 1e3)
    monkeypatch.setattr("medsynth.physics.ct.MATRIX_LIMIT_BYTES", 1e6)
    run(cts, tmp_path / "blocks", "--geometry", geometry, "--method", "fbp")
    plain, blocks = (voxels(tmp_path / name / "body_ct.nii.gz").astype(int) for name in ("plain", "blocks"))
    assert np.abs(plain - blocks).max() <= 1
    assert case(tmp_path / "blocks")["RelativeResidual"] == {}


def test_a_second_run_skips_what_is_there_and_another_method_or_seed_does_not(cts: Path, geometry: Path, tmp_path: Path) -> None:
    options = (cts, tmp_path, "--geometry", geometry)
    for further, expected in (
        (("--method", "fbp"), "done"),
        (("--method", "fbp"), "skipped"),
        (("--method", "sirt"), "done"),
        (("--method", "fbp"), "done"),
        (("--method", "fbp", "--seed", "1"), "done"),
        (("--method", "fbp", "--seed", "1"), "skipped"),
        (("--method", "fbp", "--seed", "1", "--i0", "1e5"), "done"),
        (("--method", "fbp", "--seed", "1", "--i0", "1e5", "--overwrite"), "done"),
    ):
        run(*options, *further)
        assert status(tmp_path) == {"body": expected}, further


def test_another_geometry_or_a_lost_map_is_made_again(cts: Path, sparse: Path, tmp_path: Path) -> None:
    file = body.write_geometry(tmp_path / "scan.toml")
    options = (cts, tmp_path / "out", "--geometry", file, "--model", sparse)
    for change in (lambda: None, lambda: body.write_geometry(file, views=36), (tmp_path / "out" / "body_uncertainty.nii.gz").unlink):
        change()
        run(*options)
        assert status(tmp_path / "out") == {"body": "done"}
    run(*options)
    assert status(tmp_path / "out") == {"body": "skipped"}


def test_the_map_of_an_earlier_run_goes_with_it_and_a_map_of_another_program_stays(
    cts: Path, geometry: Path, by_network: Path, tmp_path: Path
) -> None:
    earlier, foreign = shutil.copytree(by_network, tmp_path / "earlier"), tmp_path / "foreign" / "body_uncertainty.nii.gz"
    foreign.parent.mkdir()
    foreign.write_bytes(b"of another program")
    for _ in range(2):  # the second time beside a sidecar that names no map
        run(cts, foreign.parent, "--geometry", geometry, "--method", "fbp", "--overwrite")
        assert foreign.read_bytes() == b"of another program"
    run(cts, earlier, "--geometry", geometry, "--method", "fbp")
    assert not (earlier / "body_uncertainty.nii.gz").exists()


def test_two_runs_give_the_same_bytes(cts: Path, sparse: Path, geometry: Path, by_network: Path, tmp_path: Path) -> None:
    run(cts, tmp_path / "again", "--geometry", geometry, "--model", sparse)
    assert contents(tmp_path / "again") == contents(by_network)


def test_the_noise_of_a_case_depends_on_the_seed_and_not_on_the_others(cts: Path, geometry: Path, tmp_path: Path) -> None:
    several = shutil.copytree(cts, tmp_path / "several")
    body.write_ct(several / "another.nii.gz", body.ct_hu() - 5)
    options = ("--geometry", geometry, "--method", "fbp")
    for name, source, further in (
        ("alone", cts, ()),
        ("beside", several, ()),
        ("seed", cts, ("--seed", "3")),
        ("none", cts, ("--noiseless",)),
    ):
        run(source, tmp_path / name, *options, *further)
    made = {name: voxels(tmp_path / name / "body_ct.nii.gz") for name in ("alone", "beside", "seed", "none")}
    assert np.array_equal(made["alone"], made["beside"])
    assert not np.array_equal(made["alone"], made["seed"])
    assert not np.array_equal(made["alone"], made["none"])
    assert case(tmp_path / "none")["Noise"] == {"noiseless": True}


def test_pixels_that_the_network_has_not_learned_are_warned_of(cts: Path, sparse: Path, geometry: Path, tmp_path: Path) -> None:
    shape, spacing_mm = (24, 20, 3), (2.2, 2.2, 3.0)
    affine = body.affine_ras(spacing_mm, shape)
    scan = body.write_ct(tmp_path / "body.nii.gz", body.ct_hu(affine, shape), affine)
    result = run(scan, tmp_path / "network", "--geometry", geometry, "--model", sparse)
    words = "pixels of 2.20 mm"
    assert words in result.stderr
    assert any(words in text for text in record(tmp_path / "network")["cases"][0]["warnings"])
    assert words not in run(scan, tmp_path / "tv", "--geometry", geometry, "--method", "tv").stderr


def test_a_mac_computes_on_its_processor_and_says_so(
    cts: Path, sparse: Path, geometry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its GPU has no products with sparse matrices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    result = run(cts, tmp_path / "auto", "--geometry", geometry, "--model", sparse)
    assert record(tmp_path / "auto")["device"] == "cpu"
    assert result.stderr.count("sparse matrices") == 1
    refused = medsynth("sparse-ct", cts, tmp_path / "mps", "--geometry", geometry, "--model", sparse, "--device", "mps")
    assert refused.exit_code == Exit.USAGE
    assert "E-DEVICE" in refused.stderr
    assert "--device cpu" in refused.stderr
    assert not (tmp_path / "mps").exists()


def test_figures_against_a_reference_are_those_of_whole_volumes_and_take_little_memory() -> None:
    rng = np.random.default_rng(0)
    reference = rng.uniform(-1500, 3500, (64, 65, 150)).astype(np.float32)
    reference[20:40] = rng.uniform(-200, 300, (20, 65, 150))
    result = (reference + rng.normal(0, 80, reference.shape)).astype(np.float32)
    tracemalloc.start()
    figures = truth.on_scan(reference, result)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    a, b = (np.maximum(array, -1000) for array in (reference, result))
    everywhere = np.ones(a.shape, dtype=bool)
    assert figures == {
        "psnr_db": pytest.approx(metrics.psnr(a, b, everywhere, top_hu=3072), abs=2e-6),
        "ssim": pytest.approx(metrics.ssim(a, b, everywhere, top_hu=3072), abs=2e-6),
        "mae_soft_hu": pytest.approx(metrics.mae(a, b, (a >= -160) & (a <= 240)), abs=2e-6),
        "span_hu": 4096,
    }
    assert peak < 6 * reference.nbytes


def test_one_bad_scan_does_not_stop_the_others(cts: Path, geometry: Path, tmp_path: Path) -> None:
    scans = shutil.copytree(cts, tmp_path / "in")
    (scans / "a broken.nii.gz").write_bytes(b"\x1f\x8b no gzip")
    body.write_ct(scans / "mr.nii.gz", body.ct_hu() + 1000)
    wide = np.full(body.SHAPE, -1000.0)
    wide[:, 2:-2] = 0
    body.write_ct(scans / "wide.nii.gz", wide, body.affine_ras((3.0, 3.0, 3.0)))
    result = medsynth("sparse-ct", scans, tmp_path / "out", "--geometry", geometry, "--method", "fbp")
    assert result.exit_code == Exit.PARTIAL
    assert status(tmp_path / "out") == {"a broken": "failed", "body": "done", "mr": "failed", "wide": "failed"}
    assert failures(tmp_path / "out") == {"a broken": "E-READ", "mr": "E-MODALITY", "wide": "E-FOV"}
    assert partial_files(tmp_path / "out") == []
    forced = medsynth("sparse-ct", scans / "wide.nii.gz", tmp_path / "forced", "--geometry", geometry, "--method", "fbp", "--force")
    assert forced.exit_code == 0
    assert "outside the field of view" in forced.stderr


def test_the_format_of_the_input_can_be_kept(cts: Path, geometry: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.ReadImage(cts / "body.nii.gz"), tmp_path / "in" / "body.mha")
    run(tmp_path / "in", tmp_path / "out", "--geometry", geometry, "--method", "fbp", "--format", "same")
    run(cts, tmp_path / "nifti", "--geometry", geometry, "--method", "fbp")
    kept = sitk.ReadImage(tmp_path / "out" / "body_ct.mha")
    assert np.array_equal(sitk.GetArrayFromImage(kept).T, voxels(tmp_path / "nifti" / "body_ct.nii.gz"))
    refused = medsynth("sparse-ct", cts, tmp_path / "no", "--geometry", geometry, "--method", "fbp", "--format", "dicom")
    assert failures(tmp_path / "no") == {"body": "E-FORMAT"}
    assert refused.exit_code == Exit.INPUT


def test_projecting_first_gives_what_projecting_on_the_way_does(
    cts: Path, sinograms: Path, sparse: Path, by_network: Path, tmp_path: Path
) -> None:
    run(sinograms, tmp_path, "--model", sparse)
    for name in ("body_ct.nii.gz", "body_uncertainty.nii.gz"):
        assert (tmp_path / name).read_bytes() == (by_network / name).read_bytes()
    said = case(tmp_path)
    assert said["Noise"] == {"measured": True}
    assert said["ExpectedRelativeNoise"] is None
    assert "AgainstReference" not in said
    assert "reference" not in said["RelativeResidual"]


def test_a_sinogram_alone_is_reconstructed_with_its_geometry(sinograms: Path, geometry: Path, tmp_path: Path) -> None:
    alone = shutil.copy(sinograms / "body_sino.npz", tmp_path / "alone.npz")
    result = run(alone, tmp_path / "out", "--geometry", geometry, "--method", "fbp", "--i0", "1e6")
    made = nib.load(tmp_path / "out" / "alone_ct.nii.gz")
    assert made.shape[2] == body.SHAPE[2]
    assert made.shape[0] * made.header.get_zooms()[0] == pytest.approx(105, abs=25)
    assert "no [image]" in result.stderr
    assert case(tmp_path / "out", "alone")["ExpectedRelativeNoise"] > 1e-4


def test_counts_become_line_integrals(sinograms: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sinograms, tmp_path / "in")
    with np.load(folder / "body_sino.npz") as file:
        integrals = file["sinogram"]
    np.savez(folder / "body_sino.npz", sinogram=1e6 * np.exp(-integrals))
    assert failures_of(folder, tmp_path / "as integrals") == "E-SINOGRAM"
    run(folder, tmp_path / "out", "--method", "fbp", "--counts", "--i0", "1e6")
    run(sinograms, tmp_path / "plain", "--method", "fbp")
    made, plain = (voxels(tmp_path / name / "body_ct.nii.gz").astype(int) for name in ("out", "plain"))
    assert np.abs(made - plain).max() <= 2
    assert case(tmp_path / "out")["Noise"] == {"measured": True, "i0": 1e6}
    assert failures_of(folder, tmp_path / "dim", "--counts", "--i0", "1e4") == "E-SINOGRAM"


def failures_of(source: Path, out: Path, *options: object) -> str:
    """The code of the only case, which fails."""
    assert medsynth("sparse-ct", source, out, "--method", "fbp", *options).exit_code in (Exit.INPUT, Exit.USAGE)
    (code,) = failures(out).values()
    return code


def changed(sinograms: Path, folder: Path, change: Any) -> Path:
    shutil.copytree(sinograms, folder)
    with np.load(folder / "body_sino.npz") as file:
        array = file["sinogram"].copy()
    np.savez(folder / "body_sino.npz", sinogram=change(array))
    return folder


def _set(place: Any, value: float) -> Any:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set((0, 3, 5), np.nan), "view 3, cell 5"),
        (_set((slice(None), 7), 0.0), "view 7 has"),
        (_set((slice(None), slice(None), 31), 0.0), "cell 31 has"),
        (lambda array: array[:, :-1], "does not fit 24 views of 64 cells"),
        (lambda array: array.transpose(0, 2, 1), "axes seem to be in another order"),
        (lambda array: array[:4], "has 4 slices, and the volume"),
    ],
)
def test_a_sinogram_that_cannot_be_is_named(change: Any, words: str, sinograms: Path, tmp_path: Path) -> None:
    folder = changed(sinograms, tmp_path / "in", change)
    assert failures_of(folder, tmp_path / "out") == "E-SINOGRAM"
    said = record(tmp_path / "out")["cases"][0]
    assert words in said["cause"] + said["remedy"]


def test_a_suspicious_sinogram_can_be_forced_with_a_warning(sinograms: Path, tmp_path: Path) -> None:
    folder = changed(sinograms, tmp_path / "in", _set((slice(None), 7), 0.0))
    assert "view 7 has the same value" in run(folder, tmp_path / "out", "--method", "sirt", "--force").stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'[geometry]\nbeam = "fan"\ndetectors = 64\npitch_mm = 3.0\nangles_deg = [{RADIANS}]\n', "radians"),
        ('[geometry]\nbeam = "fan"\nviews = 24\n', "detectors"),
        ("[geometry", "not TOML"),
    ],
)
def test_a_geometry_that_cannot_be_is_named(text: str, words: str, sinograms: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(text, encoding="utf-8")
    assert failures_of(sinograms, tmp_path / "out", "--geometry", tmp_path / "bad.toml") == "E-GEOMETRY"
    said = record(tmp_path / "out")["cases"][0]
    assert words in said["cause"]


def test_a_sinogram_without_geometry_is_named(sinograms: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(sinograms / "body_sino.npz", tmp_path / "in")
    assert failures_of(tmp_path / "in", tmp_path / "out") == "E-GEOMETRY"


def test_the_network_refuses_views_that_it_has_not_learned(cts: Path, sparse: Path, geometry: Path, tmp_path: Path) -> None:
    many, parts = body.write_geometry(tmp_path / "many.toml", views=48), tmp_path / "parts.toml"
    text = geometry.read_text(encoding="utf-8")
    parts.write_text(text.replace("views = 24", f"angles_deg = {[7.5 * view for view in range(24)]}"), encoding="utf-8")
    parallel = tmp_path / "parallel.toml"
    parallel.write_text(text.replace('"fan"', '"parallel"').replace("3.0", "1.7"), encoding="utf-8")
    for file in (many, parts, parallel):
        result = medsynth("sparse-ct", cts, tmp_path / "out", "--geometry", file, "--model", sparse)
        assert result.exit_code == Exit.USAGE
        assert "E-VIEWS" in result.stderr
        assert "--method tv" in result.stderr
        assert not (tmp_path / "out").exists()
        run(cts, tmp_path / file.stem, "--geometry", file, "--method", "sirt")
    between = body.write_geometry(tmp_path / "between.toml", views=30)
    assert "the model learned from 18, 24, 36 views" in run(cts, tmp_path / "30", "--geometry", between, "--model", sparse).stderr


def test_views_of_a_sinogram_that_the_network_has_not_learned_are_its_own_failure(cts: Path, sparse: Path, tmp_path: Path) -> None:
    many = body.write_geometry(tmp_path / "many.toml", views=48)
    assert medsynth("project", cts, tmp_path / "in", "--geometry", many).exit_code == 0
    assert medsynth("sparse-ct", tmp_path / "in", tmp_path / "out", "--model", sparse).exit_code == Exit.USAGE
    assert failures(tmp_path / "out") == {"body": "E-VIEWS"}


def test_fbp_of_a_part_of_a_turn_is_refused(cts: Path, geometry: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.toml"
    text = geometry.read_text(encoding="utf-8")
    part.write_text(text.replace("views = 24", f"angles_deg = {[7.5 * view for view in range(24)]}"), encoding="utf-8")
    assert failures_of(cts, tmp_path / "out", "--geometry", part) == "E-VIEWS"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--views 36"),
        (("--views", "18", "--geometry", "GEOMETRY"), "one of the two"),
        (("--views", "18", "--counts"), "--counts is for sinograms"),
        (("--views", "18", "--noiseless", "--seed", "3"), "--noiseless"),
        (("--views", "18", "--noiseless", "--i0", "1e5"), "--noiseless"),
        (("--views", "18", "--method", "tv", "--passes", "2"), "--passes is for the network"),
        (("--views", "18", "--method", "tv", "--model", "MODEL"), "--model is for the network"),
        (("SINO", "--views", "18"), "--views is for CT volumes"),
        (("SINO", "--seed", "1"), "--seed is for CT volumes"),
        (("SINO", "--noiseless"), "--noiseless is for CT volumes"),
        (("SINO", "--trust", "sform"), "--trust is for CT volumes"),
        (("SINO", "--volume", "0"), "--volume is for CT volumes"),
        (("SINO", "--allow-gaps"), "--allow-gaps is for CT volumes"),
        (("SINO", "--format", "same"), "--format same"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_do_not_go_together_are_refused(
    options: tuple[str, ...], words: str, cts: Path, sinograms: Path, sparse: Path, geometry: Path, tmp_path: Path
) -> None:
    source = sinograms if "SINO" in options else cts
    places = {"GEOMETRY": geometry, "MODEL": sparse}
    given = [places.get(option, option) for option in options if option != "SINO"]
    method = () if "--method" in options else ("--method", "fbp")
    result = medsynth("sparse-ct", source, tmp_path / "out", *given, *method)
    assert result.exit_code == Exit.USAGE, result.output
    assert "E-OPTION" in result.stderr
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_scans_and_sinograms_in_one_folder_are_two_runs(cts: Path, sinograms: Path, geometry: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sinograms, tmp_path / "in")
    shutil.copy(cts / "body.nii.gz", folder)
    result = medsynth("sparse-ct", folder, tmp_path / "out", "--geometry", geometry, "--method", "fbp")
    assert result.exit_code == Exit.USAGE
    assert "1 scans and 1 sinograms" in result.stderr


def test_results_inside_the_folder_of_scans_or_sinograms_are_no_input(cts: Path, sinograms: Path, geometry: Path, tmp_path: Path) -> None:
    scans, measured = shutil.copytree(cts, tmp_path / "in"), shutil.copytree(sinograms, tmp_path / "sino")
    for expected in ("done", "skipped"):
        run(scans, scans / "out", "--geometry", geometry, "--method", "fbp")
        assert status(scans / "out") == {"body": expected}
        run(measured, measured / "out", "--method", "fbp")
        assert status(measured / "out") == {"body": expected}
    assert "E-OUTPUT" in medsynth("sparse-ct", scans, scans, "--geometry", geometry, "--method", "fbp").stderr


def test_a_model_of_another_task_is_refused(cts: Path, model: Path, tmp_path: Path) -> None:
    result = medsynth("sparse-ct", cts, tmp_path, "--views", "24", "--model", model)
    assert (result.exit_code, "E-MODEL" in result.stderr) == (Exit.USAGE, True)


def test_no_path_is_in_the_record_and_the_sidecar(cts: Path, geometry: Path, tmp_path: Path) -> None:
    secret = shutil.copytree(cts, tmp_path / "folder-of-the-user")
    run(secret, tmp_path / "out", "--geometry", geometry, "--method", "fbp")
    for name in ("run.json", "body_ct.json"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "folder-of-the-user" not in text
        assert str(geometry.parent) not in text


def test_eval_compares_the_results_and_passes_over_the_maps(cts: Path, by_network: Path) -> None:
    result = medsynth("eval", "--ref", cts, "--pred", by_network, "--json", "--profile", "synthrad2023")
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [row["case"] for row in report["rows"]] == ["body"]
    assert report["unpaired"] == []


def test_a_real_slab_is_reconstructed_as_well_as_the_recipe_says(shared_data: Path, tmp_path: Path) -> None:
    """TV at 36 views: about 40 dB on such scans."""
    scan = nib.load(shared_data / "ct" / "abdomenpelvis_TCGA-BC-A10W_1p5mm.nii.gz").slicer[:, :, 24:27]
    nib.save(scan, tmp_path / "abdomen.nii.gz")
    run(tmp_path / "abdomen.nii.gz", tmp_path / "out", "--views", "36", "--method", "tv")
    said = case(tmp_path / "out", "abdomen")
    assert said["AgainstReference"]["psnr_db"] > 40
    assert said["RelativeResidual"]["result"] < 1.2 * said["ExpectedRelativeNoise"]
    assert said["RelativeResidual"]["reference"] < 1.2 * said["ExpectedRelativeNoise"]


def test_without_options_the_default_is_the_network_that_ships(cts: Path, tmp_path: Path) -> None:
    run(cts, tmp_path / "out", "--views", 18)
    made = case(tmp_path / "out")
    assert (made["Method"], made["Evaluations"]) == ("network", 3)
    assert record(tmp_path / "out")["model"]["name"] == "sparse-ct"
