"""Train: fit a network on the training side, starting from ImageNet weights and a linear probe.

    catsdogs train                    # resumes an interrupted run with the same parameters, data, labels and code
    catsdogs train --restart          # starts over
    catsdogs train --closer           # the network of the second look
    catsdogs train --processes 4      # four processes on this machine, one for each GPU

    torchrun --nproc-per-node 4 -m training.train [--closer] [--restart] [--params FILE]    # the same; also on several

Writes ``models/trained/``, or ``models/closer/``: ``weights.pt``, the averaged weights after the last epoch;
``start.pt``, those it started from; ``trained.json`` (what later stages read), ``history.csv`` and ``curves.png``.
Nothing is chosen by the validation pictures, so what is fitted on them later is fitted on photos the network was not.
"""

import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import mlflow
import msgspec
import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from shared.files import write_json, write_whole
from shared.intervals import wilson
from shared.spec import DIGEST
from training import balance, group, labels, models, pictures, plots, stage, tracking
from training import params as parameters
from training import split as splits
from training.batch_augmentation import augmenter
from training.fit import Epoch, Fit, Weights
from training.machine import Machine, choose_machine
from training.models import Classifier
from training.params import Train
from training.pictures import Pictures, evenly_spaced
from training.split import Photo, split_digest
from training.stage import PRODUCTION, StageError, progress, whole_directory

PROBE_FOLDS: Final = 5
# What decides the weights; not the progress bars, plots and records of a run.
CODE: Final = [
    Path(__file__).with_name(f"{name}.py")
    for name in (
        "train", "fit", "models", "efficientnet_lite", "whole_batch", "group", "augmentation",
        "batch_augmentation", "pictures", "balance", "labels",
    )
]  # fmt: skip
AT_ONCE: Final = 32  # batch size for inference; with 64, validation and not training was the peak of memory


def train(
    prepared: Path,
    params: Train,
    out: Path,
    checkpoints: Path,
    photos: list[Photo],
    *,
    restart: bool = False,
) -> None:
    """Train on ``prepared`` and write the weights to ``out``.

    Args:
        prepared: the folder that ``prepare`` filled.
        params: the recipe, a section ``train`` of params.yaml.
        out: the folder to write.
        checkpoints: folder for the checkpoint to resume from.
        photos: the split's table.
        restart: start over instead of resuming.

    Raises:
        StageError: no prepared pictures, an unknown model, weights that cannot be downloaded, or labels unrelated to
            the pictures.
    """
    first = group.rank() == 0
    machine = choose_machine()
    decided = labels.decisions()
    followed = decided if params.audited else {}
    train_set = Pictures(prepared / "train", decided=followed, side=params.side)
    val_set = Pictures(prepared / "val", decided=decided, side=params.side)
    drawn = _draws(train_set, photos, params.production_share)
    digest = split_digest(photos)
    print(f"pictures: {len(train_set):,} to train on, {len(val_set):,} to validate on")

    made_of = {
        "parameters": hashlib.sha256(msgspec.json.encode(params)).hexdigest(),
        "data": digest + DIGEST + hashlib.sha256(drawn.tobytes()).hexdigest(),
        "labels": _digest(labels.DECISIONS),
        "code": _digest(*CODE),
    }
    key = hashlib.sha256(msgspec.json.encode(made_of)).hexdigest()[:16]
    checkpoint = checkpoints / f"{out.name}-{key}.pt"
    if restart and first:
        checkpoint.unlink(missing_ok=True)
    fit = _begin(checkpoint, made_of, params, train_set, machine)

    with tracking.run(fit.mlflow_run_id, params.model) if first else nullcontext() as run_id:
        if first and fit.mlflow_run_id != run_id:
            fit.mlflow_run_id = run_id
            _log_start(params, prepared, digest, machine)
            fit.save(checkpoint)
        group.wait_for_first()

        augment = augmenter(params.augmentation, params.side, machine.device)
        for epoch in range(len(fit.history), params.epochs):
            seed = pictures.epoch_seed(params.seed, epoch)
            augmented = Pictures(prepared / "train", augment.transform, seed, followed)
            augmented.take(balance.draw(drawn, seed))
            batches = pictures.shuffled(len(augmented), params.batch_size, params.seed, epoch)[fit.batch :]
            # A process without a picture of the last batch loads one that it does not learn from.
            own = [[*group.share(batch)] or batch[:1] for batch in batches]
            loader = pictures.loader(augmented, own, machine.workers, augment.collate)
            bar = progress(loader, f"epoch {epoch + 1}/{params.epochs}", len(batches), " batches")
            fit.network.train()
            saved = time.monotonic()
            for batch, (loaded, truth) in zip(batches, bar, strict=True):
                # Dropout depends only on the position in the run, so that a resumed epoch is as an uninterrupted one.
                torch.manual_seed(pictures.step_seed(params.seed, epoch, fit.batch))
                some = slice(len(group.share(batch)))
                fit.step(augment.finish(loaded)[some], truth[some].to(machine.device), machine.autocast, len(batch))
                if first and time.monotonic() - saved > params.checkpoint_minutes * 60:
                    fit.save(checkpoint)
                    saved = time.monotonic()

            logits, truth = predict_logits(fit.averaged, val_set, machine, "validating")
            line = fit.end_epoch(logits, truth)
            if first:
                fit.save(checkpoint)
                _log_epoch(line, fit)

        _warn_of_guessing(fit.history[-1].val_accuracy, len(val_set))
        if first:
            _write(out, fit, {"model": params.model, "side": params.side, "split_digest": digest})
            mlflow.log_artifact(str(out / "curves.png"))
    if first:
        checkpoint.unlink(missing_ok=True)


def _draws(train_set: Pictures, photos: list[Photo], production_share: float) -> npt.NDArray[np.float64]:
    names = {photo.sha256[: labels.ID_LENGTH]: photo.collection for photo in photos}
    collections = [names[path.stem] for path in train_set.paths]
    production = np.array([name == PRODUCTION for name in collections])
    return balance.raised(balance.weights(train_set.labels, collections), production, production_share)


def run(params_file: Path, *, closer: bool, restart: bool) -> None:
    """Train the network of the first or the second look as params.yaml says, alone in this folder.

    Raises:
        StageError: as :func:`train`; or a process is already training here.
    """
    document = parameters.load(params_file)
    recipe, out = (document.closer_recipe(), stage.CLOSER) if closer else (document.train, stage.TRAINED)
    first = group.rank() == 0
    if recipe is None:
        print("closer: none in params.yaml, so the first network looks again")
        if first:
            with whole_directory(out):
                pass  # an empty one, since DVC wants the outputs of a stage to be there
        return
    with stage.alone(stage.TRAINING) if first else nullcontext():
        train(stage.PREPARED, recipe, out, stage.CHECKPOINTS, splits.read(stage.SPLIT), restart=restart)
        if first:
            with tracking.run(read_trained(out)["mlflow_run_id"]):
                for name in ("fetch", "audit", "split", "suspects"):
                    tracking.log_section(name, getattr(document, name))


def _log_start(params: Train, prepared: Path, digest: str, machine: Machine) -> None:
    mlflow.log_params(tracking.flat(params) | {"split_digest": digest})
    tracking.log_dataset(prepared, digest)
    mlflow.set_tags(tracking.versions() | machine.tags | {"git_commit": tracking.git_commit()})


def _log_epoch(line: Epoch, fit: Fit) -> None:
    rates = {"lr": fit.scheduler.get_last_lr()[0], "head_lr": fit.scheduler.get_last_lr()[-1]}
    figures = {name: value for name, value in asdict(line).items() if name != "epoch"}
    mlflow.log_metrics(figures | rates, line.epoch)
    print(
        f"epoch {line.epoch}: train loss {line.train_loss:.4f}, accuracy {line.train_accuracy:.2%}; "
        f"validation loss {line.val_loss:.4f}, accuracy {line.val_accuracy:.2%}; {line.seconds:.0f} s"
    )


def read_trained(folder: Path) -> dict[str, Any]:
    """Read the ``trained.json`` that :func:`train` wrote to ``folder``.

    Raises:
        StageError: it has not run.
    """
    try:
        document: dict[str, Any] = json.loads((folder / "trained.json").read_text())
    except OSError as error:
        raise StageError(f"{folder}: {error.strerror}; run `catsdogs train` first") from error
    return document


def load_trained(folder: Path) -> Classifier:
    """The network that :func:`train` wrote to ``folder``, in evaluation mode, on the CPU.

    Raises:
        StageError: it has not run.
    """
    model = models.build(read_trained(folder)["model"], pretrained=False)
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True, map_location="cpu"))
    return model.to(memory_format=torch.channels_last).eval()


def _begin(checkpoint: Path, made_of: dict[str, str], params: Train, train_set: Pictures, machine: Machine) -> Fit:
    """The interrupted run of this checkpoint, or a new one.

    Raises:
        StageError: the machines of the group have other photos, labels or code.
    """
    content = None
    if group.rank() == 0 and checkpoint.exists():
        content = torch.load(checkpoint, weights_only=True, map_location="cpu")
    content = group.from_first(content)
    found = group.together([made_of])
    for number, other in enumerate(found):
        if other != found[0]:
            raise StageError(f"process {number} has other {_changed(found[0], other)} than process 0")
    if content is None and group.rank() == 0:
        for path in checkpoint.parent.glob(f"{checkpoint.stem.rpartition('-')[0]}-*.pt"):
            earlier = torch.load(path, weights_only=True, map_location="cpu")["made_of"]
            print(f"starting anew: the interrupted run of {path} had other {_changed(made_of, earlier)}")
    start = content["start"] if content else start_weights(params, train_set, machine)
    steps = params.epochs * -(-len(train_set) // params.batch_size)
    model = build_model(params, start, machine)
    print(f"frozen: {model.freeze(params.frozen_blocks)}")
    fit = Fit(model, params, steps, start, made_of)
    if content:
        fit.load(content)
        print(f"resumed: epoch {len(fit.history) + 1}, batch {fit.batch}, from {checkpoint}")
    return fit


def _changed(made_of: dict[str, str], other: dict[str, str]) -> str:
    return ", ".join(what for what, digest in made_of.items() if other.get(what) != digest)


def _digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def start_weights(params: Train, train_set: Pictures, machine: Machine) -> Weights:
    """Weights to start from: those of ImageNet, and a linear probe's for the head."""
    torch.manual_seed(params.seed)
    model = models.build(params.model, pretrained=params.pretrained)
    print(f"model: {params.model}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters")
    model.to(memory_format=torch.channels_last).to(machine.device)
    if params.probe_pictures and model.pretrained:
        accuracy = _probe(model, train_set, params, machine)
        print(f"head: starts from a linear probe, {accuracy:.2%} right on held-out pictures")
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def build_model(params: Train, weights: Weights, machine: Machine) -> Classifier:
    """The network that ``params`` name, with these weights, on the machine's device."""
    torch.manual_seed(params.seed)
    model = models.build(params.model, pretrained=params.pretrained)
    model.load_state_dict(weights)
    if machine.autocast and machine.device.type == "cpu":
        models.depthwise_in_float32(model)
    return model.to(memory_format=torch.channels_last).to(machine.device)


def _guesses(accuracy: float, pictures: int) -> bool:
    """Whether guessing could reach this accuracy, as it does when half of the labels are swapped."""
    return wilson(round(accuracy * pictures), pictures).low <= 1 / 2


def _warn_of_guessing(accuracy: float, pictures: int) -> None:
    if _guesses(accuracy, pictures):
        print(
            f"warning: {accuracy:.0%} right on {pictures:,} validation pictures is no better than guessing: "
            "it learned too little, or the labels are mixed up; `catsdogs suspects` checks them"
        )


def predict_logits(model: Classifier, data: Pictures, machine: Machine, what: str) -> tuple[Tensor, Tensor]:
    """Logits float32 [n, 2] and labels int64 [n] of every picture, in order, on the CPU."""
    model.eval()
    return _outputs(model, data, range(len(data)), machine, what)


def features(model: Classifier, data: Pictures, count: int, machine: Machine, what: str) -> tuple[Tensor, Tensor]:
    """Pooled features float32 [n, channels] and labels of ``count`` pictures, spread evenly over the data set."""
    model.eval()
    chosen = evenly_spaced(len(data), count)
    return _outputs(lambda images: model.feature_map(images).mean((2, 3)), data, chosen, machine, what)


def _outputs(
    compute: Callable[[Tensor], Tensor], data: Pictures, indices: Sequence[int], machine: Machine, what: str
) -> tuple[Tensor, Tensor]:
    """What is computed of these pictures, in order, and their labels; each process takes some of the batches."""
    batches = group.share([[*indices[start : start + AT_ONCE]] for start in range(0, len(indices), AT_ONCE)])
    rows = []
    with torch.inference_mode():
        for images, _ in progress(pictures.loader(data, [*batches], machine.workers), what, len(batches), " batches"):
            rows.append(compute(images.to(machine.device)).float().cpu())
    return torch.cat(group.together(rows)), torch.tensor([data.labels[index] for index in indices])


def _probe(model: Classifier, data: Pictures, params: Train, machine: Machine) -> float:
    """Put the weights of a logistic regression on frozen features into the head; returns its accuracy out of fold.

    Raises:
        StageError: that accuracy is no better than guessing, as when half of the labels are swapped.
    """
    rows, truth = features(model, data, params.probe_pictures, machine, "probing")
    own = labels.out_of_fold(rows.numpy(), truth.numpy(), PROBE_FOLDS, params.seed)
    accuracy = float((own >= labels.CONTRADICTED).mean())
    if _guesses(accuracy, len(own)):
        raise StageError(
            f"the labels look swapped or mixed up: a probe fitted on the other pictures is right on {accuracy:.0%} of "
            f"{len(own):,}, no better than guessing; check the class folders"
        )
    mean, std = rows.mean(0), rows.std(0).clamp_min(1e-6)
    probe = LogisticRegression(C=0.01, max_iter=1000).fit(((rows - mean) / std).numpy(), truth.numpy())
    # Two logits whose difference is the probe's one: half of its weights each, with opposite signs.
    weight = torch.tensor(probe.coef_[0], dtype=torch.float32) / std
    bias = torch.tensor(probe.intercept_[0], dtype=torch.float32) - (weight * mean).sum()
    with torch.no_grad():
        model.head.weight.copy_(torch.stack([-weight, weight]) / 2)
        model.head.bias.copy_(torch.stack([-bias, bias]) / 2)
    return accuracy


def _write(out: Path, fit: Fit, trained: dict[str, Any]) -> None:
    last = fit.history[-1]
    text = io.StringIO()
    rows = [asdict(line) for line in fit.history]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with whole_directory(out) as aside:
        for name, weights in (("weights", fit.averaged.state_dict()), ("start", fit.start)):
            buffer = io.BytesIO()
            # Given a path, torch.save turns a full disk into an uninformative RuntimeError.
            torch.save({key: tensor.cpu() for key, tensor in weights.items()}, buffer)
            write_whole(aside / f"{name}.pt", buffer.getvalue())
        document = trained | {
            "val_loss": last.val_loss,
            "val_accuracy": last.val_accuracy,
            "epochs": len(fit.history),
            "seconds": sum(line.seconds for line in fit.history),
            "mlflow_run_id": fit.mlflow_run_id,
        }
        write_json(aside / "trained.json", document)
        write_whole(aside / "history.csv", text.getvalue())
        plots.learning_curves({trained["model"]: fit.history}).savefig(aside / "curves.png")


@click.command()
@click.option("--params", "params_file", type=click.Path(path_type=Path), default=Path("params.yaml"))
@click.option("--closer", is_flag=True)
@click.option("--restart", is_flag=True)
def main(params_file: Path, closer: bool, restart: bool) -> None:
    """Train as one of torchrun's processes, or alone."""
    with group.joined():
        run(params_file, closer=closer, restart=restart)


if __name__ == "__main__":
    main()
