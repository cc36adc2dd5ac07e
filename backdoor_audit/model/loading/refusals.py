"""What is said of model files that cannot be used, and the bounds within which they are read."""

from __future__ import annotations

import time
from collections.abc import Iterable

from backdoor_audit import bounds, tensor_file
from backdoor_audit.errors import ModelFormatError
from backdoor_audit.files import UnreadableError

_PER_CHARACTER = 4  # bytes of memory

RESAVE = (
    "re-save it where its origin is trusted, safetensors.torch.save_file(model.state_dict(), 'm.safetensors'), or pass "
    "--audit-allow-pickle, which executes the file's code"
)


def damaged(found: str) -> ModelFormatError:
    """The error for a file that is not what its format says."""
    return ModelFormatError(f"damaged or incomplete ({found}); copy it again from its source")


def needs_code(name: str) -> ModelFormatError:
    """The error for a pickle that names a function or class other than torch's own for tensors."""
    return ModelFormatError(f"holds more than tensors: loading it would run {name[:80]}; {RESAVE}")


def not_tensors_alone(found: str) -> ModelFormatError:
    """The error for a pickle with instructions that no state_dict needs."""
    return ModelFormatError(f"a pickle that cannot be read as tensors alone ({found}); {RESAVE}")


def plain_pickle() -> ModelFormatError:
    """The error for a pickle that ``torch.load`` would not read even where its code may run."""
    return ModelFormatError(
        "a pickle that torch.save has not written (pickle.dump, joblib.dump), and that torch.load does not read; where its "
        "origin is trusted read it as it was written, and torch.save(model.state_dict(), 'm.pt')"
    )


def torchscript() -> ModelFormatError:
    """The error for a TorchScript archive, whose weights alone would not be what it computes."""
    return ModelFormatError(
        "a TorchScript archive, which is a program: it is not run here, and its weights alone would not audit it; re-save the "
        'weights where its origin is trusted, torch.save(torch.jit.load(f).state_dict(), "weights.pt"), audit and deploy those '
        "with --arch=NAME"
    )


def odd_tensor(name: str, what: str) -> ModelFormatError:
    """The error for a tensor that no network here can take."""
    if what == "quantised":
        return ModelFormatError(
            f"{name[:80]} is quantised, and integers have no gradient; audit the float network that it was made from"
        )
    return ModelFormatError(f"{name[:80]} is {what}; save the model with ordinary float32 or float16 tensors")


def without_numbers() -> ModelFormatError:
    """The error for a file whose weights are empty."""
    return ModelFormatError(
        "its weights are empty, as DeepSpeed leaves them where stage 3 of ZeRO keeps the numbers in other files; put them "
        "together by the zero_to_fp32.py in the folder of the checkpoint, and pass what it writes"
    )


def refuse_quantised(names: Iterable[str]) -> None:
    """Raise `ModelFormatError` if one of these names is that of a quantised layer's weights."""
    for name in names:
        if "_packed_params" in name:
            raise odd_tensor(name, "quantised")


def refuse_above(needed: int, what: str) -> None:
    """Raise `ModelFormatError` if reading ``what`` takes more bytes than the memory bound."""
    try:
        tensor_file.refuse_above(needed, what)
    except UnreadableError as error:
        raise ModelFormatError(str(error)) from None


class Deadline:
    """When reading the file at hand has to be over; begins when it is made."""

    __slots__ = ("_end", "_seconds")

    def __init__(self) -> None:
        self._seconds = bounds.current().seconds
        self._end = time.monotonic() + self._seconds

    def check(self) -> None:
        """Raise `ModelFormatError` if it has passed."""
        if time.monotonic() > self._end:
            raise ModelFormatError(
                f"reading it takes more than {self._seconds:g} s; {bounds.current().raised_by('seconds')}"
            )


class Spending:
    """What the entries of a file take together, ``per_entry`` bytes of memory each and more for text, counted as they come.

    ``told`` says of what there is too much, with ``{most}`` in the place of how many may be, ``cure`` what else to do.
    """

    __slots__ = ("_cure", "_most", "_per_entry", "_spent", "_told")

    def __init__(self, per_entry: int, told: str, cure: str = "") -> None:
        self._per_entry, self._told, self._cure = per_entry, told, cure
        self._most, self._spent = bounds.current().memory, 0

    def spend(self, entries: int, characters: int = 0) -> None:
        """Raise `ModelFormatError` if so many more, and so much text, take more than the memory bound."""
        self._spent += entries * self._per_entry + characters * _PER_CHARACTER
        if self._spent > self._most:
            told = self._told.format(most=f"{self._most // self._per_entry:,}")
            counted = f"that many are counted as {self._most / 1e9:.1f} GB of memory"
            raise ModelFormatError(f"{told}; {counted}, {bounds.current().raised_by('memory')}{self._cure}")
