"""Recognises sticky CUDA errors and full GPU memory in a job's error text; used in the worker process."""

from __future__ import annotations

import re

STICKY_ERRORS = {
    "illegal access": ("illegal memory access was encountered", "ERROR_ILLEGAL_ADDRESS", "ErrorIllegalAddress"),
    "device-side assert": ("device-side assert triggered", "ERROR_ASSERT", "cudaErrorAssert"),
    "launch failure": ("unspecified launch failure", "ERROR_LAUNCH_FAILED", "ErrorLaunchFailure"),
    "launch timeout": ("launch timed out and was terminated", "ERROR_LAUNCH_TIMEOUT", "ErrorLaunchTimeout"),
    "illegal instruction": (
        "illegal instruction was encountered",
        "ERROR_ILLEGAL_INSTRUCTION",
        "ErrorIllegalInstruction",
    ),
    "misaligned address": ("misaligned address", "ERROR_MISALIGNED_ADDRESS", "ErrorMisalignedAddress"),
    "invalid address space": ("global/shared address space", "ERROR_INVALID_ADDRESS_SPACE", "ErrorInvalidAddressSpace"),
    "invalid program counter": ("invalid program counter", "ERROR_INVALID_PC", "ErrorInvalidPc"),
    "hardware stack error": ("hardware stack error", "ERROR_HARDWARE_STACK_ERROR", "ErrorHardwareStackError"),
    "uncorrectable ECC error": ("uncorrectable ECC error", "ERROR_ECC_UNCORRECTABLE", "ErrorECCUncorrectable"),
}
"""CUDA errors that "leave the process in an inconsistent state" (CUDA Runtime API, error codes): each later call fails too,
until the process exits. By name, with the wording of the driver, the runtime, torch, cupy and jax. Out of memory is not one."""

OUT_OF_MEMORY = (
    r"CUDA out of memory|CUDA error: out of memory|torch\.(cuda\.)?OutOfMemoryError",  # torch
    r"CUDA_ERROR_OUT_OF_MEMORY|cuMem\w+ failed: out of memory",  # the driver, as numba, cupy, jax and pycuda show it
    r"cudaErrorMemoryAllocation|cudaMalloc failed: out of memory",  # the runtime, as cupy, rapids and llama.cpp show it
    r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",  # "usually caused by a cudaMalloc() failure" (cuBLAS)
    r"(?i:CUDA failure) (2: |2 )?'?out of memory",  # onnxruntime, NCCL
    r"(?i:CUDA failed with error) (2 )?out of memory",  # CTranslate2, spconv
    r"(?i:CUDA error in) \w+: 2 \(out of memory\)",  # TensorRT
    r"cupy\.\S*OutOfMemoryError|Out of memory allocating [\d,]+ bytes \(allocated so far",
    r"(?i:resource.exhausted): (Out of memory while trying|Failed) to allocate",  # jax
    r"OOM when allocating tensor[^\n]*GPU|failed to allocate memory \[Op:",  # TensorFlow, whose other allocator is ``cpu``
    r"BFCArena::AllocateRawInternal[^\n]* Failed to allocate memory",  # onnxruntime
    r"Out of memory error on GPU",  # Paddle
    r"(allocate|allocating) CUDA\d+ buffer",  # llama.cpp
    r"No available memory for the cache blocks",  # vLLM
)
"""Wordings for a full GPU, collected from the libraries' issue trackers. Those for a full host (Python's and numpy's
``MemoryError``, torch's ``DefaultCPUAllocator``) differ."""

_out_of_memory = re.compile("|".join(f"(?:{words})" for words in OUT_OF_MEMORY))


def poison(error: str) -> str | None:
    """Return the sticky CUDA error named in ``error``, or None. The text must mention CUDA: others use some of the words too."""
    if "cuda" not in error.lower():
        return None
    return next((name for name, words in STICKY_ERRORS.items() if any(word in error for word in words)), None)


def out_of_memory(error: str) -> bool:
    """Return whether ``error`` says that a GPU's memory is full."""
    return _out_of_memory.search(error) is not None
