"""Does one class have a trigger that neither the other classes nor clean reference models explain?"""

from __future__ import annotations

from collections.abc import Callable

from backdoor_audit.detectors import Detection
from backdoor_audit.evidence import Finding, Limits


def test_anomaly_index(
    detection: Detection,
    target_class: int | None,
    limits: Limits,
    audit_index: str,
    class_name: Callable[[int | None], str],
    evidence: Callable[[Finding], None],
) -> None:
    """A class that needs far less to be reached than the others is what a backdoor leaves behind; limit 2, calibrated."""
    evidence(detection.judge(target_class, limits, index=audit_index, name=class_name(target_class)))
