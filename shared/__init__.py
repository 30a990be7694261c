"""What training and serving agree on: bytes to pixels, the contract of a model file, the exam that proves it."""
