"""The tensors of a file put into a network: which of several sets, under which names, in one piece."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic

from torch import Tensor

from backdoor_audit.errors import ModelFormatError
from backdoor_audit.model.loading.architecture import built
from backdoor_audit.model.loading.beside import is_counter, shape
from backdoor_audit.model.loading.building import Architecture, Built
from backdoor_audit.model.loading.containers import Candidate, T
from backdoor_audit.model.loading.fitting import Fit, fits
from backdoor_audit.model.loading.folding import folded, whole_name
from backdoor_audit.model.loading.module_state import load_state, refuse_misfit
from backdoor_audit.model.loading.normalising import Numbers, Told, in_front, numbers_of, usable
from backdoor_audit.model.loading.tensors import as_float32
from backdoor_audit.model.loading.whole_module import refuse_other_layers

_MOST_BUILT = 8  # sets of weights that are held against the network's shapes
_FEW_LACKING = 8  # tensors: a set without so few of the network's may be in use, loaded over fresh ones


@dataclass(frozen=True, slots=True, eq=False)
class Source(Generic[T]):
    """Where tensors may lie in a file, what they look like without their numbers, and the tensors themselves.

    ``swapped``: the file is one of mmengine or Lightning that has averages as its ``state_dict``.
    """

    candidates: Sequence[Candidate[T]]
    described: Callable[[Mapping[str, T]], Mapping[str, Tensor]]
    read: Callable[[Mapping[str, T]], Mapping[str, Tensor]]
    swapped: bool = False


def place(source: Source[T], architecture: Architecture) -> tuple[Built, tuple[str, ...]]:
    """The network with the file's weights, and notes; no number is read before the network has been found to fit.

    Where several sets of weights fit, averaged ones (EMA, SWA) are taken, as those are what training scripts evaluate and
    deploy. A set that would fit without some of its tensors counts: it may be the one that is used, with layers that nobody
    looked at. Raises `ModelFormatError` if none fits, or if several do and that rule does not decide.
    """
    found = fits(source.candidates, architecture.reference)
    groups = [[fit for fit in found if _averaged(fit, source) is averaged] for averaged in (True, False)]
    refused: list[ModelFormatError] = []
    for group in groups:
        fitting: list[tuple[Fit[T], Built | ModelFormatError]] = []
        for fit in group[:_MOST_BUILT]:
            try:
                fitting.append((fit, _compared(source, fit, architecture)))
            except ModelFormatError as error:
                refused.append(error)
                if len(found) > 1 and _fits_but_for_more(source, fit, architecture):
                    fitting.append((fit, error))
        if len(fitting) > 1 or (fitting and len(group) > _MOST_BUILT):
            places = " and under ".join(fit.where for fit, _ in fitting[:2])
            raise ModelFormatError(
                f"{len(fitting)} sets of weights fit {architecture.name}, under {places}; nothing says which is used: save the "
                "one to audit alone"
            )
        if fitting:
            fit, result = fitting[0]
            if isinstance(result, ModelFormatError):
                raise ModelFormatError(f"the weights under {fit.where}: {result}, or save the one to audit alone")
            mean, std, whose = _normalisation(source, fit, architecture)
            notes: tuple[str, ...] = fit.told(normalised=bool(whose))
            if whose:
                result = replace(result, mean=mean, std=std, whose=whose)
            beside = [other for other in found if other is not fit]
            beside += _lesser(source, found, fit, architecture)
            others = " and ".join(other.where for other in beside[:3])
            if others:
                which = "the averaged ones" if group is groups[0] else "those"
                notes = (
                    f"two sets of weights: {which} under {fit.where} audited, those under {others} are NOT audited; "
                    "ship the same ones",
                    *notes,
                )
            if fit.candidate.root is not None:
                notes += refuse_other_layers(fit.candidate.root, fit.prefix, result.module, architecture.name)
            state = as_float32(source.read(fit.state))
            return result, notes + load_state(result.module, state, architecture.name)
    raise _renamed(source, architecture) or refused[0]


def _renamed(source: Source[T], architecture: Architecture) -> ModelFormatError | None:
    """The error for a file with the network's layers, but for the last one, in their order under other names; or nothing."""
    own = {name: tuple(tensor.shape) for name, tensor in architecture.reference.items() if not is_counter(name)}
    alike = len(own) - 2  # the head may be another one
    for candidate in source.candidates:
        shapes = {name: shape(tensor) for name, tensor in candidate.tensors.items() if not is_counter(name)}
        first, called = next(iter(shapes), ""), next(iter(own), "")
        renamed = not (first.endswith(called) or called.endswith(first))
        if alike > 2 and renamed and list(shapes.values())[:alike] == list(own.values())[:alike]:
            return ModelFormatError(
                f"does not fit {architecture.name}: its layers are in the file under other names, {first[:60]} for {called}; "
                "pass --arch=package.module:factory with a factory that makes the network as it was trained, such as "
                "nn.Sequential(*list(model.children())[:-1], nn.Flatten(), nn.Linear(...))"
            )
    return None


def _normalisation(source: Source[T], fit: Fit[T], architecture: Architecture) -> tuple[Numbers, Numbers, str]:
    """Mean and std that stand in front of the network in the file, and whose they are; empty where there are none.

    Raises `ModelFormatError` for tensors of these names that are none.
    """
    used: Told | None
    if fit.in_front:
        shown = " and ".join(name[:60] for name in fit.in_front)
        tensors = as_float32(source.read(fit.in_front)).values()
        mean, std = map(numbers_of, tensors)
        used = usable(mean, std)
        if used is None:
            raise ModelFormatError(
                f"does not fit {architecture.name}: {shown} are no mean and std of pixels; pass an --arch that has them"
            )
        return used[0], used[1], f"{shown} in front of the network{used[2]}"
    found: Told | None = in_front(fit.candidate.root, fit.prefix, source.read)
    return (found[0], found[1], f"kept in front of the network{found[2]}") if found else ((), (), "")


def _fits_but_for_more(source: Source[T], fit: Fit[T], architecture: Architecture) -> bool:
    """Whether a set is the network's, with tensors beside it that the network does not have."""
    own = {key: tensor for key, tensor in fit.state.items() if whole_name(key) in architecture.reference}
    try:
        _compared(source, replace(fit, state=own, strange=()), architecture)
    except ModelFormatError:
        return False
    return True


def _lesser(source: Source[T], found: Sequence[Fit[T]], taken: Fit[T], architecture: Architecture) -> list[Fit[T]]:
    """Other sets, of the same shapes, that hold half of the network's tensors or more and not all of them.

    Raises `ModelFormatError` for one that lacks only a few: loaded with ``strict=False``, it may be the one that is used.
    Averages without what batch norm counts are usual, and are told.
    """
    wanted = {name for name in architecture.reference if not is_counter(name)}
    shapes = _shapes(source, taken, wanted)
    lesser: list[Fit[T]] = []
    for candidate in source.candidates:
        if 2 * len(candidate.tensors) < len(wanted) or any(fit.candidate is candidate for fit in found):
            continue
        for fit in fits([candidate], architecture.reference):
            own = {name: shape for name, shape in _shapes(source, fit, wanted).items() if name in wanted}
            if 2 * len(own) < len(wanted) or any(shape != shapes.get(name) for name, shape in own.items()):
                continue
            lacking = sorted(wanted - own.keys())
            if not lacking:  # the very same tensors again, as of a module that is kept beside its state
                continue
            usual = _averaged(fit, source) and all(name.endswith(("running_mean", "running_var")) for name in lacking)
            if len(lacking) <= _FEW_LACKING and not usual:
                names = ", ".join(name[:60] for name in lacking[:3])
                raise ModelFormatError(
                    f"the weights under {taken.where} fit {architecture.name}, and those under {fit.where} but for "
                    f"{len(lacking)} that they lack ({names}); nothing says which are used: save the one to audit alone"
                )
            lesser.append(fit)
    return lesser


def _shapes(source: Source[T], fit: Fit[T], names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of a set by name, with every weight in one piece."""
    return {name: tuple(tensor.shape) for name, tensor in folded(source.described(fit.state), names)[0].items()}


def _compared(source: Source[T], fit: Fit[T], architecture: Architecture) -> Built:
    fit.refuse_strange(architecture.name)
    described, _ = folded(source.described(fit.state), architecture.reference)
    result = built(architecture, described)
    refuse_misfit(result.module, described, architecture.name)
    return result


def _averaged(fit: Fit[T], source: Source[T]) -> bool:
    return fit.candidate.path == ("state_dict",) if source.swapped else fit.averaged
