"""The subcommands of this room where ``catsdogs`` is not installed: ``python -m ops collect photos.zip``."""

import click

from ops import cli

click.Group(commands=[cli.collect, cli.report])(prog_name="python -m ops")
