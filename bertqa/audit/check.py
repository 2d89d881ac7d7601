"""Implementation of ``bertqa check``: audit, reports and repaired copy."""

from pathlib import Path

from bertqa.answering.answerer import check_window_fits
from bertqa.audit.causes import Cause
from bertqa.audit.findings import Audit, audit
from bertqa.audit.page import audit_page
from bertqa.audit.repair import repair, save_examples
from bertqa.audit.text import audit_text, changes_text, save_json
from bertqa.data.squad import Example
from bertqa.data.tokenization import BertTokenizer
from bertqa.errors import Say, UserError
from bertqa.files import write_text
from bertqa.model.config import load_config
from bertqa.model.hub import find_folder, is_checkpoint
from bertqa.settings import DataSettings, WindowSettings
from bertqa.training.data import read_data


def check_data(
    data: DataSettings,
    model: str,
    windows: WindowSettings,
    *,
    version_2_with_negative: bool = False,
    revision: str | None = None,
    allow_bin: bool = False,
    repair_file: Path | None = None,
    report_file: Path | None = None,
    say: Say,
) -> bool:
    """Report the faults of a dataset; optionally write a report and a repaired copy.

    Args:
        model: checkpoint folder or name, for its tokenizer.
        repair_file: file for the training data with all unambiguous repairs.
        report_file: file for all findings, .html or .json.
        say: called with the findings of each split, and with the files written.

    Returns:
        Whether ``bertqa train`` accepts the data, or the repaired copy if there is one.

    Raises:
        UserError: the data or the tokenizer cannot be read, or a file cannot be written.
    """
    parts = read_data(data, say=say, keep_faulty=True)
    folder = find_folder(model, revision=revision, allow_bin=allow_bin)
    if is_checkpoint(folder):  # a folder with only a tokenizer is valid too
        check_window_fits(load_config(folder)[0], windows)
    tokenizer = BertTokenizer.load(folder)

    def audited(source: str, examples: list[Example]) -> Audit:
        return audit(
            examples, tokenizer, windows, source=source,
            version_2_with_negative=version_2_with_negative,
        )  # fmt: skip

    audits = [audited(*part) for part in parts]
    judged = audits
    for found in audits:
        say(audit_text(found) + "\n")
    changes = None
    if repair_file and audits[0].counts.get(Cause.UNREADABLE):
        raise UserError(
            f"--repair: all rows must be readable, got {audits[0].counts[Cause.UNREADABLE]} that "
            f"are not and would be missing in {repair_file}: correct them first"
        )
    if repair_file:
        repaired = repair(parts[0][1], tokenizer)
        changes = repaired.changes
        copy = audited(str(repair_file), repaired.examples)
        save_examples(repair_file, repaired.examples)
        say(f"{changes_text(changes)}\n\n{audit_text(copy)}\n")
        judged = [copy, *audits[1:]]
        audits = [audits[0], copy, *audits[1:]]
    if report_file and report_file.suffix.lower() == ".html":
        write_text(report_file, audit_page(audits, changes))
    elif report_file:
        save_json(report_file, audits, changes)
    if written := [str(path) for path in (repair_file, report_file) if path]:
        say(f"wrote {', '.join(written)}")
    return not any(found.refused for found in judged)
