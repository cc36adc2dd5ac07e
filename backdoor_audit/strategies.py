"""Moved: `backdoor_audit.triggers.strategies`. This name stays for one version."""

from backdoor_audit.triggers.strategies import *  # noqa: F403
