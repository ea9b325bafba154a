"""The helpers of these tests (``memory_pools``, ``fake_driver``, ``shadow``) are found wherever pytest starts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
