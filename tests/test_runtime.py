"""Device, precision, and communication between the processes of a run."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bertqa import runtime as runtime_module
from bertqa.answering import answerer
from bertqa.answering.answerer import QuestionAnswerer
from bertqa.errors import UserError
from bertqa.runtime import (
    Runtime,
    adapt_to_fork,
    limit_onednn_cache,
    select_device,
    select_precision,
    start_runtime,
    stop_runtime,
)
from tests.helpers import write_checkpoint

PATIENCE = 60  # timeout of threads in seconds; the machine may be busy
CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda:0", "mps"))


# --- device --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "available", "expected"),
    [
        ("auto", "cuda mps", "cuda:3"), ("auto", "cuda", "cuda:3"), ("auto", "mps", "mps"),
        ("auto", "", "cpu"), ("cpu", "cuda mps", "cpu"),
    ],
)  # fmt: skip
def test_auto_is_cuda_then_mps_then_the_cpu(
    monkeypatch: pytest.MonkeyPatch, name: str, available: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in available)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert select_device(name, local_rank=3) == torch.device(expected)


def test_cuda_without_an_index_is_the_gpu_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    number = torch.zeros(1)
    monkeypatch.setattr(torch, "zeros", lambda *args, device: number)  # as if there were GPUs
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert select_device("cuda", local_rank=2) == torch.device("cuda:2")
    with pytest.raises(UserError, match="at most the number of GPUs, 3"):
        select_device("cuda", local_rank=3)
    assert select_device("cuda:1", local_rank=2) == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cpu cpu", "-1", "meta", "cuda:4711"])
def test_a_device_that_is_not_available(name: str) -> None:
    with pytest.raises(UserError, match=f"--device {name} is not available"):
        select_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_on_a_machine_without_it_is_an_error() -> None:
    with pytest.raises(UserError, match="--device cuda is not available on this machine"):
        start_runtime("cuda", "fp32")


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device", "native", "expected"),
    [
        ("auto", CPU, "", torch.float32),
        *(("auto", CPU, native, torch.bfloat16) for native in ("avx512", "amx", "avx512 amx")),
        ("auto", MPS, "avx512 amx", torch.float32),  # features of the CPU
        ("auto", CUDA, (7, 5), torch.float32),
        ("auto", CUDA, (8, 0), torch.bfloat16),
        ("auto", CUDA, (9, 0), torch.bfloat16),
        ("bf16", CPU, "", torch.bfloat16),  # slow, but requested
        ("fp32", CPU, "", torch.float32),
        ("fp16", CUDA, (7, 5), torch.float16),
        ("bf16", CUDA, (7, 5), torch.bfloat16),
    ],
)
def test_auto_is_bf16_only_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, name: str, device: torch.device, native: Any,
    expected: torch.dtype,
) -> None:  # fmt: skip
    if device is CUDA:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: native)
    else:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "avx512" in native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "amx" in native)
    assert select_precision(name, device) is expected


def test_fp16_on_the_cpu_is_an_error() -> None:
    with pytest.raises(UserError, match="--precision fp16 requires a GPU"):
        select_precision("fp16", CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_uses_the_selected_precision(dtype: torch.dtype) -> None:
    a = torch.ones(3, 3)
    with Runtime(CPU, dtype).autocast():
        assert (a @ a).dtype is dtype
        assert torch.nn.functional.cross_entropy(a @ a, a).dtype is torch.float32
    assert (a @ a).dtype is torch.float32


# --- processes -----------------------------------------------------------------------------------


@pytest.fixture
def without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment without torchrun."""
    for variable in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.usefixtures("without_torchrun")
def test_a_single_process() -> None:
    assert [Runtime(CPU, rank=rank, world_size=3).is_main for rank in range(3)] == [1, 0, 0]
    runtime = start_runtime("cpu", "fp32")
    assert (runtime.rank, runtime.world_size, runtime.is_main) == (0, 1, True)
    assert not dist.is_initialized()
    tensors = [torch.tensor([[1.0, 2.0]]), torch.tensor(3.0)]
    kept = [tensor.clone() for tensor in tensors]
    runtime.sum_over_ranks(tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, kept, strict=True))
    value = object()
    assert runtime.gather(value) == [value]
    assert runtime.max_over_ranks(15) == 15
    runtime.wait_for_all()
    stop_runtime()


def test_the_sum_over_ranks_is_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = []

    def all_reduce(flat: torch.Tensor) -> None:
        messages.append(len(flat))
        flat += 10 * torch.arange(len(flat))  # what the other process sent

    monkeypatch.setattr(runtime_module.dist, "all_reduce", all_reduce)
    matrix, scalar, vector = torch.ones(2, 3), torch.tensor(5.0), torch.zeros(2)
    transposed = matrix.T  # not contiguous
    Runtime(CPU, world_size=2).sum_over_ranks(t for t in (scalar, transposed, vector))
    assert messages == [9]
    assert scalar == 5
    assert transposed.tolist() == [[11, 21], [31, 41], [51, 61]]
    assert matrix.tolist() == [[11, 31, 51], [21, 41, 61]]
    assert vector.tolist() == [70, 80]


def test_the_maximum_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(number: torch.Tensor, operation: dist.ReduceOp) -> None:
        assert operation is dist.ReduceOp.MAX
        number.clamp_(min=3)  # the other process sent a 3

    monkeypatch.setattr(runtime_module.dist, "all_reduce", all_reduce)
    runtime = Runtime(CPU, world_size=2)
    assert [runtime.max_over_ranks(number) for number in (0, 3, 15)] == [3, 3, 15]


def test_out_of_memory_is_not_reported_as_a_dead_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("torch.distributed.barrier", fail)
    with pytest.raises(torch.OutOfMemoryError):
        Runtime(CPU, world_size=2).wait_for_all()


def test_an_error_in_the_main_process_is_raised_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file is an error in all processes, not a broken connection."""
    gathered: list[Any] = []

    def gather(runtime: Runtime, value: Any) -> list[Any]:
        gathered.append(value)
        return [gathered[0], None]

    monkeypatch.setattr(Runtime, "gather", gather)

    def fail() -> None:
        raise UserError("nope.json does not exist")

    def never() -> None:
        raise AssertionError("only the main process may call it")

    for rank, make in ((0, fail), (1, never)):
        with pytest.raises(UserError, match="does not exist"):
            Runtime(CPU, rank=rank, world_size=2).main_first(make)


def test_the_main_process_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(Runtime, "gather", lambda runtime, value: [value, None])
    for rank in (0, 1):
        runtime = Runtime(CPU, rank=rank, world_size=2)
        assert runtime.main_first(lambda: made.append(1) or len(made)) == rank + 1


# --- batches on several cores --------------------------------------------------------------------


@pytest.fixture
def three_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def thread_and_cores(number: int) -> tuple[int, int, int]:
    return number, threading.get_ident(), torch.get_num_threads()


@pytest.mark.usefixtures("three_cores")
def test_many_batches_run_in_parallel_and_are_returned_in_order() -> None:
    """Three at once, and the second ends before the first."""
    together, second = threading.Barrier(3), threading.Event()

    def work(number: int) -> tuple[int, int, int]:
        if number < 3:
            together.wait(PATIENCE)
        if number == 1:
            second.set()
        elif number == 0:
            assert second.wait(PATIENCE)
        return thread_and_cores(number)

    numbers, threads, cores = zip(*Runtime(CPU).map_batches(work, range(20)), strict=True)
    assert numbers == tuple(range(20))
    assert len(set(threads)) == 3 and threading.get_ident() not in threads
    assert set(cores) == {1}
    assert torch.get_num_threads() == 3
    seen_by_new_threads: list[int] = []
    thread = threading.Thread(target=lambda: seen_by_new_threads.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen_by_new_threads == [3]


@pytest.mark.usefixtures("three_cores")
def test_a_thread_started_meanwhile_gets_the_number_of_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It reads the number just before the caller's number is restored."""
    started, seen = threading.Event(), []

    def read() -> None:
        started.set()
        adapt_to_fork("cpu")  # each call of an answerer begins with this
        seen.append(torch.get_num_threads())

    newcomer, real = threading.Thread(target=read), torch.set_num_threads

    def set_late(number: int) -> None:
        if number == 3:
            newcomer.start()
            started.wait()
            time.sleep(0.1)  # enough to continue if it is not blocked
        real(number)

    monkeypatch.setattr(torch, "set_num_threads", set_late)
    found = list(Runtime(CPU).map_batches(thread_and_cores, range(20)))
    newcomer.join()
    assert seen == [3] and {cores for *_, cores in found} == {1}


@pytest.mark.usefixtures("three_cores")
def test_a_thread_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads that were started do not wait for it."""
    start, left = threading.Thread.start, [2]

    def start_two(thread: threading.Thread) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(Runtime(CPU).map_batches(thread_and_cores, range(20)))


@pytest.mark.usefixtures("three_cores")
@pytest.mark.parametrize(("device", "count"), [(CPU, 5), (CPU, 1), (CPU, 0), (CUDA, 20)])
def test_few_batches_and_those_of_a_gpu_use_no_threads(device: torch.device, count: int) -> None:
    caller = {(threading.get_ident(), 3)}
    found = {
        (thread, cores)
        for _, thread, cores in Runtime(device).map_batches(thread_and_cores, range(count))
    }
    assert found == (caller if count else set())


@pytest.mark.usefixtures("three_cores")
def test_an_error_in_one_batch_ends_the_work() -> None:
    def work(number: int) -> int:
        if number == 4:
            raise ValueError("batch 4")
        return number

    done = []
    with pytest.raises(ValueError, match="batch 4"):
        done.extend(Runtime(CPU).map_batches(work, range(50)))
    assert done == [0, 1, 2, 3]
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_cores")
def test_a_thread_that_starts_slowly_causes_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It leaves the barrier after all work is done: the barrier is then broken.

    An exception in it would remove the pool's shutdown signal, for which the others wait.
    """
    caller, ended, slow = threading.get_ident(), threading.Event(), []

    class Barrier(threading.Barrier):
        def wait(self, timeout: float | None = None) -> int:
            arrival = super().wait(timeout)
            if threading.get_ident() != caller and not slow:
                slow.append(arrival)
                assert ended.wait(PATIENCE)
                raise threading.BrokenBarrierError
            return arrival

        def abort(self) -> None:
            super().abort()
            ended.set()

    monkeypatch.setattr(threading, "Barrier", Barrier)
    assert list(Runtime(CPU).map_batches(abs, range(20))) == list(range(20))
    assert slow and not caplog.records  # the pool logs exceptions of threads


# --- oneDNN's cache ------------------------------------------------------------------------------

LIMITS = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


@pytest.mark.parametrize(("given", "kept"), [(None, ["32", "96"]), ("7", ["7", "7"])])
def test_onednns_cache_is_limited_unless_the_user_has_set_a_limit(
    monkeypatch: pytest.MonkeyPatch, given: str | None, kept: list[str]
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for name in LIMITS:
        monkeypatch.setenv(name, given or "")
        if not given:
            monkeypatch.delenv(name)
    limit_onednn_cache()
    assert [os.environ[name] for name in LIMITS] == kept


def test_an_answerer_sets_the_limits_before_the_first_product(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """oneDNN reads them once; later they have no effect."""
    for name in LIMITS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    seen: list[str | None] = []

    def prepare_for_inference(model: nn.Module, *arguments: object, **options: object) -> nn.Module:
        seen.extend(map(os.environ.get, LIMITS))
        return model

    monkeypatch.setattr(answerer, "prepare_for_inference", prepare_for_inference)
    QuestionAnswerer.from_pretrained(write_checkpoint(tmp_path), device="cpu")
    assert seen == ["32", str(32 * torch.get_num_threads())]
