"""The trainer: prepare, train and publish, in a cluster or on one machine."""

import logging

# PEFT imports bitsandbytes, which on some CPUs asks for a package that fetches kernels from a hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
