"""LeNet-5, the lecture's first network, which torchvision lacks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LeNet5(nn.Module):
    """Two convolutions and three dense layers, tanh between them (LeCun et al., 1998).

    The original takes one channel of 32x32 pixels; this one takes RGB of 32x32 or more, pooled to
    the 5x5 maps of 32 pixels. Its second convolution has all connections, and its output is linear
    where the original compares with drawn digits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, kernel_size=5)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.dense1 = nn.Linear(16 * 5 * 5, 120)
        self.dense2 = nn.Linear(120, 84)
        self.head = nn.Linear(84, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        maps_BCHW = F.avg_pool2d(torch.tanh(self.conv1(images_BCHW)), 2)
        maps_BCHW = F.avg_pool2d(torch.tanh(self.conv2(maps_BCHW)), 2)
        features_BD = F.adaptive_avg_pool2d(maps_BCHW, 5).flatten(1)
        features_BD = torch.tanh(self.dense1(features_BD))
        features_BD = torch.tanh(self.dense2(features_BD))
        return self.head(features_BD)
