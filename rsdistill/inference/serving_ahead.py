"""What the process that workers come from loads first, so that it is ready soon, and gone at once when it is no longer needed."""

import atexit
import gc
import os

gc.disable()  # nothing of what is loaded now is garbage; workers enable it
atexit.register(os._exit, 0)  # without taking the libraries apart, for whose end who reads its streams would wait
