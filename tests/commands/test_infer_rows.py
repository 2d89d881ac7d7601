"""bertqa infer --input of JSON lines and parquet: one process, several, and killed ones."""

import json
import multiprocessing
import shutil
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import Table, parquet

from bertqa import runtime
from bertqa.answering import blocks, parquet_file
from bertqa.answering.answerer import QuestionAnswerer
from bertqa.data.readers import read_examples
from bertqa.errors import UserError
from tests.commands.answering_processes import start_infer
from tests.commands.world import HERE, ROW, WINDOWS, call, run
from tests.helpers import STORIES, contents
from tests.training.processes import PATIENCE, ended, meeting

BLOCK = 4
PARQUET = "predictions.parquet"
BAD = ("--overwrite_output_dir",)  # without --skip_bad
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (blocks, parquet_file):
        monkeypatch.setattr(module, "ROWS_PER_BLOCK", BLOCK)


@pytest.fixture(scope="module")
def server() -> multiprocessing.context.BaseContext:
    """Return a context whose processes start with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.commands.answering_processes"])
    return context


def rows() -> list[dict[str, Any]]:
    """Return questions of different lengths, two of which are too long."""
    short = [e for e in read_examples(STORIES) if len(e.question) < 40]
    found = [
        {
            "id": e.id, "question": e.question, "context": e.context[: 60 + 31 * (n % 7)],
            "answers": {"text": list(e.answers), "answer_start": list(e.answer_starts)},
        }
        for n, e in enumerate(short[:30])
    ]  # fmt: skip
    for number in (5, 14):
        found[number] |= {"question": "who " * 90}
    return found


def write_rows(path: Path, entries: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(Table.from_pylist(entries), path, row_group_size=7)
    else:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


class Job:
    """A file of questions, and the command that answers them."""

    def __init__(self, home: Path, model: Path, name: str, server: Any) -> None:
        self.home, self.model, self.server = home, model, server
        self.source = write_rows(home / name, rows())

    def flags(self, out: str, *more: object) -> list[str]:
        files = ["--input", self.source, "--output_dir", self.home / out]
        skip = [] if more == BAD else ["--skip_bad"]
        return [str(f) for f in ["--model", self.model, *WINDOWS, *HERE, *files, *skip, *more]]

    def alone(self, out: str, *more: object) -> dict[str, bytes]:
        """Answer in this process, without torchrun, and return the files."""
        assert call("infer", *self.flags(out, *more)) == 0
        return contents(self.home / out)

    def answers(self, out: str) -> list[dict[str, Any]]:
        name = PARQUET if self.source.suffix == ".parquet" else "predictions.jsonl"
        return read_rows(self.home / out / name)

    def together(
        self, processes: int, out: str, *more: object, killed_at_sync: int = 0
    ) -> list[tuple[int, str]]:
        """Answer in several processes, the last of which may be killed.

        Returns:
            The exit code and output of each.
        """
        with meeting(processes) as environments:
            logs = [self.home / f"{out}{rank}.txt" for rank in range(processes)]
            started = [
                start_infer(
                    self.server, self.flags(out, *more), logs[rank], block=BLOCK,
                    environment=environments[rank],
                    killed_at_sync=killed_at_sync if rank == processes - 1 else 0,
                )
                for rank in range(processes)
            ]  # fmt: skip
            return [ended(process, log) for process, log in zip(started, logs, strict=True)]


@pytest.fixture
def job(tmp_path: Path, checkpoint: Path, server: Any) -> Job:
    return Job(tmp_path, checkpoint, "in.jsonl", server)


@pytest.fixture
def table(tmp_path: Path, checkpoint: Path, server: Any) -> Job:
    return Job(tmp_path, checkpoint, "in.parquet", server)


# --- parquet -------------------------------------------------------------------------------------


def test_parquet_and_json_lines_give_the_same_answers(job: Job, table: Job) -> None:
    """Answers, metrics and rejects; one row group per block."""
    more = ("--top_k", 2, "--all_offsets")
    theirs, ours = job.alone("lines", *more), table.alone("table", *more)
    assert ours.keys() == {PARQUET, "rejects.jsonl", "settings.json", "metrics.json"}
    assert ours["metrics.json"] == theirs["metrics.json"]
    found, expected = table.answers("table"), job.answers("lines")
    assert len(found) == 28
    for entry, line in zip(found, expected, strict=True):
        assert entry.pop("row") + 1 == line.pop("line")
        assert entry == line and list(entry) == list(line)
    rejects = [json.loads(line) for line in ours["rejects.jsonl"].splitlines()]
    assert [reject["row"] for reject in rejects] == [5, 14]
    assert "in.parquet, row 5: " in rejects[0]["fault"]
    file = parquet.ParquetFile(table.home / "table" / PARQUET).metadata
    sizes = [file.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert sizes == [4, 3, 4, 3, 4, 4, 4, 2]


def test_rows_without_an_id_are_named_by_their_number(table: Job) -> None:
    write_rows(table.source, [{"question": "Who?", "context": "Ada."}] * 2)
    table.alone("out")
    assert [entry["id"] for entry in table.answers("out")] == ["row 0", "row 1"]


def test_a_parquet_file_without_a_valid_question(table: Job) -> None:
    write_rows(table.source, rows()[5:6])
    table.alone("out")
    assert table.answers("out") == []
    assert call("infer", *table.flags("out", "--resume")) == 0


def test_a_finished_parquet_run_resumes_with_appended_rows(
    table: Job, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = table.alone("whole")
    write_rows(table.source, rows()[:24])
    first = table.alone("out")
    with monkeypatch.context() as patch:
        patch.setattr(QuestionAnswerer, "answer", lambda *_: pytest.fail("asked"))
        assert table.alone("out", "--resume") == first
    write_rows(table.source, rows())
    assert table.alone("out", "--resume") == whole
    (table.home / "out" / PARQUET).write_text("mine")
    assert call("infer", *table.flags("out", "--resume")) == 2
    assert "predictions.parquet: must be a valid parquet file" in capsys.readouterr().err
    assert (table.home / "out" / PARQUET).read_text() == "mine"


def test_an_overwritten_parquet_run_does_not_reuse_earlier_answers(table: Job) -> None:
    """The old file is kept until the new one is complete."""
    table.alone("out")
    expected = table.alone("alone", "--top_k", 2)
    again = ("--top_k", 2, "--overwrite_output_dir")
    assert table.together(1, "out", *again, killed_at_sync=12)[0][0] == -signal.SIGKILL
    assert len(table.answers("out")) == 28 and "answers" not in table.answers("out")[0]
    assert table.alone("out", "--top_k", 2, "--resume") == expected


def test_lines_are_kept_if_parquet_cannot_be_written(
    table: Job, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = table.alone("whole")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parquet.ParquetWriter, "write_table", full)
        assert call("infer", *table.flags("out")) == 2
    assert "predictions.parquet cannot be written: No space left" in capsys.readouterr().err
    assert not (table.home / "out" / PARQUET).exists()
    assert table.alone("out", "--resume") == whole


def test_parquet_is_written_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one row more than a block has been read when it is written."""
    lines = [{"row": row, "id": "x", "digest": "", "answer": ""} for row in range(5 * BLOCK)]
    write_rows(tmp_path / "predictions.jsonl", lines)
    seen: list[int] = []
    read, write = parquet_file.json_lines, parquet.ParquetWriter.write_table
    counted = (
        seen.append(entry["row"]) or (end, entry)
        for end, entry in read(tmp_path / "predictions.jsonl")
    )
    monkeypatch.setattr(parquet_file, "json_lines", lambda *_: counted)
    at_write: list[int] = []
    monkeypatch.setattr(
        parquet.ParquetWriter, "write_table",
        lambda writer, table: (at_write.append(len(seen)), write(writer, table)),
    )  # fmt: skip
    parquet_file.to_parquet(tmp_path)
    assert at_write == [BLOCK + 1, *(n * BLOCK + 1 for n in (2, 3, 4)), 5 * BLOCK]
    assert read_rows(tmp_path / PARQUET) == lines


def test_paragraphs_in_parquet_are_read_as_a_whole_file(table: Job) -> None:
    """As in other formats: one row has several questions."""
    qas = [{"id": name, "question": "Who built it?"} for name in ("a", "b")]
    write_rows(table.source, [{"context": ROW["context"], "qas": qas}])
    found = table.alone("out")
    assert json.loads(found["predictions.json"]).keys() == {"a", "b"}


# --- several processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet"])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_several_processes_write_the_same_bytes_as_one(
    tmp_path: Path, checkpoint: Path, server: Any, name: str, processes: int
) -> None:
    job = Job(tmp_path, checkpoint, name, server)
    expected = job.alone("alone", "--top_k", 2)
    ends = job.together(processes, "together", "--top_k", 2)
    assert [code for code, _ in ends] == [0] * processes, ends
    assert contents(job.home / "together") == expected
    assert len([words for _, words in ends if "28" in words]) == 1, ends  # one process prints


def test_scores_do_not_depend_on_other_blocks(job: Job) -> None:
    """So it does not matter which process answers which block."""
    job.alone("all")
    same = {entry["id"]: entry for entry in job.answers("all")}
    write_rows(job.source, rows()[20:24] + rows()[8:12])
    job.alone("some")
    found = job.answers("some")
    for entry in found:
        assert entry | {"line": 0} == same[entry["id"]] | {"line": 0}
    assert len(found) == 8


def test_a_killed_process_stops_the_others_and_any_number_can_resume(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed while writing its second part. Finished parts are kept."""
    expected = job.alone("alone")
    (code, words), (killed, _) = job.together(2, "out", killed_at_sync=4)
    assert (code, killed) == (2, -signal.SIGKILL)
    errors = [line for line in words.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "another process" in errors[0] and "--resume" in errors[0], words
    parts = sorted(path.name for path in (job.home / "out" / "predictions.parts").glob("*.jsonl"))
    assert parts == [f"{number:08}.jsonl" for number in (0, 1, 2, 4, 6)]
    shutil.copytree(job.home / "out", job.home / "more")
    before = written(job.home / "more" / "predictions.parts")
    job.together(3, "more", "--resume", killed_at_sync=1)
    assert before.items() < written(job.home / "more" / "predictions.parts").items()
    ends = job.together(3, "more", "--resume")
    assert [code for code, _ in ends] == [0] * 3, ends
    asked: list[str] = []
    answer = QuestionAnswerer.answer
    monkeypatch.setattr(
        QuestionAnswerer, "answer",
        lambda qa, examples: answer(qa, [asked.append(e.id) or e for e in examples]),
    )  # fmt: skip
    assert job.alone("out", "--resume") == expected == contents(job.home / "more")
    ids = [entry["id"] for entry in rows()]
    assert asked == [*ids[12:14], ids[15], *ids[20:24], *ids[28:]]  # those without a part


def written(folder: Path) -> dict[str, int]:
    """Return the inodes of files, which show whether a file was written again."""
    return {path.name: path.stat().st_ino for path in folder.glob("*.jsonl")}


def test_parts_of_an_earlier_run_are_not_used(job: Job) -> None:
    """Even if they have the same questions, with other settings."""
    job.together(2, "out", killed_at_sync=4)
    expected = job.alone("alone", "--top_k", 2)
    assert job.alone("out", "--top_k", 2, "--overwrite_output_dir") == expected


def test_several_processes_resume_a_run_of_one(job: Job) -> None:
    """It was stopped in the middle of a line and of a block."""
    expected = job.alone("out")
    predictions = job.home / "out" / "predictions.jsonl"
    lines = predictions.read_bytes().splitlines(keepends=True)
    predictions.write_bytes(b"".join(lines[:9]) + lines[9][:40])
    job.together(2, "out", "--resume", killed_at_sync=4)
    assert min(written(job.home / "out" / "predictions.parts")) == "00000002.jsonl"
    ends = job.together(2, "out", "--resume")
    assert [code for code, _ in ends] == [0, 0], ends
    assert contents(job.home / "out") == expected


def test_parts_of_other_questions_are_rejected(job: Job, capsys: Any) -> None:
    job.together(2, "out", killed_at_sync=4)
    before = contents(job.home / "out")
    entries = rows()
    entries[1] |= {"id": "another", "question": "Who else?"}
    write_rows(job.source, entries)
    assert call("infer", *job.flags("out", "--resume")) == 2
    err = capsys.readouterr().err
    assert "00000000.jsonl must have the answers to questions of" in err
    assert contents(job.home / "out") == before


def test_a_part_whose_block_has_grown_is_answered_again(job: Job) -> None:
    """As one process resumes a file that has grown, even in the middle of a block."""
    write_rows(job.source, rows()[:7])
    job.together(2, "out", killed_at_sync=3)
    assert "00000001.jsonl" in written(job.home / "out" / "predictions.parts")
    write_rows(job.source, rows()[:8])
    expected = job.alone("alone")
    assert job.alone("out", "--resume") == expected


def test_the_first_process_to_finish_waits_for_the_last(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may finish hours apart in a job of days."""
    waits: list[timedelta] = []

    def init(backend: str, timeout: timedelta) -> None:
        waits.append(timeout)
        raise UserError("this is a test")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(runtime.dist, "init_process_group", init)
    assert call("infer", *job.flags("out")) == 2
    assert waits[0] > timedelta(days=7)


def test_an_error_of_the_main_process_stops_all(job: Job) -> None:
    """One process prints it, whether it concerns the folder or a row."""
    (job.home / "out").mkdir()
    (job.home / "out" / "settings.json").write_text("{}")
    job.source.write_text("{broken\n")
    for more, message in (((), "settings.json already exists"), (BAD, "line 1, column 2")):
        (first, words), (second, others) = job.together(2, "out", *more)
        assert (first, second, others) == (2, 2, "") and message in words


def test_torchrun_stops_the_other_processes_when_one_dies(job: Job) -> None:
    """The first process sleeps for an hour, the second is killed."""
    command = [*TORCHRUN, "-m", "tests.commands.answering_processes", *job.flags("out")]
    result = run(command, job.home, timeout=PATIENCE)
    assert result.returncode != 0
    assert "stopped; finished blocks are kept: continue with --resume" in result.stderr
    expected = job.alone("alone")
    assert job.alone("out", "--resume") == expected


@pytest.mark.parametrize(
    "flags",
    [("--question", "Who?", "--context", "Ada."), ("--demo",), ("--dataset", "squad")],
    ids=["question", "demo", "dataset"],
)
def test_several_processes_require_json_lines_or_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, flags: tuple[str, ...]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = ["--output_dir", str(tmp_path / "out")] * ("--dataset" in flags)
    assert call("infer", *flags, *out) == 2
    assert "torchrun: --input must be JSON lines or parquet" in capsys.readouterr().err
    write_rows(tmp_path / "in.jsonl", [{"context": "Ada.", "qas": []}])
    out = ["--input", str(tmp_path / "in.jsonl"), "--output_dir", str(tmp_path / "out")]
    assert call("infer", *out) == 2
    assert "torchrun: --input must be" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_several_processes_on_gpus_give_the_same_answers_as_one(job: Job) -> None:
    """On one GPU or several; scores within 1e-4 in float32."""
    device = ["--device", "cuda:0"] if torch.cuda.device_count() < 2 else ["--device", "cuda"]
    job.alone("alone", *device)
    ends = job.together(2, "together", *device)
    assert [code for code, _ in ends] == [0, 0], ends
    for ours, theirs in zip(job.answers("together"), job.answers("alone"), strict=True):
        assert ours.pop("score") == pytest.approx(theirs.pop("score"), abs=1e-4)
        assert ours == theirs
