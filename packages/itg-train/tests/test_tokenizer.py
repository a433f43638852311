import pytest
from itg_train.tokenizer import train_tokenizer

QUESTIONS = ["What does the red circle do?", "Which object moves left?"]


def test_any_text_comes_back_as_it_was():
    tokenizer = train_tokenizer(QUESTIONS, 300)
    for text in (*QUESTIONS, "Łódź 東京 🙂\n\t!!", "<|endo"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_was_learnt_from_is_short_and_the_order_does_not_matter():
    tokenizer = train_tokenizer(QUESTIONS, 320)
    assert len(tokenizer.encode(QUESTIONS[0])) < len(QUESTIONS[0]) / 3
    assert train_tokenizer(QUESTIONS[::-1], 320).get_vocab() == tokenizer.get_vocab()


def test_the_vocabulary_keeps_within_its_bound_and_never_falls_below_the_bytes():
    assert len(train_tokenizer(QUESTIONS, 280)) <= 280
    with pytest.raises(ValueError, match="vocab_size must be > 256, got 256"):
        train_tokenizer(QUESTIONS, 256)
