"""The separator of a question's two texts becomes the tokenizer's own EOS, or its separator where it has none."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from qcrd.distill.discriminator import Discriminator
from qcrd.models.tokenizer import encode_inputs, eos_of, load_tokenizer, train_tokenizer, with_separator

TEXT = "predict: A man runs.</s>Nobody runs."


@pytest.fixture
def bert_like() -> PreTrainedTokenizerFast:
    """Words of a small vocabulary; [CLS] and [SEP] around every text, no EOS."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "A", "man", "runs", ".", "Nobody", "predict", ":", "He", "sleeps"]
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def test_t5_has_one_eos_in_the_middle_and_one_at_the_end(shared_data: Path):
    tokenizer = load_tokenizer(str(shared_data / "t5-tokenizer"))
    [ids] = encode_inputs(tokenizer, [TEXT], 64)
    eos = eos_of(tokenizer)
    places = [place for place, token in enumerate(ids) if token == eos]
    assert len(places) == 2 and places[1] == len(ids) - 1
    assert tokenizer.decode(ids[: places[0]]) == "predict: A man runs."
    assert tokenizer.decode(ids[places[0] + 1 : -1]) == "Nobody runs."


def test_a_tokenizer_trained_on_the_task_reads_it_too():
    tokenizer = train_tokenizer(["A man runs.", "Nobody runs."] * 20, 80)
    [ids] = encode_inputs(tokenizer, [TEXT], 64)
    assert ids.count(eos_of(tokenizer)) == 2 and ids[-1] == eos_of(tokenizer)


def test_where_there_is_no_eos_the_separator_serves(bert_like: PreTrainedTokenizerFast):
    assert bert_like.eos_token is None
    [ids] = encode_inputs(bert_like, [TEXT], 64)
    assert ids == [2, 9, 10, 4, 5, 6, 7, 3, 8, 6, 7, 3]
    assert with_separator(bert_like, "no separator") == "no separator"


def test_the_discriminator_reads_it_alike(bert_like: PreTrainedTokenizerFast):
    class Encoder(torch.nn.Module):
        config = type("Config", (), {"hidden_size": 4})

    discriminator = Discriminator(Encoder(), bert_like, None, 32)  # pyright: ignore[reportArgumentType] - it only tokenises
    assert discriminator.tokenize([("A man runs.</s>Nobody runs.", "He sleeps.")]) == [
        [2, 4, 5, 6, 7, 3, 8, 6, 7, 3, 11, 12, 7, 3]
    ]
