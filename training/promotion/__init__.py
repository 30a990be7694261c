"""Which model serves: the comparison, the registry, and the files in ``serving/models``. No pipeline stage needs it."""
