"""Metrics, logs, the journal and feedback."""
