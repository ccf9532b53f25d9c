import copy
import json
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from examples import COLOR_LABEL as LABEL
from examples import REAL_COLORS as REAL
from examples import MeanColor as Given
from examples import color_images as colors
from examples import trained_on_colors as trained
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from pcea.cli import main
from pcea.datamodules.images import ImageDataModule
from pcea.datasets.images import ImageTensors
from pcea.inference.masks import MaskPredictor
from pcea.io.description import NetworkDescription
from pcea.metrics import generation as generation_metrics
from pcea.metrics.generation import GenerationMetrics
from pcea.models.sagan import Discriminator, Generator
from pcea.nn.attention import ExternalAttention
from pcea.tasks import generation
from pcea.tasks.generation import (
    GenerationTask,
    discriminator_loss,
    generate,
    generator_loss,
    load_features,
    load_generator,
    to_bytes,
)
from pcea.transforms.images import RandomFlip

# There is no validation.
pytestmark = pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
ADAM = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.999))
SGD = partial(torch.optim.SGD, lr=0.01)


class Data(ImageDataModule):
    """Red and green images with noise: 20 to train on, 12 to test on."""

    def __init__(self, **options):
        super().__init__(**{"batch_size": 4, "val_fraction": 0, "mean": [0.5] * 3, "std": [0.5] * 3, **options})

    def load(self, split):
        count = 20 if split == "train" else 12
        label = torch.arange(count) % 2
        images = torch.randint(0, 100, (count, 3, 16, 16), generator=torch.Generator().manual_seed(len(split)))
        images[torch.arange(count), label] += 100
        return ImageTensors(images.to(torch.uint8), label, class_names=["red", "green"])


def networks(**options):
    attention = partial(ExternalAttention, memory_units=5)
    options = {"num_classes": 2, "image_size": 16, "width": 2, **options}
    return Generator(attention, latent_dim=3, **options), Discriminator(attention, **options)


def task(seed=0, optimizer=ADAM, **options):
    torch.manual_seed(seed)
    return GenerationTask(*networks(), optimizer, optimizer, **{"sample_every": 0, **options})


def trainer(max_epochs=1, *, folder=None, callbacks=(), **options):
    saving = [] if folder is None else [ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)]
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, **options}
    return L.Trainer(
        max_epochs=max_epochs,
        callbacks=[*saving, *callbacks],
        enable_checkpointing=bool(saving),
        enable_model_summary=False,
        **options,
    )


class Recorder(L.Callback):
    """Keeps both networks as they are after every batch, and the last gradients."""

    def __init__(self):
        self.states, self.gradients = [], ()

    def on_train_start(self, _, module):
        self.on_train_batch_end(_, module)

    def on_train_batch_end(self, _, module, *__):
        networks = module.generator, module.discriminator
        self.states.append(copy.deepcopy([network.state_dict() for network in networks]))
        self.gradients = [copy.deepcopy([value.grad for value in network.parameters()]) for network in networks]


@pytest.fixture(autouse=True)
def _seed_everything(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")


def test_the_hinge_loss_by_hand():
    real, generated = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -0.5, 4.0])
    assert discriminator_loss(real, generated) == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 0.5 + 5) / 3)
    assert generator_loss(generated) == pytest.approx((3 + 0.5 - 4) / 3)


def test_every_third_batch_is_also_a_step_of_the_generator():
    """Of 10 batches in two epochs of 5: after the 3rd, 6th and 9th."""
    recorder, model = Recorder(), task(discriminator_steps=3)
    run = trainer(2, callbacks=[recorder])
    run.fit(model, datamodule=Data())
    assert run.global_step == 13
    weights = [s[0]["conv.parametrizations.weight.original"] for s in recorder.states]
    assert [i + 1 for i in range(10) if not weights[i].equal(weights[i + 1])] == [3, 6, 9]
    weights = [s[1]["linear.parametrizations.weight.original"] for s in recorder.states]
    assert not any(weights[i].equal(weights[i + 1]) for i in range(10))


def test_two_processes_train_the_same_networks(tmp_path):
    """Each has its own images and noise; 5 batches in two epochs."""

    class Save(L.Callback):
        def on_train_end(self, trainer, task):
            state = {name: value.detach() for name, value in task.named_parameters()}
            torch.save((trainer.global_step, state), tmp_path / f"{trainer.global_rank}.pt")

    options = {"devices": 2, "strategy": "ddp_fork_find_unused_parameters_true", "callbacks": [Save()]}
    before = dict(task().named_parameters())
    trainer(2, **options).fit(task(discriminator_steps=2, ema_decay=0.9), datamodule=Data(batch_size=2))
    (steps, first), (same, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert steps == same == 10 + 5
    for name, value in first.items():
        assert value.equal(second[name]), name
    assert sum(not value.equal(first[name]) for name, value in before.items()) > len(before) / 2

    with pytest.raises(Exception, match=r"learn in turns: set trainer\.strategy to ddp_find_unused_parameters_true"):
        trainer(devices=2, strategy="ddp_fork").fit(task(), datamodule=Data(batch_size=2))


def test_a_step_of_both_by_hand(monkeypatch):
    """Gradient descent at a rate of 0.01, first of the discriminator, then of the generator against it; two batches."""
    recorder, model = Recorder(), task(optimizer=SGD, discriminator_steps=1)
    G, D = copy.deepcopy((model.generator, model.discriminator))
    batches = []
    monkeypatch.setattr(model, "on_train_batch_start", lambda batch, _: (batches.append(batch), torch.manual_seed(7)))
    trainer(1, callbacks=[recorder], limit_train_batches=2).fit(model, datamodule=Data())

    def descend(network, loss):
        values = [*network.parameters()]
        for value, gradient in zip(values, torch.autograd.grad(loss, values, allow_unused=True)):
            value.data -= 0.01 * (0 if gradient is None else gradient)
            value.grad = gradient

    for batch, states in zip(batches, recorder.states[1:], strict=True):
        torch.manual_seed(7)
        images = G(torch.randn(4, 3), label := torch.randint(2, (4,))).detach()
        scores = D(torch.cat([batch.images, images]), torch.cat([batch.label, label]))
        descend(D, (1 - scores[:4]).relu().mean() + (1 + scores[4:]).relu().mean())
        images = G(torch.randn(4, 3), label := torch.randint(2, (4,)))
        descend(G, -D(images, label).mean())
        for expected, found in zip((G.state_dict(), D.state_dict()), states):
            torch.testing.assert_close(found, expected)
        assert all(value.grad.abs().max() > 0 for value in (G.conv.bias, D.blocks[0].conv1.bias))
    # The step of the generator costs no gradients of the discriminator's weights.
    torch.testing.assert_close(recorder.gradients[1], [value.grad for value in D.parameters()])


def test_a_step_of_the_discriminator_costs_no_gradients_of_the_generator():
    recorder, model = Recorder(), task(discriminator_steps=2)
    judged = []
    model.discriminator.register_forward_pre_hook(lambda _, inputs: judged.append(inputs[0].requires_grad))
    trainer(1, callbacks=[recorder], limit_train_batches=1).fit(model, datamodule=Data())
    assert judged == [False]
    assert all(gradient is None for gradient in recorder.gradients[0])
    assert all(gradient is not None for gradient in recorder.gradients[1])
    assert all(value.requires_grad for value in model.parameters())


def test_the_seed_of_a_batch():
    """One of the whole training, as that of other tasks."""
    seeds = []

    class Seeds(L.Callback):
        def on_train_batch_end(self, *_):
            seeds.append(torch.initial_seed())

    trainer(2, callbacks=[Seeds()]).fit(task(), datamodule=Data())
    assert seeds == [2 * (3 * 1_000_000_007 + i) + 1 for i in range(10)]


def test_the_moving_average_by_hand():
    recorder, model = Recorder(), task(discriminator_steps=2, ema_decay=0.25)
    trainer(1, callbacks=[recorder]).fit(model, datamodule=Data())
    start, _, first, _, second, _ = (state[0] for state in recorder.states)
    for name, found in model.average.state_dict().items():
        if name.endswith(("._u", "._v")) or not found.is_floating_point():
            expected = second[name]
        else:
            # At the start (1 + 1) / (10 + 1) and (1 + 2) / (10 + 2), at which the decay is reached.
            expected = 2 / 11 * start[name] + 9 / 11 * first[name]
            expected = 0.25 * expected + 0.75 * second[name]
        torch.testing.assert_close(found, expected, msg=lambda m, name=name: f"{name}: {m}")
    latent, label = torch.randn(2, 3), torch.tensor([0, 1])
    assert model.averaged_generator is model.average
    assert torch.equal(model.eval()(latent, label), model.average(latent, label))
    assert task().averaged_generator.state_dict().keys() == start.keys()


@pytest.mark.parametrize("options", [{}, {"discriminator_steps": 3, "ema_decay": 0.9, "sample_every": 2}])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, options):
    """Order, flips, noise, singular vectors, both optimizers, the average and the turns of the generator go on."""
    straight, resumed = task(**options), task(seed=1, **options)
    options = {"default_root_dir": tmp_path}
    trainer(3, folder=tmp_path, **options).fit(straight, datamodule=Data(augment=[RandomFlip()]))
    trainer(3, folder=tmp_path / "resumed", **options).fit(
        resumed, datamodule=Data(augment=[RandomFlip()]), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True
    )
    for (name, ours), theirs in zip(straight.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(ours, theirs), name


def test_samples(tmp_path, monkeypatch):
    """Two rows of three images, always of the same noise; training is the same with and without them."""
    pictures = []
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    monkeypatch.setattr(logger.experiment, "add_image", lambda *values: pictures.append(values))
    model, recorder = task(discriminator_steps=1, sample_every=2, samples_per_class=3), Recorder()
    trainer(1, logger=logger, callbacks=[recorder]).fit(model, datamodule=Data())
    files = sorted((tmp_path / "run" / "samples").iterdir())
    assert [file.name for file in files] == ["step_000002.png", "step_000004.png"]
    assert [(name, step) for name, _, step in pictures] == [("samples", 2), ("samples", 4)]
    for file, (_, grid, _), (state, _) in zip(files, pictures, recorder.states[2::2]):
        generator, _ = networks()
        generator.load_state_dict(state)
        latent = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            images = to_bytes(generator.eval()(latent, torch.tensor([0, 0, 0, 1, 1, 1])))
        picture = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        assert torch.equal(picture, grid)
        for i, image in enumerate(images):  # two pixels lie between images
            top, left = 2 + 18 * (i // 3), 2 + 18 * (i % 3)
            assert torch.equal(picture[:, top : top + 16, left : left + 16], image)
    assert model.generator.training
    without = task(discriminator_steps=1)
    trainer(1).fit(without, datamodule=Data())
    torch.testing.assert_close(without.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_half_precision():
    model = task(discriminator_steps=2)
    run = trainer(2, precision="bf16-mixed")
    run.fit(model, datamodule=Data())
    assert run.callback_metrics.keys() == {"train/discriminator_loss", "train/generator_loss"}
    assert all(value.isfinite() for value in run.callback_metrics.values())
    assert all(value.isfinite().all() and value.dtype != torch.bfloat16 for value in model.state_dict().values())


def test_both_losses_of_an_epoch_are_means_over_its_steps(monkeypatch):
    losses = {"discriminator_loss": [], "generator_loss": []}
    for name, values in losses.items():
        original = getattr(generation, name)

        def keep(*scores, values=values, original=original):
            values.append(original(*scores))
            return values[-1]

        monkeypatch.setattr(generation, name, keep)
    run = trainer(1)
    run.fit(task(discriminator_steps=2), datamodule=Data())
    assert [len(values) for values in losses.values()] == [5, 2]
    for name, values in losses.items():
        assert run.callback_metrics[f"train/{name}"] == pytest.approx(
            float(sum(values).detach()) / len(values), rel=1e-5
        )


def test_bytes_by_hand():
    found = to_bytes(torch.tensor([-1.0, 1.0, 0.0, -1 + 2 / 255, 1.2, -1.2], dtype=torch.float64))
    assert found.tolist() == [0, 255, 128, 1, 255, 0]
    assert found.dtype == torch.uint8


def test_generated_images_follow_the_seed_alone():
    generator, _ = networks()
    label = [0, 1, 1, 0, 1]
    images = generate(generator, label, seed=5)
    assert images.shape == (5, 3, 16, 16)
    assert torch.equal(images, generate(generator, torch.tensor(label), seed=5, batch_size=2))
    assert not torch.equal(images, generate(generator, label, seed=6))
    assert not torch.equal(images[1], images[2])
    assert generator.training
    latent = torch.randn(5, 3, generator=torch.Generator().manual_seed(5))
    expected = generator.eval()(latent, torch.tensor(label))
    assert torch.equal(images, ((expected + 1) * 127.5).round().to(torch.uint8))
    generate(generator, label)
    assert not generator.training


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0, 2], r"Classes are 0\.\.1, got 2\."),
        ([-1], r"Classes are 0\.\.1, got -1\."),
        ([], r"label must be \(B,\) with B at least 1, got \(0,\)"),
        ([[0]], r"label must be \(B,\) with B at least 1, got \(1, 1\)"),
    ],
)
def test_images_of_no_class(label, message):
    with pytest.raises(ValueError, match=message):
        generate(networks()[0], label)


def test_a_test_makes_an_image_for_each_of_the_split(monkeypatch):
    """Of its classes; the same in every test; with the moving average."""
    monkeypatch.setattr(generation, "load", lambda *_, **__: trained(Given(2), class_names=("red", "green")))
    updates = []
    update = GenerationMetrics.update
    monkeypatch.setattr(GenerationMetrics, "update", lambda *values: (updates.append(values[1:]), update(*values)))
    model = task(feature_network="some.ckpt", ema_decay=0.5)
    model.average.conv.bias.data.fill_(9)  # all white
    data = Data(eval_batch_size=5)
    [metrics] = trainer().test(model, datamodule=data, verbose=False)
    assert metrics.keys() == {
        f"test/{name}" for name in ("frechet_distance", "diversity", "class_accuracy", "real_class_accuracy",
                                    "classifier_score", "real_classifier_score")
    }  # fmt: skip
    real, generated, label = (torch.cat(part) for part in zip(*updates))
    assert torch.equal(real, data.sets["test"].images)
    assert torch.equal(label, data.sets["test"].label)
    assert generated.shape == real.shape
    assert (generated == 255).all()
    assert metrics["test/real_class_accuracy"] == 1
    assert metrics["test/class_accuracy"] == pytest.approx(0.5)  # white is red to it
    assert metrics["test/diversity"] == pytest.approx(0, abs=1e-6)
    assert "by the classifier some.ckpt, not by Inception" in model.convention
    assert "average.conv.bias" in model.state_dict()
    assert not [name for name in model.state_dict() if "head" in name]
    assert trainer().test(model, datamodule=data, verbose=False) == [metrics]


def test_validation(monkeypatch):
    """Of other images in each batch, and the same in every epoch."""
    monkeypatch.setattr(generation, "load", lambda *_, **__: trained(Given(2), class_names=("red", "green")))
    model = task(feature_network="some.ckpt", optimizer=partial(torch.optim.SGD, lr=0.0))
    images = []
    monkeypatch.setattr(GenerationMetrics, "update", lambda *values: images.append(values[2]))
    monkeypatch.setattr(GenerationMetrics, "compute", lambda _: {})
    trainer().validate(model, datamodule=Data(val_fraction=0.5, eval_batch_size=2), verbose=False)
    trainer().validate(model, datamodule=Data(val_fraction=0.5, eval_batch_size=2), verbose=False)
    first, second, *_ = images
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat(images[:5]), torch.cat(images[5:]))
    monkeypatch.undo()

    monkeypatch.setattr(generation, "load", lambda *_, **__: trained(Given(2), class_names=("red", "green")))
    run = trainer(2)
    run.fit(task(feature_network="some.ckpt"), datamodule=Data(val_fraction=0.5))
    assert run.callback_metrics["val/real_class_accuracy"] == 1
    assert run.callback_metrics["val/frechet_distance"] > 0


def test_inception(monkeypatch):
    """By a stand-in, as its weights are a download."""

    class Inception(nn.Module):
        num_features = 3

        def forward(self, images):
            assert images.dtype == torch.uint8
            return images.float().mean((2, 3)) / 25

    monkeypatch.setattr(generation_metrics, "FrechetInceptionDistance", lambda: FrechetInceptionDistance(Inception()))
    monkeypatch.setattr(
        generation_metrics, "InceptionScore", lambda score=generation_metrics.InceptionScore: score(Inception())
    )
    [metrics] = trainer().test(task(), datamodule=Data(), verbose=False)
    assert metrics.keys() == {"test/fid", "test/inception_score"}
    assert metrics["test/fid"] > 1
    metrics = GenerationMetrics(3, None)
    metrics.update(colors(REAL), colors(REAL), LABEL)
    assert metrics.compute()["fid"] == pytest.approx(0, abs=1e-4)
    metrics.reset()
    metrics.update(colors(REAL), colors(REAL[::-1][:1] * 5), LABEL)
    assert metrics.compute()["inception_score"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ModuleNotFoundError("no fidelity"), ImportError, "FID needs torch-fidelity: pip install torch-fidelity, or"),
        (OSError("offline"), FileNotFoundError, r"cannot be downloaded \(offline\): try again, or .*feature_network"),
    ],
)
def test_no_inception(monkeypatch, error, kind, message):
    def fail():
        raise error

    monkeypatch.setattr(generation_metrics, "FrechetInceptionDistance", fail)
    trainer().fit(task(), datamodule=Data())  # without validation nothing is measured
    with pytest.raises(kind, match=message):
        trainer().test(task(), datamodule=Data(), verbose=False)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (trained(nn.Identity()), "w.ckpt: Identity is not an image classifier with a linear layer `head`"),
        (
            MaskPredictor(Given(), NetworkDescription("masks", "own.Net")),
            "w.ckpt holds a MeanColor, not a classifier of images",
        ),
        (trained(Given(2)), r"w.ckpt has 2 classes .*, the generator 3 .*must be the same"),
        (trained(class_names=("a", "c", "b")), r"w.ckpt has 3 classes \(a, c, b, ...\), the generator 3 \(a, b, c, "),
    ],
)
def test_other_feature_networks(monkeypatch, network, message):
    monkeypatch.setattr(generation, "load", lambda *_, **__: network)
    with pytest.raises(ValueError, match=message):
        load_features("w.ckpt", 3, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discriminator_steps": 0}, "must be positive and sample_every not negative, got 0, 8 and 0"),
        ({"samples_per_class": 0}, "must be positive and sample_every not negative, got 5, 0 and 0"),
        ({"sample_every": -1}, "must be positive and sample_every not negative, got 5, 8 and -1"),
        ({"ema_decay": 1.0}, r"ema_decay must be at least 0 and below 1, got 1\.0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)


@pytest.mark.parametrize(("name", "other"), [("num_classes", 3), ("image_size", 32)])
def test_networks_that_do_not_fit(name, other):
    generator, discriminator = networks()[0], networks(**{name: other})[1]
    with pytest.raises(ValueError, match=f"must have one {name}, got .* and {other}"):
        GenerationTask(generator, discriminator, ADAM, ADAM)


def test_data_that_does_not_fit():
    three = GenerationTask(*networks(num_classes=3), ADAM, ADAM)
    with pytest.raises(ValueError, match=r"The data has 2 classes, .* num_classes=3\. Set num_classes of generator"):
        trainer().fit(three, datamodule=Data())
    with pytest.raises(ValueError, match=r"Images must be in -1\.\.1: .*got \[0\.4, 0\.5, 0\.5\] and \[0\.5"):
        trainer().fit(task(), datamodule=Data(mean=[0.4, 0.5, 0.5]))
    large = GenerationTask(*networks(image_size=32), ADAM, ADAM)
    with pytest.raises(ValueError, match=r"Images must be \(3, 32, 32\), got \(3, 16, 16\): set image_size"):
        trainer().fit(large, datamodule=Data())


def test_it_learns_the_colours():
    """Of red and green images, a classifier by the mean colour tells which class was asked for."""
    torch.manual_seed(0)
    options = {"num_classes": 2, "image_size": 16, "width": 2}
    model = GenerationTask(
        Generator(latent_dim=3, **options),
        Discriminator(**options),
        partial(torch.optim.Adam, lr=3e-3, betas=(0.0, 0.9)),
        partial(torch.optim.Adam, lr=3e-3, betas=(0.0, 0.9)),
        discriminator_steps=1,
        ema_decay=0.9,
        sample_every=0,
    )
    trainer(20).fit(model, datamodule=Data())
    label = torch.arange(40) % 2
    color = generate(model.averaged_generator, label).float().mean((2, 3))
    assert (color[:, :2].argmax(1) == label).float().mean() > 0.9


def test_files_that_hold_no_generator(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No trained network .*none\.ckpt"):
        load_generator(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("text")
    with pytest.raises(ValueError, match=r"text\.ckpt is not a checkpoint: it is damaged"):
        load_generator(tmp_path / "text.ckpt")
    trainer(1, folder=tmp_path / "new").fit(task(), datamodule=Data())
    with pytest.raises(ValueError, match=r"epoch=0\.ckpt was not made by `pcea fit`"):
        load_generator(tmp_path / "new" / "epoch=0.ckpt")


class TestCommandLine:
    """The shipped recipe at a tiny size, from training to images; pictures of two shades a class."""

    @pytest.fixture
    def folder(self, tmp_path, rng):
        for split in ("train", "test"):
            for number in range(10):
                for i in range(3):
                    path = tmp_path / "cifar10" / split / f"class{number}" / f"{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture = rng.integers(0, 60, (32, 32, 3)) + np.array([20 * number, 100, 150])
                    Image.fromarray(picture.astype(np.uint8)).save(path)
        return tmp_path

    @staticmethod
    def options(name, folder):
        return ["--config", name, "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.precision=32",
                "--trainer.enable_progress_bar=false", f"--data.init_args.root={folder}",
                "--data.init_args.batch_size=10", f"--trainer.default_root_dir={folder / name}"]  # fmt: skip

    def test_from_training_to_images(self, capsys, folder):
        small = [f"--model.init_args.network.init_args.{x}" for x in ("dim=8", "depth=1", "token_dim=4")]
        main(["fit", *self.options("cifar10_eamlp", folder), *small])
        classifier = folder / "cifar10_eamlp" / "version_0" / "checkpoints" / "last.ckpt"
        options = [
            *self.options("cifar10_sagan_ea_cpu", folder),
            *(f"--model.init_args.{name}.init_args.width=2" for name in ("generator", "discriminator")),
            "--model.init_args.sample_every=2",
        ]
        main(["fit", *options])
        run = folder / "cifar10_sagan_ea_cpu" / "version_0"
        assert [file.name for file in (run / "samples").iterdir()] == ["step_000002.png"]

        last = run / "checkpoints" / "last.ckpt"
        main(["test", *options, f"--model.init_args.feature_network={classifier}"])
        output = capsys.readouterr().out
        record = json.loads((last.parent / "last.test.json").read_text())
        assert record["metrics"].keys() == {"frechet_distance", "diversity", "class_accuracy", "real_class_accuracy",
                                            "classifier_score", "real_classifier_score"}  # fmt: skip
        assert str(classifier) in record["convention"]
        diversity = f"{record['metrics']['diversity']:.2f}"
        assert f"diversity {diversity:>20}\n" in output
        assert f"class accuracy {record['metrics']['class_accuracy']:15.2f} %\n" in output

        generator = load_generator(last)
        state = torch.load(last, weights_only=True)["state_dict"]
        assert torch.equal(generator.conv.bias, state["average.conv.bias"])
        assert not generator.training
        assert generate(generator, [3, 9]).shape == (2, 3, 32, 32)
        with pytest.raises(ValueError, match=r"last.ckpt holds a network for images, not a generator"):
            load_generator(classifier)
        with pytest.raises(SystemExit):
            main(["predict", "--weights", str(last), str(folder / "cifar10" / "test" / "class0" / "0.png")])
        errors = capsys.readouterr().err.splitlines()
        assert "makes images and takes none: load it with pcea.tasks.load_generator" in errors[-1]
