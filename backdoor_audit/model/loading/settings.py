"""What a checkpoint's settings say of its network, beside what the network was built with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from backdoor_audit.model.loading.factory import defaults_of
from backdoor_audit.model.loading.whole_module import has_no_effect, shown_parts, tupled

_HEADS = ("num_heads", "n_heads", "nhead", "heads")
_MOST_SHOWN = 5


def told_otherwise(settings: Mapping[object, object], module: nn.Module, arch: str) -> tuple[str, ...]:
    """A note on arguments of a network that have other values in the file than it was built with; no tensor may tell them."""
    kind, sep, _ = arch.partition(":")
    if not sep or kind == "timm":
        return ()
    arguments = defaults_of(type(module).__init__ if kind == "torchvision" else arch)
    arguments = {key: getattr(module, key, value) for key, value in arguments.items()}
    heads = {part.num_heads for part in module.modules() if isinstance(getattr(part, "num_heads", None), int)}
    if len(heads) == 1:
        arguments = {**dict.fromkeys(_HEADS, *heads), **arguments}
    said, used = [], []
    for key, value in arguments.items():
        of_file, built = tupled(settings.get(key)), tupled(value)
        if of_file and (built or value is None) and of_file != built and not has_no_effect(key):
            said.append(f"{key} {shown_parts(of_file)}")
            used.append(f"{key} {shown_parts(built) or None}")
    if not said:
        return ()
    return (
        f"the file's settings say {', '.join(said[:_MOST_SHOWN])}; {arch} was built with {', '.join(used[:_MOST_SHOWN])}: where "
        "that counts, pass --arch=package.module:factory with a factory that fills them in",
    )
