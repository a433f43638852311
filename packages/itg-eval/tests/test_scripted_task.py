import pytest
from itg_eval.scripted.task.itg_scripted import process_results


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("D", "D"),
        ("D.", "D"),
        ("A", "A"),
        ("(A) It moves left", "A"),
        ("A. It moves left", "A"),
        ("A is right", "A"),
        ("Answer: A", "A"),
        ("The answer is A because it moves", "A"),
        ("A red circle is shown; the answer is D.", "D"),
        ("It comes in. A red circle moves left: B", "B"),
        ("", None),
        ("A red circle moves left", None),
        ("None of them", None),
    ],
)
def test_an_article_is_not_taken_for_the_first_option(said, letter):
    for answer in "ABCDE":
        judged = process_results({"answer": answer}, [said])
        assert judged == {"itg_scripted_acc": float(answer == letter)}
