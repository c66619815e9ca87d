"""Text to search terms."""

from likewise.search.analyzer import MAX_TERMS, TERM_SPACE, analyze


def test_forms_of_a_word_are_one_term() -> None:
    assert analyze("Freezing pumps") == analyze("freeze PUMP")


def test_terms_are_counted_and_in_their_space() -> None:
    counted = analyze("pump valve pump")
    assert sorted(counted.values()) == [1, 2]
    assert all(1 <= term <= TERM_SPACE for term in counted)


def test_the_commonest_words_are_left_out() -> None:
    assert analyze("the pump is in the house") == analyze("pump house")
    assert not analyze("to be or not to be")


def test_names_with_underscores_are_found_whole_and_by_their_words() -> None:
    name = set(analyze("read_file"))
    assert set(analyze("read")) < name
    assert set(analyze("file")) < name
    assert len(name) == 3


def test_scripts_without_spaces_are_read_in_pairs() -> None:
    sentence = set(analyze("今日は天気がいい"))
    assert set(analyze("天気")) <= sentence
    assert len(sentence) > 5


def test_compatibility_forms_are_the_same_word() -> None:
    assert analyze("ｆｉｌｅ ﬁle") == analyze("file file")


def test_marks_and_signs_alone_are_no_terms() -> None:
    for text in ("", "   ", '"', "AND NOT", "*", "-- ! ?", "\u0301" * 1000, "_" * 1000):
        assert all(term > 0 for term in analyze(text))
    assert not analyze("*") | analyze('"') | analyze("___")


def test_a_dump_of_words_keeps_its_first_terms() -> None:
    counted = analyze(" ".join(f"w{n}x" for n in range(20_000)))
    assert len(counted) == MAX_TERMS


def test_a_run_without_end_is_one_term() -> None:
    assert len(analyze("a" * 200_000)) == 1
