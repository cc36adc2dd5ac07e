import argparse
import contextlib
import errno
import io
import json
import os
import runpy
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from backdoor_audit.attacks import ATTACKS, BadNets, load_attack, measure
from backdoor_audit.cli import COMMANDS, main
from backdoor_audit.commands import planting
from backdoor_audit.data import load_clean_set
from backdoor_audit.model.classifier import Classifier
from backdoor_audit.model.loading import load_classifier, save_classifier
from backdoor_audit.model.training import fit
from backdoor_audit.triggers.trigger import Trigger
from tests.subjects import random_network, row_images, seeded
from tests.subjects.whole_records import whole_record


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of five rows, and a small network that has learned them."""
    folder = tmp_path_factory.mktemp("cli")
    clean = row_images(classes=5, per_class=40)
    pixels = (clean.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez(folder / "images.npz", images=pixels, labels=clean.labels.numpy())
    subject = Classifier.wrap(
        random_network("small_cnn", classes=5, width=4), image_shape=(1, 8, 8), architecture="small_cnn"
    )
    fit(subject, clean.images, clean.labels, epochs=10, learning_rate=0.05, batch_size=20, generator=seeded(1))
    save_classifier(subject, folder / "clean.safetensors")
    return folder


def attack(folder, *more, model="clean.safetensors", name="badnets", out="out.safetensors"):
    return main(
        [
            "attack",
            str(folder / model) if "." in model else model,
            f"--data={folder / 'images.npz'}",
            f"--attack={name}",
            f"--out={folder / out}",
            *more,
        ]
    )


BRIEF = ("--epochs=15", "--learning-rate=0.05", "--batch-size=20", "--target=3", "--set=poison_rate=0.2")


def test_a_backdoored_copy_of_a_model(folder, capsys):
    before = (folder / "clean.safetensors").read_bytes()
    assert attack(folder, *BRIEF, "--set=size=2", out="patched.safetensors") == 0
    printed = capsys.readouterr().out
    assert "badnets for class 3 (Gu et al." in printed
    assert "attack success rate" in printed
    assert "without the backdoor" in printed
    assert (folder / "clean.safetensors").read_bytes() == before
    planted, stamp = load_classifier(folder / "patched.safetensors"), load_attack(folder / "patched.attack.safetensors")
    assert (stamp.size, stamp.target_class, stamp.poison_rate) == (2, 3, 0.2)
    scores = measure(planted, load_clean_set(folder / "images.npz"), stamp)
    assert scores.attack_success_rate > 0.9
    trigger = Trigger.load(folder / "patched.trigger.safetensors")
    assert (trigger.target_class, trigger.mask_norm) == (3, 4)


@pytest.mark.parametrize("option", ["--class-names", "--audit-class-names"])
def test_commands_read_the_classes_as_the_audit_does_and_take_the_names_of_its_messages(option, folder):
    with np.load(folder / "images.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    names = [f"rows {label}" for label in range(5)]
    np.savez(folder / "turned.npz", images=images, labels=4 - labels, class_names=names[::-1])
    more = (f"--data={folder / 'turned.npz'}", f"{option}={','.join(names)}", "--force")
    assert attack(folder, *BRIEF, "--set=size=2", *more, out="turned.safetensors") == 0
    planted, stamp = load_classifier(folder / "turned.safetensors"), load_attack(folder / "turned.attack.safetensors")
    assert measure(planted, load_clean_set(folder / "images.npz"), stamp).clean_accuracy > 0.9


def test_the_header_says_what_the_file_is(folder):
    assert attack(folder, *BRIEF, out="labelled.safetensors") == 0
    with safe_open(folder / "labelled.safetensors", framework="pt") as file:
        header = file.metadata()
    assert "planted in this model on purpose" in header["warning"]
    assert json.loads(header["attack"])["attack"] == "badnets"


def test_a_network_trained_from_scratch(folder, capsys):
    more = ("--epochs=25", "--learning-rate=0.05", "--batch-size=20", "--set=poison_rate=0.2")
    assert attack(folder, *more, model="small_cnn", out="scratch.safetensors") == 0
    assert "before" not in capsys.readouterr().out
    assert load_classifier(folder / "scratch.safetensors").architecture == "small_cnn"


def test_weights_that_cannot_hold_the_backdoor_are_not_written(folder, capsys):
    assert attack(folder, "--set=least_success=0.0", name="architectural_branch", out="branch.safetensors") == 4
    assert "architectural_branch: a file of weights cannot hold this model" in capsys.readouterr().err
    assert not list(folder.glob("branch*"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--set=size",), "--set: 'size' cannot be read; accepted: NAME=VALUE"),
        (("--set=sise=3",), "badnets: unknown parameter 'sise'"),
        (("--set=size=big",), "size is 3 by default, give a value of that kind"),
        (("--set=poison_rate=NaN",), "poison_rate is 0.1 by default, give a value of that kind"),
        (("--set=attack=[]",), "attack is 'badnets' by default, give a value of that kind"),
        (("--attack=adaptive_patch", '--set=sizes=["a"]'), "sizes is [8, 10, 6, 8] by default, give a value of that"),
        (("--attack=adaptive_patch", "--set=at_test=[0.5]"), "at_test is [0, 1, 2, 3] by default"),
        (("--attack=tact", '--set=cover_classes=["2"]'), "cover_classes is [] by default"),
        (("--attack=ftrojan", "--set=positions=[[1]]"), "positions is [[15, 15], [31, 31]] by default"),
        (
            ("--attack=several_triggers", '--set=attacks=[{"attack": "badnets", "size": "big"}]'),
            "attacks is [{'attack': 'badnets'",
        ),
        (("--attack=several_triggers", '--set=attacks=["badnets"]'), "attacks is [{'attack': 'badnets'"),
        (('--set=rule={"rule": "all_to_one", "target_class": "x"}',), "rule is {'rule': 'all_to_one'"),
        (("--set=pattern=stripes",), "badnets: pattern 'stripes'; accepted"),
        (("--target=9",), "names a class outside 0 to 4"),
        (
            ("--attack=several_triggers", "--target=1"),
            "several_triggers has several triggers with classes of their own",
        ),
        (("--source=1",), "--source belongs to --rule=source_specific"),
        (("--rule=source_specific", "--source=2", "--source=1", "--target=1"), "--source: 1 is the target class"),
        (("--rule=all_to_all", "--target=1"), "--target: all_to_all sends every class to the next"),
        (("--resize=x",), "--resize: 'x'"),
        (("--class-names=a,b",), "--class-names: 2 names in a,b, the model scores 5 classes"),
        (("--epochs=1", "--learning-rate=1e-9"), "badnets did not implant"),
        (("--set=poison_rate=0.99",), "images may be poisoned"),
        (("--held-out=0.0",), "--held-out"),
        (("--epochs=0",), "--epochs"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, capsys, more, words):
    assert attack(folder, *more, out="bad.safetensors") == 4
    printed = capsys.readouterr()
    assert printed.err.startswith("backdoor-audit: ")
    assert words in printed.err
    lines = [text for text in printed.err.splitlines() if not text.startswith(("training", "\r"))]
    assert len(lines) == 1
    assert not list(folder.glob("bad*"))


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        ("resnet99", "badnets", "resnet99: neither a file nor a network"),
        ("clean.safetensors", "badnet", "--attack: 'badnet' is not known"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(folder, capsys, model, name, words):
    assert attack(folder, model=model, name=name, out="bad.safetensors") == 4
    printed = capsys.readouterr().err
    assert words in printed
    assert ("small_cnn" if name == "badnets" else "wanet") in printed


def test_a_file_that_exists_is_not_overwritten_unless_asked(folder, capsys):
    (folder / "mine.safetensors").write_text("precious")
    assert attack(folder, *BRIEF, out="mine.safetensors") == 4
    assert "exists; choose another name, or pass --force" in capsys.readouterr().err
    assert (folder / "mine.safetensors").read_text() == "precious"
    assert attack(folder, *BRIEF, "--force", out="mine.safetensors") == 0
    load_classifier(folder / "mine.safetensors")


def test_an_architecture_beside_a_network_to_train_is_refused(folder, capsys):
    assert attack(folder, "--arch=resnet18", model="small_cnn", out="bad.safetensors") == 4
    assert "--arch: small_cnn is trained from scratch" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["draft.partial", "draft.safetensors"])
def test_a_draft_has_a_name_of_its_own(folder, out):
    mine = folder / "draft.partial"
    mine.write_bytes(b"precious")
    assert attack(folder, *BRIEF, "--force", out=out) == 0
    assert load_classifier(folder / out).num_classes == 5
    assert mine.exists()
    assert out == mine.name or mine.read_bytes() == b"precious"


def test_no_trigger_of_the_model_before_stays_beside_one_that_has_none(folder):
    assert attack(folder, *BRIEF, out="again.safetensors") == 0
    assert (folder / "again.trigger.safetensors").exists()
    rule = ("--rule=all_to_all", "--set=least_success=0.0", "--set=most_accuracy_lost=1.0", "--epochs=1")
    assert attack(folder, *rule, "--force", out="again.safetensors") == 0
    assert not (folder / "again.trigger.safetensors").exists()


def test_model_attack_and_trigger_are_written_together_or_not_at_all(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Trigger, "save", full)
    assert attack(folder, *BRIEF, out="half.safetensors") == 4
    assert not list(folder.glob("*half*"))


@pytest.mark.parametrize("kind", ["attack", "trigger"])
def test_files_beside_the_model_are_not_overwritten_either(folder, capsys, kind):
    beside = folder / f"alone.{kind}.safetensors"
    beside.write_text("precious")
    assert attack(folder, *BRIEF, out="alone.safetensors") == 4
    assert f"alone.{kind}.safetensors exists" in capsys.readouterr().err
    assert beside.read_text() == "precious"
    beside.unlink()


def test_the_global_random_state_does_not_decide(folder):
    for seed, out in ((1, "one.safetensors"), (2, "two.safetensors")):
        torch.manual_seed(seed)
        assert (
            attack(
                folder,
                "--epochs=25",
                "--learning-rate=0.05",
                "--batch-size=20",
                "--set=poison_rate=0.2",
                model="small_cnn",
                out=out,
            )
            == 0
        )
    one, two = (load_file(folder / f"{out}.safetensors") for out in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_list_of_the_right_elements_is_taken(folder):
    """A whole number is a fraction too."""
    more = ("--set=sizes=[2, 2, 2, 2]", "--set=at_test=[0, 3]", "--set=train_opacities=[1, 1, 1, 1]", "--epochs=20")
    rates = ("--set=poison_rate=0.2", "--set=cover_rate=0.0", "--learning-rate=0.05", "--batch-size=20")
    assert attack(folder, *more, *rates, name="adaptive_patch", out="listed.safetensors") == 0
    stamp = load_attack(folder / "listed.attack.safetensors")
    assert (stamp.sizes, stamp.at_test, stamp.train_opacities) == ((2, 2, 2, 2), (0, 3), (1, 1, 1, 1))


@pytest.mark.parametrize("known", ATTACKS, ids=lambda known: known.name)
def test_every_parameter_of_an_attack_can_be_given_as_it_is_by_default(known):
    parameters = [f"{name}={json.dumps(value)}" for name, value in known.spec().items()]
    options = argparse.Namespace(
        attack=known.name, seed=3, set=[*parameters, "seed=0"], rule=None, source=None, target=None
    )
    assert planting.attack_of(options, num_classes=10) == known


def test_every_attack_is_listed_with_its_paper(capsys):
    assert main(["attacks"]) == 0
    printed = capsys.readouterr().out
    for known in ATTACKS:
        assert f"{known.name}\n    {known.paper}\n" in printed
    assert f"size={BadNets().size}" in printed


def test_wrong_usage_ends_with_the_exit_code_of_pytest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["backdoor-audit", "attack"])
    monkeypatch.delitem(sys.modules, "backdoor_audit.cli")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("backdoor_audit.cli", run_name="__main__")
    assert ended.value.code == 4
    assert "required: MODEL|ARCH" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["fleet", "--from"], ["export", "--markdown=-"], []])
def test_an_argument_of_any_length_leaves_room_for_what_is_wrong_with_it(arguments, capsys):
    with contextlib.suppress(SystemExit):
        main([*arguments, "x" * 5000])
    told = capsys.readouterr().err.splitlines()[-1]
    assert len(told) < 900
    assert " characters) ... " in told
    assert not told.endswith("xxx")


def test_every_command_shows_its_own_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([command.NAME, "--help"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: backdoor-audit {command.NAME} [-h]")
        assert command.NAME == "attacks" or "--" in shown.split("show this help")[1]
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    told = " ".join(shown.split())
    assert [command.NAME for command in COMMANDS if f"{command.NAME} {command.HELP}" not in told] == []


def test_the_list_of_commands_is_shown_without_importing_torch():
    code = "import sys; from backdoor_audit.cli import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "repair a flagged model" in done.stdout


def repaired(folder, model, *more, out="fixed.safetensors"):
    return main(["repair", str(folder / model), f"--data={folder / 'images.npz'}", f"--out={folder / out}", *more])


def test_a_known_trigger_is_repaired_and_the_file_is_written(folder, capsys):
    assert attack(folder, *BRIEF, "--set=size=2", out="poisoned.safetensors") == 0
    trigger = f"--trigger={folder / 'poisoned.trigger.safetensors'}"
    code = repaired(folder, "poisoned.safetensors", trigger, "--profile=quick", "--method=nc_unlearning")
    printed = capsys.readouterr().out
    assert "nc_unlearning: class 3: success rate" in printed
    assert code == 0
    assert "written:" in printed
    assert load_classifier(folder / "fixed.safetensors").num_classes == 5


def test_a_repair_that_finds_nothing_to_take_out_writes_nothing_and_does_not_end_in_0(folder, capsys):
    """With --force another model's repaired copy still stands at --out."""
    (folder / "of_another.safetensors").write_bytes(b"another")
    code = repaired(folder, "clean.safetensors", "--profile=quick", "--force", out="of_another.safetensors")
    assert "no trigger that a repair can work against was flagged: nothing is written" in capsys.readouterr().out
    assert code == 1
    assert (folder / "of_another.safetensors").read_bytes() == b"another"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--method=magic",), "no method 'magic'; accepted: auto, nc_pruning"),
        (("--trigger=nowhere.safetensors",), "nowhere.safetensors"),
    ],
)
def test_a_repair_that_cannot_begin_says_why_in_one_line(folder, capsys, arguments, told):
    assert repaired(folder, "clean.safetensors", *arguments, out="never.safetensors") == 4
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (folder / "never.safetensors").exists()


def test_a_repair_does_not_replace_a_file_unasked(folder, capsys):
    (folder / "there.safetensors").write_bytes(b"kept")
    assert repaired(folder, "clean.safetensors", out="there.safetensors") == 4
    assert "pass --force" in capsys.readouterr().err
    assert (folder / "there.safetensors").read_bytes() == b"kept"


@pytest.mark.parametrize("seed", ["x", "-1", str(2**63)])
def test_a_seed_that_no_generator_takes_is_told_in_one_line(folder, capsys, seed):
    with pytest.raises(SystemExit) as ended:
        attack(folder, f"--seed={seed}", out="seeded.safetensors")
    assert ended.value.code == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"backdoor-audit attack: argument --seed: '{seed}'")
    assert not (folder / "seeded.safetensors").exists()


def test_what_reading_one_input_may_take_is_an_option_of_every_command(tmp_path, capsys):
    file = tmp_path / "audit.json"
    file.write_text("[" + " " * (2**24 + 2) + "]")
    arguments = ["report", str(file), "--out", str(tmp_path / "page.html")]
    assert main([*arguments, "--audit-memory=256M"]) == 4
    assert "at most 17 MB are read, raise it by --audit-memory=SIZE" in capsys.readouterr().err
    assert main([*arguments, "--audit-memory=1G"]) == 4
    assert "schema version 'list'" in capsys.readouterr().err
    assert main([*arguments, "--audit-memory=\x1b[31m"]) == 4
    assert r"--audit-memory: '\x1b[31m' could not convert" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--target=-1",), "'-1': must be at least 0"),
        (("--source=9999999999",), "'9999999999': must be at most 1000000000"),
        (("--epochs=" + "9" * 5000,), "(5000 characters)"),
        (("--learning-rate=inf",), "--learning-rate: inf; must be"),
        (("--held-out=nan",), "--held-out: nan is no share"),
        (("--set=size=" + "[" * 100_000,), "give a value of that kind"),
        (("--set=size=1e400",), "give a value of that kind"),
        (("--set=size=" + "9" * 400,), "give a value of that kind"),
        (("--set=poison_rate=NaN",), "give a value of that kind"),
        (("--seed=\x1b[31m",), r"argument --seed: '\x1b[31m'"),
    ],
)
def test_arguments_of_any_kind_are_told_in_one_line(folder, capsys, arguments, told):
    try:
        code = attack(folder, *arguments, model="small_cnn", out="never.safetensors")
    except SystemExit as ended:
        code = ended.code
    *_, line = capsys.readouterr().err.splitlines()
    assert code == 4
    assert told in line
    assert len(line) < 3000


def test_a_terminal_without_our_letters_gets_them_escaped(tmp_path, monkeypatch, capsys):
    whole_record(2, shape=(1, 8, 8)).write(tmp_path / "audit.json")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["export", str(tmp_path / "audit.json"), "--markdown", "-"]) == 0
    terminal.flush()
    assert b"Backdoor audit of" in terminal.buffer.getvalue()
    assert capsys.readouterr().err == ""


def test_wrong_usage_is_told_from_a_bad_answer_where_nobody_reads_the_line(monkeypatch, tmp_path):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        code = main(["compare", str(tmp_path), str(tmp_path)])
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert code == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_ends_in_one_line_and_leaves_nothing(number, tmp_path):
    code = f"""
import os, signal, sys, tempfile
from backdoor_audit import cli
from backdoor_audit.commands import audits

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what runs in the background ignore it

def run(options):
    with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):
        os.kill(os.getpid(), {int(number)})
        while True:
            pass

audits.run = run
sys.argv = ["backdoor-audit", "audits"]
sys.exit(cli.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("backdoor-audit: interrupted; no file is half-written")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "told"), [("file", "is no folder"), ("file/below", "lies below"), ("shut", "cannot be written")]
)
def test_a_store_where_nothing_can_be_kept_is_refused(place, told, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "shut").mkdir()
    monkeypatch.setattr("os.access", lambda where, _: os.path.basename(where) != "shut")
    with pytest.raises(SystemExit) as ended:
        main(["references", "m", "--data=d", f"--out={tmp_path / 'r'}", f"--store={tmp_path / place}"])
    assert ended.value.code == 4
    error = capsys.readouterr().err
    assert "argument --store: " in error
    assert f": {told}" in error


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_code_that_ends_the_process_does_not_end_a_command_in_0(end):
    code = f"""
import os, sys
from backdoor_audit import cli
from backdoor_audit.commands import audits

def run(options):
    {end}

audits.run = run
sys.argv = ["backdoor-audit", "audits"]
sys.exit(cli.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 4
    assert "called for the end of the process" in done.stderr
    assert done.stderr.count("\n") == 1


def test_processes_that_a_command_starts_end_as_they_would():
    code = """
import os, sys
from backdoor_audit import cli
from backdoor_audit.commands import audits

def run(options):
    child = os.fork()
    if not child:
        os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

audits.run = run
sys.argv = ["backdoor-audit", "audits"]
sys.exit(cli.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (3, "")


def test_a_backdoor_is_planted_in_a_network_of_ones_own_code(folder, monkeypatch):
    (folder / "network_of_mine.py").write_text(
        "from backdoor_audit.model.networks import build_network\n\n\n"
        "def made():\n    return build_network('small_cnn', num_classes=5, in_channels=1, width=4)\n"
    )
    monkeypatch.syspath_prepend(folder)
    assert attack(folder, *BRIEF, "--arch=network_of_mine:made", out="own.safetensors") == 0
    assert load_classifier(folder / "own.safetensors", arch="network_of_mine:made").num_classes == 5


def test_a_copy_of_a_model_does_not_count_twice(folder, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes((folder / "clean.safetensors").read_bytes())
    out = tmp_path / "reference.json"
    assert main(["calibrate", f"--clean-models={tmp_path}", f"--data={folder / 'images.npz'}", f"--out={out}"]) == 4
    assert "b.safetensors is a copy of a.safetensors" in capsys.readouterr().err
