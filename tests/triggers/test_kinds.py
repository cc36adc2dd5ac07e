"""What every kind of trigger keeps to; a new one is tested by standing in `KINDS`."""

import json

import pytest
import torch
from hypothesis import Phase, find, settings

from backdoor_audit.errors import DataFormatError
from backdoor_audit.run.grad_cam import localised_support
from backdoor_audit.triggers.kind import AnyTrigger
from backdoor_audit.triggers.kinds import APPLIED, KINDS
from backdoor_audit.triggers.trigger import Addition, Trigger, Warp, load_trigger, trigger_from
from backdoor_audit.triggers.written import trigger_from_spec
from tests.subjects import quick, seeded

SHAPE = (3, 9, 12)
STRATEGIES = {name: (kind, draw) for kind in KINDS for name, draw in kind.strategies().items()}
by_strategy = pytest.mark.parametrize("name", STRATEGIES)
first = settings(quick, max_examples=200, phases=(Phase.generate,))


def visible(name):
    """A drawn trigger for class 4 that changes some pixel by more than rounding."""
    images = torch.rand(1, *SHAPE, generator=seeded(2))
    draw = STRATEGIES[name][1]
    return find(
        draw(SHAPE, target_class=4),
        lambda trigger: float((trigger.stamp(images) - images).abs().max()) > 0.02,
        settings=first,
    )


def test_kinds_and_what_they_consist_of_can_be_told_apart():
    assert len({kind.kind for kind in KINDS}) == len(KINDS)
    assert len({frozenset(kind.parts) for kind in APPLIED}) == len(APPLIED)
    assert len(STRATEGIES) == sum(len(kind.strategies()) for kind in KINDS)
    assert set(APPLIED) >= {Trigger, Addition, Warp}


@by_strategy
def test_a_strategy_draws_its_own_kind_which_comes_back_from_json(name):
    trigger = visible(name)
    assert type(trigger) is STRATEGIES[name][0]
    assert trigger.target_class == 4
    assert trigger_from_spec(json.loads(json.dumps(trigger.spec()))) == trigger
    assert trigger.described()


@by_strategy
def test_a_weaker_form_changes_less_and_one_of_strength_zero_nothing(name):
    trigger, images = visible(name), torch.rand(2, *SHAPE, generator=seeded(3))
    moved = [float((trigger.weaker(share).stamp(images) - images).abs().mean()) for share in (0.0, 0.5, 1.0)]
    assert moved[0] < 1e-5 < moved[2]
    assert moved[0] <= moved[1] <= moved[2] + 1e-6
    assert trigger.weaker(1.0) == trigger
    assert trigger.weaker(0.5).target_class == 4


@by_strategy
def test_simpler_and_smaller_forms_are_of_the_same_kind_and_for_the_same_class(name):
    trigger = visible(name)
    for form in (*trigger.simpler(), *trigger.smaller()):
        assert (type(form), form.target_class) == (type(trigger), 4)
        assert form.stamp(torch.zeros(1, *SHAPE)).shape == (1, *SHAPE)


@by_strategy
def test_what_searches_for_the_content_of_a_place_returns_a_trigger_of_that_place(name):
    trigger = visible(name)
    family = trigger.family()
    if family is not None:
        parameters = family.initial(1, SHAPE, seeded(4))[0]
        found = family.trigger(parameters, 4, SHAPE).in_whole_numbers()
        assert type(found) is type(trigger)
        assert found.family() == family


@by_strategy
def test_the_applied_form_is_of_the_kind_that_is_named_and_is_written_back_to_the_nearest_numbers(name):
    trigger = visible(name)
    applied = trigger.trigger(SHAPE)
    assert isinstance(applied, AnyTrigger) is (trigger.applied is not None)
    if isinstance(applied, AnyTrigger):
        assert type(applied) is trigger.applied
        images = torch.rand(2, *SHAPE, generator=seeded(5))
        written = applied.in_whole_numbers()
        assert written.target_class == 4
        assert float((written.stamp(images) - applied.stamp(images)).abs().max()) <= 0.011


@by_strategy
def test_the_applied_form_fits_its_images_and_comes_back_from_a_file(name, tmp_path):
    applied = visible(name).trigger(SHAPE)
    if not isinstance(applied, AnyTrigger):
        return
    applied.save(tmp_path / "t.safetensors")
    for again in (load_trigger(tmp_path / "t.safetensors"), type(applied).load(tmp_path / "t.safetensors")):
        assert (type(again), again.target_class) == (type(applied), 4)
        assert all(torch.equal(tensor, applied.tensors()[part]) for part, tensor in again.tensors().items())
        assert again.fits(SHAPE)
        assert not again.fits((3, 12, 9))
    support = localised_support(applied)
    assert support is None or support.shape == SHAPE[1:]


def test_a_warp_fits_any_number_of_channels_and_the_others_their_own():
    flow = Warp(torch.zeros(2, 5, 4), 0)
    assert [flow.fits((channels, 5, 4)) for channels in (1, 3)] == [True, True]
    change = Addition(torch.zeros(3, 5, 4), 0)
    assert [change.fits((channels, 5, 4)) for channels in (1, 3)] == [False, True]
    patch = Trigger(torch.zeros(1, 5, 4), torch.zeros(3, 5, 4), 0)
    assert [patch.fits((channels, 5, 4)) for channels in (1, 3)] == [False, True]
    assert patch.shape == change.shape == (3, 5, 4)
    assert flow.shape == (2, 5, 4)


def test_a_file_of_one_kind_is_asked_for_in_the_words_of_that_kind(tmp_path):
    Warp(torch.zeros(2, 5, 4), 0).save(tmp_path / "t.safetensors")
    with pytest.raises(DataFormatError) as refused:
        Trigger.load(tmp_path / "t.safetensors")
    assert str(refused.value).endswith(
        "found tensors ['flow'] and metadata ['target_class']; a trigger file holds safetensors `mask` (1, h, w) and `pattern` "
        "(c, h, w), and metadata `target_class`"
    )


def test_a_file_of_no_kind_is_refused_with_all_of_them(tmp_path):
    (tmp_path / "t.safetensors").write_bytes(b"hello")
    with pytest.raises(DataFormatError) as refused:
        load_trigger(tmp_path / "t.safetensors")
    assert str(refused.value).endswith(
        "; a trigger file holds safetensors `mask` (1, h, w) and `pattern` (c, h, w), or `change` (c, h, w), "
        "or `flow` (2, h, w), and metadata `target_class`"
    )


SPECS = (
    '{"kind": "patch", "target_class": 7, "colours": {"shape": [1, 1, 2], "values": [9, 0]}, "top": 3, "left": 1, "opacity": 9}',
    '{"kind": "blend", "target_class": 0, "picture": {"shape": [1, 1, 1], "values": [9]}, "opacity": 10}',
    '{"kind": "change", "target_class": 2, "levels": {"shape": [1, 1, 1], "values": [-6]}}',
    '{"kind": "sinusoid", "target_class": 1, "amplitude": 20, "half_periods": 12, "down": true}',
    '{"kind": "warp", "target_class": 3, "flow": {"shape": [2, 1, 1], "values": [-150, 40]}}',
    '{"kind": "quantisation", "target_class": 4, "step": 24}',
)


@pytest.mark.parametrize("text", SPECS)
def test_specs_that_earlier_versions_wrote_are_read_and_written_byte_for_byte(text):
    assert json.dumps(trigger_from_spec(json.loads(text)).spec()) == text


def test_there_is_an_earlier_spec_of_every_kind():
    assert {json.loads(text)["kind"] for text in SPECS} == {kind.kind for kind in KINDS}


def test_old_module_names_lead_to_the_same_triggers():
    import backdoor_audit.drawn
    import backdoor_audit.strategies
    import backdoor_audit.trigger

    trigger = backdoor_audit.drawn.trigger_from_spec(json.loads(SPECS[0]))
    assert isinstance(trigger, backdoor_audit.drawn.DrawnTrigger)
    assert backdoor_audit.drawn.KINDS is KINDS
    assert backdoor_audit.trigger.load_trigger is load_trigger
    assert backdoor_audit.trigger.trigger_from is trigger_from
    assert set(backdoor_audit.strategies.STRATEGIES) == set(STRATEGIES)
