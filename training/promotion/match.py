"""A match: a candidate and a rival on the same photos, figure by figure."""

from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from shared.contract import Exam
from shared.metrics import Bools, log_losses
from shared.pixels import Photo
from shared.second_look import Outputs, look
from training.comparison import Difference, compare, compare_means, sign_flip_test
from training.graph import single_threaded
from training.measure import reasons, typical_seconds
from training.photographs import Photographs, joined
from training.promotion.files import PRECISIONS, Files, read_contract
from training.robustness import JUDGED
from training.stage import progress

# By how much a candidate may be worse: shares of the photos, nats, shares of the rival's bytes and milliseconds.
MARGINS: Final = {
    "accuracy": 0.01,
    "log loss": 0.01,
    "wrong answers": 0.005,
    "coverage": 0.02,
    "other things": 0.05,
    "bytes": 0.5,
    "milliseconds": 0.5,
    "robustness": 0.015,
    "production": 0.01,
    "hard": 0.01,
}
ROBUSTNESS: Final = "robustness: "  # starts the names of its figures; the cell follows
CHOSEN: Final = ", chosen by answers of models that served: an equal model is likely to be better on them too"
COSTS: Final = ("bytes", "milliseconds")
FORMS: Final = {"log loss": ".4f", "bytes": ",", "milliseconds": ".2f"}  # the others are shares


@dataclass(frozen=True)
class Answers:
    """What one file did, photo by photo."""

    size: int  # bytes
    right: Bools
    answered: Bools
    losses: npt.NDArray[np.float64]
    again: Bools  # looked at again
    seconds: npt.NDArray[np.float64]  # on one thread, second looks and all, decoding not counted
    others_unsure: Bools  # of the photos of other things, none if there are none
    from_production: dict[str, Bools] = field(default_factory=dict)  # right, by test side of what production met

    @property
    def wrong(self) -> Bools:
        """Photos that are answered, and wrongly."""
        return self.answered & ~self.right

    @property
    def milliseconds(self) -> float:
        """Mean time of a photo."""
        return typical_seconds(self.seconds, self.again, float(self.again.mean())) * 1000


@dataclass(frozen=True)
class Figure:
    """One figure of rival and candidate, and by how much the candidate is worse: below zero where it is better."""

    name: str
    rival: float
    candidate: float
    worse: Difference
    margin: float
    p_value: float | None = None  # of a figure that can be a reason to promote

    @property
    def objection(self) -> str | None:
        """Why the figure speaks against the candidate."""
        # "not <" rather than ">=": a NaN must fail.
        if not self.worse.high < self.margin:
            return f"{self.name} may be worse by {self._change(self.worse.high)}, margin {self._change(self.margin)}"
        return None

    def better(self, level: float) -> bool:
        """Whether the candidate is significantly better at this level."""
        return self.p_value is not None and self.p_value < level and self.worse.value < 0

    def row(self) -> str:
        """The figure for a person."""
        form = FORMS.get(self.name, ".2%")
        low, high = self._change(self.worse.low), self._change(self.worse.high)
        change = f"{self._change(self.worse.value)} ({low} to {high})"
        p = "" if self.p_value is None else f"{self.p_value:.2g}"
        return f"{self.name:<14}{self.rival:>16{form}}{self.candidate:>16{form}}   {change:<34}{p}".rstrip()

    def tags(self) -> dict[str, str]:
        """The figure as tags of the candidate's version."""
        name, worse = self.name.replace(" ", "_").replace(":", ""), self.worse
        tags = {
            f"champion_{name}": f"{self.rival:.6g}",
            f"candidate_{name}": f"{self.candidate:.6g}",
            f"{name}_worse_by": f"{worse.value:.6g} (95 % {worse.low:.6g} to {worse.high:.6g})",
        }
        return tags if self.p_value is None else tags | {f"{name}_p_value": f"{self.p_value:.6g}"}

    def _change(self, value: float) -> str:
        return format(value, "+.4f" if self.name == "log loss" else "+.2%")


@dataclass(frozen=True)
class Match:
    """All figures of a candidate and a rival, what else speaks against the candidate, and what a person should know."""

    rival: str
    photos: int
    figures: tuple[Figure, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def objections(self) -> list[str]:
        """All that speaks against the candidate."""
        return [figure.objection for figure in self.figures if figure.objection] + list(self.missing)

    def figure(self, name: str) -> Figure:
        """The figure of this name."""
        return next(figure for figure in self.figures if figure.name == name)

    def without_costs(self) -> "Match":
        """The same without bytes and milliseconds, which a better model may cost once more."""
        return replace(self, figures=tuple(figure for figure in self.figures if figure.name not in COSTS))

    def table(self) -> str:
        """The comparison for a person."""
        head = f"{f'{self.photos:,} photos':<14}{self.rival:>16}{'candidate':>16}   {'worse by, 95 % interval':<34}p"
        return "\n".join((head, *(figure.row() for figure in self.figures), *self.notes))


def play(
    files: dict[str, bytes], photos: Photographs, others: list[Photo], sides: dict[str, Photographs]
) -> dict[str, Answers]:
    """Look at every photo with every model, by the model's own contract, in turns; and at photos of other things.

    Args:
        files: models by name.
        photos: with the labels that they came with.
        others: photos of other things.
        sides: photos of what production met, by test side.
    """
    labels = np.array(photos.labels)
    models = {name: (single_threaded(model), read_contract(model)) for name, model in files.items()}
    looks: dict[str, list[tuple[Outputs, bool, float]]] = {name: [] for name in files}
    names = list(files)
    for index in progress(range(len(photos)), "comparing"):
        photo = photos[index]
        # They take turns to go first: the others find the picture in the CPU cache.
        for turn in range(len(names)):
            name = names[(index + turn) % len(names)]
            network, document = models[name]
            began = perf_counter()
            found = look(photo, network, document.second_look)
            looks[name].append((found.outputs, found.again, perf_counter() - began))
    answers = {}
    for name, (network, document) in models.items():
        outputs, again, seconds = zip(*looks[name], strict=True)
        given = joined(list(outputs))
        unsure = [reasons(look(photo, network, document.second_look).outputs, document)[0] != "" for photo in others]
        from_production = {}
        for side, some in sides.items():
            outputs = joined([look(some[index], network, document.second_look).outputs for index in range(len(some))])
            from_production[side] = outputs.probabilities.argmax(1) == np.array(some.labels)
        answers[name] = Answers(
            size=len(files[name]),
            right=given.probabilities.argmax(1) == labels,
            answered=reasons(given, document) == "",
            losses=log_losses(given.probabilities, labels),
            again=np.array(again),
            seconds=np.array(seconds),
            others_unsure=np.array(unsure, bool),
            from_production=from_production,
        )
    return answers


def match(rival: str, theirs: tuple[Files, Answers], ours: tuple[Files, Answers]) -> Match:
    """Compare a candidate (``ours``) with a rival of this name."""
    (their_files, their_answers), (our_files, our_answers) = theirs, ours
    cells, missing, notes = _robustness(their_files, our_files)
    fewer, wider = _exams(their_files, our_files)
    if not len(our_answers.others_unsure):
        notes.append("other things: not compared, there are no photos of them (export.others)")
    notes += [
        f"{side}: {len(right):,} photos{CHOSEN if side == 'hard' else ''}"
        for side, right in our_answers.from_production.items()
    ]
    return Match(
        rival=rival,
        photos=len(our_answers.right),
        figures=(*_figures(their_answers, our_answers), *cells),
        missing=(*fewer, *missing),
        notes=(*notes, *wider),
    )


def _figures(rival: Answers, candidate: Answers) -> list[Figure]:
    means = compare_means(rival.losses, candidate.losses)
    p_value = sign_flip_test(rival.losses, candidate.losses)
    losses = float(rival.losses.mean()), float(candidate.losses.mean())
    figures = [
        _share("accuracy", rival.right, candidate.right, good=True, reason=True),
        Figure("log loss", *losses, means, MARGINS["log loss"], p_value),
        _share("wrong answers", rival.wrong, candidate.wrong, good=False, reason=True),
        _share("coverage", rival.answered, candidate.answered, good=True),
    ]
    if len(candidate.others_unsure):
        figures.append(_share("other things", rival.others_unsure, candidate.others_unsure, good=True))
    figures += [_side(side, rival.from_production[side], right) for side, right in candidate.from_production.items()]
    milliseconds = rival.milliseconds, candidate.milliseconds
    return [
        *figures,
        _certain("bytes", rival.size, candidate.size, candidate.size / rival.size - 1),
        _certain("milliseconds", *milliseconds, milliseconds[1] / milliseconds[0] - 1),
    ]


def _share(name: str, rival: Bools, candidate: Bools, *, good: bool, reason: bool = False) -> Figure:
    found = compare(rival, candidate)
    more = found.difference
    worse = Difference(0.0 - more.value, 0.0 - more.high, 0.0 - more.low) if good else more
    p_value = found.p_value if reason else None
    return Figure(name, found.first.value, found.second.value, worse, MARGINS[name], p_value)


def _side(name: str, rival: Bools, candidate: Bools) -> Figure:
    """Share right on a test side of what production met.

    It is small at first, and an interval would keep every candidate out: so the value counts, and a net loss of one
    photo is allowed.
    """
    found = compare(rival, candidate)
    worse = 0.0 - found.difference.value
    margin = max(MARGINS[name], 2 / found.n)
    certain = Difference(worse, worse, worse)
    return Figure(name, found.first.value, found.second.value, certain, margin, found.p_value)


def _certain(name: str, rival: float, candidate: float, worse: float) -> Figure:
    return Figure(name, rival, candidate, Difference(worse, worse, worse), MARGINS[name.partition(":")[0]])


def _robustness(rival: Files, candidate: Files) -> tuple[list[Figure], list[str], list[str]]:
    """Cells of the reports as figures, the names of those that are missing, and what to say."""
    theirs, ours = (_cells(files) for files in (rival, candidate))
    if not theirs or not ours:
        who = "the rival" if not theirs else "the candidate"
        return [], [], [f"robustness: not compared, the report of {who} has none"]
    lost = sorted(theirs.keys() - ours.keys())
    missing = [f"robustness is not reported for {', '.join(lost)}"] if lost else []
    shared = sorted(theirs.keys() & ours.keys())
    return (
        [_certain(ROBUSTNESS + cell, theirs[cell], ours[cell], ours[cell] - theirs[cell]) for cell in shared],
        missing,
        [],
    )


def _cells(files: Files) -> dict[str, float]:
    """Share wrong among the answered in the cells of severity ``JUDGED`` in the report of the model that answers."""
    report = next((files.reports[precision] for precision in PRECISIONS if precision in files.reports), b"{}")
    cells = msgspec.json.decode(report).get("robustness", {})
    return {
        name: float(cell["wrong_when_answered"]["value"]) for name, cell in cells.items() if cell["severity"] == JUDGED
    }


def _exams(rival: Files, candidate: Files) -> tuple[list[str], list[str]]:
    """What the candidate's exams lack, and where they are more lenient; each precision's with the rival's own."""
    fewer, wider = [], []
    for precision, model in candidate.models.items():
        ours = read_contract(model).exam
        theirs = read_contract(rival.models.get(precision, rival.answering)).exam
        counts = [len({question.picture for question in one.questions}) for one in (theirs, ours)]
        if counts[1] < counts[0]:
            fewer.append(f"the {precision} exam has {counts[1]} questions, the rival's {counts[0]}")
        before, after = (tolerances(one) for one in (theirs, ours))
        grown = [name for name in sorted(before.keys() & after.keys()) if after[name] > before[name]]
        if grown:
            worst = max(grown, key=lambda name: after[name] - before[name])
            wider.append(
                f"exam, {precision}: wider tolerances for {len(grown)} questions, "
                f"{worst} from {before[worst]:g} to {after[worst]:g}"
            )
    return fewer, wider


def tolerances(questions: Exam) -> dict[str, float]:
    """Tolerance of each question by its name."""
    return {
        question.name: questions.tolerance if question.tolerance is None else question.tolerance
        for question in questions.questions
    }
