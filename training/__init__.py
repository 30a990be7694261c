"""From photographs to a model file: one module per pipeline stage, in the order of ``dvc.yaml``."""
