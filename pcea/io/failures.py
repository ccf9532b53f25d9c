"""Messages about files that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def message_of(error: Exception, file: Path) -> str:
    """The message of an error, with the name of the file that it is about."""
    return str(error) if str(file) in str(error) else f"{file}: {error}"


def summarize(messages: Sequence[str], total: int) -> str:
    """One line that counts the unreadable files and names ten of them."""
    more = f"; and {len(messages) - 10} more" if len(messages) > 10 else ""
    return f"{len(messages)} of {total} files cannot be read: {'; '.join(m.rstrip('.') for m in messages[:10])}{more}."
