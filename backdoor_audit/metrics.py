"""Moved: `backdoor_audit.model.metrics`. This name stays for one version."""

from backdoor_audit.model.metrics import *  # noqa: F403
