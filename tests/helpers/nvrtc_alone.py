"""Compile with NVRTC directly, without cuda-core: python tests/helpers/nvrtc_alone.py LIBRARY OPTION... < source > ptx

The compiler's log goes to standard error; --ptxas-options=-v adds the use of registers and memory.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

nvrtc: Any = ctypes.CDLL(sys.argv[1])
options = [option.encode() for option in sys.argv[2:]]
program, size = ctypes.c_void_p(), ctypes.c_size_t()
source = sys.stdin.read().encode()
assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"local_soft_copy.cu", 0, None, None) == 0
failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))


def text_of(kind: str) -> str:
    assert getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)) == 0
    text = ctypes.create_string_buffer(size.value)
    assert getattr(nvrtc, f"nvrtcGet{kind}")(program, text) == 0
    return text.value.decode()


print(text_of("ProgramLog"), file=sys.stderr)
if failed:
    sys.exit(1)
print(text_of("PTX"))
