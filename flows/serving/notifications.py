"""Who is told what happens: Slack, mail or a webhook, by Prefect's own automations, from a small YAML file.

Addresses are secrets (whoever has one can post): the file only names the environment variable that holds one, or a
block of the server. They are kept in the server's blocks, encrypted.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from flows.config.loading import read_yaml
from stages.contract.config import Config
from stages.contract.errors import ConfigError

Occasion = Literal["failed", "crashed", "held_back", "gate"]
ALL: tuple[Occasion, ...] = ("failed", "crashed", "held_back", "gate")


class Address(Config):
    """Somebody to tell, at an address."""

    type: Literal["slack", "webhook", "mail"]
    """A Slack webhook; any URL, which gets JSON; or a mailbox, by an SMTP server."""
    address: str = Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the URL; for mail `mailtos://user:password@smtp.host?to=me@host`."""
    of: tuple[Occasion, ...] = ALL
    """Of which occasions."""


class ServerBlock(Config):
    """Somebody to tell, by a notification block that is on the server already."""

    type: Literal["block"]
    block: str = Field(pattern="^[^/]+/[^/]+$")
    """Its type and name, e.g. `slack-webhook/team`."""
    of: tuple[Occasion, ...] = ALL
    """Of which occasions."""


class Notifications(Config):
    """The file."""

    tell: tuple[Annotated[Address | ServerBlock, Field(discriminator="type")], ...] = ()
    """Who is told."""


def read_notifications(path: Path) -> Notifications:
    """The file's content, all addresses found.

    Raises:
        ConfigError: the file cannot be used, or a variable is not set.
    """
    try:
        read = Notifications.model_validate(read_yaml(path))
    except ValidationError as failure:
        first = failure.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        wanted = "the name of an environment variable is wanted here, no address" if place.endswith("address") else ""
        raise ConfigError(f"{path}: {place}: {wanted or first['msg']}") from None
    for one in read.tell:
        if isinstance(one, Address) and not os.environ.get(one.address):
            raise ConfigError(
                f"{path}: the environment variable {one.address} is not set; it holds the {one.type} address"
            )
    return read
