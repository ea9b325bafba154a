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
from superscaler.runtime.kernels.attention import PREFILL_BLOCKS

kind, capability, precise = sys.argv[1], int(sys.argv[2]), sys.argv[1] == "fp32"
sizes = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_D": 128, "GROUP": 4, "BLOCK_S": 16, "PRECISE": precise}
sizes["ALIGN"] = 16
options = {"num_stages": 1 if precise else 2}
pointers = {"query_ptr": kind, "out_ptr": kind, "key_addresses": "i64", "value_addresses": "i64", "lengths": "i32"}
pointers |= {"starts": "i32", "part_ptr": "fp32", "lse_ptr": "fp32", "key_ptr": kind, "value_ptr": kind}
sizes["BLOCK"] = 1024
for program in (programs.decode_split, programs.decode_combine, programs.store, programs.prefill):
    if program is programs.prefill:
        sizes["BLOCK_M"], sizes["BLOCK_N"], options["num_warps"] = (32, 32, 4) if precise else PREFILL_BLOCKS
    constants = {name: sizes[name] for name in program.arg_names if name in sizes}
    signature = {}
    for name in program.arg_names:
        scalar = "fp32" if name == "scale" else "i32"
        signature[name] = "constexpr" if name in sizes else "*" + pointers[name] if name in pointers else scalar
    # As at run time, where addresses of tensors and these numbers are seen to be multiples of 16.
    sixteen = [n for n, kind in signature.items() if kind[0] == "*" or n in ("dim", "token_stride")]
    even = {(program.arg_names.index(n),): [["tt.divisibility", 16]] for n in sixteen}
    source = ASTSource(program, signature, constants, even)
    made = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    if program in (programs.decode_split, programs.prefill):
        ptx = made.asm["ptx"]
        assert precise or "mma" in ptx
        assert "cp.async.cg.shared.global" in ptx or "ld.global.v4" in ptx, "keys are read 16 bytes at a time"
        assert precise or "cp.async" in ptx, "blocks are on their way while others are worked on"
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
