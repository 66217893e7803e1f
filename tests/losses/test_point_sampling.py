import torch

from workbench.losses.point_sampling import point_sample, uncertain_points


def test_a_pixel_centre_reads_that_pixel():
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    centres = torch.tensor([[(x + 0.5) / 4, (y + 0.5) / 3] for y in range(3) for x in range(4)])
    torch.testing.assert_close(point_sample(maps, centres[None]).flatten(), torch.arange(12.0))


def test_between_two_pixels_reads_their_mean_and_outside_reads_zero():
    maps = torch.tensor([[[[2.0, 4.0]]]])
    points = torch.tensor([[[0.5, 0.5], [-3.0, 0.5]]])
    torch.testing.assert_close(point_sample(maps, points).flatten(), torch.tensor([3.0, 0.0]))


def test_the_points_nearest_the_boundary_are_kept():
    logits = (torch.arange(100.0) - 49.5).repeat(100, 1)[None, None]  # zero at x = 0.5
    candidates = torch.rand(1, 200, 2, generator=torch.Generator().manual_seed(0))
    extra = torch.full((1, 3, 2), 0.9)
    points = uncertain_points(logits, candidates, extra, keep=20)
    assert points.shape == (1, 23, 2)
    distance = (points[0, :20, 0] - 0.5).abs()
    rejected = sorted((candidates[0, :, 0] - 0.5).abs().tolist())[20:]
    assert distance.max() <= rejected[0] + 1e-6
    assert torch.equal(points[:, 20:], extra)
