"""Names of data sets on the cards of what is trained on them."""

import os
import re

from .opening import is_shard_pattern

# What the licence of a data set asks for beside everything that is made from it.
CREDITS = {"emoji": "OpenMoji (https://openmoji.org), CC BY-SA 4.0"}


def credited(source: str) -> str:
    """Returns the name of a data set for the card of what is trained on it, with the credit that
    its licence asks for: of a folder or file its last part, of a pattern its folder."""
    if credit := CREDITS.get(source.partition(":")[0]):
        return f"{source}, {credit}"
    if os.path.exists(os.path.expanduser(source)):
        return os.path.basename(os.path.abspath(source))
    if is_shard_pattern(source):
        fixed = re.split(r"[*?\[{]", source)[0]
        return os.path.basename(os.path.abspath(os.path.dirname(fixed)))
    return source
