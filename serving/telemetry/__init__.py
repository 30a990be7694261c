"""What is counted, logged, kept and compared."""
