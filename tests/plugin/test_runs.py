"""Whole runs of the gate on a tiny project: exit codes, items, records, workers."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any
from xml.etree import ElementTree

import pytest

from backdoor_audit import Trigger, Verdict, cores
from backdoor_audit.detectors import DETECTORS
from backdoor_audit.evidence import Record
from backdoor_audit.options import AuditOptions
from backdoor_audit.questions.suite import shipped
from backdoor_audit.run import run as runs
from backdoor_audit.run.preconditions import PRECONDITIONS
from backdoor_audit.store import Store
from tests.subjects import toy
from tests.subjects.toy_runs import BASE, Run
from tests.subjects.warm import Warm
from tests.subjects.wild import LOADING, wild

INDEX = "audit::test_anomaly_index[neural_cleanse-class_{}]"
ON_TRIGGERS = 3 + 3 * 4  # filters, and three questions for each repair: skipped where nothing was flagged
ASKED = 11 + 3  # preconditions, and the properties that need no reference models
ITEMS = ASKED + toy.CLASSES + ON_TRIGGERS
OWN = """
from backdoor_audit.evidence import judge

def test_own(evidence):
    evidence(judge("own", 0.1, at_most=0.5, reason="an own question"))
"""


def stored(project: pytest.Pytester, folder: str = "backdoor-audit-report") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((project.path / folder / "audit.json").read_text())
    return content


@pytest.mark.usefixtures("unsearched")
def test_a_backdoored_model_fails_and_its_class_is_named(project: pytest.Pytester, run: Run) -> None:
    result = run("backdoored")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*FAIL: hidden trigger found for class 3*"])
    record = Record.read(project.path / "backdoor-audit-report" / "audit.json")
    assert record.verdict is Verdict.FAIL
    assert record.flagged_classes == (toy.TARGET,)
    assert len(record.findings) + len(record.skipped) == ITEMS
    finding = next(finding for finding in record.findings if finding.audit == INDEX.format(3))
    trigger = Trigger.load(project.path / "backdoor-audit-report" / finding.artifacts["trigger"])
    assert trigger.target_class == toy.TARGET
    assert trigger.mask.flatten().argmax() == 63  # the pixel that the toy's backdoor reads


def test_a_model_whose_name_is_not_utf8_is_audited(project: pytest.Pytester, run: Run) -> None:
    name = os.fsdecode(b"mod\xff")
    try:
        (project.path / f"{name}.safetensors").write_bytes((project.path / "clean.safetensors").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    result = run(name)
    assert result.ret == pytest.ExitCode.OK
    assert "mod\\udcff.safetensors" in (project.path / "backdoor-audit-report" / "report.html").read_text()


@pytest.mark.usefixtures("unsearched")
def test_a_clean_model_passes_and_the_record_says_what_was_not_tested(project: pytest.Pytester, run: Run) -> None:
    result = run("clean")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [
            "*PASS: no hidden trigger found*",
            "Not tested:",
            "*blended*",
            "*the quick profile leaves out every detector that needs reference*",
        ]
    )
    record = stored(project)
    assert record["verdict"] == "pass"
    assert record["not_run"] == []
    assert len(record["skipped"]) == ON_TRIGGERS
    assert record["environment"]["device"] == "cpu"
    assert record["settings"]["limits"]["anomaly_index"] == 2.0


def test_the_pages_show_verdict_and_trigger_and_escape_class_names(project: pytest.Pytester, run: Run) -> None:
    import numpy as np

    pixels, labels = toy.images()
    names = np.array(["<script>alert(1)</script>"] * toy.CLASSES)
    np.savez(project.path / "images.npz", images=pixels, labels=labels, class_names=names)
    run("backdoored")
    for name in ("report.html", "audit.html"):
        page = (project.path / "backdoor-audit-report" / name).read_text()
        assert "hidden trigger found for class 3" in page
        assert page.count("data:image/png;base64,") >= 3
        assert "<script>alert(1)" not in page
    assert 'href="audit.html"' in (project.path / "backdoor-audit-report" / "report.html").read_text()


def test_the_record_is_rendered_for_machines_as_well(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "summary.md"))
    run("backdoored", "--junitxml=junit.xml")
    report = project.path / "backdoor-audit-report"
    log = json.loads((report / "audit.sarif").read_text())
    assert [entry["level"] for entry in log["runs"][0]["results"] if entry["ruleId"].endswith("neural_cleanse")] == [
        "error"
    ]
    assert log["runs"][0]["invocations"][0]["exitCode"] == 1
    text = (report / "audit.md").read_text()
    shown = [line for line in text.splitlines() if line.startswith("<img ")]
    assert (project.path / "summary.md").read_text().split() == text.replace("\n".join(shown), "").split()
    assert all((report / file).is_file() for file in re.findall('src="([^"]+)"', shown[0]))
    suite = ElementTree.parse(project.path / "junit.xml").getroot()
    about = {entry.get("name"): entry.get("value") for entry in suite.findall(".//testsuite/properties/property")}
    assert (about["backdoor_audit.verdict"], about["backdoor_audit.flagged_classes"]) == ("fail", "3")


def test_a_summary_that_cannot_be_written_is_told_and_changes_nothing(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "nowhere" / "summary.md"))
    result = run("clean")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*GITHUB_STEP_SUMMARY cannot be written*"])


def test_without_a_model_the_plugin_is_not_there(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_own="def test_own(): pass")
    result = run(None, "-v")
    result.assert_outcomes(passed=1)
    assert not (project.path / "backdoor-audit-report").exists()
    assert "backdoor audit" not in result.stdout.str()


def test_a_gate_run_leaves_the_projects_own_tests_alone(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_own="def test_own(): assert False")
    result = run("clean")
    assert result.ret == pytest.ExitCode.OK
    assert "test_own" not in result.stdout.str()


def test_own_tests_can_use_the_audited_model(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(
        test_own="""
        def test_bright_row(classifier, clean_set, detection):
            assert classifier.num_classes == 8
            assert clean_set.image_shape == (1, 8, 8)
            assert detection.score(3).measured.reached
        """
    )
    result = run("clean", "test_own.py")
    result.assert_outcomes(passed=1)


def test_a_model_in_pyproject_adds_audits_to_the_projects_own_tests(project: pytest.Pytester, run: Run) -> None:
    project.makepyprojecttoml(
        """
        [tool.backdoor_audit]
        model = "clean.safetensors"
        data = "images.npz"
        arch = "toy:network"
        steps = 150
        profile = "quick"
        limits = { clean_accuracy_drop = 0.05 }
        """
    )
    project.makepyfile(test_own="def test_own(): pass")
    result = run(None)
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=1 + ASKED + toy.CLASSES, skipped=ON_TRIGGERS)
    assert stored(project)["settings"]["limits"]["clean_accuracy_drop"] == 0.05


@pytest.mark.usefixtures("unsearched")
@pytest.mark.parametrize("model", ["clean", "backdoored"])
def test_workers_give_the_same_verdicts_and_sizes_search_once_and_bring_their_pictures_together(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """The clean model passes beside an audit of the project's own; its worker imports for itself, as a user's do."""
    project.makepyfile(test_own=OWN)
    alone = run(model, "test_own.py", "audit", "--report=alone", "-p", "no:cacheprovider")
    if model == "clean":
        for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
            monkeypatch.delenv(name)
        given = (f"--model={model}.safetensors", *BASE, "test_own.py", "audit", "--report=apart", "-n", "1")
        apart = project.runpytest_subprocess(*given)
    else:
        apart = run(model, "test_own.py", "audit", "--report=apart", "-n", "2", process=True)
    assert alone.ret == apart.ret == (pytest.ExitCode.OK if model == "clean" else pytest.ExitCode.TESTS_FAILED)
    first, second = stored(project, "alone"), stored(project, "apart")
    assert [(f["audit"], f["verdict"], f["value"]) for f in first["findings"]] == [
        (f["audit"], f["verdict"], f["value"]) for f in second["findings"]
    ]
    assert any(finding["audit"] == "test_own.py::test_own" for finding in second["findings"])
    assert first["detections"][0]["classes"] == second["detections"][0]["classes"]
    for part in ("exhibits", "activations"):
        assert set(first[part]) == set(second[part])
    if model == "backdoored":
        assert set(second["exhibits"]) == {f"neural_cleanse-class_{target}" for target in range(toy.CLASSES)}
        assert set(second["activations"]) == {f"class_{toy.TARGET}"}
    assert not second["detections"][0]["recalled"]  # another worker's work is this run's work
    cache = project.path / ".pytest_cache" / "d" / "backdoor_audit"
    repairs = 4 if model == "backdoored" else 0
    assert len(list(cache.glob("*.safetensors"))) == 1 + 3 + repairs


def test_an_earlier_runs_evidence_does_not_stand_beside_a_new_verdict(project: pytest.Pytester, run: Run) -> None:
    run("backdoored")
    report = project.path / "backdoor-audit-report"
    assert list(report.glob("triggers/*"))
    (report / "mine.txt").write_text("kept")
    run("clean")
    assert list(report.glob("triggers/*")) == []
    assert (report / "mine.txt").exists()


def test_wrong_input_leaves_an_earlier_runs_evidence(project: pytest.Pytester, run: Run) -> None:
    run("backdoored")
    before = stored(project)
    assert run("backdoored", "--arch=toy:missing").ret == pytest.ExitCode.USAGE_ERROR
    assert stored(project) == before


@pytest.mark.usefixtures("unsearched")
def test_finished_work_is_not_done_again(project: pytest.Pytester, run: Run) -> None:
    run("backdoored")
    first = stored(project)
    result = run("backdoored")
    second = stored(project)
    assert not first["detections"][0]["recalled"]
    assert second["detections"][0]["recalled"]
    assert first["findings"] == second["findings"]
    result.stdout.fnmatch_lines(["*taken from an earlier run*"])


def test_an_item_can_be_run_again_by_its_node_id(project: pytest.Pytester, run: Run) -> None:
    result = run("backdoored", INDEX.format(3), "-v")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)
    result = run("backdoored", "audit::test_precondition")
    result.assert_outcomes(passed=len(PRECONDITIONS))


def test_an_unknown_node_id_runs_nothing(run: Run) -> None:
    assert run("clean", "audit::test_nothing").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_partial_run_never_says_pass(project: pytest.Pytester, run: Run) -> None:
    result = run("clean", "-k", "precondition")
    result.assert_outcomes(passed=len(PRECONDITIONS), deselected=3 + toy.CLASSES + ON_TRIGGERS)
    assert stored(project)["verdict"] == "inconclusive"
    assert INDEX.format(0) in stored(project)["not_run"]


@pytest.mark.parametrize(
    ("options", "process", "code"),
    [
        (("--stepwise",), False, pytest.ExitCode.INTERRUPTED),
        (("--maxfail=1",), False, pytest.ExitCode.TESTS_FAILED),
        (("--maxfail=1", "-n", "2"), True, pytest.ExitCode.INTERRUPTED),
    ],
)
def test_a_run_that_pytest_stops_early_ends_as_pytest_does_and_never_in_0(
    run: Run, options: tuple[str, ...], *, process: bool, code: int
) -> None:
    assert run("backdoored", *options, process=process).ret == code


@pytest.mark.parametrize("option", ["--fixtures", "--markers", "--help", "--collect-only"])
def test_lists_and_help_end_in_0_and_audit_nothing(project: pytest.Pytester, run: Run, option: str) -> None:
    assert run("backdoored", option).ret == pytest.ExitCode.OK
    assert not (project.path / "backdoor-audit-report").exists()


def test_last_failed_runs_the_failed_items_only(run: Run) -> None:
    failed = run("backdoored").parseoutcomes()["failed"]
    again = run("backdoored", "--lf").parseoutcomes()
    assert again["failed"] == failed
    assert "passed" not in again


def test_collect_only_lists_items_and_writes_nothing(project: pytest.Pytester, run: Run) -> None:
    result = run("clean", "--collect-only", "-q")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [INDEX.format(0).replace("[", "[[]"), "*audit::test_clean_accuracy_drop[[]nc_unlearning]"]
    )
    assert not (project.path / "backdoor-audit-report").exists()


def test_the_items_are_those_that_the_library_names(project: pytest.Pytester, run: Run) -> None:
    listed = [line for line in run("clean", "--collect-only", "-q").outlines if line.startswith("audit::")]
    options = AuditOptions(model="clean.safetensors", data="images.npz", arch="toy:network", profile="quick")
    assert listed == [item.node_id for item in shipped().items(runs.Run(options, Store(project.path), shipped()))]


def test_the_standard_profile_asks_every_detector_about_every_class_and_all_to_all(
    project: pytest.Pytester, run: Run
) -> None:
    result = run("clean", "--audit-profile=standard", "--collect-only", "-q")
    listed = [line for line in result.outlines if line.startswith("audit::test_anomaly_index")]
    assert len(listed) == (len(DETECTORS) - 1) * toy.CLASSES + 1  # one asks about all classes at once
    assert listed[: toy.CLASSES] == [INDEX.format(target) for target in range(toy.CLASSES)]
    for detector in ("patch_scan", "additive", "smooth", "stripes", "warping", "consensus"):
        assert f"audit::test_anomaly_index[{detector}-class_7]" in listed
    of_all = [line for line in listed if "all_to_all" in line]
    assert of_all == ["audit::test_anomaly_index[relabelling-all_to_all]"]
    options = AuditOptions(model="clean.safetensors", data="images.npz", arch="toy:network")
    assert [
        name
        for name in [item.node_id for item in shipped().items(runs.Run(options, Store(project.path), shipped()))]
        if "index" in name
    ] == listed


def test_images_too_few_for_reference_models_leave_no_clean_result(project: pytest.Pytester, run: Run) -> None:
    result = run("clean", "--audit-profile=standard")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    record = Record.read(project.path / "backdoor-audit-report" / "audit.json")
    assert record.verdict is Verdict.INCONCLUSIVE
    verdicts = {finding.audit: finding.verdict for finding in record.findings}
    assert verdicts[INDEX.format(0)] is Verdict.PASS
    assert verdicts["audit::test_anomaly_index[relabelling-all_to_all]"] is Verdict.INCONCLUSIVE
    reasons = {finding.reason for finding in record.findings if finding.verdict is Verdict.INCONCLUSIVE}
    assert len(reasons) == 1
    assert "160" in reasons.pop()  # that many images there are


def test_a_path_and_the_word_audit_run_both(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(test_own="def test_own(): pass")
    run("clean", "test_own.py", "audit").assert_outcomes(passed=1 + ASKED + toy.CLASSES, skipped=ON_TRIGGERS)


def test_junit_has_one_case_per_item_with_its_numbers(project: pytest.Pytester, run: Run) -> None:
    run("backdoored", "--junitxml=junit.xml")
    cases = ElementTree.parse(project.path / "junit.xml").getroot().findall(".//testcase")
    assert len(cases) == ITEMS
    assert {str(case.get("classname")).partition(".")[0] for case in cases} == {"backdoor_audit"}
    wanted = {"classname": "backdoor_audit.neural_cleanse", "name": "class 3"}
    case = next(case for case in cases if wanted.items() <= case.attrib.items())
    properties = {entry.get("name"): entry.get("value") for entry in case.findall(".//property")}
    assert properties["backdoor_audit.verdict"] == "fail"
    assert float(properties["backdoor_audit.value"] or 0) > 2


def test_a_foreign_model_option_keeps_its_meaning(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest(
        """
        def pytest_addoption(parser):
            parser.addoption("--model", default="theirs")
        """
    )
    project.makepyfile(test_own="def test_own(pytestconfig): assert pytestconfig.getoption('--model') == 'mine'")
    run(None, "--model=mine").assert_outcomes(passed=1)
    result = run(None, "--audit-model=backdoored.safetensors", *BASE)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*hidden trigger found for class 3*"])


def test_a_conftest_may_name_the_plugin_as_well(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest("pytest_plugins = ['backdoor_audit.plugin']")
    assert run("clean").ret == pytest.ExitCode.OK


@pytest.mark.parametrize("plugin", ["cacheprovider", "html", "xdist", "junitxml"])
def test_a_missing_plugin_does_not_matter(project: pytest.Pytester, run: Run, plugin: str) -> None:
    assert run("clean", "-p", f"no:{plugin}").ret == pytest.ExitCode.OK
    assert stored(project)["verdict"] == "pass"


def test_a_project_can_hand_over_a_module(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest(
        """
        import pytest, torch, toy
        from safetensors.torch import load_file

        @pytest.fixture(scope="session")
        def audited_model():
            network = toy.network()
            network.load_state_dict(load_file("backdoored.safetensors"))
            return network.train()
        """
    )
    result = run(None, "--audit", "--data=images.npz", "--audit-steps=150", "--audit-profile=quick")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*hidden trigger found for class 3*"])
    assert stored(project)["subject"]["model"] == "Sequential"


def test_an_unmet_precondition_is_inconclusive_and_no_search_is_made(project: pytest.Pytester, run: Run) -> None:
    import numpy as np

    pixels, labels = toy.images()
    np.savez(project.path / "images.npz", images=pixels, labels=(labels + 1) % toy.CLASSES)
    result = run("backdoored")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*INCONCLUSIVE: this model could not be judged*", "*clean accuracy 0.0*"])
    record = stored(project)
    assert record["verdict"] == "inconclusive"
    assert record["detections"][0]["classes"] == []


def test_inconclusive_can_be_allowed_but_is_never_called_a_pass(project: pytest.Pytester, run: Run) -> None:
    import numpy as np

    pixels, labels = toy.images(per_class=5)
    np.savez(project.path / "images.npz", images=pixels, labels=labels)
    result = run("clean", "--audit-inconclusive=allow")
    assert result.ret == pytest.ExitCode.OK
    assert stored(project)["verdict"] == "inconclusive"
    result.stdout.fnmatch_lines(["*INCONCLUSIVE*", "*40 clean images; from 100 on*"])


def test_a_broken_item_is_in_the_record(project: pytest.Pytester, run: Run) -> None:
    project.makeconftest(
        """
        import pytest

        @pytest.fixture
        def finding():
            raise RuntimeError("no space left")
        """
    )
    result = run("clean")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    record = stored(project)
    assert record["verdict"] == "inconclusive"
    assert "no space left" in record["errors"]["audit::test_clean_accuracy_drop[nc_pruning]"]


def test_a_known_trigger_is_repaired_even_if_nothing_was_flagged(project: pytest.Pytester, run: Run) -> None:
    import torch

    mask = torch.zeros(1, 8, 8)
    mask[0, 7, 7] = 1
    Trigger(mask, torch.ones(1, 8, 8), toy.TARGET).save(project.path / "known.safetensors")
    result = run("backdoored", "--trigger=known.safetensors", "--audit-limit", "size_ratio=0")
    assert stored(project)["flagged_classes"] == []
    repairs = {entry["method"]: entry for entry in stored(project)["repairs"]}
    assert repairs["nc_pruning"]["before"]["attack_success_rate"] == 1.0
    assert repairs["nc_pruning"]["after"]["attack_success_rate"] <= 0.1
    assert result.parseoutcomes()["skipped"] == 3  # linf pruning on a network without a feature map


def test_warnings_as_errors_do_not_decide_the_verdict(project: pytest.Pytester) -> None:
    project.makepyfile(
        noisy="""
        import warnings
        import toy
        from torch import nn

        class Noisy(nn.Sequential):
            def forward(self, images):
                warnings.warn("deprecated", DeprecationWarning)
                return super().forward(images)

        def network():
            return Noisy(*toy.network())
        """
    )
    project.makepyprojecttoml("[tool.pytest.ini_options]\nfilterwarnings = ['error']")
    result = project.runpytest_subprocess("--model=clean.safetensors", *BASE, "--arch=noisy:network")
    assert result.ret == pytest.ExitCode.OK


def test_strict_markers_without_filters_of_warnings_list_the_items(project: pytest.Pytester) -> None:
    options = ("--strict-markers", "-p", "no:warnings", "--collect-only", "-q")
    result = project.runpytest_subprocess("--model=clean.safetensors", *BASE, *options)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines([INDEX.format(3).replace("[", "[[]")])


def test_help_names_the_options_and_does_not_import_torch(project: pytest.Pytester) -> None:
    script = (
        "import sys, pytest; code = pytest.main(['--help']); print('TORCH', 'torch' in sys.modules); sys.exit(code)"
    )
    result = project.run(sys.executable, "-c", script)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*--audit-model=PATH*", "*--model=PATH*", "TORCH False"])


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core cannot be shared")
def test_workers_share_the_cores(project: pytest.Pytester, warm: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    arguments = wild(project, "open('told.txt', 'a').write(os.environ['OMP_NUM_THREADS'] + ' ')", LOADING)
    warm.run(project.path, "--model=clean.safetensors", *arguments, "-n", "2", "audit::test_precondition")
    assert set((project.path / "told.txt").read_text().split()) == {str(max(1, cores.available() // 2))}


@pytest.mark.parametrize(
    ("options", "expected"), [(("--model=clean.safetensors", *BASE), "4000"), (("test_own.py",), "None")]
)
def test_how_threads_wait_is_said_before_a_conftest_imports_torch_and_to_audits_alone(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], expected: str
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    project.makepyfile(test_own="def test_own(): pass")
    project.makeconftest("import os\nopen('told.txt', 'w').write(str(os.environ.get('GOMP_SPINCOUNT')))\nos._exit(7)")
    project.runpytest_subprocess(*options)
    assert (project.path / "told.txt").read_text() == expected
