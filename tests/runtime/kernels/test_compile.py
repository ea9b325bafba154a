"""The Triton programs compile for NVIDIA GPUs, which takes no GPU. In child processes, as here they are interpreted."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from superscaler.runtime.kernels import programs

kind, capability, precise = sys.argv[1], int(sys.argv[2]), sys.argv[1] == "fp32"
sizes = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_D": 128, "GROUP": 4, "SPLITS": 8, "BLOCK_S": 8, "PRECISE": precise}
pointers = {"query_ptr": kind, "out_ptr": kind, "key_addresses": "i64", "value_addresses": "i64", "lengths": "i32"}
pointers |= {"starts": "i32", "part_ptr": "fp32", "lse_ptr": "fp32"}
for program in (programs.decode_split, programs.decode_combine, programs.prefill):
    sizes["BLOCK_M"] = 64 if program is programs.prefill else 16
    constants = {name: sizes[name] for name in program.arg_names if name in sizes}
    signature = {}
    for name in program.arg_names:
        scalar = "fp32" if name == "scale" else "i32"
        signature[name] = "constexpr" if name in sizes else "*" + pointers[name] if name in pointers else scalar
    made = compile(ASTSource(program, signature, constants), target=GPUTarget("cuda", capability, 32))
    assert "mma" in made.asm["ptx"] or precise or program is programs.decode_combine
    print(program.__name__, made.metadata.shared)
"""


@pytest.mark.parametrize(("kind", "capability"), [("fp16", 80), ("bf16", 90), ("fp32", 80)])
def test_programs_compile(kind, capability, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    arguments = [sys.executable, "-c", PROGRAM, kind, str(capability)]
    made = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=240)
    assert made.returncode == 0, made.stderr
    for line in made.stdout.splitlines():
        assert int(line.split()[1]) <= 99 << 10, "shared memory of the smallest of these devices"
