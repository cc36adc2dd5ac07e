"""Moved: `backdoor_audit.triggers.trigger`. This name stays for one version."""

from backdoor_audit.triggers.trigger import *  # noqa: F403
