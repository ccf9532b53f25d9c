"""Colours of attention: what gets the same colour, and that nothing else decides it."""

import torch

from pcea.visualization.color_basis import color_tokens, fit_color_basis


def test_tokens_that_deviate_alike_have_the_same_color():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, 16, generator=generator).softmax(1)
    kind = torch.arange(40) % 4
    colors = color_tokens(kinds[kind], fit_color_basis([kinds[kind]]))
    assert colors.shape == (40, 3)
    assert ((colors > 0) & (colors < 1)).all()
    centers = torch.stack([colors[kind == k].mean(0) for k in range(4)])
    assert (colors - centers[kind]).abs().max() < 1e-5
    assert torch.pdist(centers).min() > 0.2


def test_what_all_tokens_have_in_common_does_not_matter():
    weights = torch.rand(30, 8, generator=torch.Generator().manual_seed(1)) + 0.1
    preference = torch.rand(8, generator=torch.Generator().manual_seed(2)) + 0.1
    for changed in (weights * preference, weights * 7):
        basis = fit_color_basis([changed])
        torch.testing.assert_close(color_tokens(changed, basis), color_tokens(weights, fit_color_basis([weights])))


def test_the_basis_is_the_principal_components_over_all_clouds():
    clouds = [torch.rand(m, 5, generator=torch.Generator().manual_seed(m)).softmax(1) for m in (20, 33)]
    basis = fit_color_basis(clouds)
    deviations = torch.cat([cloud.log() - cloud.log().mean(0) for cloud in clouds])
    along = deviations @ basis.T
    torch.testing.assert_close(along.T @ along / len(along), torch.eye(3), atol=1e-4, rtol=0)
    left_over = deviations - along @ torch.linalg.pinv(basis.T)
    smallest = torch.linalg.eigvalsh(deviations.T.double() @ deviations.double())[:2].sum()
    torch.testing.assert_close(left_over.double().square().sum(), smallest, atol=0, rtol=1e-3)


def test_attention_that_never_deviates_is_grey():
    for weights in (torch.full((9, 6), 1 / 6), torch.ones(9, 1), torch.rand(1, 6)):
        assert (color_tokens(weights, fit_color_basis([weights])) == 0.5).all()


def test_vanishing_weights_do_not_decide_everything():
    weights = torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) + 0.1
    weights[3, 2], vanished = 1e-6, weights.clone()
    vanished[3, 2] = 0
    basis = fit_color_basis([vanished])
    assert basis.isfinite().all()
    torch.testing.assert_close(basis, fit_color_basis([weights]))
