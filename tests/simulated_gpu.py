"""A CUDA GPU that is not there: its tensors say that they are on it, but are computed on the CPU.

Code for GPUs runs to the end on it, with real numbers. It refuses what a GPU refuses, such as operations on
tensors of two devices, and counts what makes a GPU wait. Like a GPU, it can record a CUDA graph: nothing is
computed then, what would wait is refused, and a replay repeats the operations on the same memory, whatever
Python variables have been set to in the meantime.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import get_ident
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from glann.runtime.compute import _gpus

aten = torch.ops.aten
# Their result, or what they do, depends on numbers that only the GPU knows.
READING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.bincount.default,
}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
MEMORY = 80 * 2**30
NUMBER = int(os.environ.get("LOCAL_RANK", "0"))  # of this process's GPU
TENSOR, TOLIST, INIT_PROCESS_GROUP = torch.tensor, Tensor.tolist, dist.init_process_group
DATA_PARALLEL: list[nn.Module] = []


class GpuTensor(Tensor):
    """A tensor on the simulated GPU. Its numbers are in `held`, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "GpuTensor":
        tensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=f"cuda:{NUMBER}"
        )
        tensor.held = held
        return tensor

    def __init__(self, held: Tensor):
        pass

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return SimulatedGpu.current.run(func, args, kwargs or {})


class SimulatedGpu(TorchDispatchMode):
    """Inside this context, torch sees one GPU.

    Attributes
    ----------
    waits
        How often the program had to wait for the GPU, or the GPU for the program, by what for.
    operations
        How many operations were started.
    threads
        Threads that have chosen their GPU.
    recordings
        Number of CUDA graphs recorded.
    replays
        Number of replays of them.
    """

    current: "SimulatedGpu"

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.operations = self.recordings = self.replays = 0
        self._recording: Recording | None = None
        self._recorder = 0
        self.threads: set[int] = set()
        self.default_stream = Stream()
        self.streams: dict[int, Stream] = {}

    def __enter__(self) -> "SimulatedGpu":
        SimulatedGpu.current = self
        self.stack = ExitStack()
        for name, value in self._patches().items():
            self.stack.enter_context(patch(name, value))
        self.stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # the CPU has no kernels of it
        _gpus.cache_clear()
        torch._C._ensureCUDADeviceGuardSet()  # guards that ask no driver
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.stack.close()
        _gpus.cache_clear()

    def _patches(self) -> dict[str, Any]:
        def in_thread(workers: int, initializer: Callable[[], None]) -> ThreadPoolExecutor:
            def begin() -> None:
                TorchDispatchMode.__enter__(self)
                initializer()

            return ThreadPoolExecutor(workers, initializer=begin)

        return {
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.device_count": lambda: int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            "torch.cuda.set_device": self._set_device,
            "torch.cuda.current_device": lambda: NUMBER,
            "torch.cuda.get_device_capability": lambda *_: (9, 0),
            "torch.cuda.is_bf16_supported": lambda *_: True,
            "torch.cuda.get_device_properties": lambda _: SimpleNamespace(name="none", total_memory=MEMORY),
            "torch.cuda.mem_get_info": lambda *_: (MEMORY, MEMORY),
            "torch.cuda.is_current_stream_capturing": lambda: self.recording is not None,
            "torch.cuda.empty_cache": lambda: None,
            "torch.cuda.synchronize": lambda *_: None,
            "torch.cuda.current_stream": lambda *_: self.stream,
            "torch.cuda.set_stream": self._set_stream,
            "torch.cuda.Stream": Stream,
            "torch.cuda.stream": self._on_stream,
            "torch.cuda.CUDAGraph": Recording,
            "torch.cuda.graph_pool_handle": lambda: (0, 1),
            "torch.cuda.graph": self._record,
            "torch.cuda._lazy_init": lambda: None,
            "torch.tensor": self._constant,
            "torch.Tensor.tolist": lambda x: TOLIST(x.cpu()),
            "torch.Tensor.backward": backward,
            "torch.autograd.grad": grad,
            "torch.distributed.init_process_group": _init_process_group,
            "glann.runtime.processes.DistributedDataParallel": _data_parallel,
            "torch.nn.Module._apply": _apply,
            "glann.training.batches.ThreadPoolExecutor": in_thread,
            "glann.training.batches.FLOAT": torch.float64,  # the numbers are then those of a run on a CPU
        }

    def _set_device(self, device: Any) -> None:
        assert torch.device(device) == torch.device(f"cuda:{NUMBER}")
        self.threads.add(get_ident())

    def _constant(self, data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != "cuda":
            return TENSOR(data, device=device, **kwargs)
        self._wait("copy of a constant to the GPU")
        return GpuTensor(TENSOR(data, **kwargs))

    @property
    def stream(self) -> "Stream":
        """The current stream of this thread."""
        return self.streams.get(get_ident(), self.default_stream)

    def _set_stream(self, stream: "Stream") -> None:
        self.streams[get_ident()] = stream

    @contextlib.contextmanager
    def _on_stream(self, stream: "Stream") -> Iterator[None]:
        before = self.stream
        self._set_stream(stream)
        yield
        self._set_stream(before)

    @contextlib.contextmanager
    def _record(self, graph: "Recording", pool: Any, stream: "Stream", **_: Any) -> Iterator[None]:
        self._recording, self._recorder, before = graph, get_ident(), self.stream
        self._set_stream(stream)
        try:
            yield
        finally:
            self._recording = None
            graph.undo()
        self._set_stream(before)  # not if recording failed: so does torch
        self.recordings += 1

    @property
    def recording(self) -> "Recording | None":
        """The graph that this thread is recording."""
        return self._recording if self._recorder == get_ident() else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation on the CPU, and say that it ran on the GPU if that has its tensors."""
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        on_gpu = any(isinstance(x, GpuTensor) for x in tensors)
        device = kwargs.get("device")
        to_gpu = device is not None and torch.device(device).type == "cuda"
        if not on_gpu and not to_gpu:
            return self._pin(args[0]) if func is aten._pin_memory.default else func(*args, **kwargs)
        if func.namespace == "c10d":  # in place, by gloo
            assert "::gather_" not in func.name(), "one GPU may have no room for the rows of all"
            return func(*tree_map(held, args), **tree_map(held, kwargs))
        self.operations += 1
        if device is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        source = args[1] if func is aten.copy_.default else args[0] if args else None
        target = isinstance(args[0], GpuTensor) if func is aten.copy_.default else to_gpu
        if func in (aten._to_copy.default, aten.copy_.default):
            blocking = self._copy_blocks(source, target, device, func, args, kwargs)
            if blocking:
                self._wait(blocking)
            if isinstance(source, GpuTensor) and not target and (func is aten.copy_.default or device):
                return func(*tree_map(held, args), **tree_map(held, kwargs))
        else:
            self._check(func, args, tensors)
        return self._done(func, args, kwargs)

    def _pin(self, tensor: Tensor) -> Tensor:
        assert get_ident() in self.threads, "this thread would take memory on GPU 0"
        pinned = tensor.clone()
        pinned.is_pinned_here = True  # type: ignore[attr-defined]
        return pinned

    def _copy_blocks(
        self, source: Any, to_gpu: bool, device: Any, func: Any, args: Any, kwargs: dict[str, Any]
    ) -> str:
        if isinstance(source, GpuTensor):
            return "" if to_gpu or (device is None and func is aten._to_copy.default) else "copy to the CPU"
        if not to_gpu:
            return ""
        waits = not (kwargs.get("non_blocking") or (func is aten.copy_.default and args[2:] == (True,)))
        if waits or not hasattr(source, "is_pinned_here"):
            return "copy to the GPU"
        return ""

    def _check(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        if func in READING:
            self._wait(f"{func} reads from the GPU")
        if func in INDEXING:
            for index in args[1]:
                if index is not None and not isinstance(index, GpuTensor):
                    self._wait("copy of an index to the GPU")
                elif index is not None and index.dtype == torch.bool:
                    self._wait("a boolean index reads from the GPU")
            tensors = [args[0], *[x for x in args[2:3] if isinstance(x, Tensor)]]
        wrong = [x for x in tensors if not isinstance(x, GpuTensor) and x.dim()]
        if wrong:
            shape = list(wrong[0].shape)
            raise RuntimeError(f"expected all tensors to be on the GPU: {func} got one on the CPU, {shape}")

    def _wait(self, what: str) -> None:
        if self.recording:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        self.waits[what] += 1

    def _done(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self.recording:
            self.recording.keep(func, args, kwargs)
        result = func(*tree_map(held, args), **tree_map(held, kwargs))
        if self.recording:
            self.recording.results(result)
        wrapped = tree_map(lambda x: GpuTensor(x) if isinstance(x, Tensor) else x, result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)


def held(x: Any) -> Any:
    """Return the numbers of a tensor on the simulated GPU, anything else as it is."""
    return x.held if isinstance(x, GpuTensor) else x


class Recording:
    """A CUDA graph: operations, and the memory that they read and write."""

    def __init__(self) -> None:
        self.steps: list[list[Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def keep(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Note an operation, and what it is about to overwrite."""
        arguments = func._schema.arguments
        given = [*zip(arguments, args, strict=False)]
        if func is aten.native_batch_norm.default:  # writes running statistics, which its schema does not say
            self.before += [(x.held, x.held.clone()) for x in args[3:5] if isinstance(x, GpuTensor)]
        given += [(next(a for a in arguments if a.name == name), x) for name, x in kwargs.items()]
        for argument, value in given:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_flatten(value)[0]:
                    self.before.append((tensor.held, tensor.held.clone()))
        self.steps.append([func, args, kwargs, ()])

    def results(self, results: Any) -> None:
        """Note the memory that the operation wrote to."""
        self.steps[-1][-1] = [x for x in tree_flatten(results)[0] if isinstance(x, Tensor)]

    def undo(self) -> None:
        """Leave everything as it was: recording computes nothing."""
        for tensor, before in reversed(self.before):
            tensor.copy_(before)
        self.before.clear()

    def replay(self) -> None:
        """Repeat all operations."""
        gpu = SimulatedGpu.current
        gpu.replays += 1
        gpu.operations += 1
        for func, args, kwargs, outputs in self.steps:
            found = func(*tree_map(held, args), **tree_map(held, kwargs))
            found = [x for x in tree_flatten(found)[0] if isinstance(x, Tensor)]
            for kept, new in zip(outputs, found, strict=True):
                if kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


class Stream:
    """A stream, which has nothing to do: the simulated GPU computes at once."""

    def __init__(self, device: Any = None):
        pass

    def wait_stream(self, _: "Stream") -> None:
        """Do nothing."""


def backward(
    loss: Tensor,
    gradient: Tensor | None = None,
    *,
    inputs: list[Tensor] | None = None,
) -> None:
    """Backpropagate as ``Tensor.backward`` does. Torch's own engine asks the GPU's driver."""
    wanted = None if inputs is None else {id(leaf) for leaf in inputs}
    for leaf, found in _gradients(loss, gradient):
        if wanted is None or id(leaf) in wanted:
            _accumulate(leaf, found)

    for module in DATA_PARALLEL:
        for parameter in module.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def grad(
    output: Tensor, leaf: Tensor, *, retain_graph: bool | None = None, create_graph: bool = False
) -> tuple[Tensor]:
    """Return the gradient of an output with respect to a leaf, as ``torch.autograd.grad`` does.

    Graphs are always retained here.
    """
    found = [gradient for other, gradient in _gradients(output, None, create_graph) if other is leaf]
    assert len(found) == 1 and found[0] is not None
    return (found[0],)


def _gradients(
    output: Tensor, gradient: Tensor | None, create_graph: bool = False
) -> list[tuple[Tensor, Tensor | None]]:
    """Return all leaves of an output with their gradients; with `create_graph`, these have graphs too."""
    assert output.grad_fn is not None
    uses: Counter[Any] = Counter()
    seen, stack = {output.grad_fn}, [output.grad_fn]
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None:
                uses[following] += 1
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
    first = torch.ones_like(output) if gradient is None else gradient
    waiting: dict[Any, list[Tensor | None]] = {output.grad_fn: [first]}
    ready = [output.grad_fn]
    leaves: list[tuple[Tensor, Tensor | None]] = []
    with torch.set_grad_enabled(create_graph):
        while ready:
            node = max(ready, key=lambda node: node._sequence_nr())  # sums round as in torch's engine
            ready.remove(node)
            gradients = waiting.pop(node)
            if hasattr(node, "variable"):
                leaves.append((node.variable, gradients[0]))
                continue
            call = node if not hasattr(node, "apply") else node.apply
            found = call(*gradients)
            found = found if isinstance(found, tuple) else (found,)
            for (following, i), value in zip(node.next_functions, found, strict=True):
                if following is None:
                    continue
                slots = waiting.setdefault(following, [None] * max(1, len(following._input_metadata)))
                if value is not None:
                    expected = following._input_metadata[i]
                    added = value.sum_to_size(expected.shape).to(expected.dtype)
                    slots[i] = added if slots[i] is None else slots[i] + added
                uses[following] -= 1
                if not uses[following]:
                    ready.append(following)
    return leaves


def _init_process_group(backend: str) -> None:
    """Form a group. There is no NCCL without a GPU, so gloo takes its place."""
    assert backend == "cpu:gloo,cuda:nccl", "this group cannot exchange tensors of both devices"
    INIT_PROCESS_GROUP("cpu:gloo,cuda:gloo")


def _data_parallel(module: nn.Module, **_: Any) -> nn.Module:
    """Let `backward` average the module's gradients: DistributedDataParallel needs torch's own engine."""
    DATA_PARALLEL.append(module)
    return module


def everywhere() -> None:
    """Give this process, if torchrun started it, a simulated GPU until it ends."""
    if "LOCAL_RANK" in os.environ:
        SimulatedGpu().__enter__()


def _accumulate(leaf: Tensor, gradient: Tensor | None) -> None:
    if gradient is None:
        return
    gradient = gradient.detach()
    if gradient.stride() != leaf.stride():
        gradient = torch.empty_like(leaf).copy_(gradient)
    leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Move a module's tensors by replacing them; torch would overwrite their memory."""
    for child in module.children():
        child._apply(change)
    with torch.no_grad():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(change(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = change(buffer)
    return module
