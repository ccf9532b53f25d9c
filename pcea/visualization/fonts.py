"""Fonts for titles and legends: of any script for which this machine has one."""

from __future__ import annotations

from contextlib import suppress
from functools import cache, lru_cache

# Its glyphs are boxes, one for each script.
_BOXES = "Last Resort"


def drawable(text: str) -> str:
    r"""The text on one line, with escapes such as `\u6905` for the characters that no font here has."""
    text = " ".join(text.split())
    missing = _fonts(frozenset(text))[1]
    return "".join(_escape(character) if character in missing else character for character in text)


def font_families(*texts: str) -> list[str]:
    """Font families for Matplotlib: the usual one, then those that have what it lacks of these texts."""
    return list(_fonts(frozenset("".join(texts)))[0])


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@lru_cache(256)
def _fonts(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families for some characters, and those of the characters that none has."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    families = list(rcParams["font.family"])
    usual = get_font(findfont(FontProperties(family=families)))
    missing = {c for c in characters if not c.isprintable() or not usual.get_char_index(ord(c))}
    wanted = {c for c in missing if c.isprintable()}
    if wanted:
        _add_new_fonts()
    # Roman before italic and bold, as Matplotlib chooses by the family's name alone.
    for entry in sorted(fontManager.ttflist, key=lambda entry: (entry.style != "normal", entry.weight != 400)):
        if not wanted:
            break
        if entry.name.startswith(_BOXES) or entry.name in families:
            continue
        try:
            font = get_font(entry.fname)
        except (RuntimeError, OSError):
            continue  # what is installed but cannot be drawn, such as bitmaps of emoji
        found = {c for c in wanted if font.get_char_index(ord(c))}
        if found:
            families.append(entry.name)
            wanted -= found
            missing -= found
    return tuple(families), frozenset(missing)


@cache
def _add_new_fonts() -> None:
    """Tell Matplotlib of fonts that were installed since it made its list, which it keeps for ever."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    for path in sorted({*findSystemFonts()} - {entry.fname for entry in fontManager.ttflist}):
        with suppress(RuntimeError, OSError):
            fontManager.addfont(path)
