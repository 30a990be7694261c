"""The engine: admission, the queue, lanes and their budgets."""
