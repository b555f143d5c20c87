"""
Classic BPF programs (linux/filter.h), by which the kernel decides what a socket gets.

An instruction is operation, jump if true, jump if false, operand; jumps count from the next instruction.
"""

import ctypes
import socket
import struct
from collections.abc import Sequence

Instruction = tuple[int, int, int, int]

#: Operations: load a word, a half word or a byte into A, the length of an IP header into X, a word behind X
#: into A; jump if A equals the operand; return the operand, the bytes that are taken.
LOAD, LOAD_HALF, LOAD_BYTE, LOAD_HEADER_LENGTH, LOAD_BEHIND = 0x20, 0x28, 0x30, 0xB1, 0x40
IF_EQUAL, RETURN = 0x15, 0x06
#: Operands of `RETURN`: the whole packet, or none of it.
ALL, NOTHING = 0xFFFF, 0

_INSTRUCTION = struct.Struct("=HBBI")
_PROGRAM = struct.Struct("@HP")
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h


def attach(opened: socket.socket, instructions: Sequence[Instruction]) -> None:
    """Let a program decide about each packet whether the socket gets it. Raises OSError."""
    memory = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*each) for each in instructions))
    program = _PROGRAM.pack(len(instructions), ctypes.addressof(memory))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
