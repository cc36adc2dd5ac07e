"""The shipped audits: each test asks one question of the audited model, judges it by a limit, and submits the finding.

Limits are in ``backdoor_audit.evidence.Limits`` with their sources, because repairs and the Python call judge by the same
numbers; ``--audit-limit NAME=VALUE`` sets one.
"""
