"""Scoring: the answers for a folder, an archive, a table or a bucket of pictures, by any number of workers."""
