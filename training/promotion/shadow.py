"""Shadow: candidate and champion on pictures of production that feedback came for.

A service with the candidate as its ``CATSDOGS_CHALLENGER`` journals what both answered. Feedback is a hint, not a
label: anybody can give it, and it comes more often where the answer that was shown is wrong. That favours the model
that was not shown, so the evidence may keep a candidate out, but never promotes one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from shared import journal
from shared.contract import CLASSES, Actual
from shared.journal import ChallengerLine, FeedbackLine, JournalError, PredictionLine
from training.comparison import Comparison, compare
from training.promotion.decision import PromotionDecision
from training.promotion.files import Files, raw_contract
from training.stage import StageError

NAMES: Final = ("the champion", "the candidate")


@dataclass(frozen=True)
class Shadow:
    """What a journal says of both; ``comparison`` is None where nothing can be compared.

    ``again`` counts pictures that are left out because the candidate looked at them again: it saw 224×224 pixels, and
    would have seen more in service.
    """

    comparison: Comparison | None
    again: int

    def describe(self) -> str:
        """The evidence for a person."""
        said = self.comparison.describe(*NAMES) if self.comparison else "no feedback on what both answered"
        return f"in shadow: {said}; {self.again:,} not counted, as the candidate looked at them again"

    def weigh(self, decision: PromotionDecision) -> PromotionDecision:
        """Keep a candidate out that is significantly worse; nothing else changes the decision."""
        found = self.comparison
        if found is None or not found.significant or found.only_second_right > found.only_first_right:
            return decision
        objections = [self.describe()] if decision.promote else [decision.reason, self.describe()]
        return PromotionDecision(False, "; ".join(objections))

    def tags(self) -> dict[str, str]:
        """The evidence as tags of the candidate's version."""
        found = self.comparison
        if found is None:
            return {"shadow_pairs": "0"}
        return {
            "shadow_pairs": str(found.n),
            "shadow_champion_accuracy": f"{found.first.value:.6g}",
            "shadow_candidate_accuracy": f"{found.second.value:.6g}",
            "shadow_p_value": f"{found.p_value:.6g}",
        }


def read(path: Path, champion: Files, candidate: Files) -> Shadow:
    """Pair the answers in a journal, a folder or one file of it, by prediction.

    Args:
        path: the journal.
        champion: files of the model that was in service; what others answered is passed over.
        candidate: files of the challenger.

    Raises:
        StageError: the journal cannot be read.
    """
    shown, shadowed = _versions(champion), _versions(candidate)
    predictions: dict[str, PredictionLine] = {}
    answers: dict[str, ChallengerLine] = {}
    truth: dict[str, Actual] = {}
    try:
        for line in journal.read(journal.gather([path])):
            match line:
                case PredictionLine() if line.model in shown:
                    predictions[line.id] = line
                case ChallengerLine() if line.model in shadowed:
                    answers[line.id] = line
                case FeedbackLine():
                    truth[line.id] = line.label
                case _:
                    pass
    except (JournalError, OSError) as error:
        raise StageError(str(error)) from error
    both = [id_ for id_, label in truth.items() if label in CLASSES and id_ in predictions and id_ in answers]
    counted = [id_ for id_ in both if not answers[id_].again]
    right = [np.array([each[id_].label == truth[id_] for id_ in counted], bool) for each in (predictions, answers)]
    return Shadow(compare(*right) if counted else None, len(both) - len(counted))


def _versions(files: Files) -> set[str]:
    return {str(raw_contract(model)["version"]) for model in files.models.values()}
