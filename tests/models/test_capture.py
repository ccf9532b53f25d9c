import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pcea.models.capture import example_inputs, export_onnx, export_program, fewest_points
from pcea.models.eamlp import ImageTransformer
from pcea.models.eanet import EANet
from pcea.models.point_ea import point_ea_classifier, point_ea_part_segmenter
from pcea.models.point_segmenter import eat_part_segmenter, pct_part_segmenter
from pcea.models.point_transformer import PointTransformerClassifier, PointTransformerEncoder, eat_classifier
from pcea.nn.attention import (
    STREAMED,
    ExternalAttention,
    MultiHeadExternalAttention,
    OffsetAttention,
    ResidualAttention,
    SelfAttention,
)
from pcea.nn.layers import ExternalAttention2d, LinearNormAct
from pcea.nn.linear import Linear

POINTEA = {"widths": (8, 12), "depths": (1, 1), "num_neighbors": 5, "memory_units": 7}
POINTS = {"dim": 16, "num_neighbors": 5, "out_channels": 24, "widths": (20, 12)}


def pct_classifier() -> nn.Module:
    encoder = PointTransformerEncoder(OffsetAttention, dim=16, num_centers=(16, 8), num_neighbors=5, out_channels=24)
    return PointTransformerClassifier(encoder, num_classes=4, widths=(20, 12))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "eat classifier": partial(eat_classifier, 4, in_channels=6, num_centers=(16, 8), **POINTS),
    "pct classifier": pct_classifier,
    "eat segmenter": partial(eat_part_segmenter, 4, 3, **POINTS),
    "eat segmenter, dilated": partial(eat_part_segmenter, 4, 3, dilation=3, **POINTS),
    "pct segmenter": partial(pct_part_segmenter, 4, 3, **POINTS),
    "pointea classifier": partial(point_ea_classifier, 4, in_channels=6, num_centers=(16, 8), **POINTEA),
    "pointea segmenter": partial(point_ea_part_segmenter, 4, 3, num_centers=(None, 8), **POINTEA),
    "eamlp": partial(
        ImageTransformer,
        partial(MultiHeadExternalAttention, num_heads=2),
        num_classes=4,
        dim=16,
        depth=1,
        token_dim=8,
    ),
    "eanet": partial(EANet, num_classes=4, depth=(1, 1, 1, 1), width=4),
}


def trained(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose outputs differ: running statistics of some data, weights that are not small."""
    network = build()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    network(**example_inputs(network))
    return network.eval()


def inputs_of(network: nn.Module, B: int, N: int) -> dict[str, Tensor]:
    inputs = {}
    for name, example in example_inputs(network).items():
        shape = (B, 3, N, N + 16) if name == "images" else (B, *([N] if example.ndim > 1 else []), *example.shape[2:])
        inputs[name] = torch.rand(shape) if example.is_floating_point() else torch.arange(B) % 3
    return inputs


def sizes_of(network: nn.Module) -> list[tuple[int, int]]:
    """Batch sizes and numbers of points, or heights; points down to the fewest that a graph takes."""
    fewest = fewest_points(network)
    few = [] if fewest is None else [(3, fewest), (3, fewest + 2), (1, max(fewest, 7)), (3, max(fewest, 9))]
    return [(3, 48), (1, 80), (5, 112), *few]


def test_only_networks_with_a_fixed_number_of_centers_need_points() -> None:
    expected = {"eat classifier": 16, "pct classifier": 16, "eat segmenter": 1, "pct segmenter": 1, "eanet": None}
    expected |= {"eat segmenter, dilated": 1}
    expected |= {"pointea classifier": 1, "pointea segmenter": 1, "eamlp": None}
    assert {name: fewest_points(build()) for name, build in NETWORKS.items()} == expected


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_program_equals_the_network_for_any_size(name: str) -> None:
    network = trained(NETWORKS[name])
    program = export_program(network).module()
    for size in sizes_of(network):
        inputs = inputs_of(network, *size)
        torch.testing.assert_close(program(**inputs), network(**inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["eat segmenter", "eat classifier"])
@torch.no_grad()
def test_a_program_takes_more_points_than_are_streamed_elsewhere(name: str) -> None:
    network = trained(NETWORKS[name])
    inputs = inputs_of(network, 1, STREAMED + 1)
    torch.testing.assert_close(export_program(network).module()(**inputs), network(**inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_onnx_equals_the_network_for_any_size(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network = trained(NETWORKS[name])
    export_onnx(network, tmp_path / "n.onnx", metadata={"class_names": json.dumps(["a", "b"])})
    session = onnxruntime.InferenceSession(tmp_path / "n.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == ["a", "b"]
    assert session.get_inputs()[0].shape[0] == "batch"
    assert session.get_outputs()[0].name == "logits"
    for size in sizes_of(network):
        inputs = inputs_of(network, *size)
        (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        expected = network(**inputs)
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)
        assert expected.std() > 1e-2
    if fewest_points(network) not in (None, 1):
        inputs = inputs_of(network, 2, fewest_points(network) - 1)
        with pytest.raises(Exception, match="TopK"):
            session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})


def test_a_program_refuses_fewer_points_than_centers() -> None:
    network = trained(NETWORKS["eat classifier"])
    with pytest.raises(AssertionError, match=r"points\.size\(\)\[1\] >= 16"):
        export_program(network).module()(**inputs_of(network, 2, 15))


def random_tokens(B: int, N: int) -> dict[str, Tensor]:
    return {"tokens": torch.randn(B, N, 8)}


def masked_tokens(B: int, N: int) -> dict[str, Tensor]:
    return {"tokens": torch.randn(B, N, 8), "mask": torch.arange(N) < N - torch.arange(B).unsqueeze(1)}


def random_image(B: int, N: int) -> dict[str, Tensor]:
    return {"image": torch.randn(B, 8, N, N + 3)}


heads = partial(MultiHeadExternalAttention, num_heads=2, memory_units=3)
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], dict[str, Tensor]]]] = {
    "ExternalAttention": (partial(ExternalAttention, 8, memory_units=3, value_bias=True), masked_tokens),
    "MultiHeadExternalAttention": (partial(heads, 8), masked_tokens),
    "SelfAttention": (partial(SelfAttention, 8, num_heads=2, project=True), masked_tokens),
    "SelfAttention, double": (partial(SelfAttention, 8, normalization="double"), masked_tokens),
    "OffsetAttention": (partial(OffsetAttention, 8), masked_tokens),
    "ResidualAttention": (partial(ResidualAttention, 8, attention=heads), masked_tokens),
    "LinearNormAct": (partial(LinearNormAct, 8, 5), masked_tokens),
    "Linear": (partial(Linear, 8, 5), random_tokens),
    "ExternalAttention2d": (partial(ExternalAttention2d, 8, memory_units=3), random_image),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_onnx_equals_the_layer_for_any_size(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    build, inputs_for = LAYERS[name]
    layer = build()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    layer(**inputs_for(4, 11))  # running statistics of some data
    layer.eval()
    export_onnx(layer, tmp_path / "l.onnx", inputs_for(2, 7), output_name="out")
    session = onnxruntime.InferenceSession(tmp_path / "l.onnx")
    for size in ((3, 13), (1, 5), (2, 17)):
        inputs = inputs_for(*size)
        (out,) = session.run(None, {key: tensor.numpy() for key, tensor in inputs.items()})
        torch.testing.assert_close(torch.from_numpy(out), layer(**inputs), atol=1e-4, rtol=1e-4)


def test_a_saved_program_needs_the_ops_alone(tmp_path: Path) -> None:
    network = trained(NETWORKS["eat classifier"])
    torch.export.save(export_program(network), tmp_path / "n.pt2")
    code = (
        "import sys, torch, pcea.ops.neighbors, pcea.ops.sampling\n"
        f"program = torch.export.load({str(tmp_path / 'n.pt2')!r}).module()\n"
        "print(tuple(program(points=torch.rand(3, 50, 3), features=torch.rand(3, 50, 3)).shape))\n"
        "assert 'pcea.models' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(3, 4)"


def test_a_network_in_training_is_refused_by_name() -> None:
    network = trained(NETWORKS["eat classifier"])
    network.encoder.blocks[1].norm.train()
    with pytest.raises(ValueError, match=r"encoder\.blocks\.1\.norm \(BatchNorm1d\) is in training"):
        export_program(network)


def test_a_norm_of_the_batch_is_refused_by_name(tmp_path: Path) -> None:
    network = trained(NETWORKS["eat classifier"])
    network.encoder.stages[0].norm2 = nn.BatchNorm1d(8, track_running_stats=False).eval()
    with pytest.raises(ValueError, match=r"encoder\.stages\.0\.norm2 \(BatchNorm1d\) has no running statistics"):
        export_onnx(network, tmp_path / "n.onnx")


class Unknowable(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * tokens.sum().item() if bool(tokens.sum() > 0) else tokens


def test_a_module_that_cannot_be_captured_is_named() -> None:
    network = trained(NETWORKS["eat classifier"])
    network.encoder.blocks[1].norm = Unknowable().eval()
    with pytest.raises(ValueError, match=r"encoder\.blocks\.1\.norm cannot be captured: "):
        export_program(network)


def test_inputs_of_an_unknown_network() -> None:
    with pytest.raises(TypeError, match="Linear takes neither points nor images: give its inputs"):
        export_program(nn.Linear(3, 2).eval())
    program = export_program(nn.Linear(3, 2).eval(), {"input": torch.rand(2, 3)})
    assert program.module()(input=torch.rand(7, 3)).shape == (7, 2)
