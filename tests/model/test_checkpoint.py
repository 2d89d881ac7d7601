"""Checkpoint folders are read and written as transformers does; others are rejected."""

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForQuestionAnswering
from transformers import BertConfig as TheirConfig

from bertqa.errors import UserError, shown
from bertqa.model.bert import BertForQuestionAnswering
from bertqa.model.checkpoint import load_checkpoint, read_tensors, save_model, write_tensors
from bertqa.model.config import BertConfig, load_config, parse_config
from tests.helpers import (
    LENGTHS,
    TINY,
    our_batch,
    random_windows,
    their_batch,
    their_model,
    unpadded,
)

HEAD = ("qa_outputs.bias", "qa_outputs.weight")


@pytest.fixture(scope="module")
def theirs():
    return their_model()


@pytest.fixture(scope="module")
def saved(theirs, tmp_path_factory):
    """A folder written by transformers; do not change it."""
    folder = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture
def tensors(saved):
    return load_file(saved / "model.safetensors")


@pytest.fixture
def config(saved):
    return json.loads((saved / "config.json").read_text())


@pytest.fixture
def make(tmp_path, config, tensors):
    """Writes a checkpoint folder: the given tensors, and config.json with changes."""

    def write(changed=None, **changes):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        save_file(tensors if changed is None else changed, tmp_path / "model.safetensors")
        return tmp_path

    return write


def refusal(folder, *words, **options):
    """Return the error message of a folder; it contains these words."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message
    return message


def test_loading_does_not_import_torchs_compiler(saved):
    """Initializing weights on the meta device would import it, for seconds."""
    code = (
        "import sys; from pathlib import Path\n"
        "from bertqa.model.checkpoint import load_checkpoint\n"
        f"load_checkpoint(Path({str(saved)!r})); print('torch._dynamo' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert result.stdout.strip() == "False", result.stderr


def their_logits(model):
    with torch.no_grad():
        output = model(**their_batch(*random_windows()))
    return unpadded(output.start_logits), unpadded(output.end_logits)


def assert_equal_logits(ours, theirs):
    with torch.no_grad():
        output = ours(our_batch(*random_windows()))
    for our, their in zip(
        (output.start_logits, output.end_logits), their_logits(theirs), strict=True
    ):
        assert our.shape == (sum(LENGTHS),)
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


def assert_same_weights(model, other):
    """Check that all weights are identical."""
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


# --- reading of transformers' folders ------------------------------------------------------------


def test_a_folder_of_transformers(saved, theirs):
    model, report = load_checkpoint(saved)
    assert_equal_logits(model, theirs)
    assert not model.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    assert report.source == saved / "model.safetensors"
    assert set(report.loaded) == set(theirs.state_dict())
    assert (report.renamed, report.left_over, report.initialized) == ({}, (), ())
    assert report.unknown_config_keys == ()
    assert str(report) == f"{saved / 'model.safetensors'}: {len(report.loaded)} tensors loaded"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(tmp_path, dtype):
    theirs = their_model(seed=4).to(dtype)
    theirs.save_pretrained(tmp_path)
    model, report = load_checkpoint(tmp_path)
    assert report.unknown_config_keys == ()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert_equal_logits(model, theirs.float())


def test_shards(tmp_path, theirs):
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model, report = load_checkpoint(tmp_path)
    assert_equal_logits(model, theirs)
    assert report.source == tmp_path / "model.safetensors.index.json"
    assert set(report.loaded) == set(theirs.state_dict())


def test_safetensors_are_preferred(make, theirs, tmp_path):
    make()
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not a pickle")
    model, report = load_checkpoint(tmp_path, allow_bin=True)
    assert report.source == tmp_path / "model.safetensors"
    assert_equal_logits(model, theirs)


# --- writing -------------------------------------------------------------------------------------


def odd_config():
    """Return a config without any default value, ours or theirs."""
    return BertConfig(
        **(TINY | {"type_vocab_size": 3}),
        hidden_dropout_prob=0.25,
        attention_probs_dropout_prob=0.125,
        layer_norm_eps=1e-3,
        initializer_range=0.5,
    )


def random_model(config=None, seed=5):
    torch.manual_seed(seed)
    model = BertForQuestionAnswering(config or odd_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def test_transformers_opens_what_we_write(tmp_path):
    ours = random_model()
    save_model(tmp_path, ours)
    theirs, info = AutoModelForQuestionAnswering.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info  # nothing missing, unexpected, mismatched
    assert {p.dtype for p in theirs.parameters()} == {torch.float32}
    assert_equal_logits(ours, theirs.eval())
    for name, value in asdict(odd_config()).items():
        assert getattr(theirs.config, name) == value
    assert theirs.config.hidden_act == "gelu"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_saves(tmp_path, dtype):
    ours = random_model()
    save_model(tmp_path, ours, dtype)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    again, _ = load_checkpoint(tmp_path)
    for before, after in zip(ours.parameters(), again.parameters(), strict=True):
        assert torch.equal(before.to(dtype).float(), after)
        assert before.dtype == torch.float32  # the model itself is unchanged
    theirs = AutoModelForQuestionAnswering.from_pretrained(tmp_path, dtype=torch.float32)
    assert_equal_logits(again, theirs.eval())


def test_there_and_back_again(tmp_path):
    ours = random_model()
    save_model(tmp_path / "a", ours)
    again, report = load_checkpoint(tmp_path / "a")
    assert report.unknown_config_keys == ()
    assert again.config == ours.config
    assert_same_weights(ours, again)
    save_model(tmp_path / "b", again)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_saving_over_what_was_loaded(tmp_path):
    save_model(tmp_path, random_model(seed=5))
    loaded, _ = load_checkpoint(tmp_path)
    save_model(tmp_path, random_model(seed=6))
    assert_same_weights(loaded, random_model(seed=5))  # even if they are mapped from the old file
    assert_same_weights(load_checkpoint(tmp_path)[0], random_model(seed=6))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_full_disk_leaves_the_old_weights(tmp_path, monkeypatch):
    save_model(tmp_path, random_model(seed=5))

    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("bertqa.model.checkpoint.save_file", full)
    with pytest.raises(UserError) as caught:
        save_model(tmp_path, random_model(seed=6))
    message = str(caught.value)
    assert str(tmp_path / "model.safetensors") in message
    assert "No space left on device" in message
    assert "\n" not in message
    assert_same_weights(load_checkpoint(tmp_path)[0], random_model(seed=5))


def test_tensor_files(tmp_path):
    path = tmp_path / "state.safetensors"
    tensors = {
        "step": torch.tensor(3),
        "none": torch.empty(0, 4),
        "half": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "bytes": torch.arange(7, dtype=torch.uint8),
    }
    before = os.umask(0o022)
    try:
        write_tensors(path, tensors)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644  # safetensors itself makes it 0600
    again = read_tensors(path)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor)
        assert again[name].dtype == tensor.dtype
    for content in (None, b"", path.read_bytes()[:-1]):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_tensors(path)
        assert str(path) in str(caught.value)
        path.touch()


# --- pickles -------------------------------------------------------------------------------------


@pytest.fixture
def bin_folder(tmp_path, config):
    """Writes a folder whose weights are the bytes of a pytorch_model.bin."""

    def write(save):
        (tmp_path / "config.json").write_text(json.dumps(config))
        save(tmp_path / "pytorch_model.bin")
        return tmp_path

    return write


# Most BERT files of the Hub's first years have the legacy format.
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_is_read_only_when_allowed(bin_folder, theirs, tmp_path, is_zip):
    def save(path):
        torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=is_zip)

    folder = bin_folder(save)
    refusal(folder, "pytorch_model.bin", "pickle", "--allow_bin")
    model, report = load_checkpoint(folder, allow_bin=True)
    assert_equal_logits(model, theirs)
    assert report.source == folder / "pytorch_model.bin"
    save_model(tmp_path / "saved", model)
    assert_same_weights(load_checkpoint(tmp_path / "saved")[0], model)


def test_pickles_of_something_else(bin_folder, tmp_path):
    zeros = torch.zeros(2)
    for value in ([zeros], {"a": 1}, {"a": zeros, "b": 1}, {"state": {"a": zeros}}, zeros):
        folder = bin_folder(lambda path, value=value: torch.save(value, path))
        refusal(folder, "pytorch_model.bin", "dictionary of tensors", allow_bin=True)
    for content in (b"", b"garbage", b"PK\x03\x04 but not a zip", b"\x80\x02}."):
        folder = bin_folder(lambda path, content=content: path.write_bytes(content))
        refusal(folder, "pytorch_model.bin", allow_bin=True)


# --- old names -----------------------------------------------------------------------------------


def _old_norms(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


def _no_prefix(name):
    return name.removeprefix("bert.")


@pytest.mark.parametrize(
    ("spell", "many"),
    [
        (_old_norms, 14),  # two of each of the seven norms
        (_no_prefix, 53),  # all but the head
        (lambda name: _old_norms(_no_prefix(name)), 53),
    ],
)
def test_old_spellings(make, tensors, theirs, spell, many):
    folder = make({spell(name): tensor for name, tensor in tensors.items()})
    model, report = load_checkpoint(folder)
    assert_equal_logits(model, theirs)
    renamed = {spell(name): name for name in tensors if spell(name) != name}
    assert report.renamed == renamed
    assert len(renamed) == many
    assert set(report.loaded) == set(tensors)


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_parts_of_other_models_are_left_over(make, tensors, theirs, prefix):
    others = {
        f"{prefix}pooler.dense.weight": torch.ones(36, 36),
        f"{prefix}pooler.dense.bias": torch.ones(36),
        f"{prefix}embeddings.token_type_ids": torch.zeros(1, 64, dtype=torch.int64),
        f"{prefix}embeddings.position_ids": torch.arange(64)[None],
        "cls.predictions.bias": torch.full((101,), float("nan")),  # not read
        "cls.predictions.transform.LayerNorm.gamma": torch.ones(36),
        "cls.seq_relationship.weight": torch.ones(2, 36),
        "classifier.weight": torch.ones(2, 36),
    }
    model, report = load_checkpoint(make({**tensors, **others}))
    assert_equal_logits(model, theirs)
    expected = {f"bert.{name.removeprefix(prefix)}" for name in list(others)[:4]}
    expected |= {name.replace("gamma", "weight") for name in list(others)[4:]}
    assert report.left_over == tuple(sorted(expected))
    assert len(report.renamed) == (1 if prefix else 5)
    assert set(report.loaded) == set(tensors)


@pytest.mark.parametrize(
    ("positions", "in_order"),
    [
        (torch.arange(64)[None], True), (torch.arange(64), True), (torch.arange(64.0), True),
        (torch.arange(64).flip(0), False), (torch.arange(64) + 2, False),
        (torch.zeros(1, 64), False),
    ],
)  # fmt: skip
def test_position_ids_must_be_in_order(make, tensors, positions, in_order):
    name = "bert.embeddings.position_ids"
    folder = make({**tensors, name: positions})
    if in_order:
        assert load_checkpoint(folder)[1].left_over == (name,)
    else:
        refusal(folder, "model.safetensors", name, "0, 1, 2")


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma"),
        ("bert.encoder.layer.1.output.LayerNorm.bias", "encoder.layer.1.output.LayerNorm.bias"),
    ],
)
def test_both_names_of_one_tensor(make, tensors, name, spelling):
    tensors[spelling] = tensors[name].clone()
    refusal(make(tensors), "model.safetensors", name, spelling, "unique")


# --- the head ------------------------------------------------------------------------------------


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def test_an_encoder_without_a_head(make, tensors, theirs):
    folder = make(without(tensors, *HEAD))
    refusal(folder, "model.safetensors", "qa_outputs", "train")
    torch.manual_seed(7)
    model, report = load_checkpoint(folder, require_head=False)
    assert report.initialized == HEAD
    assert set(report.loaded) == set(tensors) - set(HEAD)
    # Initialized from torch's generator: equal for equal seeds, different for others.
    torch.manual_seed(7)
    again, _ = load_checkpoint(folder, require_head=False)
    other, _ = load_checkpoint(folder, require_head=False)
    assert_same_weights(model, again)
    assert not torch.equal(model.head.weight, other.head.weight)
    assert model.head.weight.unique().numel() == 2 * 36
    assert torch.equal(model.head.bias, torch.zeros(2))
    # The encoder is the checkpoint's.
    with torch.no_grad():
        model.head.weight.copy_(theirs.qa_outputs.weight)
        model.head.bias.copy_(theirs.qa_outputs.bias)
    assert_equal_logits(model, theirs)


@pytest.mark.parametrize("require_head", [True, False])
def test_loading_a_fine_tuned_model_draws_no_random_numbers(saved, require_head):
    before = torch.get_rng_state()
    load_checkpoint(saved, require_head=require_head)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fresh_head_is_as_wide_as_the_config_says(make, tensors):
    heads = []
    for width in (0.25, 1.0):
        folder = make(without(tensors, *HEAD), initializer_range=width)
        torch.manual_seed(8)
        heads.append(load_checkpoint(folder, require_head=False)[0].head.weight)
    assert torch.equal(heads[0] * 4, heads[1])
    assert 0.7 < heads[1].std() < 1.3


@pytest.mark.parametrize("half", HEAD)
def test_half_a_head(make, tensors, half):
    refusal(make(without(tensors, half)), "model.safetensors", half, require_head=False)


# --- wrong tensors -------------------------------------------------------------------------------


def test_every_tensor_is_needed(make, tensors):
    for name in tensors:
        folder = make(without(tensors, name))
        refusal(folder, "model.safetensors", f"must contain {name}")


@pytest.mark.parametrize(
    "name",
    [
        "bert.encoder.layer.3.output.dense.bias",  # a layer too many
        "bert.embeddings.word_embeddings.weight_scale",
        "roberta.embeddings.word_embeddings.weight",
        "qa_outputs.extra",
        "two\nlines",
    ],
)
def test_unknown_tensors(make, tensors, name):
    folder = make({**tensors, name: torch.zeros(36)})
    refusal(folder, "model.safetensors", repr(name)[1:-1], "only tensors of a BERT")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("bert.encoder.layer.0.intermediate.dense.weight", (36, 37)),  # transposed
        ("bert.encoder.layer.2.attention.self.key.bias", (35,)),
        ("bert.embeddings.position_embeddings.weight", (63, 36)),
        ("bert.embeddings.LayerNorm.weight", (1, 36)),
        ("qa_outputs.weight", (3, 36)),
        ("qa_outputs.bias", ()),
    ],
)
def test_wrong_shapes(make, tensors, name, shape):
    expected = tuple(tensors[name].shape)
    tensors[name] = torch.zeros(shape)
    refusal(make(tensors), "model.safetensors", name, str(shape), str(expected), "config.json")


def test_no_weights(make):
    folder = make()
    (folder / "model.safetensors").unlink()
    refusal(folder, "must contain model.safetensors", "no weights")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapter_config.json", ["an adapter, such as LoRA's", "merge_and_unload"]),
        ("language_model_config.json", ["FARM", "convert_to_transformers"]),
        ("modules.json", ["sentence-transformers", "Transformer module"]),
        ("tf_model.h5", ["TensorFlow", "from_tf=True"]),
        ("bert_model.ckpt.index", ["Google's BERT", "convert it to PyTorch"]),
    ],
)
def test_folders_of_other_libraries_are_named(make, name, words):
    folder = make()
    (folder / name).write_text("{}")
    load_checkpoint(folder)  # other files are ignored if there are a BERT's weights
    (folder / "model.safetensors").unlink()
    refusal(folder, "must contain a BERT's model.safetensors", name, *words)
    (folder / "config.json").unlink()
    refusal(folder, "must contain a BERT's model.safetensors", name, *words)


# --- shards --------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path, config, tensors):
    """Writes a folder of two shards with their index, with changes."""
    names = sorted(tensors)
    parts = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for shard, held in parts.items():
        save_file({name: tensors[name] for name in held}, tmp_path / shard)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weight_map = {name: shard for shard, held in parts.items() for name in held}

    def write(**changes):
        changed = {k: v for k, v in (weight_map | changes).items() if v is not None}
        index = {"metadata": {"total_size": 1}, "weight_map": changed}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        return tmp_path

    return write


FIRST, LAST = "bert.embeddings.LayerNorm.bias", "qa_outputs.weight"


def test_a_missing_shard(shards):
    folder = shards()
    load_checkpoint(folder)
    (folder / "b.safetensors").unlink()
    refusal(folder, "b.safetensors", "missing")


def test_an_index_that_does_not_fit(shards, tensors, tmp_path):
    refusal(shards(more="a.safetensors"), "index.json", "a.safetensors", "'more'")
    refusal(shards(**{LAST: None}), "index.json", "b.safetensors", repr(LAST))
    refusal(shards(**{LAST: "a.safetensors"}), "index.json", "a.safetensors", repr(LAST))
    # One tensor in two shards: which one would be right?
    save_file({LAST: -tensors[LAST], FIRST: tensors[FIRST]}, tmp_path / "c.safetensors")
    refusal(shards(**{FIRST: "c.safetensors"}), "index.json", repr(FIRST))


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": null}'],
)
def test_an_invalid_index(shards, content):
    folder = shards()
    (folder / "model.safetensors.index.json").write_text(content)
    refusal(folder, "model.safetensors.index.json")


# --- config.json ---------------------------------------------------------------------------------


def test_no_config(make):
    folder = make()
    (folder / "config.json").unlink()
    refusal(folder, "config.json", "must exist")
    shutil.rmtree(folder)
    refusal(folder, "config.json", "must exist")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "relu"),
        ("hidden_act", "gelu_new"),
        ("hidden_act", None),
        ("hidden_act", ["gelu"]),
        ("position_embedding_type", "relative_key"),
        ("position_embedding_type", "relative_key_query"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("pruned_heads", {"0": [1]}),
        ("model_type", "roberta"),
        ("model_type", None),
        ("quantization_config", {"quant_method": "gptq"}),
        ("type_vocab_size", 1),
        *(
            (key, value)
            for key in TINY
            for value in (0, -1, "36", 36.0, True, None, [36], 10**12, 10**30)
        ),
        *(
            (key, value)
            for key in ("hidden_dropout_prob", "attention_probs_dropout_prob")
            for value in (1.0, 1, -0.1, 2, "0.1", None, False, float("nan"), float("inf"))
        ),
        *(
            (key, value)
            for key in ("layer_norm_eps", "initializer_range")
            for value in (0, -1e-12, "1e-12", None, True, float("nan"), float("inf"), 10**400)
        ),
    ],
)
def test_unsupported_values(make, key, value):
    message = refusal(make(**{key: value}), "config.json", key)
    assert shown(value) in message


@pytest.mark.parametrize("heads", [5, 7, 8, 72])
def test_hidden_size_must_be_a_multiple_of_the_heads(make, heads):
    folder = make(num_attention_heads=heads)
    refusal(folder, "config.json", "hidden_size", f"num_attention_heads ({heads}), got 36")


def test_explicit_default_values(make, theirs):
    usual = {
        "position_embedding_type": None,
        "is_decoder": None,
        "add_cross_attention": False,
        "is_encoder_decoder": False,
        "pruned_heads": {},
        "quantization_config": None,
        "gradient_checkpointing": False,
        "hidden_dropout_prob": 0,
        "id2label": {"0": "LABEL_0"},
    }
    model, report = load_checkpoint(make(**usual))
    assert report.unknown_config_keys == ()
    assert model.config.hidden_dropout_prob == 0
    assert_equal_logits(model, theirs)


def test_unknown_keys_are_reported(make, theirs):
    model, report = load_checkpoint(make(rope_theta=1e4, alibi=None, layer_norm_epsilon=1.0))
    assert report.unknown_config_keys == ("alibi", "layer_norm_epsilon", "rope_theta")
    assert_equal_logits(model, theirs)


def test_missing_keys_have_transformers_defaults(tmp_path):
    ours, unknown = parse_config({}, "x")
    assert unknown == []
    theirs = TheirConfig()
    assert ours == BertConfig(**{f.name: getattr(theirs, f.name) for f in fields(BertConfig)})
    (tmp_path / "config.json").write_text('{"hidden_size": 24}')
    assert load_config(tmp_path) == (BertConfig(hidden_size=24), [])


# --- the report ----------------------------------------------------------------------------------


def test_a_report_with_everything_in_it(make, tensors, tmp_path):
    changed = {_old_norms(name): tensor for name, tensor in without(tensors, *HEAD).items()}
    changed["cls.predictions.bias"] = torch.ones(101)
    changed["cls.predictions.transform.LayerNorm.gamma"] = torch.ones(36)
    _, report = load_checkpoint(make(changed, novelty=1), require_head=False)
    old, new = next((old, new) for old, new in report.renamed.items() if old.startswith("bert."))
    assert str(report).splitlines() == [
        f"{tmp_path / 'model.safetensors'}: 53 tensors loaded",
        f"  renamed: 14 of these, such as {old} -> {new}",
        "  left over: cls.predictions.bias, cls.predictions.transform.LayerNorm.weight",
        "  newly initialized: qa_outputs.bias, qa_outputs.weight",
        "  unknown config keys: novelty",
    ]
