"""What both sides agree on: bytes to pixels, the contract of a model file and its exam, metrics and file formats."""
