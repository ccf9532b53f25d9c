import copy
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from pcea.datamodules.points import PointDataModule
from pcea.datamodules.shapes import ShapesDataModule
from pcea.datasets.points import PointDataset
from pcea.io.checkpoints import read_checkpoint
from pcea.models.point_ea import point_ea_classifier
from pcea.models.point_transformer import eat_classifier
from pcea.tasks.base import _comparable
from pcea.tasks.point_classification import PointClassificationTask
from pcea.tasks.schedules import OneCycle
from pcea.transforms.points import RandomDropPoints, RandomJitter, RandomScale, RandomSubset

SMALL = {"num_centers": (16, 8), "dim": 16, "num_neighbors": 4, "memory_units": 8, "out_channels": 32}


def network(num_classes=12, **options):
    return eat_classifier(num_classes, **{**SMALL, "widths": (16, 8), **options})


def task(seed=0, **options):
    torch.manual_seed(seed)
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    return PointClassificationTask(network(), optimizer, partial(OneCycle, max_lr=1e-2), label_smoothing=0.1, **options)


def shapes(**options):
    sizes = {"num_train": 36, "num_val": 12, "num_test": 12, "num_points": 32, "batch_size": 12}
    return ShapesDataModule(**{**sizes, **options})


def trainer(max_epochs, *, folder=None, **options):
    callbacks = [] if folder is None else [ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)]
    return L.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.fixture(autouse=True)
def _seed_everything(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")


def point_ea():
    """PointEA with everything in it that is random in training."""
    sizes = {"widths": (8, 8, 16), "depths": (1, 1, 1), "num_centers": (16, 8, 4), "num_neighbors": 4}
    return point_ea_classifier(12, **sizes, memory_units=8, drop_path=0.5, dropout=0.5)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("build", "num_workers"), [(network, 0), (network, 2), (point_ea, 0)])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, build, num_workers):
    """Order of the batches, augmentation, dropout, drop path, optimizer, schedule and compiled loops go on exactly."""
    augment = [RandomSubset(num_points=32), RandomDropPoints(), RandomScale(), RandomJitter()]

    def task(seed=0):
        torch.manual_seed(seed)
        optimizer = partial(torch.optim.AdamW, lr=1e-2, fused=True)
        return PointClassificationTask(build(), optimizer, partial(OneCycle, max_lr=1e-2), label_smoothing=0.1)

    straight = task()
    trainer(3, folder=tmp_path).fit(straight, datamodule=shapes(augment=augment))
    resumed, data = task(seed=1), shapes(augment=augment)
    data.num_workers = num_workers
    # The process that resumes has drawn other numbers before.
    continued = trainer(3, folder=tmp_path / "resumed")
    continued.fit(resumed, datamodule=data, ckpt_path=tmp_path / "epoch=0.ckpt")
    for (name, ours), theirs in zip(straight.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(ours, theirs), name
    other = task()
    first = read_checkpoint(tmp_path / "epoch=0.ckpt")["state_dict"]
    other.load_state_dict(first)
    assert any(not torch.equal(value, straight.state_dict()[name]) for name, value in first.items())


def test_dropout_differs_between_epochs():
    drawn = []

    class Recorder(L.Callback):
        def on_train_batch_start(self, *arguments):
            if arguments[-1] == 0:  # the index of the batch
                drawn.append(torch.rand(1, generator=copy.deepcopy(torch.default_generator)).item())

    module = trainer(3)
    module.callbacks.append(Recorder())
    module.fit(task(), datamodule=shapes())
    assert len(set(drawn)) == 3


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_without_seed_everything_the_seed_of_torch_decides(monkeypatch, tmp_path):
    monkeypatch.delenv("PL_GLOBAL_SEED")
    data = shapes()
    data.setup("fit")
    clouds = data.sets["train"]

    def train(seed, name):
        module = task()
        torch.manual_seed(seed)
        loader = DataLoader(range(len(clouds)), collate_fn=clouds.batch, batch_size=12, shuffle=True)
        trainer(1, folder=tmp_path / name, limit_val_batches=0).fit(module, loader)
        return module

    first, again, other = train(1, "first"), train(1, "again"), train(2, "other")
    assert (first.seed, other.seed) == (1, 2)
    weights = [torch.cat([value.flatten() for value in module.parameters()]) for module in (first, again, other)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])
    [kept] = (tmp_path / "first").iterdir()
    module = task()
    module.on_load_checkpoint(torch.load(kept, weights_only=True))
    assert module.seed == 1


def test_the_schedule_covers_the_whole_training():
    rates = []

    class Recorder(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    run = trainer(4)
    run.callbacks.append(Recorder())
    run.fit(task(), datamodule=shapes())
    assert len(rates) == 12
    # OneCycleLR goes from max_lr / 25 over its peak to 1e-4 of the start.
    assert rates[0] == pytest.approx(1e-2 / 25)
    assert max(rates) == pytest.approx(1e-2, rel=0.05)
    assert rates[-1] == pytest.approx(1e-2 / 25 / 1e4)


def test_a_schedule_of_torch_needs_no_wrapper():
    schedule = partial(CosineAnnealingLR, eta_min=0.25)
    model = PointClassificationTask(network(), partial(torch.optim.SGD, lr=1.0), schedule)
    run = trainer(2)
    run.fit(model, datamodule=shapes())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.25)


def test_the_rate_stays_without_a_schedule():
    model = PointClassificationTask(network(), partial(torch.optim.SGD, lr=0.5))
    run = trainer(1)
    run.fit(model, datamodule=shapes())
    assert run.optimizers[0].param_groups[0]["lr"] == 0.5


def test_one_cycle_by_hand():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = OneCycle(optimizer, 11, max_lr=2.0, pct_start=0.3)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < 11:
            schedule.step()
    # Rises from max_lr / 25 to the peak at step 0.3 * 11 - 1 = 2.3, then falls to 1e-4 of its start.
    assert rates[0] == pytest.approx(2 / 25)
    assert rates.index(max(rates)) in (2, 3)
    assert rates[-1] == pytest.approx(2 / 25 / 1e4)


def test_one_cycle_whose_peak_is_the_first_step():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = OneCycle(optimizer, 5, max_lr=2.0, pct_start=0.2)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2 / 25 / 1e4)


@pytest.mark.parametrize(
    "options", [{"max_epochs": -1, "max_time": "00:00:00:01"}, {"max_epochs": 1, "limit_train_batches": 0}]
)
def test_a_schedule_without_an_end_is_refused(options):
    run = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    with pytest.raises(ValueError, match=r"how many steps there are, but there are .*give trainer\.max_epochs"):
        run.fit(task(), datamodule=shapes())


def test_a_checkpoint_says_what_prediction_needs(tmp_path):
    trainer(1, folder=tmp_path).fit(task(), datamodule=shapes())
    checkpoint = read_checkpoint(tmp_path / "epoch=0.ckpt")
    assert checkpoint["seed"] == 3
    assert checkpoint["num_points"] == 32
    assert checkpoint["class_names"][:2] == ["airplane", "bottle"]
    assert len(checkpoint["class_names"]) == 12


def test_a_checkpoint_of_another_architecture(tmp_path):
    trainer(1, folder=tmp_path).fit(task(), datamodule=shapes())
    wider = PointClassificationTask(network(memory_units=9), partial(torch.optim.SGD, lr=0.5))
    message = (
        r"The checkpoint is of another architecture: 4 of \d+ differ, "
        r"first network\.encoder\.blocks\.0\.[\w.]+: \(.*9.*\) in the network, \(.*8.*\) in the file\."
    )
    with pytest.raises(ValueError, match=message):
        trainer(1, folder=tmp_path / "wider").fit(wider, datamodule=shapes(), ckpt_path=tmp_path / "epoch=0.ckpt")
    flat = PointClassificationTask(network(num_centers=()), partial(torch.optim.SGD, lr=0.5))
    with pytest.raises(ValueError, match=r"architecture: \d+ of \d+ differ, first network\.encoder\.fuse"):
        trainer(1, folder=tmp_path / "flat").test(flat, datamodule=shapes(), ckpt_path=tmp_path / "epoch=0.ckpt")


class Named(PointDataModule):
    def load(self, split):  # noqa: ARG002
        label = torch.arange(24) % 2
        return PointDataset(torch.randn(24, self.num_points, 3), label, class_names=["key", "mug"])


class Foreign(L.LightningDataModule):
    """Not one of ours."""

    class_names, num_points = ("key", "mug"), 32

    def test_dataloader(self):
        batch = Named(num_points=32).load("test").batch([0, 1])
        return DataLoader([batch], batch_size=None)


def test_a_foreign_data_module_is_told_what_it_lacks():
    model = PointClassificationTask(network(2), partial(torch.optim.SGD, lr=0.5))
    with pytest.raises(
        ValueError,
        match=r"Foreign lacks dataset_name, sets, with_normals, up, .*eval_transforms, .*has_masks, which .*DataModule",
    ):
        trainer(1).test(model, datamodule=Foreign(), verbose=False)
    foreign = Foreign()
    for name, value in {"dataset_name": "F", "sets": {}, "with_normals": False, "up": None, "parts": {}, "mean": (),
                        "std": (), "eval_transforms": (), "category_ids": (), "has_masks": False}.items():  # fmt: skip
        setattr(foreign, name, value)
    trainer(1).test(model, datamodule=foreign, verbose=False)
    assert model.class_names == ("key", "mug")


def test_plain_dataloaders_need_no_data_module():
    model = PointClassificationTask(network(2), partial(torch.optim.SGD, lr=0.5))
    trainer(1).test(model, Foreign().test_dataloader(), verbose=False)
    assert (model.class_names, model.num_test_points) == ((), 32)


def test_shipped_weights_are_trained_for_other_classes(tmp_path):
    model = PointClassificationTask(eat_classifier(2, weights="modelnet40_eat_cpu"), partial(torch.optim.SGD, lr=0.01))
    shipped = eat_classifier(weights="modelnet40_eat_cpu")
    name, before = next((n, v) for n, v in shipped.state_dict().items() if n.startswith("encoder."))
    assert torch.equal(model.network.state_dict()[name], before)
    trainer(1, folder=tmp_path).fit(model, datamodule=Named(num_points=300, batch_size=8))
    assert (model.network.num_classes, model.class_names, model.num_points) == (2, ("key", "mug"), 300)
    wrong = PointClassificationTask(eat_classifier(weights="modelnet40_eat_cpu"), partial(torch.optim.SGD, lr=0.01))
    with pytest.raises(ValueError, match=r"num_classes=40\. Set model.*network\.init_args\.num_classes to 2"):
        trainer(1).fit(wrong, datamodule=Named(num_points=300))


def test_class_names_come_from_the_data():
    model = PointClassificationTask(network(2), partial(torch.optim.SGD, lr=0.5))
    trainer(1).test(model, datamodule=Named(num_points=32), verbose=False)
    assert model.class_names == ("key", "mug")
    with pytest.raises(ValueError, match=r"The data has 2 classes, .* num_classes=12\. Measure it on data with all"):
        trainer(1).test(task(), datamodule=Named(num_points=32))


class Diverging(PointClassificationTask):
    """Its loss is what it is told to be from the second epoch on."""

    bad = float("nan")

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.bad if self.current_epoch else loss


@pytest.mark.parametrize(("bad", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_training_stops_where_the_loss_is_not_finite(tmp_path, bad, shown):
    diverging = Diverging(network(), partial(torch.optim.AdamW, lr=1e-2))
    diverging.bad = bad
    message = (
        rf"The loss became {shown} in epoch 1, step 3, at learning rate 0\.01\. Earlier checkpoints are kept\. Try"
    )
    with pytest.raises(ValueError, match=message):
        trainer(3, folder=tmp_path).fit(diverging, datamodule=shapes())
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0.ckpt"]
    state = read_checkpoint(tmp_path / "epoch=0.ckpt")["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Ruined(PointClassificationTask):
        def on_train_epoch_end(self):
            if self.current_epoch:
                self.network.head[-1].bias.data[0] = torch.nan

    with pytest.raises(ValueError, match=r"network\.head\.4\.bias became NaN or infinite in epoch 1.*and is not saved"):
        trainer(3, folder=tmp_path).fit(Ruined(network(), partial(torch.optim.SGD, lr=0.1)), datamodule=shapes())
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0.ckpt"]


CLASSES = ("flat", "tall", "wide")


class Boxes(PointDataModule):
    """Three classes that a network can tell, in the order that it is told, which also is that of the numbers."""

    def __init__(self, class_names, **options):
        super().__init__(num_points=32, batch_size=6, val_fraction=0.25, **options)
        self.order = class_names

    def load(self, split):
        generator = torch.Generator().manual_seed(int(split == "test"))
        label = torch.arange(24) % 3
        extent = torch.tensor([[1.0, 0.1, 1], [0.2, 1, 0.2], [1, 0.2, 0.2]])
        points = torch.rand(24, 32, 3, generator=generator) - 0.5
        numbers = torch.tensor([self.order.index(name) if name in self.order else 2 for name in CLASSES])
        return PointDataset(points * extent[label][:, None], numbers[label], class_names=self.order)


def test_classes_are_matched_by_name(tmp_path):
    torch.manual_seed(0)
    learned = PointClassificationTask(network(3, dropout=0.0), partial(torch.optim.AdamW, lr=3e-3))
    run = trainer(60, folder=tmp_path)
    run.fit(learned, datamodule=Boxes(CLASSES))
    last = tmp_path / "epoch=59.ckpt"

    def accuracy(order):
        fresh = PointClassificationTask(network(3, dropout=0.0), partial(torch.optim.AdamW, lr=3e-3))
        tested = trainer(1, folder=tmp_path / "test")
        tested.test(fresh, datamodule=Boxes(order), ckpt_path=last, verbose=False)
        assert fresh.class_names == CLASSES
        return float(tested.callback_metrics["test/overall_accuracy"])

    assert accuracy(CLASSES) == accuracy(("wide", "flat", "tall")) > 0.8
    with pytest.raises(ValueError, match="the data has class 'broad', which the network does not know and the network"):
        accuracy(("flat", "tall", "broad"))
    # A resumed run goes on by the same numbers.
    resumed = PointClassificationTask(network(3, dropout=0.0), partial(torch.optim.AdamW, lr=3e-3))
    data = Boxes(("tall", "wide", "flat"))
    trainer(61, folder=tmp_path / "more").fit(resumed, datamodule=data, ckpt_path=last)
    assert resumed.class_names == data.class_names == CLASSES
    assert float(trainer(1).test(resumed, datamodule=data, verbose=False)[0]["test/overall_accuracy"]) > 0.8


def test_processes_that_find_different_checkpoints(monkeypatch):
    """On a machine whose disk does not hold the checkpoint, training would start anew."""
    fitter = trainer(1, num_sanity_val_steps=0)
    monkeypatch.setattr(fitter.strategy, "broadcast", lambda *_, **__: 8)
    with pytest.raises(ValueError, match=r"Process 0 starts at step 0, process 0 at step 8: all must find the same"):
        fitter.fit(task(), datamodule=shapes())


def test_arguments_of_members_are_compared_like_those_of_a_network():
    """Defaults that are written out, and dropout, make no difference; sizes do."""
    member = {"class_path": "pcea.models.point_ea_classifier", "init_args": {"num_classes": 3, "dropout": 0.5}}
    written = {"class_path": "pcea.models.point_ea_classifier", "init_args": {"num_classes": 3, "size": "small"}}
    other = {"class_path": "pcea.models.point_ea_classifier", "init_args": {"num_classes": 3, "size": "base"}}
    one, same, different = (
        _comparable("pcea.models.ClassifierEnsemble", {"members": [each]}) for each in (member, written, other)
    )
    assert one == same != different
    gone = {"class_path": "pcea.layers.gone.Layer"}
    assert _comparable("pcea.models.ClassifierEnsemble", {"members": [gone]}) == {"members": [gone]}
