# The generated cffi module: its declarations are those of csrc/uring/ring.h.
from typing import Any

ffi: Any
lib: Any
