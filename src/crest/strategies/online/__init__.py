"""Online selection from what training shows: the default strategy."""

from crest.strategies.online.settings import OnlineSelection as OnlineSelection
