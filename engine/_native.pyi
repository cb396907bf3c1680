# The generated cffi module: its declarations are those of csrc/include/engine/*.h.
from typing import Any

ffi: Any
lib: Any
