"""A network with its BatchNorm folded computes the same, and the network stays as it was."""

import pytest
import torch
from torch import Tensor, nn

from trainers.networks.backbones import build
from trainers.networks.folding import fold_batchnorm


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenetv3_small_050", "regnetx_002"])
def test_the_folded_network_computes_the_same(name: str, one_thread: None) -> None:
    torch.manual_seed(0)
    model = build(name, 5)
    model(torch.rand(4, 3, 32, 32))  # statistics that are not 0 and 1
    model.eval()
    images_BCHW = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        before, folded = model(images_BCHW), fold_batchnorm(model)
        torch.testing.assert_close(folded(images_BCHW), before, rtol=1e-3, atol=1e-4)
        assert torch.equal(model(images_BCHW), before)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


def test_a_network_that_looks_at_its_inputs_stays() -> None:
    class Choosing(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs if inputs.sum() > 0 else -inputs

    model = nn.Sequential(nn.BatchNorm2d(3), Choosing()).eval()
    assert fold_batchnorm(model) is model


def test_a_network_without_batchnorm_is_not_copied() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)).eval()
    assert fold_batchnorm(model) is model
