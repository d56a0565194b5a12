"""The projector: its laws, ellipses whose line integrals are known, filtered backprojection, and ITK-RTK as an independent judge."""

from collections.abc import Iterator

import ellipses
import pytest
import torch
from ellipses import BODY, Ellipse, relative
from torch import Tensor

from medsynth.core.errors import OutOfMemoryError, ScanError, UsageError
from medsynth.physics.cone import centred_detector
from medsynth.physics.ct import KEPT_BYTES, Projector, attenuation, hu_to_mu, keep_projectors, mu_to_hu, projector, relative_residual
from medsynth.physics.geometry import Geometry, ImageGrid, fan, parallel
from medsynth.physics.rtk import detector_stack, load

GRID = ImageGrid(size=256, pixel_mm=0.95)
SMALL = ImageGrid(size=48, pixel_mm=4)
SEVERAL = [
    fan(9, detectors=120, pitch_mm=4),
    parallel(9, detectors=120, pitch_mm=2),
    fan(9, detectors=120, pitch_mm=4, detector_offset_mm=13.7),
    parallel(9, detectors=120, pitch_mm=2, detector_offset_mm=-7.3),
    Geometry(beam="fan", angles_deg=(0, 45, 90, 221.3), detectors=50, pitch_mm=3),
]
FULL_SIZE = [
    fan(720, detectors=480),
    parallel(720, detectors=400),
    fan(720, detectors=480, detector_offset_mm=17.3),
]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("geometry", SEVERAL)
def test_the_adjoint_is_the_transposed(geometry: Geometry) -> None:
    operator = Projector(geometry, SMALL)
    image, sinogram = drawn(3, 48, 48), drawn(3, geometry.views, geometry.detectors, seed=1)
    there = (operator.forward(image) * sinogram).double().sum((1, 2))
    back = (image * operator.adjoint(sinogram)).double().sum((1, 2))
    scale = operator.forward(image).norm() * sinogram.norm()
    assert ((there - back).abs() / scale).max() < 1e-6
    torch.testing.assert_close(there, back, rtol=1e-5, atol=1e-5 * float(there.abs().max()))


@pytest.mark.parametrize("geometry", SEVERAL[:2])
def test_the_operator_is_linear_and_slices_do_not_mix(geometry: Geometry) -> None:
    operator = Projector(geometry, SMALL)
    a, b = drawn(2, 48, 48), drawn(2, 48, 48, seed=1)
    torch.testing.assert_close(operator.forward(2 * a - b), 2 * operator.forward(a) - operator.forward(b), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(operator.forward(torch.cat([a, b]))[2:], operator.forward(b), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("geometry", SEVERAL[:2])
def test_the_gradient_is_the_adjoint_and_the_other_way_round(geometry: Geometry) -> None:
    operator = Projector(geometry, SMALL)
    image = drawn(2, 48, 48).requires_grad_()
    sinogram = drawn(2, geometry.views, geometry.detectors, seed=1).requires_grad_()
    (of_forward,) = torch.autograd.grad((operator.forward(image) * sinogram.detach()).sum(), image)
    torch.testing.assert_close(of_forward, operator.adjoint(sinogram.detach()))
    (of_adjoint,) = torch.autograd.grad((operator.adjoint(sinogram) * image.detach()).sum(), sinogram)
    torch.testing.assert_close(of_adjoint, operator.forward(image.detach()))


def test_the_gradient_of_a_squared_residual_can_itself_be_differentiated() -> None:
    operator = Projector(SEVERAL[0], SMALL)
    image = drawn(1, 48, 48).requires_grad_()
    (gradient,) = torch.autograd.grad(operator.forward(image).square().sum() / 2, image, create_graph=True)
    (curved,) = torch.autograd.grad(gradient.square().sum() / 2, image)
    twice = operator.adjoint(operator.forward(gradient.detach()))
    torch.testing.assert_close(curved, twice, rtol=1e-4, atol=1e-4 * float(twice.abs().max()))


def test_matrices_made_without_gradients_serve_training_later() -> None:
    operator = Projector(SEVERAL[0], SMALL)
    with torch.inference_mode():
        operator.fbp(operator.forward(drawn(1, 48, 48)))
    image = drawn(1, 48, 48).requires_grad_()
    operator.fbp(operator.forward(image)).square().sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_half_precision_outside_is_computed_in_single() -> None:
    operator, image = Projector(SEVERAL[0], SMALL), drawn(1, 48, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(operator.forward(image), operator.forward(image).float())
        rounded = image.bfloat16().requires_grad_()
        sinogram = operator.forward(rounded)
        sinogram.sum().backward()
        assert operator.fbp(sinogram).dtype == sinogram.dtype == torch.float32
    assert rounded.grad is not None
    assert rounded.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "geometry",
    [
        fan(18, detectors=480),
        parallel(18, detectors=400),
        fan(18, detectors=480, detector_offset_mm=17.3),
        parallel(18, detectors=400, detector_offset_mm=-9.1),
    ],
)
def test_line_integrals_are_those_of_the_formula(geometry: Geometry) -> None:
    """One percent is the bar; half of it is what pixels of this size allow. A wrong sign of any axis or angle gives 20 percent and more."""
    assert relative(projector(geometry, GRID).forward(ellipses.image(GRID)), ellipses.sinogram(geometry)) < 0.005


def test_a_ray_through_the_middle_row_counts_its_pixels() -> None:
    operator = Projector(Geometry(beam="parallel", angles_deg=(0, 90, 37), detectors=1, pitch_mm=1), ImageGrid(size=11, pixel_mm=2))
    image = torch.zeros(1, 11, 11)
    image[0, 5] = 3
    lengths = operator.forward(image)[0, :, 0]
    assert lengths[0].item() == pytest.approx(3 * 11 * 2)  # the row runs along x, as the ray at 0 degrees does
    assert lengths[1].item() == pytest.approx(3 * 2)
    assert operator.ray_lengths_mm[:2, 0].tolist() == pytest.approx([22, 22])


@pytest.mark.parametrize("make", [fan, parallel])
def test_an_offset_of_whole_cells_shifts_the_sinogram(make: type[Geometry]) -> None:
    pitch, image = 2.0, ellipses.image(SMALL)
    plain = Projector(make(5, detectors=200, pitch_mm=pitch), SMALL).forward(image)
    shifted = Projector(make(5, detectors=200, pitch_mm=pitch, detector_offset_mm=3 * pitch), SMALL).forward(image)
    torch.testing.assert_close(shifted[..., :-3], plain[..., 3:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("geometry", FULL_SIZE)
def test_fbp_of_many_noiseless_views_is_the_image(geometry: Geometry) -> None:
    difference = mu_to_hu(projector(geometry, GRID).fbp(ellipses.sinogram(geometry))) - mu_to_hu(ellipses.image(GRID))
    body = difference[0][ellipses.inside(GRID, BODY[0])]
    assert body.square().mean().sqrt() < 15
    assert body.mean().abs() < 1


@pytest.mark.parametrize("window", ["hann", "hann-pixel"])
def test_a_window_takes_noise_and_keeps_what_is_flat(window: str) -> None:
    geometry = fan(180, detectors=240, pitch_mm=2.5716)
    grid = ImageGrid(size=128, pixel_mm=1.9)
    operator, clean = Projector(geometry, grid), ellipses.sinogram(geometry, BODY[:1])
    noisy = clean + 0.01 * drawn(*clean.shape)
    flat = ellipses.inside(grid, BODY[0], 0.8)
    plain, smooth = (mu_to_hu(operator.fbp(noisy, name))[0][flat] for name in ("ram-lak", window))  # pyright: ignore[reportArgumentType]
    assert smooth.std() < 0.7 * plain.std()
    assert smooth.mean().abs() < 2


def test_many_views_are_backprojected_in_blocks_to_the_same_image(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = SEVERAL[2]
    sinogram = drawn(2, geometry.views, geometry.detectors)
    at_once = Projector(geometry, SMALL).fbp(sinogram)
    monkeypatch.setattr("medsynth.physics.ct.BACKPROJECTION_KEPT_BYTES", 0)
    monkeypatch.setattr("medsynth.physics.ct.BACKPROJECTION_BLOCK_BYTES", 4 * 8 * 2 * 48**2)
    torch.testing.assert_close(Projector(geometry, SMALL).fbp(sinogram), at_once, rtol=1e-4, atol=1e-4 * float(at_once.abs().max()))


def test_order_and_start_of_the_views_do_not_matter_to_fbp() -> None:
    plain = parallel(6, detectors=120, pitch_mm=2)
    turned = plain.model_copy(update={"angles_deg": tuple(plain.angles_deg[i] + 180 * (i % 2) for i in (3, 1, 5, 0, 2, 4))})
    assert turned.is_complete
    images = [Projector(geometry, SMALL).fbp(ellipses.sinogram(geometry)) for geometry in (plain, turned)]
    torch.testing.assert_close(images[1], images[0], rtol=1e-3, atol=1e-4)


def test_a_short_scan_is_refused_by_fbp_with_what_takes_it() -> None:
    short = Geometry(beam="fan", angles_deg=tuple(float(a) for a in range(0, 220, 20)), detectors=50, pitch_mm=3)
    with pytest.raises(UsageError, match=r"(?s)E-VIEWS.*SIRT or TV"):
        Projector(short, SMALL).fbp(torch.zeros(1, 11, 50))


def test_a_sinogram_of_another_geometry_is_refused() -> None:
    with pytest.raises(ScanError, match="E-SINOGRAM"):
        Projector(SEVERAL[0], SMALL).fbp(torch.zeros(1, 9, 119))


def test_a_matrix_that_memory_cannot_hold_is_refused_before_it_is_built() -> None:
    operator = Projector(fan(720), ImageGrid(size=512, pixel_mm=0.9))
    with pytest.raises(OutOfMemoryError, match="E-MEM"):
        operator.forward(torch.zeros(1, 512, 512))


def test_hu_and_mu_lead_back_to_each_other() -> None:
    hu = torch.linspace(-1100, 3500, 4601, dtype=torch.float64)
    torch.testing.assert_close(mu_to_hu(hu_to_mu(hu)), hu, rtol=1e-12, atol=1e-9)
    mu = torch.linspace(-0.001, 0.1, 1000, dtype=torch.float64)
    torch.testing.assert_close(hu_to_mu(mu_to_hu(mu)), mu, rtol=1e-12, atol=1e-15)
    assert hu_to_mu(torch.tensor([-1000.0, 0.0])).tolist() == pytest.approx([0, 0.0192])
    assert attenuation(torch.tensor([-1024.0, 1000.0])).tolist() == pytest.approx([0, 0.0384])


def test_the_residual_is_that_of_each_slice() -> None:
    operator, image = Projector(SEVERAL[0], SMALL), drawn(2, 48, 48)
    sinogram = operator.forward(image).clone()
    sinogram[1] *= 2
    torch.testing.assert_close(relative_residual(operator, image, sinogram), torch.tensor([0.0, 0.5]), rtol=1e-4, atol=1e-6)


@pytest.fixture
def none_kept() -> Iterator[None]:
    """No projector of another test, and none is left for the next one."""
    keep_projectors(0)
    keep_projectors()
    yield
    keep_projectors(0)
    keep_projectors()


def test_a_projector_is_made_once_and_given_up_when_others_need_the_memory(none_kept: None) -> None:
    few, more, most = (fan(views, detectors=100) for views in (3, 4, 5))
    first = projector(few, SMALL)
    first.forward(torch.zeros(1, 48, 48))
    assert projector(few, SMALL) is first
    keep_projectors(2.5 * first.held_bytes)
    second = projector(more, SMALL)
    second.forward(torch.zeros(1, 48, 48))
    assert projector(few, SMALL) is first  # used last, so the other one goes
    projector(most, SMALL).forward(torch.zeros(1, 48, 48))
    assert projector(few, SMALL) is first
    assert projector(more, SMALL) is not second


def test_a_lower_limit_gives_projectors_up_at_once_and_none_of_the_last_one(none_kept: None) -> None:
    first, second = (projector(fan(views, detectors=100), SMALL) for views in (3, 4))
    for each in (first, second):
        each.forward(torch.zeros(1, 48, 48))
    keep_projectors(1.5 * second.held_bytes)
    assert projector(fan(4, detectors=100), SMALL) is second
    assert projector(fan(3, detectors=100), SMALL) is not first


def test_projectors_of_a_folder_of_varied_scans_leave_memory_for_a_machine_of_8_gb() -> None:
    assert KEPT_BYTES <= 1.5e9


@pytest.mark.parametrize("geometry", [fan(18, detectors=480), parallel(18, detectors=400), fan(18, detectors=480, detector_offset_mm=17.3)])
def test_itk_rtk_projects_the_same(geometry: Geometry) -> None:
    """RTK's own Joseph filter through a volume of equal slices; its z, x are our x, y, and its rotation runs from z to x."""
    try:
        itk, rtk = load()
    except UsageError as error:
        pytest.skip(error.cause)
    image = ellipses.image(GRID, (*BODY, Ellipse(60, 30, 8, 14, 20, 0.01)))
    volume = itk.image_from_array(image[0].T[:, None].repeat(1, 5, 1).contiguous().numpy())
    middle = (GRID.size - 1) / 2 * GRID.pixel_mm
    volume.SetSpacing([GRID.pixel_mm, 50.0, GRID.pixel_mm])
    volume.SetOrigin([-middle, -100.0, -middle])
    rotation = rtk.ThreeDCircularProjectionGeometry.New()
    distance = geometry.source_to_detector_mm if geometry.beam == "fan" else 0.0
    for angle in geometry.angles_deg:
        rotation.AddProjection(geometry.source_to_isocentre_mm, distance, angle, geometry.detector_offset_mm)
    empty = torch.zeros(geometry.views, 1, geometry.detectors).numpy()
    project = rtk.JosephForwardProjectionImageFilter[type(volume), type(volume)].New()
    project.SetInput(0, detector_stack(empty, centred_detector((geometry.detectors, 1), (geometry.pitch_mm, 1.0))))
    project.SetInput(1, volume)
    project.SetGeometry(rotation)
    project.Update()
    theirs = torch.from_numpy(itk.array_from_image(project.GetOutput())[:, 0].copy())[None]
    assert relative(projector(geometry, GRID).forward(image), theirs) < 0.005


@pytest.mark.parametrize(("views", "sizes"), [(18, [3] * 6), (20, [4, 3, 4, 3, 3, 3]), (8, [4, 4]), (2, [2])])
def test_subsets_share_out_all_views(views: int, sizes: list[int]) -> None:
    operator = Projector(fan(views), ImageGrid(size=32, pixel_mm=6.0))
    image = torch.rand(2, 32, 32)
    whole, parts = operator.forward(image), operator.subsets
    assert [len(range(views)[chosen]) for chosen, _ in parts] == sizes
    assert sorted(view for chosen, _ in parts for view in range(views)[chosen]) == list(range(views))
    for chosen, part in parts:
        torch.testing.assert_close(part.forward(image), whole[:, chosen])
    held = operator.held_bytes
    assert held > sum(part.held_bytes for _, part in parts) > 0
