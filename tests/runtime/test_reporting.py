"""What users are told of an error."""

import errno
from importlib import import_module

import torch

from glann.errors import GlannError
from glann.runtime.files import STAGES
from glann.runtime.reporting import in_one_line


def test_where_memory_runs_out_the_advice_is_the_stages_own():
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("Error in faiss: cudaMalloc error out of memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ):
        for stage in STAGES:
            line = in_one_line(error, import_module(f"glann.{stage}.settings").LESS_MEMORY)
            assert line.startswith("memory ran out; ") and f"{stage}." in line
            assert not any(f"{other}." in line for other in STAGES if other not in (stage, "prepare"))
        assert in_one_line(error).startswith("memory ran out; draw fewer images")
    assert in_one_line(RuntimeError("shapes differ")) is None


def test_a_package_that_only_the_pipeline_needs_is_named():
    missing = ModuleNotFoundError("No module named 'faiss.contrib'", name="faiss.contrib")
    assert in_one_line(missing) == "this needs the package faiss; run: pip install 'glann[pipeline]'"
    assert in_one_line(ModuleNotFoundError("No module named 'glann.x'", name="glann.x")) is None


def test_a_message_is_one_line_of_bounded_length_that_leaves_the_terminal_alone():
    line = in_one_line(GlannError(f"a\nb\x1b[31m\x00 {'x' * 10_000} what to do"))
    assert line.startswith("a b\\x1b[31m\\x00 xxx") and line.endswith("x what to do")
    assert len(line) < 1100 and line.isprintable()
