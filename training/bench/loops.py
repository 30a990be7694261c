"""The two training loops that ``training.bench`` measures, each in its own process that takes commands.

``Plain`` is the loop that tutorials write. ``Ours`` is the loop of ``catsdogs train``, or that with one part left
out. A process gets its :class:`Task` as its only argument, reads one command a line from standard input, and answers
each with a line of JSON; everything else it prints goes to standard error.
"""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms
from torchvision.transforms import v2

from shared import pixels
from training import machine as machines
from training import models, pictures, train
from training.augmentation import RandomColour, augmentation
from training.batch_augmentation import augmenter
from training.fit import Fit
from training.params import Train
from training.pictures import Pictures
from training.stage import progress

Part = Literal["", "channels_last", "freezing", "kept_memory", "decoded_once", "linear_colours", "bfloat16", "batches"]
STATUS: Final = Path("/proc/self/status")


class Task(msgspec.Struct, frozen=True):
    """What a process trains: ``steps`` are those of the whole run, ``without`` is the part to leave out.

    Below ``folder`` lie the raw ``photos/{train,val}`` and ``prepared/<side>`` as written by ``prepare``,
    one folder for each class, the files of a side in the same order in both.
    """

    kind: Literal["plain", "ours"]
    folder: str
    recipe: Train
    steps: int
    side: str = "train"
    without: Part = ""


class Plain:
    """The loop of tutorials: photos decoded in every epoch by two loader processes, float32, the whole network learns.

    After https://pytorch.org/tutorials/beginner/transfer_learning_tutorial.html, but for Adam, the square resize, and
    crops of half the photo at least, where torchvision's 8 % would cost it accuracy in so short a run.
    """

    def __init__(self, task: Task) -> None:
        """Make data set, network and optimizer."""
        torch.manual_seed(task.recipe.seed)
        classifier = models.build(task.recipe.model, pretrained=task.recipe.pretrained)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = nn.Sequential(
            classifier.trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier.dropout, classifier.head
        ).to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        mean, std = (classifier.mean.flatten() / 255).tolist(), (classifier.std.flatten() / 255).tolist()
        tensor = [transforms.ToTensor(), transforms.Normalize(mean, std)]
        varied = [transforms.RandomResizedCrop(pixels.SIZE, scale=(0.5, 1.0)), transforms.RandomHorizontalFlip()]
        same = [transforms.Resize((pixels.SIZE, pixels.SIZE))]
        photos = Path(task.folder) / "photos"
        self.train_set = datasets.ImageFolder(photos / "train", transforms.Compose([*varied, *tensor]))
        self.val_set = datasets.ImageFolder(photos / "val", transforms.Compose([*same, *tensor]))
        self.batch_size = task.recipe.batch_size
        self.order = torch.randperm(len(self.train_set)).tolist()  # `shuffle=True`, in parts

    def learn(self, batches: int) -> dict[str, Any]:
        """Learn from the next batches."""
        count = batches * self.batch_size
        part, self.order = self.order[:count], self.order[count:]
        loss_function = nn.CrossEntropyLoss()
        self.network.train()
        watch = Stopwatch()
        for images, labels in DataLoader(Subset(self.train_set, part), self.batch_size, num_workers=2):
            self.optimizer.zero_grad()
            loss = loss_function(self.network(images.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
            watch.step(loss.item(), len(labels))
        return watch.read()

    def validate(self) -> dict[str, Any]:
        """Report which answers are right."""
        began = time.monotonic()
        self.network.eval()
        right: list[bool] = []
        with torch.inference_mode():
            for images, labels in DataLoader(self.val_set, self.batch_size, num_workers=2):
                right += (self.network(images.to(self.device)).argmax(1).cpu() == labels).tolist()
        return {"right": right, "seconds": time.monotonic() - began}


class Ours:
    """The steps of ``catsdogs train``: everything that it does between the prepared pictures and the weights."""

    def __init__(self, task: Task) -> None:
        """Decode the pictures, fit the probe that the head starts from, and freeze."""
        self.without, self.folder, self.recipe = task.without, Path(task.folder), task.recipe
        if self.without == "freezing":
            self.recipe = msgspec.structs.replace(self.recipe, frozen_blocks=0)
        if self.without == "kept_memory":
            machines.keep_freed_memory = lambda: "left to the system's malloc"
        with contextlib.redirect_stdout(io.StringIO()) as said:
            self.machine = machines.choose_machine()
        self.choices = said.getvalue().splitlines()
        if self.without == "bfloat16":
            self.machine = dataclasses.replace(self.machine, autocast=None)
        began = time.monotonic()
        plain_pictures = Pictures(self.folder / "prepared" / task.side)
        decoded = time.monotonic()
        start = train.start_weights(self.recipe, plain_pictures, self.machine)
        self.once = {"decoding": decoded - began, "probe": time.monotonic() - decoded}
        self.model = train.build_model(self.recipe, start, self.machine)
        self.choices.append(f"frozen: {self.model.freeze(self.recipe.frozen_blocks)}")
        if self.without == "channels_last":
            self.model.to(memory_format=torch.contiguous_format)
        self.fit = Fit(self.model, self.recipe, task.steps, start, {})
        self.augmented = self._augmented(self.folder / "prepared" / task.side)
        self.batches = pictures.shuffled(len(self.augmented), self.recipe.batch_size, self.recipe.seed, 0)

    def _augmented(self, side: Path) -> Pictures:
        given, seed = self.recipe.augmentation, pictures.epoch_seed(self.recipe.seed, 0)
        one_by_one = self.without in ("batches", "linear_colours")
        device = torch.device("cpu") if one_by_one else self.machine.device
        self.augment = augmenter(given, pixels.SIZE, device)
        transform = self.augment.transform
        if self.without == "linear_colours":
            jitter = v2.ColorJitter(given.brightness, given.contrast, given.saturation, given.hue)
            steps = augmentation(given).transforms
            transform = v2.Compose([jitter if isinstance(step, RandomColour) else step for step in steps])
        if self.without == "decoded_once":
            return Undecoded(side, transform, seed)
        return Pictures(side, transform, seed)

    def _batches(self, part: list[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Load batches, onto the device."""
        for loaded, labels in pictures.loader(self.augmented, part, self.machine.workers, self.augment.collate):
            yield self.augment.finish(loaded).to(self.machine.device), labels.to(self.machine.device)

    def _step(self, images: Tensor, labels: Tensor) -> None:
        self.fit.step(images, labels, self.machine.autocast, len(labels))

    def learn(self, batches: int) -> dict[str, Any]:
        """Learn from the next batches."""
        part = self.batches[self.fit.batch : self.fit.batch + batches]
        self.model.train()
        watch = Stopwatch()
        for images, labels in self._batches(part):
            self._step(images, labels)
            watch.step(self.fit.loss, len(labels))
        return watch.read()

    def validate(self) -> dict[str, Any]:
        """Report which answers of the averaged weights are right."""
        val_set = Pictures(self.folder / "prepared" / "val")
        began = time.monotonic()
        logits, labels = train.predict_logits(self.fit.averaged, val_set, self.machine, "validating")
        return {"right": (logits.argmax(1) == labels).tolist(), "seconds": time.monotonic() - began}

    def frozen_share(self, batches: int) -> dict[str, Any]:
        """Median share of a forward pass that its frozen stages take, 0..1, on a CPU; 0 if nothing is frozen."""
        ends: list[float] = []
        if self.model.frozen:
            last = self.model.stages[self.model.frozen - 1]
            last.register_forward_hook(lambda *_: ends.append(time.monotonic()))
        images, _ = next(self._batches(self.batches[:1]))
        shares = []
        self.model.eval()
        for _ in range(batches):
            began = time.monotonic()
            with torch.inference_mode():
                self.model(images)
            now = time.monotonic()
            shares.append((ends.pop() - began) / (now - began) if ends else 0.0)
        return {"share": statistics.median(shares)}

    def read_all(self, steps: int) -> dict[str, Any]:
        """Load every batch of the side, learn from ``steps`` of them spread over it, validate, and watch the memory."""
        every = max(1, len(self.batches) // steps)
        anonymous, done = process_memory("RssAnon"), 0
        self.model.train()
        loaded = progress(self._batches(self.batches), "reading all", len(self.batches), " batches")
        for number, (images, labels) in enumerate(loaded):
            if number % every == 0 and done < steps:
                self._step(images, labels)
                done += 1
            anonymous = max(anonymous, process_memory("RssAnon"))
        self.validate()
        anonymous = max(anonymous, process_memory("RssAnon"))
        return {
            "pictures": len(self.augmented),
            "steps": done,
            "peak_mb": process_memory("VmHWM"),
            "anonymous_mb": anonymous,
        }


class Undecoded(Pictures):
    """The same pictures, each decoded from its photo on every access, as in a data set that keeps no pixels."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Decode the photo, then read and augment as usual; the extra read takes only 0.05 ms."""
        pixels.pixels(self.photos[index].read_bytes())
        return super().__getitem__(index)

    @functools.cached_property
    def photos(self) -> list[Path]:
        """The photos that the pictures were prepared from, in the same order."""
        prepared = self.paths[0].parents[1]
        return sorted((prepared.parents[1] / "photos" / prepared.name).glob("*/*"))


class Stopwatch:
    """Times the batches of a segment from the end of the first one, in which caches and loaders warm up."""

    def __init__(self) -> None:
        """Start the watch of the whole segment."""
        self.began = time.monotonic()
        self.first: float | None = None
        self.pictures = 0

    def step(self, loss: float, pictures: int) -> None:
        """Count a batch after its loss is computed."""
        if not math.isfinite(loss):
            raise ArithmeticError("the loss is not finite, so the measured run does not learn")
        if self.first is None:
            self.first = time.monotonic()
        else:
            self.pictures += pictures

    def read(self) -> dict[str, Any]:
        """Pictures and seconds after the first batch, and seconds with it."""
        now = time.monotonic()
        assert self.first is not None
        return {"pictures": self.pictures, "seconds": now - self.first, "whole_seconds": now - self.began}


def process_memory(field: str) -> float:
    """Resident memory of this process in MB (10⁶ bytes), by a field of Linux's ``/proc/self/status``.

    ``VmHWM`` is the peak, as counted by the kernel; ``RssAnon`` the current amount without file pages, such as torch's
    libraries.
    """
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    """Run the commands on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps what libraries print out of the answers
    task = msgspec.json.decode(sys.argv[1], type=Task)
    loop = Plain(task) if task.kind == "plain" else Ours(task)
    ready = {"choices": loop.choices, "once_seconds": loop.once} if isinstance(loop, Ours) else {}
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        what, *numbers = line.split()
        answer = getattr(loop, what)(*map(int, numbers))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
