"""What an error says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def one_line(error: type[Exception], *told: str, begins: str = "") -> Iterator[None]:
    """A block that raises this error, in one line that begins so and says all that."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert message.startswith(begins)
    assert "\n" not in message
    for part in told:
        assert part in message
