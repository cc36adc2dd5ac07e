import pytest
from hypothesis import given
from hypothesis import strategies as st

from backdoor_audit.errors import AuditError
from backdoor_audit.printable import first_line, line_of, listed, printable, printable_parts, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("7 (sneaker)", "7 (sneaker)"),
        ("Größe 猫 🧑‍🚀", "Größe 猫 🧑‍🚀"),
        ("a\x1b[31mred\x07", r"a\x1b[31mred\x07"),
        ("caf\udce9", r"caf\udce9"),
        ("left\u202eright", r"left\u202eright"),
        ("one\n::error::two", "one : :error::two"),
        ("::set-output name=x::y", ": :set-output name=x::y"),
        ("##[error]x", "# #[error]x"),
        ("##vso[task.complete]", "# #vso[task.complete]"),
        ("audit::test_precondition[accuracy]", "audit::test_precondition[accuracy]"),
        ("a\x00b\t c", r"a\x00b c"),
    ],
)
def test_text_from_outside_is_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(alphabet=st.characters() | st.sampled_from(list(":#[ \n\x1b\udce9"))))
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    once = printable(text)
    assert printable(once) == once
    assert once.encode("utf-8").decode("utf-8") == once
    assert "\n" not in once
    assert "\x1b" not in once
    assert not once.startswith("::")
    assert " ::" not in once


def test_names_and_values_of_nested_content_become_printable() -> None:
    assert printable_parts({"a\x1b": ["b\n", 1, None, {"c": "\x07"}]}) == {r"a\x1b": ["b", 1, None, {"c": r"\x07"}]}


def test_an_error_says_one_printable_line() -> None:
    assert str(AuditError("m\x1b.pt:\n::error::bad")) == r"m\x1b.pt: : :error::bad"


def test_a_long_list_says_how_many_more_there_are() -> None:
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert listed(["a", "b", "c", "d"], 2, "; ") == "a; b; and 2 more"


def test_a_long_text_keeps_its_ends_and_says_its_length() -> None:
    assert shortened("a" * 200) == "a" * 200
    assert shortened("a" * 100 + "b" * 101) == f"{'a' * 87} ... (201 characters) ... {'b' * 87}"
    assert listed(["a" * 500, "b"]) == f"{'a' * 87} ... (500 characters) ... {'a' * 87}, b"


@pytest.mark.parametrize("word", ["x" * 5000, "x " * 2500, "9" * 5000, "\x1b" * 5000])
def test_what_to_do_is_not_lost_behind_a_long_text_from_outside(word: str) -> None:
    said = str(AuditError(f"{word}: holds {word}; remove {word}"))
    assert len(said) <= (4000 if " " in word else 1300)
    assert said.startswith(word.encode("unicode_escape").decode()[:100])
    assert " characters) ... " in said
    if " " not in word:
        assert ": holds " in said
        assert "; remove " in said
    kept = "p" * 399
    assert line_of(f"{kept}: gone") == f"{kept}: gone"
    assert len(line_of(f"{kept}pp: gone")) < len(f"{kept}pp: gone")


def test_an_error_is_told_by_its_first_line_or_its_name() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
