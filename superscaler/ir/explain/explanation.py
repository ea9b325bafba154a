"""What an explanation is: a title and sections of lines, for people and as JSON."""

from __future__ import annotations

import msgspec


class Section(msgspec.Struct, frozen=True):
    """A heading with its lines."""

    name: str
    lines: tuple[str, ...]


class Explanation(msgspec.Struct, frozen=True):
    """Where something of a plan lives, who computes, sends and receives it, and why."""

    title: str
    sections: tuple[Section, ...]

    def __str__(self) -> str:
        lines = [self.title]
        for section in self.sections:
            lines.append(f"  {section.name}")
            lines += [f"    {line}" for line in section.lines]
        return "\n".join(lines)


def explanation(title: str, **sections: list[str]) -> Explanation:
    """Sections in order, those without lines left out; underscores in their names are spaces."""
    found = [Section(name.replace("_", " "), tuple(lines)) for name, lines in sections.items() if lines]
    return Explanation(title, tuple(found))


def shortened(lines: list[str], most: int, what: str) -> list[str]:
    """The first ``most`` lines, and how many of ``what`` were left out."""
    left = len(lines) - most
    return lines if left <= 0 else [*lines[:most], f"… and {left} more {what}"]
