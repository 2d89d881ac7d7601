"""Use of the validation questions: choice of a threshold, and calibration."""

from collections.abc import Sequence
from dataclasses import replace

from bertqa.answering.answerer import QuestionAnswerer, load_folder
from bertqa.answering.calibration import calibrate
from bertqa.answering.decoding_file import read_decoding_file
from bertqa.answering.evaluation import Evaluator
from bertqa.answering.temperature import LIMIT, at_limit
from bertqa.data.squad import Example, has_both_kinds
from bertqa.errors import Say, UserError, counted
from bertqa.runtime import Runtime
from bertqa.settings import DecodingSettings, TrainingSettings, WindowSettings
from bertqa.training.data import Part
from bertqa.training.evaluations import Observer
from bertqa.training.run_folder import RunFolder


def check_patience(settings: TrainingSettings, validation: Sequence[Example]) -> None:
    """Check that early stopping has validation questions.

    Raises:
        UserError: there are none.
    """
    if settings.early_stopping_patience and not validation:
        raise UserError(
            f"--early_stopping_patience {settings.early_stopping_patience} requires validation "
            "questions: pass --validation_file or --validation_split_percentage"
        )


def make_evaluator(
    validation: Part,
    decoding: DecodingSettings,
    runtime: Runtime,
    chooses: bool,
    share: float | None,
    say: Say,
) -> Evaluator | None:
    """Make the evaluator of the model; None without validation questions.

    Args:
        chooses: choose the threshold of "no answer" if both kinds of questions are present.
        share: fraction of unanswerable questions to choose it for; None for that of the data.
    """
    examples = validation.examples
    if chooses and not has_both_kinds(examples):
        say("no threshold is chosen: it requires held-out questions with and without an answer")
        chooses = False
    if not examples:
        return None
    say(f"validation: {validation}")
    if chooses and share is not None:
        own = sum(example.is_impossible for example in examples) / len(examples)
        say(
            f'the threshold of "no answer" is chosen for {100 * share:g} % unanswerable questions; '
            f"{100 * own:.1f} % of the held-out ones are"
        )
    weighted = share if chooses else None
    return Evaluator(examples, validation.windows, decoding, runtime, chooses, weighted)


def calibrate_best(
    folder: RunFolder,
    examples: Sequence[Example],
    windows: WindowSettings,
    decoding: DecodingSettings,
    runtime: Runtime,
    observer: Observer,
    say: Say,
) -> None:
    """Fit the temperature of the best model on the validation questions; answers stay the same."""
    model, tokenizer, _ = load_folder(folder.path, allow_bin=False, require_head=True)
    threshold = read_decoding_file(folder.path)[1].null_score_diff_threshold
    settings = replace(decoding, null_score_diff_threshold=threshold)
    qa = QuestionAnswerer(model, tokenizer, windows, settings, runtime)
    try:
        calibration, predictions = calibrate(qa, examples, "the validation data")
    except UserError as error:
        say(f"probabilities are not calibrated: {error}")
        return
    settings = replace(settings, temperature=calibration.temperature)
    folder.keep_calibration(calibration, predictions, settings, windows)
    before, after, number = calibration.before, calibration.after, calibration.fitted_on
    say(
        f"temperature {after.temperature:.3f}, fitted on {counted(number, 'question')}: expected "
        f"calibration error {before.ece:.4f} before, {after.ece:.4f} after, on "
        f"{counted(after.questions, 'question')} about other articles; perfect calibration would "
        f"have {after.ece_by_chance:.4f} on so many"
    )
    if at_limit(after.temperature):
        say(LIMIT)
    observer.after_calibration(calibration, examples, settings)
