"""Functions and classes whose values may lie beside the weights of a network: none of them is imported or called."""

from __future__ import annotations

import re

DICTS = frozenset(
    {
        "collections.defaultdict",
        "collections.Counter",
        "builtins.dict",
        "addict.addict.Dict",
        "easydict.EasyDict",
        "fvcore.common.config.CfgNode",
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "mmcv.utils.config.ConfigDict",
        "mmengine.config.config.ConfigDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "yacs.config.CfgNode",
    }
)
"""Kinds of dict that training scripts keep options in; they are read as dicts."""

SETS = frozenset({"builtins.set", "builtins.frozenset"})

_NUMPY = r"""
    numpy\.(?:
        ndarray | dtype | dtypes\.\w+ | ma\.core\.\w+
        | (?:_core|core)\.(?:multiarray\.(?:_reconstruct|scalar) | numeric\._frombuffer)
        | (?:bool|int|uint|float|complex|str|bytes|object|void|datetime|timedelta|half|single|double)\w*
        | random\._pickle\.__\w+_ctor | random\.\w+\.(?:Generator|RandomState|PCG64|MT19937)
    )
"""
_PYTHON = r"""
    argparse\.Namespace | types\.SimpleNamespace | functools\.partial | copyreg\._reconstructor | typing\.\w+
    | pathlib\.(?:_local\.)?(?:Pure)?(?:Posix|Windows)?Path
    | collections\.(?:OrderedDict|defaultdict|Counter|deque)
    | builtins\.(?:bytes|bytearray|set|frozenset|complex|list|dict|tuple|int|float|str|bool|object|range|slice|type)
    | datetime\.(?:datetime|date|time|timedelta|timezone) | decimal\.Decimal | fractions\.Fraction | uuid\.UUID
    | _codecs\.encode
"""
_TORCH = r"""
    torch\.(?:
        Size | device | Generator | serialization\._get_layout | torch_version\.TorchVersion
        | _tensor\._rebuild_from_type_v2
        | per_(?:tensor|channel)_(?:affine|symmetric|affine_float_qparams)
    )
    | torchvision\.transforms\.(?:functional|_functional_enums)\.InterpolationMode
"""
_OTHERS = r"""
    omegaconf\.(?:dictconfig\.DictConfig | listconfig\.ListConfig | base\.\w+ | nodes\.\w+Node)
    | mmengine\.logging\.history_buffer\.HistoryBuffer
    | PIL\.\w+\.\w*Image\w*
"""

INERT = re.compile("|".join((_NUMPY, _PYTHON, _TORCH, _OTHERS, *map(re.escape, sorted(DICTS)))), re.VERBOSE)
"""What may be called in a file although it is none of torch's ways to make a tensor: it gives numbers, texts, paths, options."""

ENUM = re.compile(r"(?:timm|torch|torchvision|transformers)\.(?:\w+\.)*[A-Z]\w*")
"""Classes of libraries that networks are built with. Called with one text or number in a pickle, it is the member of an enum that
has that value, and read as the value; whatever else they would make of it, a network misses."""
