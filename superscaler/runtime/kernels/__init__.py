"""Attention kernels of ours, in Triton: split flash-decode and prefix prefill over contiguous vTensors."""
