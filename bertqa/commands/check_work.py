"""The work of ``bertqa check``: audit the data, write the reports and the repaired copy."""

import argparse

from bertqa.answering.answerer import check_window_fits
from bertqa.audit.findings import Audit, audit
from bertqa.audit.page import save_page
from bertqa.audit.repair import repair, save_examples
from bertqa.audit.text import audit_text, changes_text, save_json
from bertqa.commands.flags import overrides
from bertqa.data.squad import Example
from bertqa.data.tokenization import BertTokenizer
from bertqa.model.config import load_config
from bertqa.model.hub import find_folder, is_checkpoint
from bertqa.settings import DataSettings
from bertqa.training.job import read_data


def check(flags: argparse.Namespace, data: DataSettings) -> int:
    """Print the faults of the data, write what was asked for, and give the exit code."""
    cutting = overrides(flags).windows()
    parts = read_data(data)
    folder = find_folder(flags.model, revision=flags.revision, allow_bin=flags.allow_bin)
    if is_checkpoint(folder):  # a tokenizer alone would do
        check_window_fits(load_config(folder)[0], cutting)
    tokenizer = BertTokenizer.load(folder)
    negative = bool(flags.version_2_with_negative)

    def audited(source: str, examples: list[Example]) -> Audit:
        return audit(examples, tokenizer, cutting, source=source, version_2_with_negative=negative)

    audits = [audited(*part) for part in parts]
    judged = audits
    for found in audits:
        print(audit_text(found) + "\n", flush=True)
    changes = None
    if flags.repair:
        repaired = repair(parts[0][1], tokenizer)
        changes = repaired.changes
        copy = audited(str(flags.repair), repaired.examples)
        save_examples(flags.repair, repaired.examples)
        print(f"{changes_text(changes)}\n\n{audit_text(copy)}\n")
        judged = [copy, *audits[1:]]
        audits = [audits[0], copy, *audits[1:]]
    if flags.report:
        save = save_page if flags.report.suffix == ".html" else save_json
        save(flags.report, audits, changes)
    written = [str(path) for path in (flags.repair, flags.report) if path]
    if written:
        print(f"wrote {', '.join(written)}")
    return int(any(found.refused for found in judged))
