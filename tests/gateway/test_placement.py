"""Where chunks go: balance by weight, spread over zones, and how little moves when nodes come and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from gateway.blobs.placement import Place, Said, copies, decode_places, encode_places, enough, homes, order
from objmeta import errors

DIGESTS = st.binary(min_size=32, max_size=32)
REPLICAS = st.integers(1, 7)
_PLACE = st.builds(
    Place,
    st.integers(1, 1000),
    st.just("127.0.0.1:1"),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 10.0]),
    st.sampled_from(["", "a", "b", "c"]),
)
PLACES = st.lists(_PLACE, min_size=1, max_size=9, unique_by=lambda place: place.node_id)


def digests(count: int) -> list[bytes]:
    return [blake3(str(number).encode()).digest() for number in range(count)]


def plainly(digest: bytes, places: Sequence[Place], replicas: int) -> list[Place]:
    """The homes as one would say it: the best of a zone that is not used yet, until all are, and so on."""
    by_id = {place.node_id: place for place in places}
    without_zones = [Place(place.node_id, place.address, place.weight) for place in places]
    ranked = [by_id[scored.node_id] for scored in order(digest, without_zones)]
    found: list[Place] = []
    used: set[str] = set()
    while ranked and len(found) < replicas:
        if not any(place.zone not in used for place in ranked):
            used = set()
        best = next(place for place in ranked if place.zone not in used)
        ranked.remove(best)
        used.add(best.zone)
        found.append(best)
    return found


@given(DIGESTS, PLACES, REPLICAS)
def test_homes_are_the_best_of_zones_not_used_yet(digest: bytes, places: list[Place], replicas: int) -> None:
    assert homes(digest, places, replicas) == plainly(digest, places, copies(replicas, len(places)))


@given(DIGESTS, PLACES, st.randoms(use_true_random=False))
def test_everybody_finds_the_same_order(digest: bytes, places: list[Place], random: object) -> None:
    expected = order(digest, places)
    assert sorted(place.node_id for place in expected) == sorted(place.node_id for place in places)
    assert order(digest, places[::-1]) == expected
    elsewhere = [Place(p.node_id, "10.0.0.1:2", p.weight, p.zone) for p in places]
    assert [place.node_id for place in order(digest, elsewhere)] == [place.node_id for place in expected]


@given(DIGESTS, PLACES, _PLACE, REPLICAS)
def test_one_node_more_or_less_moves_at_most_its_own_copy(
    digest: bytes, places: list[Place], other: Place, replicas: int
) -> None:
    before = [place for place in places if place.node_id != other.node_id]
    with_it, without = homes(digest, [*before, other], replicas), homes(digest, before, replicas)
    assert set(with_it) - set(without) <= {other}
    assert len(set(without) - set(with_it)) <= 1


@given(DIGESTS, PLACES, REPLICAS)
def test_copies_are_spread_over_zones(digest: bytes, places: list[Place], replicas: int) -> None:
    room = Counter(place.zone for place in places)
    used = Counter(place.zone for place in homes(digest, places, replicas))
    for zone in room:
        assert all(used[zone] == room[zone] or used[other] <= used[zone] + 1 for other in room)


@given(st.integers(0, 9), st.integers(1, 9))
def test_a_put_waits_for_all_copies_or_a_majority(replicas: int, nodes: int) -> None:
    assert 1 <= enough(replicas, nodes) <= copies(replicas, nodes) <= nodes
    assert enough(replicas, nodes) == min(replicas or 3, nodes // 2 + 1)


def test_shares_follow_weights() -> None:
    places = [Place(node_id, "", weight) for node_id, weight in ((1, 1.0), (2, 2.0), (3, 1.0), (4, 4.0))]
    count = 8000
    first = Counter(homes(digest, places, 1)[0].node_id for digest in digests(count))
    for place in places:
        assert first[place.node_id] == pytest.approx(count * place.weight / 8, rel=0.1)


def test_five_equal_nodes_share_three_copies() -> None:
    places = [Place(node_id, "") for node_id in range(1, 6)]
    kept = Counter(home.node_id for digest in digests(5000) for home in homes(digest, places, 0))
    assert all(count == pytest.approx(3000, rel=0.05) for count in kept.values())


def test_a_node_without_weight_is_a_home_only_when_nobody_else_is_left() -> None:
    places = [Place(1, "", 0), Place(2, ""), Place(3, "")]
    for digest in digests(100):
        assert order(digest, places)[-1].node_id == 1
    assert homes(digest, places[:1], 3) == places[:1]


def test_what_nodes_say_of_themselves() -> None:
    said = {3: Said(2.5, "rack 1"), 1: Said()}
    assert decode_places(encode_places(said)) == said
    assert decode_places(None) == decode_places(b"\xc1") == {}
    for wrong in (Said(-1.0), Said(float("nan")), Said(float("inf")), Said(1.0, "x" * 65), Said(1.0, "a\nb")):
        with pytest.raises(errors.InvalidArgument):
            wrong.checked()
