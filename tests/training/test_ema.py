"""Moving average of the weights: formula, evaluation, saving and resuming."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bertqa.errors import UserError
from bertqa.training.checkpoints import load_for_training
from bertqa.training.run import Run
from tests.training.runs import SETTINGS, crash, make_loop, make_run, same, trained, weights_of
from tests.training.test_run import ScriptedEvaluator

AVERAGED = replace(SETTINGS, ema_decay=0.4)  # the warmup of the decay ends after step 5
FILE = "ema.safetensors"


@pytest.mark.parametrize("decay", [0.4, 0.999])
def test_the_average_equals_its_formula(checkpoint: Path, decay: float) -> None:
    loop = make_loop(checkpoint, replace(SETTINGS, ema_decay=decay))
    expected = {name: value.double() for name, value in weights_of(loop).items()}
    for step, _ in enumerate(loop.steps()):
        d = min(decay, (1 + step) / (10 + step))
        for name, weight in weights_of(loop).items():
            expected[name] = d * expected[name] + (1 - d) * weight.double()
        for name, average in loop.result.state_dict().items():
            torch.testing.assert_close(average.double(), expected[name], rtol=0, atol=1e-6)
    assert not same(loop.result.state_dict(), weights_of(loop))


def test_the_average_does_not_change_the_training(
    checkpoint: Path, tmp_path: Path, whole_run: Run
) -> None:
    run = trained(make_run(tmp_path / "run", checkpoint, AVERAGED, evaluator=False))
    assert same(weights_of(run), weights_of(whole_run))
    files = [
        {path.name for path in (folder / "checkpoints" / "step-00000012").iterdir()}
        for folder in (run.folder.path, whole_run.folder.path)
    ]
    assert files[0] - files[1] == {FILE} and files[1] < files[0]
    assert whole_run.loop.result is whole_run.loop.model


def test_frozen_parameters_are_shared(tmp_path: Path, checkpoint: Path) -> None:
    settings = replace(AVERAGED, freeze_word_embeddings=True)
    run = trained(make_run(tmp_path / "run", checkpoint, settings, evaluator=False))
    averaged, raw = (dict(m.named_parameters()) for m in (run.loop.result, run.loop.model))
    shared = [name for name in raw if averaged[name] is raw[name]]
    assert shared == ["embeddings.word.weight"]
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-00000012" / FILE)
    assert saved.keys() == raw.keys() - shared
    kept, _, _ = load_for_training(str(tmp_path / "run"))
    assert same(kept.state_dict(), run.loop.result.state_dict())


def test_the_average_is_evaluated_and_the_best_one_kept(tmp_path: Path, checkpoint: Path) -> None:
    folder, evaluator = tmp_path / "run", ScriptedEvaluator([10.0, 50.0, 30.0])
    run = make_run(folder, checkpoint, replace(AVERAGED, eval_steps=4), evaluator=evaluator)
    run.start(resume=False)
    averages: list[dict[str, Tensor]] = []
    run.loop.optimizer.register_step_pre_hook(  # records the average after the previous step
        lambda *_: averages.append({n: v.clone() for n, v in run.loop.result.state_dict().items()})
    )
    run.train()
    averages.append(run.loop.result.state_dict())
    assert [same(evaluator.seen[i], averages[4 * (i + 1)]) for i in range(3)] == [True] * 3
    kept, _, _ = load_for_training(str(folder))
    assert same(kept.state_dict(), evaluator.seen[1])
    raw, _, _ = load_for_training(str(folder / "checkpoints" / "step-00000012"))
    assert same(raw.state_dict(), weights_of(run))  # resuming needs the trained weights


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, t: path.unlink(),
        lambda path, t: save_file(dict(list(t.items())[1:]), path),
        lambda path, t: save_file(t | {"head.bias": torch.ones(1)}, path),
        lambda path, t: path.write_bytes(path.read_bytes()[:-9]),
    ],
    ids=["missing", "a weight too few", "another shape", "truncated"],
)
def test_a_damaged_average_is_reported(
    tmp_path: Path, checkpoint: Path, damage: Callable[[Path, dict[str, Tensor]], object]
) -> None:
    crash(make_run(tmp_path / "run", checkpoint, AVERAGED, evaluator=False), 6)
    path = tmp_path / "run" / "checkpoints" / "step-00000004" / FILE
    damage(path, load_file(path))
    with pytest.raises(UserError, match=r"--resume: the checkpoint .*step-00000004 is damaged"):
        make_run(tmp_path / "run", checkpoint, AVERAGED, evaluator=False).start(resume=True)
