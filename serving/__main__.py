"""``python -m serving``: ``catsdogs serve`` where the console script is not installed, as in the image."""

from serving.cli import serve

serve(prog_name="serve")
