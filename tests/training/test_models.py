import copy

import numpy as np
import pytest
import torch

from shared.pixels import SIZE
from training import models
from training.stage import StageError


def picture(n: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, (n, 3, SIZE, SIZE), np.uint8))


@pytest.mark.parametrize(
    "name", ["simple_cnn", "efficientnet_lite0", "resnet18", "mobilenet_v3_small", "densenet121", "alexnet", "swin_t"]
)
def test_every_network_has_the_form_that_the_contract_needs(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, pretrained=False).eval()
    with torch.inference_mode():
        places, logits = model.feature_map(picture()), model(picture())
        # Global average pooling and a linear head: the logits are the mean of the head applied place by place.
        by_place = torch.nn.functional.conv2d(places, model.head.weight[:, :, None, None], model.head.bias)
    assert min(places.shape[2:]) > 1
    torch.testing.assert_close(by_place.mean((2, 3)), logits, rtol=1e-3, atol=1e-4)


def test_a_vision_transformer_is_cut_into_places() -> None:
    with torch.inference_mode():
        assert models.build("vit_b_32", pretrained=False).eval().feature_map(picture(1)).shape == (1, 768, 7, 7)


def test_the_tutorial_s_network_has_two_convolutions_and_a_size_to_carry() -> None:
    model = models.build("simple_cnn", pretrained=False)
    assert sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) == 2
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000


def test_pretrained_weights_are_there_without_a_network_connection() -> None:
    model = models.build("efficientnet_lite0", pretrained=True)
    other = models.build("efficientnet_lite0", pretrained=True)
    first = next(iter(model.trunk.parameters()))
    assert torch.equal(first, next(iter(other.trunk.parameters())))
    assert first.abs().mean() > 0.01


def test_depthwise_convolutions_learn_in_float32_beside_bfloat16_and_others_do_not() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3, groups=8))
    plain = copy.deepcopy(network)
    models.depthwise_in_float32(network)
    image = torch.rand(1, 3, 16, 16)

    def learn(network: torch.nn.Module, *, grad: bool = True) -> torch.Tensor:
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
            answer: torch.Tensor = network(image)
        return answer

    exact = plain[1](learn(plain[0]).float())
    assert torch.equal(learn(network), exact.to(torch.bfloat16))
    assert not torch.equal(learn(plain), exact.to(torch.bfloat16))
    assert torch.equal(learn(network, grad=False), learn(plain, grad=False)), "forward alone, bfloat16 is faster"
    assert torch.equal(network(image), plain(image))
    twin = copy.deepcopy(network)  # as the averaged network is
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(learn(twin), exact.to(torch.bfloat16))


def test_frozen_stages_do_not_learn_and_keep_their_statistics() -> None:
    model = models.build("efficientnet_lite0", pretrained=True)
    model.freeze(6)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = torch.nn.functional.cross_entropy(model(picture(4)), torch.tensor([0, 1, 0, 1]))
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    optimizer.step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("running" in name or "num_batches" in name for name in changed)
    assert not any(f"_blocks.{block}." in name for name in changed for block in range(6))
    assert not any("_conv_stem" in name for name in changed)
    assert any("_blocks.6." in name for name in changed)
    assert any("_blocks.15." in name for name in changed)


def test_from_scratch_everything_learns() -> None:
    model = models.build("simple_cnn", pretrained=False)
    assert "no pretrained weights" in model.freeze(6)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(StageError, match="efficientnet_lite0"):
        models.build("resnet5000", pretrained=False)


def test_inception_sees_what_its_imagenet_weights_were_trained_on() -> None:
    model = models.build("googlenet", pretrained=False)
    grey = torch.full((1, 3, SIZE, SIZE), 255, dtype=torch.uint8)
    assert torch.equal((grey.float() - model.mean) / model.std, torch.ones(1, 3, SIZE, SIZE))


def test_a_network_too_large_for_one_file_is_refused_before_it_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "LARGEST", 40_000_000)
    with pytest.raises(StageError, match=r"resnet18 has 0\.0 GB of weights"):
        models.build("resnet18", pretrained=False)
