"""Moved: `backdoor_audit.triggers.written`. This name stays for one version."""

from backdoor_audit.triggers.written import *  # noqa: F403
from backdoor_audit.triggers.written import WrittenTrigger as DrawnTrigger  # noqa: F401
