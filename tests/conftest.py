"""What all tests share: settings that are read once, when a library is first imported by whichever test comes first."""

import gc
import os

# Tests run side by side: with more threads than cores, those of one op would wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a GPU our kernels run in Triton's interpreter.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A tenth of the time would go to looking for garbage among what libraries keep for good.
gc.set_threshold(50_000, 20, 50)

pytest_plugins = ["tests.endings"]
