"""The rates that stand beside a verdict."""

from __future__ import annotations

from backdoor_audit.rates import measured_rates
from backdoor_audit.search.anomaly import shipped_null


def compared_by(twins: str) -> dict[str, str]:
    return {"detector": "smooth", "reference": f"{shipped_null(twins).source}; twins: some"}


def test_those_of_models_that_were_compared_as_this_one_was() -> None:
    (grey,) = measured_rates([{"detector": "neural_cleanse", "reference": ""}, compared_by("plain_grey")])
    assert "grey images" in grey
    (alone,) = measured_rates([compared_by("alone_plain")])
    assert "without any twins" in alone
    assert alone != grey


def test_all_of_them_where_nothing_was_compared_or_no_rate_is_known() -> None:
    assert len(measured_rates()) == len(measured_rates([{"reference": "a file"}])) > 2
    assert measured_rates([compared_by("library")]) == measured_rates()
