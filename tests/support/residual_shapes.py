"""The convolutions of published networks, from their shapes alone."""

from torchfault.space import FaultSpace, Site


def resnet(blocks):
    """Return the spaces of convolution weights and convolution inputs of a basic-block ResNet at 224x224."""
    weights, inputs, side, before = [(64, 3, 7, 7)], [(3, 224, 224)], 56, 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            weights += [(width, before, 3, 3), (width, width, 3, 3)]
            inputs += [(before, side, side), (width, side // stride, side // stride)]
            if stride == 2:
                weights.append((width, before, 1, 1))
                inputs.append((before, side, side))
            side, before = side // stride, width
    return (
        FaultSpace(tuple(Site(f"conv{i}.weight", shape, channel=0) for i, shape in enumerate(weights))),
        FaultSpace(tuple(Site(f"conv{i}:input", shape, kind="input", channel=0) for i, shape in enumerate(inputs))),
    )


RESNETS = {18: resnet((2, 2, 2, 2)), 34: resnet((3, 4, 6, 3))}
