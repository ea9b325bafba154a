"""What all tests share."""

import os

# Tests run side by side: with more threads than cores, those of one op would wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
