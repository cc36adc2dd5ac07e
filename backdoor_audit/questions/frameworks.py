"""What the frameworks of the field call a hidden trigger, and which audit gives evidence towards which entry.

An audit is evidence towards a requirement, never a statement of compliance. Identifiers and names change between editions,
so every one is printed with its edition.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reference:
    """One entry of a framework: ``id`` and ``name`` as printed in that ``edition``, and the page that holds it."""

    id: str
    name: str
    framework: str
    edition: str
    url: str

    @property
    def label(self) -> str:
        """Framework, edition, identifier and name in one line."""
        return f"{self.framework} ({self.edition}), {self.id}: {self.name}"


_ATLAS = ("MITRE ATLAS", "5.6.1")
_NIST = ("NIST AI 100-2", "E2025, March 2025")
_OWASP = ("OWASP Machine Learning Security Top Ten", "2023, draft")
_AI_ACT = ("EU AI Act", "Regulation (EU) 2024/1689")
_NIST_URL = "https://doi.org/10.6028/NIST.AI.100-2e2025"
_OWASP_URL = "https://owasp.org/www-project-machine-learning-security-top-10/"
_AI_ACT_URL = "https://eur-lex.europa.eu/eli/reg/2024/1689/oj"


def _atlas(id_: str, name: str) -> Reference:
    kind = "mitigations" if id_.startswith("AML.M") else "techniques"
    return Reference(id_, name, *_ATLAS, f"https://atlas.mitre.org/{kind}/{id_}")


FRAMEWORKS: tuple[Reference, ...] = (
    _atlas("AML.M0008", "Validate AI Model"),
    _atlas("AML.T0018", "Manipulate AI Model"),
    _atlas("AML.T0018.000", "Poison AI Model"),
    _atlas("AML.T0018.001", "Modify AI Model Architecture"),
    _atlas("AML.T0020", "Poison Training Data"),
    _atlas("AML.T0043.004", "Insert Backdoor Trigger"),
    _atlas("AML.T0010.003", "AI Supply Chain Compromise: Model"),
    Reference("NISTAML.023", "Backdoor Poisoning", *_NIST, _NIST_URL),
    Reference("NISTAML.021", "Clean-label Backdoor", *_NIST, _NIST_URL),
    Reference("NISTAML.026", "Model Poisoning (integrity)", *_NIST, _NIST_URL),
    Reference("ML02:2023", "Data Poisoning Attack", *_OWASP, _OWASP_URL),
    Reference("ML06:2023", "AI Supply Chain Attacks", *_OWASP, _OWASP_URL),
    Reference("ML10:2023", "Model Poisoning", *_OWASP, _OWASP_URL),
    Reference("Article 15(1)", "Consistent accuracy, robustness and cybersecurity", *_AI_ACT, _AI_ACT_URL),
    Reference("Article 15(3)", "Declared levels of accuracy and accuracy metrics", *_AI_ACT, _AI_ACT_URL),
    Reference("Article 15(5)", "Measures against data poisoning and model poisoning", *_AI_ACT, _AI_ACT_URL),
)
"""The entries that an audit speaks to, framework by framework. The names of the articles are ours; the Act has none for them."""

OF_BACKDOORS = (
    *("AML.M0008", "AML.T0018", "AML.T0018.000", "AML.T0020", "AML.T0043.004", "AML.T0010.003"),
    *("NISTAML.023", "NISTAML.026", "ML02:2023", "ML06:2023", "ML10:2023", "Article 15(5)"),
)
"""What speaks of a hidden trigger in a model."""

OF_REPAIRS = ("AML.T0018.000", "AML.T0043.004", "NISTAML.023", "ML10:2023", "Article 15(5)")
"""What speaks of a model that had one."""

_BY_ID = {entry.id: entry for entry in FRAMEWORKS}


def references(ids: Iterable[str]) -> tuple[Reference, ...]:
    """The entries with these identifiers; one that this edition does not know is left out."""
    return tuple(_BY_ID[id_] for id_ in ids if id_ in _BY_ID)
