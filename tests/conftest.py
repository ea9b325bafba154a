"""What all tests share: settings that are read once, when a library is first imported by whichever test comes first."""

import os

# Tests run side by side: with more threads than cores, those of one op would wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a GPU our kernels run in Triton's interpreter.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest_plugins = ["tests.endings"]
