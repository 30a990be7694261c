"""From photographs to a model file: one module per pipeline stage, in the order of ``dvc.yaml``."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported, so it must be set before

# How torch's threads wait for one another, read by libgomp when torch is imported. By default they spin, which takes
# the cores from other work. Measured on two cores under other load, a step of 32 pictures: 1.07 to 1.3 s
# asleep and 1.4 to 6.8 s spinning. `python -m training.bench --ablate` measures both.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
