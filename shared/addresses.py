"""Addresses of stores and services, as they may be shown."""

import re
from typing import Final

# What is before the last @ of an address is a user's name and password, which may hold slashes; with a scheme or not.
_USER: Final = re.compile(r"""(?<=://)[^\s"'<>]*@|(?<![^\s"'<>(])[^\s"'<>(:@]+:(?!//)[^\s"'<>@]*@""")
# A colon behind it is the text's.
_QUERY: Final = re.compile(r"""(://[^\s"'<>?]*)\?[^\s"'<>#]*[^\s"'<>#:]""")


def without_secrets(text: str) -> str:
    """Replace names, passwords and queries of every address in the text by ``***``."""
    return _QUERY.sub(r"\1?***", _USER.sub("***@", text))
