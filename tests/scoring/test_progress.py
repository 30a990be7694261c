from collections import Counter

from scoring.progress import Progress
from scoring.score import Tally


def test_it_says_how_much_is_done_and_how_many_errors_there_are() -> None:
    tally = Tally(total=5000, before=2048)
    progress = Progress(tally)
    assert progress.line() == "2,048 of 5,000 pictures · 0 a second"
    tally.done, tally.errors = 100, Counter(undecodable_image=2, too_costly=1)
    parts = progress.line().split(" · ")
    assert parts[0] == "2,148 of 5,000 pictures"
    assert parts[2].endswith(" left")
    assert parts[3] == "3 errors"


def test_it_says_no_time_left_where_nobody_knows_the_total() -> None:
    tally = Tally(done=7)
    assert Progress(tally).line().startswith("7 pictures · ")
    assert "left" not in Progress(tally).line()
