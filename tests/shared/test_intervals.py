import pytest

from shared.intervals import Interval, percent, wilson


def test_wilson_against_published_values() -> None:
    # Newcombe 1998 (https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I.
    assert [round(x, 4) for x in (wilson(81, 263).low, wilson(81, 263).high)] == [0.2553, 0.3662]
    assert [round(x, 4) for x in (wilson(15, 148).low, wilson(15, 148).high)] == [0.0624, 0.1605]
    assert [round(x, 4) for x in (wilson(0, 20).low, wilson(0, 20).high)] == [0.0, 0.1611]
    assert [round(x, 4) for x in (wilson(29, 29).low, wilson(29, 29).high)] == [0.8830, 1.0]


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_what_is_no_share_is_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="not a share"):
        wilson(successes, trials)


def test_a_share_is_written_in_per_cent_with_its_interval() -> None:
    share = Interval(value=0.97314, low=0.961, high=0.982)
    assert share.text() == "97.31% (96.10% to 98.20%)"
    assert share.bounds(1) == "96.1% to 98.2%"
    assert percent(1.0, 0) == "100%"
