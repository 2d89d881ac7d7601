"""Device, precision and processes of a run."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from bertqa.errors import UserError, flag
from bertqa.process import IMPORTED_IN
from bertqa.settings import INT8, check_precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Item = TypeVar("Item")
Result = TypeVar("Result")
_SETTING_THREADS = threading.Lock()  # held while torch's number of threads is changed


@dataclass(frozen=True)
class Runtime:
    """One process of a run.

    Attributes:
        device: the device.
        dtype: dtype of matrix products; in training, weights and optimizer are always float32.
        rank, world_size: index of this process, and number of processes.
        int8: whether linear layers use 8-bit integers, for inference only.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    rank: int = 0
    world_size: int = 1
    int8: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def precision(self) -> str:
        """The value of --precision: fp32, bf16, fp16 or int8."""
        names = {dtype: name for name, dtype in DTYPES.items()}
        return INT8 if self.int8 else names[self.dtype]

    @property
    def tokens_per_batch(self) -> int:
        """Batch size in inference, in tokens."""
        # On a CPU: large enough for efficient products, small enough for the cache and for reuse
        # of memory between batches.
        return 1024 if self.device.type == "cpu" else 32768

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context for matrix products in ``dtype``; sums and norms stay in float32."""
        enabled = self.dtype is not torch.float32
        # No cache of converted weights: all threads would share it, and each weight is used once.
        return torch.autocast(self.device.type, self.dtype, enabled=enabled, cache_enabled=False)

    def map_batches(
        self, work: Callable[[Item], Result], batches: Iterable[Item]
    ) -> Iterator[Result]:
        """Yield ``work(batch)`` of each batch, in order; on a multi-core CPU, in parallel.

        Each core computes one batch, and does not wait for the others as it would if all cores
        shared every product. With too few batches for that, the cores share.

        Args:
            work: the function; it must set torch's per-thread state: autocast, gradients.
            batches: the batches.
        """
        batches = list(batches)
        cores = torch.get_num_threads()
        if self.device.type != "cpu" or cores == 1 or len(batches) < 2 * cores:
            yield from map(work, batches)
        else:
            yield from self.map_in_threads(work, batches, cores)

    def map_in_threads(
        self, work: Callable[[Item], Result], items: Sequence[Item], threads: int
    ) -> Iterator[Result]:
        """Yield ``work(item)`` of each item, in order; ``threads`` threads share the CPU's cores.

        Args:
            work: the function; it must set torch's per-thread state: autocast, gradients.
            items: the items.
            threads: number of threads.
        """
        cores = torch.get_num_threads()
        context = copy_context()  # the caller's context, such as interventions, applies in threads
        started = threading.Barrier(threads + 1)

        def take_cores() -> None:
            torch.get_num_threads()  # otherwise the first product overrides the number set below
            torch.set_num_threads(max(1, cores // threads))
            # A thread that leaves the barrier late may find it broken. If the exception were not
            # suppressed, the pool could miss its shutdown and wait for ever.
            with suppress(threading.BrokenBarrierError):
                started.wait()

        with ThreadPoolExecutor(threads, initializer=take_cores) as pool:
            try:
                # torch stores the number per thread, but new threads, also of other callers,
                # inherit the last number set. So hold the lock until all threads here have set it.
                with _SETTING_THREADS:
                    results = pool.map(lambda item: context.copy().run(work, item), items)
                    started.wait()
                    torch.set_num_threads(cores)
                yield from results
            finally:
                started.abort()  # if a thread failed to start, release the others
                pool.shutdown(cancel_futures=True)

    def sum_over_ranks(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one all-reduce."""
        if self.world_size == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _others_alive():
            dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def max_over_ranks(self, number: int) -> int:
        """Return the maximum of a number over all processes."""
        if self.world_size == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        with _others_alive():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in order of rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with _others_alive():
            dist.all_gather_object(values, value)
        return values

    def on_main(self, make: Callable[[], Result]) -> Result:
        """Call ``make`` in the main process; return its result, or raise its UserError, in all."""
        value: Result | None = None
        failure: UserError | None = None
        if self.is_main:
            try:
                value = make()
            except UserError as error:
                failure = error
        value, failure = self.gather((value, failure))[0]  # the other processes wait here
        if failure:
            failure.is_printed_elsewhere = not self.is_main
            raise failure
        return cast(Result, value)

    def main_first(self, make: Callable[[], Result]) -> Result:
        """Call ``make`` in the main process first, then, if it succeeded, in the others."""
        made: list[Result] = []
        self.on_main(lambda: made.append(make()))
        return made[0] if made else make()

    def wait_for_all(self) -> None:
        """Wait until every process has called this method."""
        if self.world_size > 1:
            with _others_alive():
                dist.barrier()


@contextmanager
def _others_alive() -> Iterator[None]:
    """Turn the errors of gloo and NCCL for a process that has ended into a UserError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # DistBackendError; gloo raises RuntimeError itself
        raise UserError(
            "another process of this run has ended or no longer responds: read its error message, "
            "and continue from the last save with --resume; --nproc_per_node may change (in "
            "training, if the number of windows per step stays the same)"
        ) from error


def local_runtime(device: str = "auto", precision: str = "auto", local_rank: int = 0) -> Runtime:
    """Select device and precision for a single process.

    Raises:
        UserError: the device or precision is not available.
    """
    check_precision(precision)
    adapt_to_fork(device)
    chosen = select_device(device, local_rank)
    if chosen.type == "cpu":
        _keep_freed_memory()
    if precision == INT8:  # cpu_inference.py checks that it is supported
        return Runtime(chosen, select_precision("auto", chosen), int8=True)
    return Runtime(chosen, select_precision(precision, chosen))


def adapt_to_fork(device: str | torch.device) -> None:
    """Prepare a forked child for computing on a device; call it first in each thread.

    GNU OpenMP's threads, which torch uses for products, do not exist in a forked child, which would
    wait for them for ever. So a child uses one thread, even if more were requested. A child is
    recognized only if its parent imported bertqa.

    Raises:
        UserError: the device is a GPU, which a forked child cannot use.
    """
    if os.getpid() == IMPORTED_IN:
        with _SETTING_THREADS:
            torch.get_num_threads()  # fixes the number of a thread that is new to torch
        return
    may_use_cuda = str(device) == "auto" or str(device).startswith("cuda")
    if may_use_cuda and torch.cuda._is_in_bad_fork():  # the parent has used CUDA
        raise UserError(
            f"{flag('device')}: must be cpu in a forked process whose parent has used CUDA, got "
            f'{device}: start processes by multiprocessing.get_context("spawn"), or pass cpu'
        )
    torch.set_num_threads(1)


def _keep_freed_memory() -> None:
    """Make glibc reuse memory between batches instead of returning it to Linux.

    glibc returns freed blocks above a threshold to the system; getting them back page by page costs
    a fifth of the time of a forward pass. The threshold rises, up to 32 MiB, to the largest block
    freed so far: this function frees one of almost that size.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def limit_onednn_cache() -> None:
    """Limit oneDNN's cache of kernels for inference; call it before the first product.

    oneDNN compiles a kernel for each shape of a product, 5 ms for a new window length, and caches
    those of 1,024 shapes per thread and as many globally, up to a GiB. In inference, unlike in
    training, shapes seldom recur. Limits set by the user are kept. It has no effect in a process
    that has already computed products on the CPU, since oneDNN reads the limits once.
    """
    # Enough for the shapes of a batch of 1,024 tokens; the second limit is for all threads.
    os.environ.setdefault("LRU_CACHE_CAPACITY", "32")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(32 * torch.get_num_threads()))


def start_runtime(
    device: str = "auto",
    precision: str = "auto",
    backend: str | None = None,
    longest_wait: timedelta = timedelta(hours=2),
) -> Runtime:
    """Select device and precision, and join the process group if torchrun started several.

    Args:
        device: see ``select_device``.
        precision: see ``select_precision``.
        backend: backend of torch.distributed; None for the fastest one of the device.
        longest_wait: timeout of collective operations. The other processes wait while rank 0 reads
            and tokenizes a large dataset.

    Raises:
        UserError: the device or precision is not available.
    """
    runtime = local_runtime(device, precision, int(os.environ.get("LOCAL_RANK", "0")))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return runtime
    on_gpu = runtime.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(runtime.device)
    if not dist.is_initialized():
        backend = backend or ("nccl" if on_gpu else "gloo")
        dist.init_process_group(backend, timeout=longest_wait)
    return replace(runtime, rank=dist.get_rank(), world_size=dist.get_world_size())


def stop_runtime() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def select_device(name: str, local_rank: int = 0) -> torch.device:
    """Return a device; ``auto`` is CUDA if available, then Apple's MPS, then the CPU.

    Raises:
        UserError: the device is unknown or not available.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"--nproc_per_node must be at most the number of GPUs, {torch.cuda.device_count()}:"
                " start one process for each, or pass --device cpu"
            )
        return torch.device("cuda", local_rank)
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails if the device is not available
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"{flag('device')} {name} is not available on this machine: pass auto, cpu, cuda or mps"
        ) from error
    return device


def select_precision(name: str, device: torch.device) -> torch.dtype:
    """Return a dtype; ``auto`` is bf16 if the processor supports it natively, else fp32.

    Raises:
        UserError: fp16 on a CPU, where it is slower than fp32.
    """
    if name == "auto":
        return torch.bfloat16 if _has_native_bf16(device) else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise UserError(
            f"{flag('precision fp16')} requires a GPU: pass {flag('precision auto')} on the CPU"
        )
    return DTYPES[name]


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere and later
    if device.type == "cpu":
        # torch has no public functions for these yet.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
