"""Whether every process of a run audited the same thing, by the same questions, with nothing replaced meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from backdoor_audit.plugin.replaced import Names, replaced, watched
from backdoor_audit.printable import listed

if TYPE_CHECKING:
    from backdoor_audit.questions.suite import Suite
    from backdoor_audit.run.run import Run


class Agreement:
    """What the processes of a run say at its end, compared: with each other, and with what was to be asked at its beginning."""

    def __init__(self) -> None:
        self._asked: Mapping[str, Any] = {}
        self._watched: Names = {}
        self._audited: dict[str, str] = {}

    def begin(self, suite: Suite) -> None:
        """Note what is to be asked and what there is to replace, before anything of the model runs. Raises `AuditError`."""
        self._asked = suite.to_json()
        self._watched = watched()

    def account(self, suite: Suite, run: Run | None, stand_ins: Collection[str]) -> dict[str, Any]:
        """What this process has to say at its end, as plain values; of what it audited only if it ran something."""
        return {
            "replaced": [*stand_ins, *replaced(self._watched)],
            "asked": suite.to_json(),
            "audited": run.inputs.identity() if run is not None else {},
            "changed": run.inputs.changed() if run is not None else "",
        }

    def objection(self, account: Mapping[str, Any], where: str) -> str:
        """Why a process makes what the run found no answer; empty if nothing speaks against it."""
        if account["changed"]:
            return str(account["changed"])
        if others := self._unlike(account["audited"]):
            return (
                f"{where} audited something else than another process of this run: {listed(others, 3)} changed meanwhile; let "
                "nobody write what is audited, and run the audit again"
            )
        if others := self._otherwise(account["asked"]):
            return (
                f"{where} asked otherwise than the run at its beginning: {', '.join(others)} changed; leave the files of a suite "
                "alone while it runs"
            )
        if account["replaced"]:
            return f"while the model's code ran in {where}, somebody replaced {listed(account['replaced'], 5)}"
        return ""

    def _unlike(self, audited: Mapping[str, str]) -> list[str]:
        return sorted(name for name, digest in audited.items() if self._audited.setdefault(name, digest) != digest)

    def _otherwise(self, asked: Mapping[str, Any]) -> list[str]:
        return sorted(name for name in {*asked, *self._asked} if asked.get(name) != self._asked.get(name))
