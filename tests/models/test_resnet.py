"""The residual networks are those of the literature."""

from typing import Any

import numpy as np
import pytest

from distcnn.models import resnet

PUBLISHED: dict[str, tuple[int, int, int]] = {
    "resnet9": (32, 10, 6_573_120),  # Page 2018
    "resnet18": (224, 1000, 11_689_512),  # torchvision's resnet18
    "resnet50": (224, 1000, 25_557_032),  # torchvision's resnet50
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_the_published_number_of_weights(name):
    size, classes, count = PUBLISHED[name]
    model: Any = getattr(resnet, name)((size, size, 3), classes)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == count


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_small_image_is_not_shrunk_by_the_stem_and_a_block_begins_as_the_identity(name):
    model: Any = getattr(resnet, name)((32, 32, 1), 7)
    assert model.get_layer("stem").output.shape[1:3] == (32, 32)
    assert model.get_layer("stage4_block1_1_norm").output.shape[1] in (4, 8)  # 8 before version 1.5
    assert model.output_shape == (None, 7)
    last = "2" if name == "resnet18" else "3"
    assert not model.get_layer(f"stage1_block2_{last}_norm").gamma.numpy().any()
    strides = model.get_layer(f"stage2_block1_{1 if name == 'resnet18' else 2}").strides
    assert strides == (2, 2)
