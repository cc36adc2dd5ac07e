"""Options from the command line and from ``[tool.backdoor_audit]``."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import pytest

from backdoor_audit.errors import OptionError
from backdoor_audit.option_sources import build_options, options_of, read_table
from backdoor_audit.options import OPTIONS, AuditOptions, Option, Role, options_with
from tests.subjects.messages import one_line


def build(
    command_line: dict[str, str] | None = None, table: dict[str, Any] | None = None, **limits: str
) -> AuditOptions:
    return build_options(command_line or {}, limits, table or {}, Path("/project"))


def test_the_command_line_wins_over_the_table() -> None:
    options = build({"seed": "7"}, {"seed": 3, "steps": 50})
    assert (options.seed, options.steps) == (7, 50)


def test_paths_in_the_table_belong_to_the_projects_folder() -> None:
    table = {"model": "m.safetensors", "data": "torchvision:CIFAR10?root=/data", "report": "out"}
    options = build({"trigger": "t.safetensors"}, table)
    assert options.model == "/project/m.safetensors"
    assert options.data == "torchvision:CIFAR10?root=/data"
    assert options.report == "/project/out"
    assert options.trigger == "t.safetensors"


@pytest.mark.parametrize(
    ("table", "attribute", "value"),
    [
        ({"mean": [0.1, 0.2, 0.3], "std": 0.5}, "mean", (0.1, 0.2, 0.3)),
        ({"resize": 32}, "resize", (32, 32)),
        ({"resize": [24, 32]}, "resize", (24, 32)),
        ({"resize": "24,32"}, "resize", (24, 32)),
        ({"allow_pickle": True}, "allow_pickle", True),
        ({"min_accuracy": 1}, "min_accuracy", 1.0),
    ],
)
def test_toml_values_are_read_like_their_texts(table: dict[str, Any], attribute: str, value: object) -> None:
    assert getattr(build(table=table), attribute) == value


@pytest.mark.parametrize(
    ("command_line", "told"),
    [
        ({"device": "gpu"}, "--audit-device: 'gpu' must be auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, "--audit-device"),
        ({"seed": "-1"}, "--audit-seed: '-1' must be at least 0"),
        ({"seed": str(2**63)}, f"--audit-seed: '{2**63}' must be at most {2**63 - 1}"),
        ({"seed": "one"}, "--audit-seed: 'one' cannot be read; accepted: N"),
        ({"min_accuracy": "90"}, "fractions, not percent"),
        ({"min_accuracy": "nan"}, "--audit-min-accuracy"),
        ({"min_accuracy": "50%"}, "'50%' must lie in [0, 1] (rates are fractions, not percent); write 0.5"),
        ({"min_accuracy": "0.5 %"}, "write 0.005"),
        ({"max_images": "1,000"}, "--audit-max-images: '1,000' must be written without separators: 1000"),
        ({"max_images": "1 000"}, "must be written without separators: 1000"),
        ({"max_images": "1,00"}, "'1,00' cannot be read; accepted: N"),
        (
            {"max_images": "all"},
            "'all' must be a number; for all images write one that is large enough, such as 1000000",
        ),
        ({"std": "0", "mean": "0"}, "--audit-std: '0' must be above 0"),
        ({"mean": "inf", "std": "1"}, "--audit-mean"),
        ({"mean": "0.5"}, "belong together"),
        ({"mean": "0.5", "std": "0.5", "normalization": "half"}, "choose one"),
        ({"resize": "3x4x5"}, "--audit-resize: '3x4x5' must be N, HxW or H,W"),
        ({"channels": "2"}, "must be 1 (grey) or 3 (RGB)"),
        ({"index": "log"}, "must be one of calibrated, paper"),
        ({"budget": "0"}, "--audit-budget"),
        ({"budget": "soon"}, "--audit-budget"),
        ({"budget": "nan"}, "--audit-budget"),
        ({"profile": "fast"}, "--audit-profile: 'fast' must be one of quick, standard"),
        ({"inconclusive": "skip"}, "must be one of fail, allow"),
        ({"allow_pickle": "yes"}, "must be true or false"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_in_one_line(command_line: dict[str, str], told: str) -> None:
    with one_line(OptionError, told):
        build(command_line)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(OptionError) as caught:
        build({"device": "gpu", "seed": "x"}, {"modle": "m", "limits": 3}, anomaly="-2")
    for told in (
        "--audit-device",
        "--audit-seed",
        "did you mean model?",
        "a table of numbers",
        "limit anomaly must be a number of at least 0",
    ):
        assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1.5h", 5400),
        ("30", 30),
        ("10min", 600),
        ("1h30m", 5400),
        ("1H 30 min 5 sec", 5405),
        ("1e3", 1000),
    ],
)
def test_a_budget_is_a_time_with_its_unit(text: str, seconds: float) -> None:
    assert build({"budget": text}).budget == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8G", 2**33),
        ("8g", 2**33),
        ("8GiB", 2**33),
        ("8GB", 8 * 10**9),
        ("0.5 tb", 5 * 10**11),
        ("512MiB", 2**29),
        ("1073741824", 2**30),
        ("1073741824B", 2**30),
    ],
)
def test_a_size_counts_in_1024_or_with_b_behind_it_in_1000(text: str, size: int) -> None:
    assert build({"memory": text}).memory == size


@pytest.mark.parametrize("text", ["1h30", "10x", "m", "1m1h", "8GG", "8iB", "1.2.3"])
def test_times_and_sizes_that_are_none_are_told_with_what_is_accepted(text: str) -> None:
    for key, accepted in (("budget", "TIME, such as 90s, 10m"), ("memory", "SIZE, such as 500M")):
        with pytest.raises(OptionError, match=f"--audit-{key}: '{text}' cannot be read; accepted: {accepted}"):
            build({key: text})


@pytest.mark.parametrize(("text", "size"), [("30 30", (30, 30)), ("24, 32", (24, 32)), (" 24 x 32 ", (24, 32))])
def test_a_size_of_images_may_have_spaces(text: str, size: tuple[int, int]) -> None:
    assert build({"resize": text}).resize == size


def test_numbers_may_have_spaces_between_them() -> None:
    options = build({"mean": "0.5 0.25 0.5", "std": "0.5, 0.5,0.5"})
    assert (options.mean, options.std) == ((0.5, 0.25, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_any_value_of_a_python_call_is_read_or_told_with_its_argument(option: Option) -> None:
    for value in ([[1]], {"a": 1}, datetime.date(2027, 1, 1), object(), 10**5000, "\x1b[31m\n\0", [object()]):
        with pytest.raises(OptionError) as caught:
            options_of({option.key: value})
        assert str(caught.value).startswith(f"audit({option.key}=...): ")
        assert not {"\n", "\x1b", "\0"} & set(str(caught.value))


@pytest.mark.parametrize(
    "texts",
    [
        {"mean": "0.5 0.25 0.5", "std": "0.5"},
        {"resize": "24x32", "channels": "3", "max_images": "50"},
        {"budget": "1h30m", "memory": "8GB", "min_accuracy": "0.5", "seed": "7"},
        {"canary": "true", "plugins": "off", "trigger": "~/t.safetensors", "data": "torchvision:MNIST"},
    ],
    ids="-".join,
)
def test_a_python_call_takes_the_texts_of_the_command_line(texts: dict[str, str]) -> None:
    assert options_of(texts) == build(texts)


def test_none_and_the_default_are_not_given_in_a_python_call() -> None:
    usual = AuditOptions()
    names = AuditOptions.__dataclass_fields__
    assert options_of(dict.fromkeys(names)) == usual
    assert options_of({name: getattr(usual, name) for name in names}) == usual
    assert options_of({name: [] for name in ("mean", "std", "resize")}) == usual


def test_limits_come_from_table_and_command_line() -> None:
    limits = build(table={"limits": {"anomaly_index": 3, "clean_accuracy_drop": 0.05}}, anomaly_index="2.5").limits
    assert limits == {"anomaly_index": 2.5, "clean_accuracy_drop": 0.05}


def test_every_option_is_a_field_and_every_field_an_option() -> None:
    assert {option.key for option in OPTIONS} | {"limits"} == set(AuditOptions.__dataclass_fields__)


def test_the_table_is_read_from_pyproject(tmp_path: Path) -> None:
    assert read_table(tmp_path) == {}
    (tmp_path / "pyproject.toml").write_text("[tool.backdoor_audit]\nseed = 3\n")
    assert read_table(tmp_path) == {"seed": 3}


@pytest.mark.parametrize(
    "content",
    [
        "[tool.backdoor_audit",
        "[tool]\nbackdoor_audit = 3",
        "tool = 3",
        "tool = [1]",
        "[[tool.backdoor_audit]]\nseed = 1",
        "tool = 1979-05-27",
        f"x = {'[' * 50_000}",
        f"x = {'9' * 5000}",
        f"x = {'{a = ' * 3000}",
        "\ufefftool = 3",
        "x = '\x00'",
    ],
)
def test_a_broken_table_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "pyproject.toml").write_text(content)
    with pytest.raises(OptionError, match=r"pyproject.toml|tool\.backdoor_audit"):
        read_table(tmp_path)


def test_a_table_that_is_no_text_or_no_file_is_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_bytes(b"[tool.backdoor_audit]\nmodel = '\xff'\n")
    with pytest.raises(OptionError, match=r"pyproject.toml: cannot be read \(not UTF-8 at byte 31: save it as UTF-8\)"):
        read_table(tmp_path)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(OptionError, match=r"pyproject.toml: cannot be read \(a pipe, device or socket"):
        read_table(tmp_path)


ODD: tuple[object, ...] = (
    [[1]],
    {"a": {"b": 1}},
    datetime.date(2027, 1, 1),
    datetime.time(7),
    [],
    "",
    10**5000,
    "\x1b[31m\n::error::\0",
)


@pytest.mark.parametrize("key", [option.key for option in OPTIONS if option.key not in ("model", "data")])
@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_any_toml_value_is_read_or_told_in_one_line(key: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        build(table={key: value})
    assert f"[tool.backdoor_audit] {key}: " in str(caught.value)
    assert not {"\n", "\x1b", "\0"} & set(str(caught.value))


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (
            {"limits": {"size_ratio": 10**400}},
            "limit size_ratio must be a number of at least 0, got a number of 1329 bits",
        ),
        ({"limits": {"size_ratio": float("nan")}}, "limit size_ratio must be a number of at least 0, got nan"),
        ({"limits": {"size_ratio": [[1]]}}, "got a list of 1"),
        ({"limits": {"x" * 10**6: -1}}, "(1000000 characters) must be a number of at least 0, got -1"),
        ({"limits": datetime.date(2027, 1, 1)}, "a table of numbers is accepted, got a date"),
        ({"x" * 10**6: 1}, "(1000000 characters); known keys are"),
        (dict.fromkeys(map(str, range(10**4)), 1), "has an unknown key '0'"),
    ],
)
def test_limits_and_unknown_keys_are_told_in_a_few_words(table: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError) as caught:
        build(table=table)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize(
    ("command_line", "told"),
    [
        ({"steps": "9" * 5000}, "(5000 characters) cannot be read; accepted: N"),
        ({"steps": str(10**18)}, "must be at most 1000000000"),
        ({"max_images": "1e400"}, "'1e400' cannot be read"),
        ({"seed": "\u00b2"}, "cannot be read"),
        ({"device": "cuda:\u00b2"}, "must be auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:99999999999"}, "must be auto, cpu, cuda or cuda:N"),
        ({"resize": "99999x5"}, "must be at most 32768 px along either side"),
        ({"budget": "1e300h"}, "must be a time above 0: 90s, 10m or 1h30m (at most 1000000000 s)"),
        ({"memory": "1e300T"}, "must be at least 256M and at most 1024T"),
        ({"memory": "1"}, "must be at least 256M"),
        ({"reading_time": "inf"}, "must be a time above 0"),
        ({"model": ""}, "--audit-model: '' must not be empty"),
        ({"report": "a\0b"}, "must not hold a null character"),
    ],
)
def test_texts_of_any_kind_are_told_in_one_line(command_line: dict[str, str], told: str) -> None:
    with pytest.raises(OptionError) as caught:
        build(command_line)
    assert told in str(caught.value)


@pytest.mark.parametrize("key", options_with(Role.PATH))
def test_a_path_may_begin_with_the_home_folder(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert getattr(build({key: "~/x"}), key) == "/home/me/x"
    assert getattr(build(table={key: "~/x"}), key) == "/home/me/x"
    assert getattr(build({key: "a~/x"}), key) == "a~/x"


def test_an_option_says_itself_what_it_is_to_the_rest_of_the_package() -> None:
    paths = {option.key for option in OPTIONS if option.metavar.split("|")[0] in ("PATH", "FILE", "DIR", "SOURCE")}
    assert set(options_with(Role.PATH)) == paths
    assert set(options_with(Role.LOADING)) < set(options_with(Role.READING))
    assert set(options_with(Role.MACHINE)).isdisjoint(options_with(Role.CONFIGURATION))
    assert options_with(Role.READING)[0] == "arch"  # in the order of the table
    assert {option.key for option in OPTIONS} <= set(AuditOptions.__dataclass_fields__)
