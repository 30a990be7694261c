import pytest

from shared.addresses import without_secrets


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://tracking.example:5000/path", "http://tracking.example:5000/path"),
        ("https://ann:s3cret@tracking.example/x", "https://***@tracking.example/x"),
        ("https://s3cret@tracking.example", "https://***@tracking.example"),
        ("postgresql://ann:s3/c@ret@db.example:5432/mlflow", "postgresql://***@db.example:5432/mlflow"),
        ("https://tracking.example/x?token=s3cret&k=v#part", "https://tracking.example/x?***#part"),
        ("ann:s3cret@localhost:8000", "***@localhost:8000"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("someone@example.org", "someone@example.org"),
    ],
)
def test_an_address_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert without_secrets(address) == shown
    assert without_secrets(f"before '{address}' after") == f"before '{shown}' after"
    assert without_secrets(f"{address}: failed") == f"{shown}: failed"
