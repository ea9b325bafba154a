"""Limits: what no honest plan exceeds. They bound the time and memory that a hostile file can cost."""

from __future__ import annotations

RANK = 16
DIM = 1 << 48
ELEMENTS = 1 << 60
WORKERS = 1 << 17
WAYS = 1 << 17
INTERVALS = 1 << 18  # of one region along one dim
TERMS = 1 << 16  # of one sum over time and addends
DEPTH = 8  # of an op's nested arguments
INTERVALS_SEEN = 1 << 23  # of all regions that one entry's check looks at
ACTIONS = 1 << 25  # reads, writes, releases and posts of all tasks of one entry
