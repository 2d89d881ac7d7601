"""Where a run computes: device, precision, and the processes that share the work."""

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

from bertqa.errors import UserError
from bertqa.process import IMPORTED_IN
from bertqa.settings import INT8, check_precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Item = TypeVar("Item")
Result = TypeVar("Result")
_SETTING_THREADS = threading.Lock()  # held while torch's number of threads is not the caller's


@dataclass(frozen=True)
class Runtime:
    """One process of a run.

    Attributes:
        device: where it computes.
        dtype: of the matrix products; weights and optimiser are float32 in training whatever it is.
        rank, world_size: which of how many processes this is.
        int8: the linear layers of an answering model are in integers.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    rank: int = 0
    world_size: int = 1
    int8: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    @property
    def precision(self) -> str:
        """What --precision calls it: fp32, bf16, fp16 or int8."""
        names = {dtype: name for name, dtype in DTYPES.items()}
        return INT8 if self.int8 else names[self.dtype]

    @property
    def tokens_per_batch(self) -> int:
        """Tokens that one forward pass takes at once in inference."""
        # On a CPU: so many that the products are efficient, so few that the cache holds them and
        # that no core gives its memory back to the system after each batch.
        return 1024 if self.device.type == "cpu" else 32768

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in ``dtype``; of a float32 model the sums and norms stay in float32."""
        enabled = self.dtype is not torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def map_batches(
        self, work: Callable[[Item], Result], batches: Iterable[Item]
    ) -> Iterator[Result]:
        """``work`` of each batch, in their order; on a CPU of several cores, several at once.

        A core with a batch of its own never waits for another one, as cores do that share every
        product of one batch. Where there are too few batches for that, they share.

        Args:
            work: settles by itself what torch settles for each thread: autocast, gradients.
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
        """``work`` of each item, in their order, in ``threads`` threads that share the CPU's cores.

        Args:
            work: settles by itself what torch settles for each thread: autocast, gradients.
        """
        cores = torch.get_num_threads()
        context = copy_context()  # what the caller has entered, such as interventions, holds there
        started = threading.Barrier(threads + 1)

        def take_cores() -> None:
            torch.get_num_threads()  # else torch gives this thread a number at its first product
            torch.set_num_threads(max(1, cores // threads))
            # A thread that is slow to leave the barrier also sees it broken, once all is done. An
            # error here would let the pool lose the notice that it ends, and wait for ever.
            with suppress(threading.BrokenBarrierError):
                started.wait()

        with ThreadPoolExecutor(threads, initializer=take_cores) as pool:
            try:
                # torch keeps the number for each thread, and hands the last one set to threads to
                # come: to those of other callers, too, until all threads here have set theirs.
                with _SETTING_THREADS:
                    results = pool.map(lambda item: context.copy().run(work, item), items)
                    started.wait()
                    torch.set_num_threads(cores)
                yield from results
            finally:
                started.abort()  # where a thread could not be started, the others wait no longer
                pool.shutdown(cancel_futures=True)

    def sum_over_ranks(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one message."""
        if self.world_size == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _others_alive():
            dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def max_over_ranks(self, number: int) -> int:
        """The largest number that any process has."""
        if self.world_size == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        with _others_alive():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in order of rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with _others_alive():
            dist.all_gather_object(values, value)
        return values

    def on_main(self, make: Callable[[], Result]) -> Result:
        """What ``make`` gives in the main process, for all; where it raises UserError, all do."""
        value: Result | None = None
        failure: UserError | None = None
        if self.is_main:
            try:
                value = make()
            except UserError as error:
                failure = error
        value, failure = self.gather((value, failure))[0]  # the others wait here
        if failure:
            failure.is_said = not self.is_main
            raise failure
        return cast(Result, value)

    def main_first(self, make: Callable[[], Result]) -> Result:
        """Let the main process download or tokenise; the others find it done, or fail as it did."""
        made: list[Result] = []
        self.on_main(lambda: made.append(make()))
        return made[0] if made else make()

    def wait_for_all(self) -> None:
        """Go on when every process has come here."""
        if self.world_size > 1:
            with _others_alive():
                dist.barrier()


@contextmanager
def _others_alive() -> Iterator[None]:
    """Say plainly that another process of the run has gone, which gloo and NCCL notice at once."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # DistBackendError and gloo's, which has no class of its own
        raise UserError(
            "another process of this run has ended or no longer answers, so it cannot go on: see "
            "what that one said, and pass --resume to go on from what is saved, also with another "
            "--nproc_per_node (in training if the windows of a step stay as many)"
        ) from error


def local_runtime(device: str = "auto", precision: str = "auto", local_rank: int = 0) -> Runtime:
    """Settle device and precision for this process by itself.

    Raises:
        UserError: a device or precision that this machine does not have.
    """
    check_precision(precision)
    adapt_to_fork(device)
    chosen = select_device(device, local_rank)
    if chosen.type == "cpu":
        _keep_freed_memory()
    if precision == INT8:  # whether there are integer layers for it, cpu_inference.py knows
        return Runtime(chosen, select_precision("auto", chosen), int8=True)
    return Runtime(chosen, select_precision(precision, chosen))


def adapt_to_fork(device: str | torch.device) -> None:
    """Let a forked child compute on a device; to be called before it does, in each thread.

    The threads of GNU OpenMP, which torch multiplies with, stay behind in the parent, and a child
    that counts on them waits for ever. So it has one thread, also if more were asked for. A child
    is known only if its parent has imported bertqa.

    Raises:
        UserError: the device is a GPU, which a forked child cannot use.
    """
    if os.getpid() == IMPORTED_IN:
        with _SETTING_THREADS:
            torch.get_num_threads()  # a thread that is new to torch takes its number for good now
        return
    wants_cuda = str(device) == "auto" or str(device).startswith("cuda")
    if wants_cuda and torch.cuda._is_in_bad_fork():  # the parent has used CUDA
        raise UserError(
            "--device: must be cpu in a forked process whose parent has used CUDA, got "
            f'{device}: start processes by multiprocessing.get_context("spawn"), or pass cpu'
        )
    torch.set_num_threads(1)


def _keep_freed_memory() -> None:
    """Let the memory of one batch serve the next, where Linux would take it back in between.

    glibc gives the system what is freed above a limit, and gets it again page by page, which costs
    a fifth of the time of a forward pass. It raises the limit, up to 32 MiB, to the largest piece
    that it has seen freed: here it sees one.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def limit_onednn_cache() -> None:
    """Let oneDNN keep only what the next few batches need; for answering, before the first product.

    It makes code for each shape of a product, 5 ms for a new length of a window, and keeps that of
    1,024 shapes in each thread and as many for all, up to a GiB. Texts have ever new shapes, so
    little of it is used again; in training much is. Limits that the user has set stay, and so do
    those of a process that has multiplied on the CPU before: oneDNN reads them once.
    """
    # The shapes of a batch of 1,024 tokens; the second limit is that of all threads together.
    os.environ.setdefault("LRU_CACHE_CAPACITY", "32")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(32 * torch.get_num_threads()))


def start_runtime(
    device: str = "auto",
    precision: str = "auto",
    backend: str | None = None,
    longest_wait: timedelta = timedelta(hours=2),
) -> Runtime:
    """Settle device and precision, and join the other processes if torchrun started several.

    Args:
        backend: of torch.distributed; None is what sums tensors of the device fastest.
        longest_wait: of one process for another, which counts as gone after that. Rank 0 may read
            and tokenise a large data set while the others wait for it.

    Raises:
        UserError: a device or precision that this machine does not have.
    """
    alone = local_runtime(device, precision, int(os.environ.get("LOCAL_RANK", "0")))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return alone
    on_gpu = alone.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(alone.device)
    if not dist.is_initialized():
        backend = backend or ("nccl" if on_gpu else "gloo")
        dist.init_process_group(backend, timeout=longest_wait)
    return replace(alone, rank=dist.get_rank(), world_size=dist.get_world_size())


def stop_runtime() -> None:
    """Leave the group of processes, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def select_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: torch does not know the device, or this machine does not have it.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"--nproc_per_node starts more processes than the {torch.cuda.device_count()} "
                "GPUs here: start one for each, or pass --device cpu"
            )
        return torch.device("cuda", local_rank)
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # it is there and can hold a number
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {name} is not available on this machine: pass auto, cpu, cuda or mps"
        ) from error
    return device


def select_precision(name: str, device: torch.device) -> torch.dtype:
    """``auto`` takes bf16 where the processor multiplies it natively, else fp32.

    Raises:
        UserError: fp16 on a processor that is slower with it than without.
    """
    if name == "auto":
        return torch.bfloat16 if _has_native_bf16(device) else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU: pass bf16, fp32 or auto on the CPU")
    return DTYPES[name]


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere and later
    if device.type == "cpu":
        # These questions have no public name in torch yet.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
