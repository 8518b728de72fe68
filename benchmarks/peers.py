"""The networks that the benchmarks compare with, beside the published graph."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from hcnn.bench import COMPETITORS
from hcnn.conv5d import layer_sizes
from hcnn.factorized import fold
from hcnn.network import DEPTH, HCNN


def channels_last(config):
    """The published graph with q last in memory: the factorized engine."""
    return HCNN(config, "factorized")


class Conv3dLoop(nn.Module):
    """The filters w_{v_j} themselves, in four dimensions as a loop of conv3d.

    Filters and bias maps are those of the folded network, and all are
    trained. Public packages make a four-dimensional convolution so.
    """

    def __init__(self, own):
        super().__init__()
        self.W1, self.W2 = copy.deepcopy(own.W1), copy.deepcopy(own.W2)
        self.strides = []
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for j in range(3, DEPTH):
            layer = getattr(own, f"W{j}")
            with torch.no_grad():
                weight, bias_map = fold(
                    layer, own.config.K // 2, own.config.K
                )
            self.weights.append(weight)
            self.biases.append(bias_map)
            self.strides.append(layer.stride)

    def forward(self, images):
        x_1, W2 = F.elu(self.W1(images)), self.W2
        z = conv4d(x_1[:, None], W2.weight[:, None], W2.stride)
        x = F.elu(z + W2.bias[:, None, None])
        layers = zip(self.weights, self.biases, self.strides, strict=True)
        for weight, bias_map, stride in layers:
            z = conv4d(x.mean(1), weight, stride)
            x = F.elu(z + bias_map[..., None, None])
        return x.mean((1, 2, 4, 5))


def conv4d(mean, weight, stride):
    """n b c h w -> n b2 c2 d h2 w2: for each b2 a sum over the taps along b."""
    b, s1, s2 = mean.shape[1], *weight.shape[1:3]
    rows = []
    for i in range(0, b, 2):
        first = i - s1 // 2
        taps = range(max(0, -first), min(s1, b - first))
        rows.append(
            sum(
                F.conv3d(
                    mean[:, None, first + t],
                    weight[:, None, t],
                    stride=(2, stride, stride),
                    padding=(s2 // 2, 1, 1),
                )
                for t in taps
            )
        )
    return torch.stack(rows, 1).transpose(2, 3)


class Unstructured(nn.Module):
    """Conv2d layers of the same channels, each connected to all of them.

    Between layers the same ELU and mean; the fastest layout.
    """

    def __init__(self, own):
        super().__init__()
        sizes = layer_sizes(**own.config.geometry)
        self.rows = sizes[1:DEPTH]
        self.layers = nn.ModuleList(
            nn.Conv2d(
                before.b * before.c,
                row.a * row.b * row.c,
                3,
                stride=row.stride,
                padding=1,
            )
            for before, row in zip(sizes, self.rows)  # noqa: B905
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, images):
        x = images.contiguous(memory_format=torch.channels_last)
        for row, layer in zip(self.rows, self.layers, strict=True):
            x = F.elu(layer(x))
            if row.a > 1:
                x = x.unflatten(1, (row.a, -1)).mean(1)
        return x.unflatten(1, (row.b, row.c)).mean((1, 3, 4))


def conv3d_loop(config):
    return Conv3dLoop(HCNN(config, "factorized"))


def unstructured(config):
    return Unstructured(HCNN(config, "factorized"))


ALL = {
    **COMPETITORS,
    "channels_last": channels_last,
    "conv3d_loop": conv3d_loop,
    "unstructured": unstructured,
}
