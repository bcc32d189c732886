"""Flips and affine maps of volumes: exact where they must be, and SciPy's where they interpolate."""

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from oct.augment import place
from oct.move import flip, passes, resample
from oct.sections import AugmentConfig

BOX = torch.tensor([[[0, 6], [2, 9], [1, 8]], [[1, 8], [0, 9], [0, 10]]], dtype=torch.int32)


def field(shape=(2, 8, 9, 10)) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("axis", [0, 2])
def test_a_flip_mirrors_the_image_inside_its_box_of_the_chosen_volumes(axis):
    x = field()
    out = flip(x, BOX, axis, torch.tensor([True, False]))
    assert torch.equal(out[1], x[1])
    expected = x[0].clone()
    first, last = BOX[0, axis].tolist()
    part = [slice(None)] * 3
    part[axis] = slice(first, last)
    expected[tuple(part)] = x[0][tuple(part)].flip(axis)
    assert torch.equal(out[0], expected)
    assert torch.equal(flip(out, BOX, axis, torch.tensor([True, False])), x)


def test_the_identity_changes_nothing_inside_and_leaves_0_outside():
    x, a = field(), torch.eye(3).expand(2, 3, 3)
    out, mask = resample(x, BOX, a, torch.zeros(2, 3))
    for volume, moved, seen, box in zip(x, out, mask, BOX, strict=True):
        inside = np.zeros(volume.shape, bool)
        inside[tuple(slice(first, last) for first, last in box.tolist())] = True
        assert np.array_equal(seen.numpy() > 0, inside)
        assert np.array_equal(moved.numpy(), np.where(inside, volume.numpy(), 0))


def some_maps(count: int = 6):
    """Maps as augmentation draws them, on the defaults made stronger, of one box in the middle of a large volume."""
    config = AugmentConfig(degrees=8, translate=0.05, scale=0.1, crop=[0.8, 1.0])
    box = torch.tensor([[2, 22], [4, 44], [0, 40]], dtype=torch.int32).expand(count, 3, 2)
    draws = torch.rand(count, 17, generator=torch.Generator().manual_seed(1))
    return box, *place(draws, box, (0.05, 0.02, 0.02), config)


def test_a_map_of_a_linear_field_is_exact():
    """Linear interpolation of z, y and x themselves gives the coordinates A p + b, in float64 NumPy."""
    box, a, b = some_maps()
    shape = (24, 48, 40)
    grids = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij"))
    index = np.moveaxis(np.indices(shape), 0, -1)
    inner = []
    for axis in range(3):
        out, mask = resample(grids[axis].expand(len(a), *shape), box, a, b)
        for i in range(len(a)):
            q = index @ a[i].double().numpy().T + b[i].double().numpy()
            low, high = box[i].numpy().T
            at_edges = (q >= low - 0.5) & (q < high - 0.5)
            # two voxels from the box's sides, where lines of a pass end
            well_inside = ((q >= low + 2) & (q <= high - 3)).all(-1)
            clear = (np.abs(q - (low - 0.5)) > 1e-4).all(-1) & (np.abs(q - (high - 0.5)) > 1e-4).all(-1)
            assert np.array_equal(mask[i].numpy()[clear] > 0, at_edges.all(-1)[clear])
            assert np.abs(out[i].numpy() - q[..., axis])[well_inside].max() < 2e-3
            inner.append(well_inside.mean())
    assert min(inner) > 0.3


def test_a_map_of_a_smooth_volume_is_scipys_within_the_error_of_interpolation():
    box, a, b = some_maps()
    shape = (24, 48, 40)
    z, y, x = np.indices(shape) / np.array(shape).reshape(3, 1, 1, 1)
    volume = np.sin(4 * y + 2 * x) + np.cos(3 * z + x)
    out, _ = resample(torch.from_numpy(volume).float().expand(len(a), *shape), box, a, b)
    for i in range(len(a)):
        expected = affine_transform(volume, a[i].double().numpy(), b[i].double().numpy(), order=1)
        q = np.moveaxis(np.indices(shape), 0, -1) @ a[i].double().numpy().T + b[i].double().numpy()
        low, high = box[i].numpy().T
        well_inside = ((q >= low + 2) & (q <= high - 3)).all(-1)
        assert np.abs(out[i].numpy() - expected)[well_inside].max() < 5e-3


def test_the_passes_one_after_another_are_the_map():
    _, a, b = some_maps()
    along_x, along_y, along_z = (c.double() for c in passes(a.double(), b.double()))
    p = torch.tensor([3.0, 5.0, 7.0], dtype=torch.float64)
    z = along_z[:, :3] @ p + along_z[:, 3]
    y = along_y[:, 0] * z + along_y[:, 1:3] @ p[1:] + along_y[:, 3]
    x = along_x[:, 0] * z + along_x[:, 1] * y + along_x[:, 2] * p[2] + along_x[:, 3]
    assert torch.allclose(torch.stack([z, y, x], dim=1), a.double() @ p + b.double(), atol=1e-9)
