"""The rule: whether a candidate serves from now on."""

from dataclasses import dataclass
from math import log
from typing import Any, Final

from shared.contract import Exam
from shared.intervals import wilson
from training.comparison import SIGNIFICANT
from training.packaging import LARGEST_TOLERANCE
from training.promotion.match import COSTS, MARGINS, ROBUSTNESS, Answers, Match, tolerances
from training.robustness import MOST_WRONG

LEAST_COVERAGE: Final = 0.5
REASONS: Final = 3  # figures on the test side of the collections that can be significantly better
# What counts as a change of bytes and of milliseconds. Measured four times, one file against itself, 1,306 photos on
# two busy cores: the ratio of the times was 0.995 to 1.000.
SMALLER: Final = 0.01
FASTER: Final = 0.05


@dataclass(frozen=True)
class PromotionDecision:
    """Whether the candidate serves from now on, and why, in words."""

    promote: bool
    reason: str


def decide(faults: list[str], champion: Match | None, earlier: list[Match], level: float) -> PromotionDecision:
    """Promote a candidate that is better than the champion in one figure, and worse than no champion so far in any.

    Better than the champion, one of these:

    - accuracy or wrong answers by McNemar's exact test, or log loss by a sign-flip test, p below ``level``
    - share right on a test side of what production met, likewise by McNemar's test
    - at most 1.5 % wrong among the answered in each corruption of severity 3, where the champion has more in one
    - at least 1 % fewer bytes and not slower by 5 %, or 5 % fewer milliseconds and not larger by 1 %

    Not worse, all of these, than the champion and, save the last two, than any version that has served and was not
    rolled back; all run on the same photos. So margins do not add up over promotions. "95 %" means that the 95 %
    interval of the paired difference ends below the margin: few photos prove nothing, and the candidate is kept out.

    =================  ==========================================================  ==========  ===========
    figure             what                                                        margin      test
    =================  ==========================================================  ==========  ===========
    accuracy           share of the photos whose larger probability is right       1 %         95 %
    log loss           mean, in nats                                               0.01        95 %
    wrong answers      share of the photos that are answered, and wrongly          0.5 %       95 %
    coverage           share of the photos that are answered                       2 %         95 %
    other things       share of the photos of other things that are called unsure  5 %         95 %
    robustness         wrong among the answered, in each corruption of severity 3  1.5 %       value
    production         share right of the photos that were kept by chance          1 %         value
    hard               share right of the photos that were kept as hard ones       1 %         value
    exam               distinct pictures                                           never fewer value
    bytes              of the file that answers                                    50 %        value
    milliseconds       of a photo on one thread, second looks and all              50 %        value
    =================  ==========================================================  ==========  ===========

    Intervals are those of :mod:`training.comparison`. By itself, whatever serves, a candidate must have no fault
    (:func:`faults_of`).

    A net loss of one photo of production or hard is no objection, however few they are.

    Args:
        faults: what is wrong with the candidate by itself.
        champion: against the files that serve; None where nothing serves that this code can run.
        earlier: against every other version that has served.
        level: of :func:`level_of`.
    """
    objections = faults + [
        f"against {match.rival}: {objection}"
        for match in ([champion] if champion else []) + earlier
        for objection in match.objections
    ]
    if objections:
        return PromotionDecision(False, "; ".join(objections))
    if champion is None:
        return PromotionDecision(True, "no champion can serve")
    gains = [
        f"significantly better in {figure.name} (p = {figure.p_value:.2g})"
        for figure in champion.figures
        if figure.better(level)
    ]
    cells = [figure for figure in champion.figures if figure.name.startswith(ROBUSTNESS)]
    # The promise of the reports: kept where it was not.
    broken = [figure.name.removeprefix(ROBUSTNESS) for figure in cells if figure.rival > MOST_WRONG]
    if broken and all(figure.candidate <= MOST_WRONG for figure in cells):
        gains.append(f"at most {MOST_WRONG:.1%} wrong in every corruption (not so the champion: {', '.join(broken)})")
    size, time = (champion.figure(name).worse.value for name in COSTS)
    if size <= -SMALLER and time < FASTER:
        gains.append(f"{-size:.0%} smaller")
    if time <= -FASTER and size < SMALLER:
        gains.append(f"{-time:.0%} faster")
    if not gains:
        return PromotionDecision(
            False, f"neither significantly better (p below {level:.2g}) nor smaller nor faster than {champion.rival}"
        )
    return PromotionDecision(True, f"{' and '.join(gains)} than {champion.rival}, and worse in nothing")


def level_of(attempt: int, sides: int = 0) -> float:
    """Significance level of the k-th candidate on one test side: 5 % / ((3 + s) k (k + 1)).

    Each candidate is another chance to look better by luck, on photos that are no longer new. The levels of all
    attempts add up to 5 %, however many there are, since the sum of 1 / (k (k + 1)) is 1: alpha spending (Foster and
    Stine 2008, https://doi.org/10.1111/j.1467-9868.2007.00643.x). The 3 + s is Bonferroni's, for the figures tested.

    Args:
        attempt: k, from 1.
        sides: s, of the test sides of what production met those that have photos.
    """
    return SIGNIFICANT / ((REASONS + sides) * attempt * (attempt + 1))


def faults_of(answers: Answers, questions: Exam) -> list[str]:
    """What keeps a candidate out whatever serves: it hardly answers, answers no better than a coin, or cannot fail."""
    faults = []
    given = int(answers.answered.sum())
    if not answers.answered.mean() >= LEAST_COVERAGE:
        faults.append(f"it answers {given:,} of {len(answers.answered):,} photos, fewer than {LEAST_COVERAGE:.0%}")
    if given and not wilson(given - int(answers.wrong.sum()), given).low > 0.5:
        faults.append(f"{int(answers.wrong.sum()):,} of its {given:,} answers are wrong, no better than a coin's")
    if not answers.losses.mean() < log(2):
        faults.append(f"its log loss is {answers.losses.mean():.4f}, a coin's {log(2):.4f}")
    if max(tolerances(questions).values(), default=0.0) > LARGEST_TOLERANCE:
        faults.append(f"its exam has tolerances above {LARGEST_TOLERANCE:g}")
    return faults


def worse_than_recorded(answers: Answers, test: dict[str, Any] | None) -> list[str]:
    """What speaks against a candidate beside a champion that this code cannot run, such as one for other pixels.

    Args:
        answers: the candidate's.
        test: the champion's test metrics in its contract, whose photos may be others; so only values are compared.
    """
    if not test:
        return []
    accuracy, loss = float(answers.right.mean()), float(answers.losses.mean())
    objections = []
    if not accuracy > test["accuracy"]["value"] - MARGINS["accuracy"]:
        objections.append(f"accuracy is {accuracy:.2%}, the champion's contract says {test['accuracy']['value']:.2%}")
    if not loss < test["log_loss"] + MARGINS["log loss"]:
        objections.append(f"log loss is {loss:.4f}, the champion's contract says {test['log_loss']:.4f}")
    return objections
