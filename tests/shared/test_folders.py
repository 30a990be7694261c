import pytest

from shared.folders import label_of


@pytest.mark.parametrize(
    ("folder", "label"),
    [("Cat", "cats"), ("cats", "cats"), ("DOG", "dogs"), ("Dogs", "dogs"), ("catsanddogs", None), ("", None)],
)
def test_a_folder_s_name_gives_the_label_in_either_case_and_number(folder: str, label: str | None) -> None:
    assert label_of(folder) == label
