"""The partition as a value: validation, order, files, agreement."""

from __future__ import annotations

import cProfile
import json
import unicodedata
from dataclasses import FrozenInstanceError
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nofe_lab import InvalidInput, Specialties
from nofe_lab.specialties import maps_of, read_moves, settling

PETS = Specialties(("cat", "bus", "dog", "car"), (0, 2, 0, 2), 3, ("pets", "plants", "traffic"))


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp")), max_size=8)


@pytest.mark.parametrize(
    "name", ["\x1b[31m", "a\nb", "caf\udce9", "\0", "\u202etac", "c\u200bat", "ca\u200d"]
)
def test_names_that_a_terminal_or_a_file_would_not_take_are_refused(name: str) -> None:
    for given_names in ((("a", name), ()), (("a", "b"), (name, "x"))):
        with pytest.raises(
            InvalidInput, match="must be text without control or invisible characters"
        ) as bad:
            Specialties(given_names[0], (0, 1), 2, given_names[1])
        assert str(bad.value).isprintable()


def as_seen(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).split())


@st.composite
def partitions(draw: st.DrawFn) -> Specialties:
    names = draw(st.lists(NAMES.filter(as_seen), min_size=1, max_size=12, unique_by=as_seen))
    K = draw(st.integers(1, len(names)))
    of = draw(st.lists(st.integers(0, K - 1), min_size=len(names), max_size=len(names)))
    return Specialties(tuple(names), tuple(of), K)


def test_sizes_members_and_order_follow_from_the_map() -> None:
    assert PETS.C == 4
    assert PETS.sizes == (2, 0, 2)
    assert PETS.members(2) == (1, 3)
    assert PETS.class_names_of(0) == ("cat", "dog")
    assert PETS.nonempty == (0, 2)
    assert PETS.order == (0, 2, 1, 3)


def test_specialties_are_named_by_their_number_counted_from_1() -> None:
    assert Specialties(("a", "b"), (0, 1), 2).names == ("1", "2")


def test_specialties_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        PETS.K = 4  # type: ignore[misc]
    assert hash(PETS) == hash(Specialties(PETS.class_names, PETS.of, 3, PETS.names))


@pytest.mark.parametrize(
    ("class_names", "of", "K", "names", "sentence"),
    [
        (("a", "b"), (0,), 1, (), "of 2 classes needs 2 specialties; got 1"),
        (("a", "b"), (0, 2), 2, (), "class 'b' is in specialty 2; accepted: 0 to 1"),
        (("a", "b"), (-1, 0), 2, (), "class 'a' is in specialty -1"),
        (("a", "a"), (0, 1), 2, (), "class names of a partition must differ"),
        (("a", "b"), (0, 1), 3, (), "K must be a whole number from 1 to 2; got 3"),
        (("a", "b"), (0, 0), True, (), "K must be a whole number from 1 to 2; got True"),
        (("a", "b"), (0, 1), 2, ("x",), "2 specialties need 2 names; got 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    class_names: tuple[str, ...], of: tuple[int, ...], K: int, names: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        Specialties(class_names, of, K, names)


@given(partitions())
def test_every_class_is_a_member_of_its_own_specialty_only(found: Specialties) -> None:
    for k in range(found.K):
        assert all(found.of[c] == k for c in found.members(k))
    assert sorted(found.order) == list(range(found.C))
    assert sum(found.sizes) == found.C


@given(partitions())
def test_json_brings_back_the_same_partition(found: Specialties) -> None:
    assert Specialties.from_json(found.to_json()) == found


def test_json_names_the_classes_of_each_specialty() -> None:
    assert json.loads(PETS.to_json())["specialties"] == [
        {"name": "pets", "classes": ["cat", "dog"]},
        {"name": "plants", "classes": []},
        {"name": "traffic", "classes": ["bus", "car"]},
    ]


def test_a_file_written_by_hand_needs_no_class_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"specialties": [{"name": "x", "classes": ["b"]}, {"name": "y", "classes": '
                    '["c", "a"]}]}')  # fmt: skip
    found = Specialties.load(file, ("a", "b", "c"))
    assert found == Specialties(("a", "b", "c"), (1, 0, 1), 2, ("x", "y"))


def test_a_file_is_put_into_the_data_set_s_class_order(tmp_path: Path) -> None:
    file = tmp_path / "pets.json"
    file.write_text(PETS.to_json())
    found = Specialties.load(file, ("bus", "car", "cat", "dog"))
    assert found.class_names == ("bus", "car", "cat", "dog")
    assert found.of == (2, 2, 0, 0)
    assert found.names == PETS.names


def test_a_file_of_other_classes_is_refused_with_the_ones_that_differ(tmp_path: Path) -> None:
    file = tmp_path / "pets.json"
    file.write_text(PETS.to_json())
    sentence = r"4 classes are not the data set's 3: 'car' not in .*, none not in the specialties"
    with pytest.raises(InvalidInput, match=sentence):
        Specialties.load(file, ("bus", "cat", "dog"))
    with pytest.raises(InvalidInput, match="'cat' not in the data set, 'cow' not in the special"):
        Specialties.load(file, ("bus", "car", "cow", "dog"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "specialties must be JSON like"),
        ("[]", "specialties must be JSON like"),
        ('{"specialties": [{"classes": ["a"]}]}', r"KeyError: 'name'"),
        (
            '{"specialties": [{"name": "x", "classes": ["a"]}, {"name": "y", "classes": ["a"]}]}',
            "each class belongs to one specialty; 'a' to several",
        ),
        (
            '{"class_names": ["a", "b"], "specialties": [{"name": "x", "classes": ["a"]}]}',
            "class_names and the specialties' classes differ: 'b'",
        ),
        (
            '{"class_names": 5, "specialties": [{"name": "x", "classes": ["a"]}]}',
            "specialties must be JSON like",
        ),
        ('{"specialties": [{"name": "x", "classes": "cat"}]}', "specialties must be JSON like"),
    ],
)
def test_a_text_that_is_no_partition_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        Specialties.from_json(text)


def test_a_file_that_is_not_there_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"specialties file '.*none\.json' cannot be read"):
        Specialties.load(tmp_path / "none.json", ("a", "b"))


def test_agreement_of_equal_partitions_is_1_whatever_their_specialties_are_called() -> None:
    one = Specialties(tuple("abcd"), (0, 0, 1, 1), 2)
    other = Specialties(tuple("abcd"), (1, 1, 0, 0), 2, ("x", "y"))
    assert one.agreement(other) == pytest.approx({"nmi": 1, "ari": 1})


def test_agreement_of_independent_partitions() -> None:
    one = Specialties(tuple("abcd"), (0, 0, 1, 1), 2)
    other = Specialties(tuple("abcd"), (0, 1, 0, 1), 2)
    # no pair together in both; 2 * 2 of 6 pairs expected: (0 - 2/3) / (2 - 2/3)
    assert one.agreement(other) == pytest.approx({"nmi": 0, "ari": -0.5}, abs=1e-12)


def test_agreement_of_partitions_that_differ_in_one_class() -> None:
    one = Specialties(tuple("abcd"), (0, 0, 1, 1), 2)
    other = Specialties(tuple("abcd"), (0, 0, 0, 1), 2)
    information = 0.5 * log(4 / 3) + 0.25 * log(2 / 3) + 0.25 * log(2)
    entropies = log(2), -(0.75 * log(0.75) + 0.25 * log(0.25))
    # together in both: 1 pair; expected: 2 * 3 / 6 = 1 pair
    expected = {"nmi": information / (sum(entropies) / 2), "ari": 0}
    assert one.agreement(other) == pytest.approx(expected, abs=1e-12)


def test_partitions_of_other_classes_have_no_agreement() -> None:
    with pytest.raises(InvalidInput, match="'d' not in the data set, 'x' not in the specialties"):
        Specialties(tuple("abcd"), (0, 0, 1, 1), 2).agreement(
            Specialties(tuple("abcx"), (0, 0, 1, 1), 2)
        )


def test_classes_in_another_order_are_other_classes() -> None:
    with pytest.raises(InvalidInput, match="the order differs"):
        PETS.check_classes(("bus", "car", "cat", "dog"))


@given(st.integers(2, 20), st.data(), st.integers(0, 99))
def test_random_specialties_are_balanced(C: int, data: st.DataObject, seed: int) -> None:
    K = data.draw(st.integers(2, C))
    found = Specialties.random([str(c) for c in range(C)], K, seed)
    assert sorted(found.sizes) == [C // K] * (K - C % K) + [C // K + 1] * (C % K)


def test_random_specialties_depend_on_the_seed_alone() -> None:
    names = [str(c) for c in range(20)]
    assert Specialties.random(names, 4, 1) == Specialties.random(names, 4, 1)
    assert Specialties.random(names, 4, 1) != Specialties.random(names, 4, 2)


def test_the_digest_is_of_the_map_and_not_of_the_specialties_names() -> None:
    one = Specialties(tuple("abc"), (0, 0, 1), 2)
    assert one.digest == Specialties(tuple("abc"), (0, 0, 1), 2, ("x", "y")).digest
    others = [
        Specialties(tuple("abc"), (0, 1, 1), 2),
        Specialties(tuple("abd"), (0, 0, 1), 2),
        Specialties(tuple("abc"), (0, 0, 1), 3),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 4


def test_a_class_moves_and_the_old_partition_stays() -> None:
    moved = PETS.moved(1, 1)
    assert moved.class_names_of(1) == ("bus",)
    assert (moved.names, PETS.of) == (PETS.names, (0, 2, 0, 2))
    for label, k in ((4, 0), (-1, 0), (0, 3), (0, -1)):
        with pytest.raises(InvalidInput, match="must be a whole number from 0 to"):
            PETS.moved(label, k)


def test_specialties_come_and_the_empty_ones_go() -> None:
    more = PETS.with_one_more("new")
    assert (more.K, more.names[-1], more.sizes) == (4, "new", (2, 0, 2, 0))
    assert more.without(3) == PETS
    fewer = PETS.without(1)
    assert (fewer.K, fewer.of, fewer.names) == (2, (0, 1, 0, 1), ("pets", "traffic"))
    with pytest.raises(InvalidInput, match="specialty 'pets' has 2 classes; accepted: one without"):
        PETS.without(0)
    with pytest.raises(InvalidInput, match="K must be a whole number from 1 to 4; got 5"):
        more.with_one_more("newer")


def test_specialties_of_another_partition_are_matched_by_their_classes() -> None:
    names = ("a", "b", "c", "d", "e")
    own = Specialties(names, (0, 0, 1, 1, 1), K=2)
    assert own.matched(own) == (0, 1)
    assert own.matched(Specialties(names, (1, 1, 0, 0, 0), K=2)) == (1, 0)
    # one to one, as many classes in common as there can be; what is left over comes behind
    assert own.matched(Specialties(names, (2, 2, 0, 0, 1), K=3)) == (1, 2, 0)
    with pytest.raises(InvalidInput):
        own.matched(Specialties(("x", *names[1:]), (0, 0, 1, 1, 1), K=2))


def test_maps_and_when_classes_settled() -> None:
    maps = np.array([[0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 1, 0], [0, 1, 1]])
    rows = [
        {"update": u, "class": c, "specialty": k}
        for u, of in enumerate(maps)
        for c, k in enumerate(of)
    ]
    history = pd.DataFrame(rows).sample(frac=1, random_state=0)
    final = Specialties(("a", "b", "c"), (0, 1, 1), 2)
    assert np.array_equal(maps_of(history, final), maps)
    found = settling(maps)
    assert found["moves"].tolist() == [0, 1, 4]
    assert found["last_moved"].tolist() == [0, 1, 4]
    assert found["settled"].tolist() == [True, True, False]
    assert settling(maps[:1])["settled"].all()
    with pytest.raises(InvalidInput, match=r"has class \d twice in update \d"):
        maps_of(pd.concat([history, history[:1]]), final)
    with pytest.raises(InvalidInput, match="one row for each class and each update"):
        maps_of(history[1:], final)


def test_moves_are_read_from_text() -> None:
    names = ("shark", "a: b", "whale")
    assert read_moves("shark: 2, a: b: 1,", names, K=2) == [(0, 1), (1, 0)]
    assert read_moves("", names, K=2) == []
    for text, message in (
        ("shark", "got 'shark'"),
        ("shark: 3", "specialties from 1 to 2; got 'shark: 3'"),
        ("shark: x", "got 'shark: x'"),
        ("shrak: 1", "did you mean 'shark'"),
    ):
        with pytest.raises(InvalidInput, match=message):
            read_moves(text, names, K=2)


@pytest.mark.parametrize("name", ["null", "true", "[1]", '{"a": 1}'])
def test_what_is_no_name_is_refused(name: str) -> None:
    text = f'{{"specialties": [{{"name": "x", "classes": [{name}, "b"]}}]}}'
    with pytest.raises(InvalidInput, match="is not a name"):
        Specialties.from_json(text)


def test_partitions_of_many_classes_are_read_in_linear_time() -> None:
    """20,000 classes took 17 seconds; twenty times as many steps would be found here."""
    steps = []
    for C in (2000, 4000):
        names = tuple(f"c{i}" for i in range(C))
        given = Specialties(names, tuple(i % (C // 4) for i in range(C)), C // 4)
        profile = cProfile.Profile()
        profile.enable()
        found = Specialties.from_json(given.to_json())
        profile.disable()
        assert found == given
        steps.append(sum(entry.callcount for entry in profile.getstats()))
    assert steps[1] < 3 * steps[0]


def test_names_are_compared_as_they_are_seen() -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    found = Specialties((apart, "dog"), (0, 1), 2)
    found.check_classes((composed, "dog"))
    with pytest.raises(InvalidInput, match="must differ"):
        Specialties((composed, apart), (0, 1), 2)
    with pytest.raises(InvalidInput, match="differ in more than blanks"):
        Specialties(("cat", "cat "), (0, 1), 2)


@pytest.mark.parametrize("of", [("x", 0), (float("nan"), 0), (float("inf"), 0), (None, 0), None])
def test_specialties_that_are_no_numbers_are_refused(of: Any) -> None:
    with pytest.raises(InvalidInput, match="specialties must be whole numbers; got"):
        Specialties(("a", "b"), of, 2)


@pytest.mark.parametrize("text", [None, 5, {}, "[]", '{"specialties": [], "specialties": []}'])
def test_what_is_no_text_of_specialties_is_refused(text: Any) -> None:
    with pytest.raises(InvalidInput, match=r"specialties must be JSON like|at least 1 class"):
        Specialties.from_json(text)
