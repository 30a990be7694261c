"""The console script ``catsdogs``, and the service's own subcommands.

Subcommands are entry points, so that this room need not import another: group ``catsdogs.commands`` works in every
installation, ``catsdogs.commands.NAME`` needs the extra NAME.
"""

import click

main = click.Group()
