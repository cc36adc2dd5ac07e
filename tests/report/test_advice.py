"""What to do next: the right sentence, the best repair, and commands that our own command line takes."""

from __future__ import annotations

from typing import Any

from backdoor_audit.evidence import Record, Verdict
from backdoor_audit.report.advice import best_repair, decision, short_hash, steps
from tests.subjects.records import finding
from tests.subjects.whole_records import whole_record

BEFORE = {"clean_accuracy": 0.94, "attack_success_rate": 1.0, "robust_accuracy": 0.0}


def outcome(method: str, success: float, accuracy: float, target: int = 3) -> dict[str, Any]:
    after = {"clean_accuracy": accuracy, "attack_success_rate": success, "robust_accuracy": 0.9}
    return {
        **{"method": method, "settings": f"{method}()", "target_class": target, "before": BEFORE, "after": after},
        **{"curve": [], "note": "", "not_applicable": ""},
    }


def flagged(**rest: Any) -> Record:
    return whole_record(5, baseline=None, properties=[], **rest)


def clean(profile: str = "standard", **rest: Any) -> Record:
    settings = {**whole_record(3).settings, "profile": profile}
    return whole_record(3, infected=(), baseline=None, properties=[], settings=settings, **rest)


def test_each_verdict_has_its_sentence() -> None:
    unsure = [finding(Verdict.INCONCLUSIVE)]
    assert decision(flagged()) == "Do not deploy this model."
    assert decision(flagged(findings=unsure)) == "Do not deploy this model yet: it is not shown to be clean."
    assert decision(clean()).startswith("Nothing was found against it; what was not looked for is told")
    assert decision(clean("quick")).startswith("No reason yet to deploy it: this was the quick look")


def test_the_best_repair_leaves_least_of_trigger_and_loses_least_accuracy() -> None:
    tried = [
        outcome("deaf", 0.01, 0.80),
        outcome("weak", 0.4, 0.94),
        outcome("good", 0.02, 0.93),
        outcome("so_so", 0.05, 0.92),
    ]
    best = best_repair(flagged(repairs=tried))
    assert best is not None
    assert (best.method, best.holds) == ("good", True)
    assert best.told == "good: trigger 100.0% → 2.0%, clean accuracy 94.0% → 93.0%, on held-out images"


def test_of_several_triggers_the_one_that_is_left_strongest_counts() -> None:
    tried = [outcome("half", 0.0, 0.94), outcome("half", 0.9, 0.94, target=4), outcome("whole", 0.08, 0.92)]
    best = best_repair(flagged(repairs=tried))
    assert best is not None
    assert best.method == "whole"


def test_a_repair_that_an_item_failed_does_not_hold() -> None:
    lost = finding(audit="audit::test_robust_accuracy[good]", statistic="robust_accuracy_lost", value=0.5, limit=0.15)
    record = flagged(repairs=[outcome("good", 0.02, 0.93)], findings=[finding(), lost])
    best = best_repair(record)
    assert best is not None
    assert not best.holds
    assert any("No repair that was tried holds the limits" in step.text for step in steps(record))
    assert [step.command for step in steps(record) if step.command] == []


def test_a_flagged_model_is_blocked_and_repaired_by_the_best_method() -> None:
    told = steps(flagged(repairs=[outcome("good", 0.02, 0.93)]))
    assert told[0].text == "Block this file: SHA-256 of its tensors aaaaaaaa…aaaaa."
    assert "--method=good" in told[-1].command
    assert "trigger 100.0% → 2.0%" in told[-1].note


def test_a_filter_that_lets_stamped_images_through_is_no_way_out() -> None:
    missed = finding(audit="audit::test_false_negative_rate[strip]", statistic="false_negative_rate", value=0.88)
    told = steps(flagged(findings=[finding(), missed], repairs=[]))
    assert told[-1].note.endswith("A filter in front of it does not do: strip lets 88% of stamped images through.")


def test_a_filter_that_holds_is_a_stopgap_and_comes_before_those_that_do_not() -> None:
    missed = finding(audit="audit::test_false_negative_rate[strip]", statistic="false_negative_rate", value=0.88)
    held = finding(
        Verdict.PASS, audit="audit::test_false_negative_rate[novelty]", statistic="false_negative_rate", value=0.02
    )
    told = steps(flagged(findings=[finding(), missed, held], repairs=[]))
    assert told[-1].note.endswith(
        "measured with the found triggers: novelty lets 2% of stamped images through, strip lets 88% of stamped images through."
    )


def test_after_a_quick_pass_the_standard_profile_is_to_be_run() -> None:
    told = steps(clean("quick"))
    assert told[0].text.startswith("Run the standard profile")
    assert told[0].command == "pytest --model=models/m.safetensors --data=images.npz --audit-seed=3"


def test_after_a_pass_canaries_and_a_baseline_are_offered() -> None:
    commands = [step.command for step in steps(clean(findings=[finding(Verdict.PASS)], canaries=[]))]
    assert any("--audit-canary=true" in command for command in commands)
    assert any("--audit-update-baseline=true" in command for command in commands)


def test_what_could_not_be_judged_is_mended_first() -> None:
    unmet = finding(Verdict.INCONCLUSIVE, audit="audit::test_precondition[accuracy]", reason="accuracy 0.1 is chance")
    assert steps(flagged(findings=[unmet]))[0].text == "Mend first: accuracy 0.1 is chance"
    broken = clean(errors={"audit::test_x[y]": "out of memory"})
    assert steps(broken)[0].text == "Find out why y broke: out of memory"
    partial = clean(not_run=["audit::test_x[z]"])
    assert steps(partial)[0].command.startswith("pytest --model=models/m.safetensors")


def test_where_somebody_answers_for_what_is_no_pass_nothing_is_to_be_blocked() -> None:
    record = whole_record(5)
    accepted = whole_record(5, baseline={**(record.baseline or {}), "verdict": "pass"})
    assert decision(accepted).startswith("Use it only as long as")
    assert [step for step in steps(accepted) if "Block" in step.text or step.command] == []
    assert "Block" in steps(record)[0].text


def test_a_hash_is_shown_by_its_ends() -> None:
    assert short_hash("0123456789" * 6) == "01234567…56789"
